//! The evidence of a measured boot: what is accepted, and each part of it altered once.

mod acceptance;
mod attestation_key;
mod authority;
mod certificates;
mod event_log;
mod genuine;
mod init_data;
mod keys;
mod measured_boot;
mod quote;
mod robustness;
mod sample;
mod support;
