//! The key broker: it keeps an owner's secrets and policies, and gives secrets to guests that prove what they run.
//!
//! `server` listens, `routes` says what is where, `attestation`, `resources` and `administration` answer; `store` keeps
//! everything that must outlast the process, `session` what brokers that share a store must agree on, `rules` is what
//! decides, and `audit` tells the owner why a guest was refused.

mod admin_key;
mod administration;
mod attestation;
mod audit;
mod broker;
pub mod config;
mod error;
pub mod initialise;
mod metrics;
mod rate;
mod resource_policy;
mod resources;
mod routes;
mod rules;
pub mod server;
mod session;
mod store;

pub use broker::{Broker, StartError};
