//! What the loader and the agent both do.

pub mod disk;
pub mod modules;
