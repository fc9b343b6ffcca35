//! sealpod-ocicrypt
