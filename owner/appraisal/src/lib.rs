//! sealpod-appraisal
