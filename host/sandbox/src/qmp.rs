//! QEMU's own control connection (QMP): why the machine shut down, what its disk suffers, and commands that change it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, oneshot, watch};

use crate::arguments::EPHEMERAL;

/// The longest message that is read. QEMU's own are shorter; one that was taken over must not fill our memory.
const MESSAGE_BYTES: u64 = 256 << 10;

/// How long QEMU may take to carry out a command.
const PATIENCE: Duration = Duration::from_secs(10);

/// The connection.
#[derive(Clone, Debug)]
pub(crate) struct Qmp {
    writer: Arc<Mutex<OwnedWriteHalf>>,
    events: watch::Receiver<Events>,
    answers: Answers,
}

/// Who waits for which command's end.
#[derive(Clone, Debug, Default)]
struct Answers(Arc<std::sync::Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    all: BTreeMap<u64, oneshot::Sender<Result<(), String>>>,
}

impl Answers {
    fn await_next(&self) -> (u64, oneshot::Receiver<Result<(), String>>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.last += 1;
        let number = waiting.last;
        waiting.all.insert(number, sender);
        (number, receiver)
    }

    fn take(&self, number: u64) -> Option<oneshot::Sender<Result<(), String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all.remove(&number)
    }
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
    /// The command's that it answers.
    id: Option<u64>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Data {
    device: Option<String>,
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Begins the conversation on a connection that QEMU made.
    pub(crate) async fn begin(stream: UnixStream) -> io::Result<Self> {
        let (reader, mut writer) = stream.into_split();
        writer.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await?;
        let (sender, events) = watch::channel(Events::default());
        let answers = Answers::default();
        let heard = answers.clone();
        tokio::spawn(async move {
            listen(reader, &sender, &heard).await;
            sender.send_modify(|events| events.ended = true);
            heard.0.lock().unwrap_or_else(PoisonError::into_inner).all.clear();
        });
        Ok(Self { writer: Arc::new(Mutex::new(writer)), events, answers })
    }

    /// Has QEMU carry out a command; an error is what it says against it.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<(), String> {
        let (number, answer) = self.answers.await_next();
        let line = json!({"execute": command, "arguments": arguments, "id": number}).to_string() + "\n";
        let carried_out = async {
            self.writer.lock().await.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
            answer.await.unwrap_or_else(|_| Err("QEMU has ended".into()))
        };
        match tokio::time::timeout(PATIENCE, carried_out).await {
            Ok(answer) => answer,
            Err(_) => {
                self.answers.take(number);
                Err(format!("QEMU does not answer within {PATIENCE:?}"))
            }
        }
    }

    /// Asks QEMU to end at once.
    pub(crate) async fn quit(&self) -> io::Result<()> {
        self.writer.lock().await.write_all(b"{\"execute\":\"quit\"}\n").await
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

async fn listen(reader: impl AsyncRead + Unpin, events: &watch::Sender<Events>, answers: &Answers) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MESSAGE_BYTES).read_until(b'\n', &mut line).await {
            Ok(1..) if line.ends_with(b"\n") => {}
            _ => return,
        }
        // Of another shape are events that do not matter.
        match serde_json::from_slice(&line) {
            Ok(Message { id: Some(number), error, .. }) => {
                if let Some(waiting) = answers.take(number) {
                    // Who gave up waiting needs no answer.
                    let _ = waiting.send(error.map_or(Ok(()), |error| Err(error.desc)));
                }
            }
            Ok(Message { event: Some(event), data: Some(Data { device, reason: Some(reason) }), .. }) => {
                events.send_modify(|events| match event.as_str() {
                    "SHUTDOWN" => events.shutdown = Some(reason.into()),
                    "BLOCK_IO_ERROR" if device.as_deref() == Some(EPHEMERAL) => {
                        events.disk = Some(reason.into());
                    }
                    _ => {}
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn reason_after(said: &[u8]) -> Option<Arc<str>> {
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        let qmp = Qmp::begin(ours).await.unwrap();
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
    async fn a_command_ends_with_its_own_answer() {
        let (ours, mut qemus) = UnixStream::pair().unwrap();
        let qmp = Qmp::begin(ours).await.unwrap();
        let qemu = async {
            let mut heard = vec![0; 1024];
            let mut count = 0;
            while !String::from_utf8_lossy(&heard[..count]).contains("device_add") {
                count += qemus.read(&mut heard[count..]).await.unwrap();
            }
            let said =
                b"{\"return\":{}}\n{\"error\":{\"class\":\"GenericError\",\"desc\":\"no bus\"},\"id\":1}\n";
            qemus.write_all(said).await.unwrap();
        };
        let (answer, ()) = tokio::join!(qmp.execute("device_add", json!({"bus": "none"})), qemu);
        assert_eq!(answer, Err("no bus".into()));
        drop(qemus);
        assert!(qmp.execute("stop", json!({})).await.is_err(), "QEMU has ended");
    }

    #[tokio::test]
    async fn an_endless_line_is_not_read_to_its_end() {
        let mut said = vec![b' '; 1 << 20];
        said.extend_from_slice(b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"late\"}}\n");
        assert_eq!(reason_after(&said).await, None);
    }
}
