//! The real program over HTTP and HTTPS: guests, owners, and those who are neither.

mod administration;
mod audit;
mod database;
mod durability;
mod handshake;
mod outage;
mod program;
mod replicas;
mod resources;
mod support;
