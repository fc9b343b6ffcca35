//! QEMU's own control connection (QMP): why the machine shut down, what its disk suffers, and a request to end.

use std::io;
use std::sync::Arc;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

/// The longest message that is read. QEMU's own are shorter; one that was taken over must not fill our memory.
const MESSAGE_BYTES: u64 = 256 << 10;

/// The connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: OwnedWriteHalf,
    events: watch::Receiver<Events>,
}

/// What was heard of QEMU.
#[derive(Clone, Debug, Default)]
struct Events {
    /// The reason of the last SHUTDOWN event.
    shutdown: Option<Arc<str>>,
    /// What this machine answered instead of reading or writing for the guest.
    disk: Option<Arc<str>>,
    ended: bool,
}

/// The part of a message that matters here.
#[derive(Debug, Deserialize)]
struct Message {
    event: Option<String>,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    reason: Option<String>,
}

impl Qmp {
    /// Begins the conversation on a connection that QEMU made.
    pub(crate) async fn begin(stream: UnixStream) -> io::Result<Self> {
        let (reader, mut writer) = stream.into_split();
        writer.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await?;
        let (sender, events) = watch::channel(Events::default());
        tokio::spawn(async move {
            listen(reader, &sender).await;
            sender.send_modify(|events| events.ended = true);
        });
        Ok(Self { writer, events })
    }

    /// Asks QEMU to end at once.
    pub(crate) async fn quit(&mut self) -> io::Result<()> {
        self.writer.write_all(b"{\"execute\":\"quit\"}\n").await
    }

    /// Why the machine shut down, once QEMU has ended; nothing if QEMU did not say.
    pub(crate) async fn shutdown_reason(&self) -> Option<Arc<str>> {
        let mut events = self.events.clone();
        let last = events.wait_for(|events| events.ended).await;
        last.ok().and_then(|events| events.shutdown.clone())
    }

    /// Waits until a file of this machine's fails under the guest's disk, and says how; for ever if none does.
    pub(crate) fn disk_error(&self) -> impl Future<Output = Arc<str>> + use<> {
        let mut events = self.events.clone();
        async move {
            let failed = events.wait_for(|events| events.disk.is_some()).await;
            match failed.ok().and_then(|events| events.disk.clone()) {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        }
    }
}

async fn listen(reader: impl AsyncRead + Unpin, events: &watch::Sender<Events>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MESSAGE_BYTES).read_until(b'\n', &mut line).await {
            Ok(1..) if line.ends_with(b"\n") => {}
            _ => return,
        }
        // Of another shape are answers and events that do not matter.
        let Ok(Message { event: Some(event), data: Some(Data { reason: Some(reason) }) }) =
            serde_json::from_slice(&line)
        else {
            continue;
        };
        events.send_modify(|events| match event.as_str() {
            "SHUTDOWN" => events.shutdown = Some(reason.into()),
            "BLOCK_IO_ERROR" => events.disk = Some(reason.into()),
            _ => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn reason_after(said: &[u8]) -> Option<Arc<str>> {
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::begin(ours).await.unwrap();
        qmp.quit().await.unwrap();
        let mut heard = vec![0; 64];
        let count = qemus.read(&mut heard).await.unwrap();
        assert!(heard[..count].starts_with(b"{\"execute\":\"qmp_capabilities\"}\n"));
        let speaking = async {
            qemus.write_all(said).await.unwrap();
            drop(qemus);
            std::future::pending().await
        };
        // Who stops listening leaves the speaker waiting.
        tokio::select! {
            reason = qmp.shutdown_reason() => reason,
            () = speaking => None,
        }
    }

    #[tokio::test]
    async fn the_reason_of_a_shutdown_is_heard() {
        let said = b"{\"QMP\":{\"version\":{}}}\r\n{\"return\":{}}\r\n\
            {\"timestamp\":{\"seconds\":1},\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\r\n";
        assert_eq!(reason_after(said).await.as_deref(), Some("guest-reset"));
    }

    #[tokio::test]
    async fn other_events_and_garbage_are_no_shutdown() {
        let said = b"{\"event\":\"STOP\",\"data\":{\"reason\":\"x\"}}\nnot json\n{\"event\":\"SHUTDOWN\"}\n";
        assert_eq!(reason_after(said).await, None);
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_heard_while_the_machine_runs() {
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        let qmp = Qmp::begin(ours).await.unwrap();
        let said =
            b"{\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"device\":\"ephemeral\",\"operation\":\"write\",\
            \"action\":\"report\",\"nospace\":true,\"reason\":\"No space left on device\"}}\r\n";
        qemus.write_all(said).await.unwrap();
        assert_eq!(&*qmp.disk_error().await, "No space left on device");
    }

    #[tokio::test]
    async fn an_endless_line_is_not_read_to_its_end() {
        let mut said = vec![b' '; 1 << 20];
        said.extend_from_slice(b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"late\"}}\n");
        assert_eq!(reason_after(&said).await, None);
    }
}
