//! sealpod-kbs-protocol
