//! What the loader does to have a disk, and the agent after it for more of them.

#![no_std]

pub mod disk;
pub mod modules;
