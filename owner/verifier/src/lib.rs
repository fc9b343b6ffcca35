//! sealpod-verifier
