//! The loader's parts that the agent uses too: the ROM in which both find what the host brings, and where modules are.

#![no_std]

mod call;
pub mod modules;
pub mod rom;

pub use call::call;
