//! What the host may ask of the guest: typed requests, and the connection that carries them.
//!
//! One connection (virtio-serial or vsock) carries many [yamux](https://github.com/hashicorp/yamux/blob/master/spec.md)
//! streams. A call is one stream: a frame with the request, a frame with the answer. A call that
//! opens a byte stream (a process's standard input or output) keeps its stream afterwards for the
//! raw bytes, so that each has flow control of its own.
//!
//! Before yamux begins, both ends agree on a session (see `hello`), because a serial port has no
//! notion of a connection: what lies in it may be left over from an earlier one.
//!
//! Both ends treat the other as hostile. Frames, streams and the memory behind them are bounded by
//! [`limits`], a frame that was begun must end in time, and nothing the other end sends panics.

mod client;
mod error;
mod failure;
mod frame;
mod hello;
mod multiplex;
mod request;
mod server;
mod stream;
mod volume_limits;

pub use client::Client;
pub use error::CallError;
pub use failure::{Failure, FailureKind};
pub use request::*;
pub use server::{Handler, serve};
pub use stream::ByteStream;
pub use volume_limits::{VolumeLimits, VolumeLimitsError};

/// The port of the guest's loopback where it answers its containers, and nobody else (TCP).
pub const WORKLOAD_API_PORT: u16 = 8006;

/// What one end may cost the other.
pub mod limits {
    use std::time::Duration;

    /// The longest request or answer, in bytes of JSON (init data included).
    pub const FRAME_BYTES: usize = 4 << 20;
    /// The bytes of all frames that a connection may be reading at the same time.
    pub const FRAME_BYTES_IN_FLIGHT: usize = 16 << 20;
    /// How long a frame may take from its first byte to its last.
    pub const FRAME_TIME: Duration = Duration::from_secs(30);
    /// How long a stream may stay open before the request on it is complete.
    pub const REQUEST_TIME: Duration = Duration::from_secs(60);
    /// What a client has open at the same time that may last: byte streams, and waits for processes' ends.
    pub const CLIENT_STREAMS: usize = 160;
    /// The calls of a client at the same time that end something: no other is in their way.
    pub const CLIENT_ENDS: usize = 16;
    /// The other calls of a client at the same time.
    pub const CLIENT_CALLS: usize = 64;
    /// The streams a server keeps at the same time; a peer that opens more loses the connection.
    pub const SERVER_STREAMS: usize = 256;
    /// The calls a server works on at the same time, without waits; more are answered with a failure.
    pub const SERVER_CALLS: usize = 128;

    // A client that keeps to its limits, and asks for information beside, never loses its connection by them.
    const _: () = assert!(CLIENT_STREAMS + CLIENT_ENDS + CLIENT_CALLS < SERVER_STREAMS);
    const _: () = assert!(CLIENT_ENDS + CLIENT_CALLS < SERVER_CALLS);
}
