//! What the host may ask of the guest: typed requests, and the connection that carries them.
//!
//! One connection (virtio-serial or vsock) carries many [yamux](https://github.com/hashicorp/yamux/blob/master/spec.md)
//! streams. A call is one stream: a frame with the request, a frame with the answer. A call that
//! opens a byte stream (a process's standard input or output) keeps its stream afterwards for the
//! raw bytes, so that each has flow control of its own.

mod connection;
mod request;

pub use connection::{ByteStream, CallError, Client, Handler, serve};
pub use request::*;
