//! yamux over a byte transport: its configuration, and an adapter below it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// A transport with its read buffer, from which `hello` may have taken the beginning.
pub(crate) type Buffered<T> = BufReader<T>;

/// The multiplexed connection.
pub(crate) type Multiplexed<T> = Connection<Compat<Frames<Buffered<T>>>>;

/// Bytes that are read ahead from the transport, and bytes that are written at once.
const BUFFER: usize = 64 << 10;

/// Wraps a transport so that reads are large although yamux asks for little.
pub(crate) fn buffered<T: AsyncRead>(transport: T) -> Buffered<T> {
    BufReader::with_capacity(BUFFER, transport)
}

/// Begins yamux with at most `streams` streams.
pub(crate) fn multiplex<T>(transport: Buffered<T>, mode: Mode, streams: usize) -> Multiplexed<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = Config::default();
    config.set_max_num_streams(streams);
    // Exactly the initial window of every stream: windows never grow, whatever round-trip time the peer feigns.
    config.set_max_connection_receive_window(Some(streams * yamux::DEFAULT_CREDIT as usize));
    Connection::new(Frames::new(transport).compat(), config, mode)
}

/// Passes yamux frames on to a transport, a frame's header and body in one write, and leaves out pings.
///
/// yamux stops reading while it owes the answer to a ping. Two ends that are both in the middle of a
/// long write when each other's ping arrives would wait for each other for ever. Without pings there
/// is nothing to owe; their only use, growing windows, is not wanted here.
#[derive(Debug)]
pub(crate) struct Frames<T> {
    transport: T,
    /// The part of the header that was passed so far.
    header: Vec<u8>,
    /// Bytes of the current frame's body that are still to come.
    body: u32,
    /// Accepted, not written yet.
    pending: Vec<u8>,
    /// How many of those are written.
    written: usize,
}

/// Length of a yamux header.
const HEADER: usize = 12;
const TYPE_DATA: u8 = 0;
const TYPE_PING: u8 = 2;
const FLAG_ACK: u8 = 2;

impl<T: AsyncWrite + Unpin> Frames<T> {
    fn new(transport: T) -> Self {
        Self { transport, header: Vec::with_capacity(HEADER), body: 0, pending: Vec::new(), written: 0 }
    }

    /// Takes bytes in and gives how many.
    fn accept(&mut self, bytes: &[u8]) -> usize {
        if self.body > 0 {
            let count = bytes.len().min(self.body as usize);
            self.pending.extend_from_slice(bytes.get(..count).unwrap_or_default());
            self.body = self.body.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            return count;
        }
        let count = bytes.len().min(HEADER.saturating_sub(self.header.len()));
        self.header.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if let [_, kind, _, flags, _, _, _, _, length @ ..] = self.header.as_slice()
            && let Ok(length) = <[u8; 4]>::try_from(length)
        {
            let is_question = *kind == TYPE_PING && flags & FLAG_ACK == 0;
            if *kind == TYPE_DATA {
                self.body = u32::from_be_bytes(length);
            }
            if !is_question {
                self.pending.extend_from_slice(&self.header);
            }
            self.header.clear();
        }
        count
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.pending.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.transport).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written = self.written.saturating_add(count),
            }
        }
        self.pending.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Frames<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.pending.len() >= BUFFER {
            ready!(self.poll_drain(context))?;
        }
        Poll::Ready(Ok(self.accept(bytes)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Frames<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PING: [u8; HEADER] = [0, TYPE_PING, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    const PONG: [u8; HEADER] = [0, TYPE_PING, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
    const DATA: [u8; HEADER] = [0, TYPE_DATA, 0, 0, 0, 0, 0, 1, 0, 0, 0, 14];

    async fn passed(writes: &[&[u8]]) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut frames = Frames::new(near);
        for bytes in writes {
            frames.write_all(bytes).await.unwrap();
        }
        frames.shutdown().await.unwrap();
        drop(frames);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        all
    }

    #[tokio::test]
    async fn a_ping_is_left_out_and_its_answer_is_passed() {
        assert_eq!(passed(&[&PING, &PONG, &PING]).await, PONG);
        assert_eq!(passed(&[&PING[..5], &PING[5..], &PONG]).await, PONG, "in pieces");
    }

    #[tokio::test]
    async fn a_body_that_looks_like_a_ping_is_passed() {
        let mut body = PING.to_vec();
        body.extend_from_slice(b"..");
        let expected = [DATA.as_slice(), &body, &PONG].concat();
        assert_eq!(passed(&[&DATA, &body, &PING, &PONG]).await, expected);
    }

    #[test]
    fn a_header_and_its_body_go_out_in_one_write() {
        let mut frames = Frames::new(tokio::io::sink());
        assert_eq!(frames.accept(&DATA), HEADER);
        assert_eq!(frames.accept(b"fourteen bytes and more"), 14);
        assert_eq!(frames.pending.len(), HEADER + 14);
    }
}
