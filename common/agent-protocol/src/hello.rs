//! How a session begins on a transport that does not know connections.
//!
//! A virtio-serial port stays what it is while the programs at its ends come and go: bytes from
//! before may still be in it, and bytes written before the other end opened it may be lost. So the
//! host repeats a *hello* with a number of its own until it gets the *echo* of that number, whatever
//! else it reads until then; it then says *start* once, and the guest *ready* once. Since a transport
//! keeps the order, what follows *start* and *ready* is the session's, and all else came before.
//!
//! | message | bytes |
//! |---|---|
//! | magic and version | `SEALPOD` 0x01 |
//! | kind | `h`, `e`, `s` or `r` |
//! | session | 16 |
//!
//! A yamux frame never begins with `S`, so a hello ends a guest's session whose host went away.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::multiplex::Buffered;

const MAGIC: &[u8; 8] = b"SEALPOD\x01";
const MESSAGE: usize = MAGIC.len() + 1 + SESSION;
const SESSION: usize = 16;
const REPEAT: Duration = Duration::from_millis(250);

/// The host's part: returns when the guest is ready. The caller limits the time.
pub(crate) async fn from_host<T>(transport: &mut Buffered<T>) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let session = new_session();
    let mut scanner = Scanner::default();
    let mut repeat = tokio::time::interval(REPEAT);
    loop {
        tokio::select! {
            message = scanner.next(transport) => {
                if message? == (Kind::Echo, session) {
                    break;
                }
            }
            _ = repeat.tick() => send(transport, Kind::Hello, session).await?,
        }
    }
    send(transport, Kind::Start, session).await?;
    while scanner.next(transport).await? != (Kind::Ready, session) {}
    Ok(())
}

/// The guest's part: returns when a host has started a session.
pub(crate) async fn from_guest<T>(transport: &mut Buffered<T>) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut scanner = Scanner::default();
    let mut echoed = None;
    loop {
        match scanner.next(transport).await? {
            (Kind::Hello, session) => {
                // Of the many hellos that queue up while a guest boots, the last one counts.
                if !transport.buffer().starts_with(MAGIC) {
                    send(transport, Kind::Echo, session).await?;
                }
                echoed = Some(session);
            }
            (Kind::Start, session) if echoed == Some(session) => {
                return send(transport, Kind::Ready, session).await;
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hello,
    Echo,
    Start,
    Ready,
}

impl Kind {
    const ALL: [(Self, u8); 4] =
        [(Self::Hello, b'h'), (Self::Echo, b'e'), (Self::Start, b's'), (Self::Ready, b'r')];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(kind, code)| (code == byte).then_some(kind))
    }

    fn byte(self) -> u8 {
        Self::ALL.into_iter().find_map(|(kind, code)| (kind == self).then_some(code)).unwrap_or_default()
    }
}

type Session = [u8; SESSION];

/// Different at each start; it need not be secret.
fn new_session() -> Session {
    let mut session = [0; SESSION];
    for part in session.chunks_mut(8) {
        part.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes());
    }
    session
}

async fn send<T: AsyncWrite + Unpin>(transport: &mut T, kind: Kind, session: Session) -> io::Result<()> {
    let message = [MAGIC.as_slice(), &[kind.byte()], &session].concat();
    transport.write_all(&message).await?;
    transport.flush().await
}

/// Finds messages among whatever else is in the transport.
#[derive(Debug, Default)]
struct Scanner {
    /// The last bytes, less than a message.
    window: Vec<u8>,
}

impl Scanner {
    /// The next message. Reads nothing beyond it, and loses nothing when cancelled.
    async fn next<T>(&mut self, transport: &mut Buffered<T>) -> io::Result<(Kind, Session)>
    where
        T: AsyncRead + Unpin,
    {
        loop {
            let buffer = transport.fill_buf().await?;
            if buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (used, message) = self.scan(buffer);
            transport.consume(used);
            if let Some(message) = message {
                return Ok(message);
            }
        }
    }

    /// Looks for a message that ends in these bytes; gives how many bytes it looked at.
    fn scan(&mut self, bytes: &[u8]) -> (usize, Option<(Kind, Session)>) {
        for (index, byte) in bytes.iter().enumerate() {
            self.window.push(*byte);
            if let Some(message) = parse(&self.window) {
                self.window.clear();
                return (index + 1, Some(message));
            }
            if self.window.len() >= MESSAGE {
                self.window.remove(0);
            }
        }
        (bytes.len(), None)
    }
}

fn parse(window: &[u8]) -> Option<(Kind, Session)> {
    let (kind, session) = window.strip_prefix(MAGIC)?.split_first()?;
    Some((Kind::from_byte(*kind)?, session.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;
    use crate::multiplex::buffered;

    async fn both_agree(host: DuplexStream, guest: DuplexStream) {
        let (mut host, mut guest) = (buffered(host), buffered(guest));
        let (host_ready, guest_ready) = tokio::join!(from_host(&mut host), from_guest(&mut guest));
        host_ready.unwrap();
        guest_ready.unwrap();
        host.write_all(b"first words").await.unwrap();
        guest.write_all(b"first answer").await.unwrap();
        let (mut words, mut answer) = ([0; 11], [0; 12]);
        guest.read_exact(&mut words).await.unwrap();
        host.read_exact(&mut answer).await.unwrap();
        assert_eq!((&words, &answer), (b"first words", b"first answer"), "nothing of the hello is left over");
    }

    #[tokio::test]
    async fn a_session_begins_on_a_clean_transport() {
        let (host, guest) = tokio::io::duplex(4096);
        both_agree(host, guest).await;
    }

    #[tokio::test]
    async fn leftovers_of_an_earlier_session_are_skipped_on_both_sides() {
        let (mut host, mut guest) = tokio::io::duplex(4096);
        let old = [7; SESSION];
        host.write_all(b"\0\0\0half a yamux frame SEALPOD\x01h").await.unwrap();
        send(&mut host, Kind::Start, old).await.unwrap();
        send(&mut host, Kind::Hello, old).await.unwrap();
        guest.write_all(b"SEALPOD\x01eSEALPODSEALPOD\x01r").await.unwrap();
        send(&mut guest, Kind::Echo, old).await.unwrap();
        send(&mut guest, Kind::Ready, old).await.unwrap();
        both_agree(host, guest).await;
    }

    #[tokio::test]
    async fn a_hello_that_was_lost_is_repeated() {
        let (host, mut guest) = tokio::io::duplex(4096);
        let mut host = buffered(host);
        let greeting = tokio::spawn(async move { from_host(&mut host).await });
        let mut lost = [0; MESSAGE];
        for _ in 0..3 {
            guest.read_exact(&mut lost).await.unwrap();
        }
        from_guest(&mut buffered(guest)).await.unwrap();
        greeting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_start_of_another_session_starts_nothing() {
        let (mut host, guest) = tokio::io::duplex(4096);
        send(&mut host, Kind::Hello, [1; SESSION]).await.unwrap();
        send(&mut host, Kind::Start, [2; SESSION]).await.unwrap();
        host.shutdown().await.unwrap();
        let ended = from_guest(&mut buffered(guest)).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_transport_that_ends_is_an_error() {
        let (host, guest) = tokio::io::duplex(4096);
        drop(guest);
        assert!(from_host(&mut buffered(host)).await.is_err());
    }

    #[test]
    fn endless_garbage_costs_no_more_than_a_message() {
        let mut scanner = Scanner::default();
        for byte in 0..=255_u8 {
            assert_eq!(scanner.scan(&[byte; 1000]), (1000, None));
        }
        assert!(scanner.window.len() < MESSAGE);
    }
}
