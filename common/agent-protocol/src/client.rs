//! The host's end of the connection.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use yamux::Mode;

use crate::error::CallError;
use crate::frame::{self, Answer, Budget, FrameError};
use crate::hello;
use crate::limits::{CLIENT_CALLS, CLIENT_ENDS, CLIENT_STREAMS, FRAME_BYTES, SERVER_STREAMS};
use crate::multiplex::{Multiplexed, buffered, multiplex};
use crate::request::{Reply, Request};
use crate::stream::{ByteStream, Keep};

/// A connection to a guest's agent. Clones share it; it closes when the last one and the last stream are gone.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Arc<Shared>,
}

/// What the handles of one connection share.
#[derive(Debug)]
struct Shared {
    /// Asks the connection's task for a stream. The task ends when this is dropped.
    opener: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    /// For what lasts.
    streams: Arc<Semaphore>,
    /// For calls that end something.
    ends: Arc<Semaphore>,
    /// For other calls.
    calls: Arc<Semaphore>,
    budget: Budget,
    lost: watch::Receiver<Option<String>>,
}

impl Client {
    /// Greets the guest and waits, without a time limit of its own, until its agent answers.
    ///
    /// # Errors
    /// [`CallError::Lost`] if the transport ends or breaks before.
    pub async fn connect<T>(transport: T) -> Result<Self, CallError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut transport = buffered(transport);
        let greeting = hello::from_host(&mut transport).await;
        greeting.map_err(|error| CallError::Lost { request: "hello", reason: error.to_string() })?;
        // That limit ends a connection, so this end keeps to smaller ones of its own.
        let connection = multiplex(transport, Mode::Client, SERVER_STREAMS);
        let (opener, openings) = mpsc::channel(1);
        let (loss, lost) = watch::channel(None);
        tokio::spawn(async move {
            let reason = drive(connection, openings).await;
            // Nobody listens after the last handle went.
            let _ = loss.send(Some(reason));
        });
        let [streams, ends, calls] =
            [CLIENT_STREAMS, CLIENT_ENDS, CLIENT_CALLS].map(|limit| Arc::new(Semaphore::new(limit)));
        let shared = Shared { opener, streams, ends, calls, budget: Budget::new(), lost };
        Ok(Self { connection: Arc::new(shared) })
    }

    /// Asks, and waits for the answer for as long as it takes.
    ///
    /// Dropping the future abandons the call: the guest goes on with what it does, except that it stops
    /// waiting for a process.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the guest answered with a failure, and all other reasons for no answer.
    pub async fn call(&self, request: Request) -> Result<Reply, CallError> {
        self.ask(&request).await.map(|(reply, _)| reply)
    }

    /// Asks, and waits for the answer for `limit` at most.
    ///
    /// # Errors
    /// Those of [`Client::call`], and [`CallError::TimedOut`].
    pub async fn call_with_timeout(&self, request: Request, limit: Duration) -> Result<Reply, CallError> {
        let name = request.name();
        let answer = tokio::time::timeout(limit, self.call(request)).await;
        answer.unwrap_or(Err(CallError::TimedOut { request: name, limit }))
    }

    /// Opens the byte stream that [`Request::WriteStdin`], [`Request::ReadStdout`], [`Request::ReadStderr`] or
    /// [`Request::ForwardPort`] names.
    ///
    /// # Errors
    /// Those of [`Client::call`]; [`CallError::BadReply`] for a request that opens no stream.
    pub async fn open(&self, request: Request) -> Result<ByteStream, CallError> {
        match self.ask(&request).await? {
            (Reply::Done, stream) if request.opens_stream() => Ok(stream),
            (other, _) => {
                let actual = format!("{other:?}");
                Err(CallError::BadReply { request: request.name(), expected: "an open stream", actual })
            }
        }
    }

    /// Waits until the connection is lost, and says why.
    pub async fn lost(&self) -> String {
        let mut lost = self.connection.lost.clone();
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| ENDED.into())
    }

    /// Waits until the guest is not there any more: the connection is lost, or [`Request::Info`], which is asked now and
    /// then, stays without an answer for `limit`. What the answer says does not matter.
    pub async fn silent(&self, limit: Duration) -> CallError {
        let request = Request::Info.name();
        let asking = async {
            loop {
                tokio::time::sleep(limit / 2).await;
                tokio::select! {
                    biased;
                    // A refusal is an answer as well; a lost connection is noticed below.
                    _ = self.call(Request::Info) => {}
                    () = running_time(limit) => return CallError::TimedOut { request, limit },
                }
            }
        };
        tokio::select! {
            biased;
            reason = self.lost() => CallError::Lost { request, reason },
            error = asking => error,
        }
    }

    async fn ask(&self, request: &Request) -> Result<(Reply, ByteStream), CallError> {
        let name = request.name();
        let question = frame::encode(request).map_err(|error| self.explain(name, "the request", error))?;
        let mut stream = self.new_stream(name, self.place(request)?).await?;
        let answer = async {
            stream.write_all(&question).await?;
            stream.flush().await?;
            frame::read(&mut stream, &self.connection.budget).await
        };
        match answer.await.map_err(|error| self.explain(name, "the answer", error))? {
            Answer::Ok(reply) => Ok((reply, stream)),
            Answer::Failed(failure) => Err(CallError::Refused(failure.printable())),
        }
    }

    /// A place for a stream. To hear whether the guest is there needs none: no other call can be in its way.
    fn place(&self, request: &Request) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        let (places, limit) = match request {
            Request::Info => return Ok(None),
            other if other.lasts() => (&self.connection.streams, CLIENT_STREAMS),
            other if other.ends() => (&self.connection.ends, CLIENT_ENDS),
            _ => (&self.connection.calls, CLIENT_CALLS),
        };
        places.clone().try_acquire_owned().map(Some).map_err(|_| CallError::TooManyStreams { limit })
    }

    async fn new_stream(
        &self,
        name: &'static str,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<ByteStream, CallError> {
        let (sender, receiver) = oneshot::channel();
        let stream = match self.connection.opener.send(sender).await {
            Ok(()) => receiver.await.ok(),
            Err(_) => None,
        };
        let Some(stream) = stream else {
            return Err(CallError::Lost { request: name, reason: self.lost().await });
        };
        let keep = Keep { _permit: place, _connection: Some(self.connection.clone()) };
        Ok(ByteStream::new(stream, self.connection.lost.clone(), keep))
    }

    fn explain(&self, request: &'static str, what: &'static str, error: FrameError) -> CallError {
        let reason = self.connection.lost.borrow().clone();
        match error {
            FrameError::TooLarge { actual } => CallError::TooLarge { what, actual, limit: FRAME_BYTES },
            FrameError::Malformed(error) => {
                CallError::BadReply { request, expected: "an answer", actual: error.to_string() }
            }
            other => CallError::Lost { request, reason: reason.unwrap_or_else(|| other.to_string()) },
        }
    }
}

