//! sealpod-sandbox
