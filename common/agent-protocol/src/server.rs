//! The guest's end of the connection.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use yamux::Mode;

use crate::failure::{Failure, FailureKind};
use crate::frame::{self, Answer, Budget, FrameError};
use crate::hello;
use crate::limits::{REQUEST_TIME, SERVER_CALLS, SERVER_STREAMS};
use crate::multiplex::{Multiplexed, buffered, multiplex};
use crate::request::{Reply, Request};
use crate::stream::{ByteStream, Keep};

/// Carries out the host's requests.
pub trait Handler: Send + Sync + 'static {
    /// What a stream leads to.
    type Opened: Send;

    /// Does what is asked; never one of the requests that open a stream.
    ///
    /// The future runs to its end also when the host abandons the call or goes away, except that of
    /// [`Request::WaitProcess`], which is dropped then.
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, Failure>> + Send;

    /// Decides on a request that opens a stream, before the host hears that it is open.
    fn open(&self, request: Request) -> impl Future<Output = Result<Self::Opened, Failure>> + Send;

    /// Moves the bytes of a stream. Shuts it down for a clean end of file.
    fn stream(&self, opened: Self::Opened, stream: ByteStream) -> impl Future<Output = ()> + Send;
}

/// Waits for a host and serves it until the connection ends. May be called again on the same transport.
///
/// Each request is worked on in a task of its own, which outlives this future.
///
/// # Errors
/// When the transport breaks, or the host does not keep to the protocol.
pub async fn serve<T, H>(transport: T, handler: Arc<H>) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let mut transport = buffered(transport);
    hello::from_guest(&mut transport).await?;
    let connection = multiplex(transport, Mode::Server, SERVER_STREAMS);
    let (loss, lost) = watch::channel(None);
    let session =
        Arc::new(Session { handler, budget: Budget::new(), calls: Semaphore::new(SERVER_CALLS), lost });
    let outcome = drive(connection, &session).await;
    let reason =
        outcome.as_ref().map_or_else(ToString::to_string, |()| "the host closed the connection".into());
    // Nobody listens where no stream is open.
    let _ = loss.send(Some(reason));
    outcome
}

/// What the streams of one connection share.
struct Session<H> {
    handler: Arc<H>,
    budget: Budget,
    calls: Semaphore,
    lost: watch::Receiver<Option<String>>,
}

async fn drive<T, H>(mut connection: Multiplexed<T>, session: &Arc<Session<H>>) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    loop {
        match poll_fn(|context| connection.poll_next_inbound(context)).await {
            Some(Ok(stream)) => {
                let stream = ByteStream::new(stream, session.lost.clone(), Keep::default());
                tokio::spawn(session.clone().attend(stream));
            }
            Some(Err(error)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            None => return Ok(()),
        }
    }
}

impl<H: Handler> Session<H> {
    async fn attend(self: Arc<Self>, mut stream: ByteStream) {
        let request = frame::read::<Request>(&mut stream, &self.budget);
        let request = match tokio::time::timeout(REQUEST_TIME, request).await {
            Ok(Ok(request)) => request,
            Ok(Err(error @ (FrameError::Malformed(_) | FrameError::TooLarge { .. }))) => {
                answer(&mut stream, Err(invalid(&error))).await;
                return;
            }
            // Nobody to answer to, or nothing to answer.
            Ok(Err(_)) | Err(_) => return,
        };
        if request.opens_stream() {
            self.attend_stream(request, stream).await;
        } else {
            self.attend_call(request, stream).await;
        }
    }

    async fn attend_stream(&self, request: Request, mut stream: ByteStream) {
        match self.handler.open(request).await {
            Ok(opened) => {
                if answer_open(&mut stream, Ok(Reply::Done)).await {
                    self.handler.stream(opened, stream).await;
                }
            }
            Err(failure) => drop(answer_open(&mut stream, Err(failure)).await),
        }
    }

    async fn attend_call(&self, request: Request, mut stream: ByteStream) {
        let may_be_dropped = request.lasts();
        let place = if may_be_dropped { Ok(None) } else { self.calls.try_acquire().map(Some) };
        let Ok(_place) = place else {
            answer(&mut stream, Err(too_many_calls())).await;
            return;
        };
        let mut call = std::pin::pin!(self.handler.call(request));
        let outcome = tokio::select! {
            outcome = &mut call => Some(outcome),
            () = abandoned(&mut stream) => None,
        };
        match outcome {
            Some(outcome) => answer(&mut stream, outcome).await,
            None => {
                drop(stream);
                if !may_be_dropped {
                    // What was begun is finished, so that the guest's state stays whole; nobody wants the answer.
                    let _ = call.await;
                }
            }
        }
    }
}

/// Returns when the caller is gone, or sends what it may not.
async fn abandoned(stream: &mut ByteStream) {
    let mut byte = [0];
    // A caller that says no more still listens.
    if let Ok(0) = stream.read(&mut byte).await {
        std::future::pending().await
    }
}

/// Sends the answer and closes the stream.
async fn answer(stream: &mut ByteStream, outcome: Result<Reply, Failure>) {
    if answer_open(stream, outcome).await
        && let Err(error) = stream.shutdown().await
    {
        tracing::debug!(%error, "the caller did not wait for its answer");
    }
}

/// Sends the answer and leaves the stream open; false if that cannot be done.
async fn answer_open(stream: &mut ByteStream, outcome: Result<Reply, Failure>) -> bool {
    let answer = outcome.map_or_else(Answer::Failed, Answer::Ok);
    let frame = frame::encode(&answer).or_else(|error| frame::encode(&Answer::Failed(unsayable(&error))));
    let Ok(frame) = frame else { return false };
    let written = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    match written.await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "the caller did not wait for its answer");
            false
        }
    }
}

fn invalid(error: &FrameError) -> Failure {
    let hint = "host and guest must be of the same version".to_owned();
    let message = format!("the request cannot be read: {error}");
    Failure { kind: FailureKind::Invalid, message, hint: Some(hint), denial: None }
}

fn unsayable(error: &FrameError) -> Failure {
    let message = format!("the answer cannot be sent: {error}");
    Failure { kind: FailureKind::Internal, message, hint: None, denial: None }
}

fn too_many_calls() -> Failure {
    let message = format!("{SERVER_CALLS} calls are being worked on already");
    Failure {
        kind: FailureKind::Exhausted,
        message,
        hint: Some("wait for some of them".into()),
        denial: None,
    }
}
