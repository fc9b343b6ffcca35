//! One multiplexed stream, as bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// The raw bytes of a process's standard input or output.
///
/// `shutdown` closes the writing half and leaves the reading half open. The other end's `shutdown`
/// is the end of file here; dropping a stream that was not shut down resets it, which the other end
/// gets as an error of kind `ConnectionReset`, like the end of the connection. Once shut down, read
/// to the end of file before dropping: the other end could otherwise wait for room to write.
///
/// A writer waits as soon as the reader has 256 KiB that it did not read.
#[derive(Debug)]
pub struct ByteStream {
    stream: Compat<yamux::Stream>,
    shut_down: bool,
    lost: watch::Receiver<Option<String>>,
    /// What must outlive the stream: a client's place among its streams, and its connection.
    _keep: Keep,
}

/// What must outlive a stream.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
    pub(crate) _connection: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl ByteStream {
    pub(crate) fn new(stream: yamux::Stream, lost: watch::Receiver<Option<String>>, keep: Keep) -> Self {
        Self { stream: stream.compat(), shut_down: false, lost, _keep: keep }
    }

    /// Why the stream ended without an end of file, if it did.
    fn broken(&self) -> Option<io::Error> {
        if let Some(reason) = &*self.lost.borrow() {
            return Some(io::Error::new(io::ErrorKind::ConnectionReset, reason.clone()));
        }
        // Closed both ways although this end did not close: that was a reset.
        let reset = !self.shut_down && self.stream.get_ref().is_closed();
        reset.then(|| io::Error::new(io::ErrorKind::ConnectionReset, "the other end dropped the stream"))
    }

    fn write_error(&self, error: io::Error) -> io::Error {
        self.broken().unwrap_or(error)
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(match self.broken() {
            Some(error) => Err(error),
            None => outcome,
        })
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(outcome.map_err(|error| self.write_error(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(outcome.map_err(|error| self.write_error(error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut_down {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = self.broken() {
            return Poll::Ready(Err(error));
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(context)).map_err(|error| self.write_error(error))?;
        self.shut_down = true;
        Poll::Ready(Ok(()))
    }
}
