//! A file descriptor (pipe, terminal, virtio-serial port) as tokio's reader and writer.
//!
//! tokio's own pipe type forgets that a descriptor is ready after a short read or write, which hangs on
//! virtio-serial ports. This one believes only `EAGAIN`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A descriptor in non-blocking mode.
pub(crate) struct Nonblocking(AsyncFd<OwnedFd>);

impl Nonblocking {
    /// Takes a descriptor over and makes it non-blocking.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        // SAFETY: an `OwnedFd` always gives the same descriptor, open until it is dropped, and `AsyncFd` gives
        // out shared references only.
        let registered = unsafe { AsyncFd::register(descriptor) };
        registered.map(Self).map_err(|error| error.into_parts().1)
    }
}

impl AsFd for Nonblocking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Nonblocking {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd, space)?)) {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => (),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => (),
            }
        }
    }
}

impl AsyncWrite for Nonblocking {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd, buf)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => (),
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => (),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn more_than_a_pipe_holds_goes_through() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (mut reader, mut writer) = (Nonblocking::new(reader).unwrap(), Nonblocking::new(writer).unwrap());
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        let copy = sent.clone();
        let sender = tokio::spawn(async move { writer.write_all(&copy).await });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        sender.await.unwrap().unwrap();
        assert!(received == sent);
    }
}
