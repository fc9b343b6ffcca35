//! An observer on the network between guests and their key broker: it passes bytes on, and notes when.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A TCP relay. Its end is that of its connections.
pub(crate) struct Relay {
    /// Where guests find it.
    pub(crate) address: SocketAddr,
    turns: Arc<Mutex<Turns>>,
    server: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Guest,
    Broker,
}

/// Who spoke, in turns, each with the time of its last bytes.
#[derive(Debug, Default)]
struct Turns(Vec<(Side, Instant)>);

impl Relay {
    pub(crate) async fn start(broker: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no free port on loopback")?;
        let address = listener.local_addr()?;
        let turns = Arc::new(Mutex::new(Turns::default()));
        let server = tokio::spawn(accept(listener, broker, turns.clone()));
        Ok(Self { address, turns, server })
    }

    /// Forgets what passed so far.
    pub(crate) fn begin(&self) {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).0.clear();
    }

    /// When the last challenge passed, after an attestation that got its token.
    pub(crate) fn challenge(&self) -> anyhow::Result<Instant> {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.challenge().with_context(|| format!("no handshake passed the relay, only {turns:?}"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Turns {
    fn note(&mut self, side: Side, at: Instant) {
        match self.0.last_mut() {
            Some((last, end)) if *last == side => *end = at,
            _ => self.0.push((side, at)),
        }
    }

    /// A handshake ends with the challenge, the evidence, the token. TLS has its own turns before them.
    fn challenge(&self) -> Option<Instant> {
        match self.0.as_slice() {
            [.., (Side::Broker, challenge), (Side::Guest, _), (Side::Broker, _)] => Some(*challenge),
            _ => None,
        }
    }
}

async fn accept(listener: TcpListener, broker: SocketAddr, turns: Arc<Mutex<Turns>>) {
    let mut connections = JoinSet::new();
    while let Ok((guest, _)) = listener.accept().await {
        let turns = turns.clone();
        connections.spawn(async move {
            let broker = TcpStream::connect(broker).await?;
            guest.set_nodelay(true)?;
            broker.set_nodelay(true)?;
            let ((from_guest, to_guest), (from_broker, to_broker)) =
                (guest.into_split(), broker.into_split());
            let up = pass(from_guest, to_broker, Side::Guest, &turns);
            let down = pass(from_broker, to_guest, Side::Broker, &turns);
            tokio::try_join!(up, down).map(drop)
        });
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    side: Side,
    turns: &Mutex<Turns>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        turns.lock().unwrap_or_else(PoisonError::into_inner).note(side, Instant::now());
        to.write_all(bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn turns(sides: &[Side]) -> (Turns, Instant) {
        let began = Instant::now();
        let mut turns = Turns::default();
        for (millisecond, side) in (0..).zip(sides) {
            turns.note(*side, began + Duration::from_millis(millisecond));
        }
        (turns, began)
    }

    #[test]
    fn the_challenge_is_what_the_broker_said_last_before_the_evidence() {
        use Side::{Broker, Guest};
        let tls = [Guest, Broker, Broker, Guest, Broker, Guest];
        let rest = [Broker, Broker, Guest, Guest, Guest, Broker, Broker];
        let (turns, began) = turns(&[&tls[..], &rest[..]].concat());
        assert_eq!(turns.challenge(), Some(began + Duration::from_millis(7)));
    }

    #[test]
    fn a_handshake_without_its_token_has_no_challenge() {
        use Side::{Broker, Guest};
        for sides in [&[][..], &[Guest, Broker], &[Guest, Broker, Guest]] {
            assert_eq!(turns(sides).0.challenge(), None, "{sides:?}");
        }
    }

    #[tokio::test]
    async fn bytes_pass_both_ways() {
        let broker = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let relay = Relay::start(broker.local_addr().unwrap()).await.unwrap();
        let mut guest = TcpStream::connect(relay.address).await.unwrap();
        let (mut broker, _) = broker.accept().await.unwrap();
        for (challenge, answer) in [(b"auth", b"what"), (b"this", b"good")] {
            let mut read = [0; 4];
            guest.write_all(challenge).await.unwrap();
            broker.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, challenge);
            broker.write_all(answer).await.unwrap();
            guest.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, answer);
        }
        relay.challenge().unwrap();
        relay.begin();
        relay.challenge().unwrap_err();
    }
}
