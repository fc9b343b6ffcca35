//! What the benches share.

pub mod limits;
