//! sealpod-measure
