//! sealpod-image