/// Waits in steps: of the time for which this process is stopped, during which it hears no answers, one step counts.
async fn running_time(limit: Duration) {
    const STEPS: u32 = 10;
    for _ in 0..STEPS {
        tokio::time::sleep(limit / STEPS).await;
    }
}

const ENDED: &str = "the connection was closed";
/// How long the farewell may take.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Moves the connection's bytes and opens streams until it ends; gives the reason.
async fn drive<T>(
    mut connection: Multiplexed<T>,
    mut openings: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
) -> String
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting = None;
    let ended = poll_fn(|context| {
        loop {
            match connection.poll_next_inbound(context) {
                Poll::Ready(Some(Ok(_))) => {
                    return Poll::Ready(Some("the guest opened a stream, which it may not".to_owned()));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error.to_string())),
                Poll::Ready(None) => return Poll::Ready(Some(ENDED.to_owned())),
                Poll::Pending => {}
            }
            if waiting.is_none() {
                match openings.poll_recv(context) {
                    Poll::Ready(Some(opening)) => waiting = Some(opening),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match connection.poll_new_outbound(context) {
                Poll::Ready(Ok(stream)) => {
                    if let Some(opening) = waiting.take() {
                        // A caller that gave up drops the stream, which was not seen by the guest yet.
                        let _ = opening.send(stream);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(error.to_string())),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    match ended.await {
        Some(reason) => reason,
        None => {
            let farewell = poll_fn(|context| connection.poll_close(context));
            if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIME, farewell).await {
                tracing::debug!(%error, "the connection did not close in order");
            }
            ENDED.to_owned()
        }
    }
}
