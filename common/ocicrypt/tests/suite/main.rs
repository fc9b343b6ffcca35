//! What the crate promises, in one test program.

mod annotations;
mod jwe;
mod keyprovider;
mod layer;
mod robustness;
mod skopeo;
mod support;
mod unwrap;
