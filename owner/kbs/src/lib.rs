//! sealpod-kbs
