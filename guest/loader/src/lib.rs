//! What the loader does to have a disk, and how what is on it is found.

#![no_std]

pub mod disk;
pub mod modules;
