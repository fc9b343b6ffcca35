//! Container images: references, registries, signatures and policies, and the pull pipeline.
//!
//! What a guest needs is always here; what an owner needs (building, encrypting, pushing and signing) stands behind
//! the feature `author`.

#[cfg(feature = "author")]
pub mod author;
pub mod digest;
mod json;
pub mod manifest;
pub mod platform;
pub mod policy;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod signature;
pub mod store;
mod unpack;

pub use unpack::UnpackError;
