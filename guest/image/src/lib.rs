//! sealpod-guest-image
