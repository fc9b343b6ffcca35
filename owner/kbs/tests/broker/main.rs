//! The real program over HTTP and HTTPS: guests, owners, and those who are neither.

mod administration;
mod audit;
mod durability;
mod handshake;
mod program;
mod resources;
mod support;
