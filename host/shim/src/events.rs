//! Tells containerd what happens to tasks: over its ttrpc socket, in order, again after it was away.

use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::launch::UNIX;

/// The metadata under which containerd's ttrpc services look for the namespace.
const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";
/// How many events wait while containerd is away; further ones are lost, and logged.
const QUEUE: usize = 4096;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last events may take at the end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Sends events, if somebody takes them: CRI-O does not. Clones send to the same queue.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    namespace: String,
    queue: Option<mpsc::Sender<Envelope>>,
}

impl Events {
    /// Begins to send to an address; the handle ends when the last clone is gone and all was sent.
    pub(crate) fn start(namespace: String, address: Option<String>) -> (Self, Option<JoinHandle<()>>) {
        let Some(address) = address else { return (Self { namespace, queue: None }, None) };
        let (queue, waiting) = mpsc::channel(QUEUE);
        let task = tokio::spawn(send_all(namespace.clone(), address, waiting));
        (Self { namespace, queue: Some(queue) }, Some(task))
    }

    /// Queues one event; its protobuf name is its type.
    pub(crate) fn publish<M: Message>(&self, topic: &'static str, name: &'static str, event: &M) {
        let Some(queue) = &self.queue else { return };
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return tracing::error!(topic, %error, "an event cannot be written"),
        };
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp::now()),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: MessageField::some(Any { type_url: name.into(), value, ..Any::default() }),
            ..Envelope::default()
        };
        if queue.try_send(envelope).is_err() {
            tracing::error!(topic, "containerd was away for too long: an event is lost");
        }
    }
}

/// Waits a while for the last events to be sent.
pub(crate) async fn finish(task: Option<JoinHandle<()>>) {
    if let Some(task) = task
        && tokio::time::timeout(LAST_WORDS, task).await.is_err()
    {
        tracing::warn!("containerd does not take the last events");
    }
}

async fn send_all(namespace: String, address: String, mut waiting: mpsc::Receiver<Envelope>) {
    let mut client: Option<EventsClient> = None;
    while let Some(envelope) = waiting.recv().await {
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        loop {
            match send(&mut client, &namespace, &address, &request).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(error, "containerd does not take an event; once more");
                    client = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    namespace: &str,
    address: &str,
    request: &ForwardRequest,
) -> Result<(), String> {
    let attempt = async {
        let connected = match client.take() {
            Some(connected) => connected,
            None => {
                let connection = Client::connect(&format!("{UNIX}{address}")).await;
                EventsClient::new(connection.map_err(|error| error.to_string())?)
            }
        };
        let mut context = context::with_duration(PATIENCE);
        context.add(NAMESPACE_HEADER.into(), namespace.into());
        connected.forward(context, request).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(connected)
    };
    let connected =
        tokio::time::timeout(PATIENCE, attempt).await.map_err(|_| "no answer in time".to_owned())??;
    *client = Some(connected);
    Ok(())
}
