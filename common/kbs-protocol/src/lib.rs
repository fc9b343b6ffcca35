//! What guests, owners and key brokers say to one another: resource names, the messages of the attestation handshake
//! (RCAR: request, challenge, attestation, response), encryption to a guest's key, and the claims of tokens.

pub mod ear;
pub mod jwe;
pub mod rcar;
mod resource;
mod secret;

pub use resource::{ResourceNameError, ResourcePath, ResourceUri};
pub use secret::Secret;
