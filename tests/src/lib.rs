//! sealpod-tests
