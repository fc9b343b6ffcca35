//! sealpod-evidence
