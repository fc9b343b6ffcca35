//! The program over its socket: with a client in containerd's place, and with containerd itself.

mod containerd;
mod guest;
mod overlay;
mod process;
mod refusals;
mod support;
