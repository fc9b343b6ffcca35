//! sealpod-attester
