//! Host and guest over an in-memory transport: calls, streams, limits, and how either survives the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealpod_agent_protocol::{
    ByteStream, CallError, Client, ExitStatus, Failure, FailureKind, Handler, Info, ProcessRef, PullImage,
    Reply, Request, SignalProcess, limits, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

/// A guest whose processes are made up.
struct Guest {
    /// Counts waits that were dropped before their process ended.
    dropped_waits: Arc<Semaphore>,
    /// Counts pulls that ran to their end.
    finished_pulls: Arc<Semaphore>,
    /// Lets pulls of the image `slow` end.
    release: Notify,
    /// Whether it leaves even a question for information without an answer.
    hung: AtomicBool,
}

impl Default for Guest {
    fn default() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self {
            dropped_waits: none(),
            finished_pulls: none(),
            release: Notify::new(),
            hung: AtomicBool::new(false),
        }
    }
}

struct CountDrop(Arc<Semaphore>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

impl Handler for Guest {
    type Opened = Request;

    async fn call(&self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Info if self.hung.load(Ordering::Relaxed) => std::future::pending().await,
            Request::Info => Ok(Reply::Info(Info {
                version: "1".into(),
                ready_after_ms: 1,
                resident_bytes: 2,
                tee: "tpm".into(),
            })),
            Request::WaitProcess(process) if process.exec.is_none() => {
                let _counted = CountDrop(self.dropped_waits.clone());
                std::future::pending().await
            }
            Request::WaitProcess(_) => {
                Ok(Reply::Exit(ExitStatus { code: 3, exited_at_ms: 0, out_of_memory: false }))
            }
            Request::PullImage(PullImage { image }) if image == "slow" => {
                self.release.notified().await;
                self.finished_pulls.add_permits(1);
                Ok(Reply::Done)
            }
            Request::PullImage(PullImage { image }) if image == "huge" => Ok(Reply::Info(Info {
                version: "x".repeat(limits::FRAME_BYTES),
                ready_after_ms: 0,
                resident_bytes: 0,
                tee: String::new(),
            })),
            other => Err(failure(FailureKind::NotFound, other.name())),
        }
    }

    async fn open(&self, request: Request) -> Result<Request, Failure> {
        match request {
            Request::ReadStderr(_) => Err(failure(FailureKind::DeniedByPolicy, "no logs")),
            other => Ok(other),
        }
    }

    async fn stream(&self, request: Request, mut stream: ByteStream) {
        match request {
            Request::ReadStdout(process) if process.container == "big" => {
                for index in 0..BIG_CHUNKS {
                    if stream.write_all(&chunk(index)).await.is_err() {
                        return;
                    }
                }
                stream.shutdown().await.unwrap();
            }
            // An output that ends in the middle of something.
            Request::ReadStdout(process) if process.container == "broken" => {
                stream.write_all(b"half").await.unwrap();
            }
            // Input until its end, then the count of it.
            Request::WriteStdin(_) => {
                let mut input = Vec::new();
                stream.read_to_end(&mut input).await.unwrap();
                stream.write_all(format!("{} bytes", input.len()).as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            _ => stream.shutdown().await.unwrap(),
        }
    }
}

const BIG_CHUNKS: u32 = 1024;
const CHUNK: usize = 64 << 10;

fn chunk(index: u32) -> Vec<u8> {
    index.to_le_bytes().repeat(CHUNK / 4)
}

fn failure(kind: FailureKind, message: &str) -> Failure {
    Failure { kind, message: message.into(), hint: None, denial: None }
}

fn process(container: &str) -> ProcessRef {
    ProcessRef { container: container.into(), exec: None }
}

type Served = JoinHandle<std::io::Result<()>>;

async fn connected() -> (Client, Arc<Guest>, Served) {
    let (host, guest) = tokio::io::duplex(8 << 10);
    let handler = Arc::new(Guest::default());
    let served = tokio::spawn(serve(guest, handler.clone()));
    (Client::connect(host).await.unwrap(), handler, served)
}

#[tokio::test]
async fn a_call_gets_its_reply_or_the_failure() {
    let (client, _, _) = connected().await;
    assert!(matches!(client.call(Request::Info).await, Ok(Reply::Info(info)) if info.tee == "tpm"));
    let refused = client.call(Request::Attest).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(failure) if failure.message == "Attest"));
}

#[tokio::test]
async fn a_stream_that_the_guest_does_not_allow_is_refused_with_its_reason() {
    let (client, _, _) = connected().await;
    let refused = client.open(Request::ReadStderr(process("c"))).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(Failure { kind: FailureKind::DeniedByPolicy, .. })));
}

#[tokio::test]
async fn a_request_that_opens_no_stream_cannot_be_opened() {
    let (client, _, _) = connected().await;
    let error = client.open(Request::Info).await.unwrap_err();
    assert!(matches!(error, CallError::BadReply { request: "Info", .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_64_mb_does_not_hold_up_other_calls() {
    let (client, _, _) = connected().await;
    let mut output = client.open(Request::ReadStdout(process("big"))).await.unwrap();
    let mut buffer = vec![0; CHUNK];
    for index in 0..BIG_CHUNKS {
        output.read_exact(&mut buffer).await.unwrap();
        assert!(buffer == chunk(index), "chunk {index} differs");
        if index % 64 == 0 {
            client.call_with_timeout(Request::Info, Duration::from_secs(20)).await.unwrap();
        }
    }
    assert_eq!(output.read(&mut buffer).await.unwrap(), 0, "then the end of file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_in_both_directions_at_once_does_not_stall() {
    let (client, _, _) = connected().await;
    let outputs: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut output = client.open(Request::ReadStdout(process("big"))).await.unwrap();
                tokio::io::copy(&mut output, &mut tokio::io::sink()).await.unwrap()
            })
        })
        .collect();
    let mut input = client.open(Request::WriteStdin(process("c"))).await.unwrap();
    for index in 0..BIG_CHUNKS / 4 {
        input.write_all(&chunk(index)).await.unwrap();
    }
    input.shutdown().await.unwrap();
    let mut count = String::new();
    input.read_to_string(&mut count).await.unwrap();
    assert_eq!(count, format!("{} bytes", CHUNK * BIG_CHUNKS as usize / 4));
    for output in outputs {
        assert_eq!(output.await.unwrap(), u64::from(BIG_CHUNKS) * CHUNK as u64);
    }
}

#[tokio::test]
async fn shutting_a_stream_down_closes_one_half_of_it() {
    let (client, _, _) = connected().await;
    let mut stdin = client.open(Request::WriteStdin(process("c"))).await.unwrap();
    stdin.write_all(b"five!").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut rest = String::new();
    stdin.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "5 bytes");
}

#[tokio::test]
async fn an_output_that_breaks_off_is_not_taken_for_its_end() {
    let (client, _, _) = connected().await;
    let mut output = client.open(Request::ReadStdout(process("broken"))).await.unwrap();
    let mut read = Vec::new();
    let error = output.read_to_end(&mut read).await.unwrap_err();
    assert_eq!((error.kind(), read.as_slice()), (std::io::ErrorKind::ConnectionReset, b"half".as_slice()));
}

#[tokio::test]
async fn a_guest_that_dies_fails_calls_and_streams() {
    let (client, _, served) = connected().await;
    let mut output = client.open(Request::ReadStdout(process("big"))).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(Request::WaitProcess(process("c"))).await }
    });
    client.call(Request::Info).await.unwrap();
    served.abort();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Lost { request: "WaitProcess", .. }), "{error}");
    assert!(tokio::io::copy(&mut output, &mut tokio::io::sink()).await.is_err(), "no end of file");
    assert!(!client.lost().await.is_empty());
    let error = client.call(Request::Info).await.unwrap_err();
    assert!(matches!(error, CallError::Lost { request: "Info", .. }), "{error}");
}

#[tokio::test]
async fn the_server_ends_when_the_last_handle_of_the_host_is_gone() {
    let (client, _, served) = connected().await;
    let stdin = client.open(Request::WriteStdin(process("c"))).await.unwrap();
    drop(client);
    drop(stdin);
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_guest_is_given_up_after_the_callers_time() {
    let (client, guest, _) = connected().await;
    let limit = Duration::from_millis(10);
    let error = client.call_with_timeout(Request::WaitProcess(process("c")), limit).await.unwrap_err();
    assert!(matches!(error, CallError::TimedOut { request: "WaitProcess", .. }), "{error}");
    // The guest hears of it and stops waiting too.
    guest.dropped_waits.acquire().await.unwrap().forget();
    client.call(Request::Info).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_answers_nothing_any_more_is_noticed() {
    let (client, guest, _served) = connected().await;
    let limit = Duration::from_millis(200);
    // As long as it answers, it is there.
    let early = tokio::time::timeout(5 * limit, client.silent(limit)).await;
    assert!(early.is_err(), "{early:?}");
    guest.hung.store(true, Ordering::Relaxed);
    let error = client.silent(limit).await;
    assert!(matches!(error, CallError::TimedOut { request: "Info", .. }), "{error}");
}

#[tokio::test]
async fn a_lost_connection_is_noticed_without_asking() {
    let (client, _, served) = connected().await;
    served.abort();
    let error = client.silent(Duration::from_secs(3600)).await;
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn work_that_was_begun_is_finished_although_the_host_left() {
    let (client, guest, _) = connected().await;
    let pull = Request::PullImage(PullImage { image: "slow".into() });
    client.call_with_timeout(pull, Duration::from_millis(10)).await.unwrap_err();
    guest.release.notify_one();
    guest.finished_pulls.acquire().await.unwrap().forget();
}

#[tokio::test]
async fn a_client_bounds_its_own_streams_and_gets_places_back() {
    let (client, _, _) = connected().await;
    let mut streams = Vec::new();
    for _ in 0..limits::CLIENT_STREAMS {
        streams.push(client.open(Request::WriteStdin(process("c"))).await.unwrap());
    }
    for request in [Request::WriteStdin(process("c")), Request::WaitProcess(process("c"))] {
        let error = client.call(request).await.unwrap_err();
        assert!(matches!(error, CallError::TooManyStreams { limit: limits::CLIENT_STREAMS }), "{error}");
    }
    // What lasts is in nobody's way.
    let slow = || client.call(Request::PullImage(PullImage { image: "slow".into() }));
    let mut calls: Vec<_> = (0..limits::CLIENT_CALLS).map(|_| Box::pin(slow())).collect();
    for call in &mut calls {
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    }
    let error = slow().await.unwrap_err();
    assert!(matches!(error, CallError::TooManyStreams { limit: limits::CLIENT_CALLS }), "{error}");
    client.call(Request::Info).await.unwrap();
    // A process can always be killed.
    let kill = Request::SignalProcess(SignalProcess { process: process("c"), signal: 9, all: false });
    let error = client.call(kill).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(Failure { kind: FailureKind::NotFound, .. })), "{error}");
    drop((streams, calls));
    for _ in 0..3 * limits::CLIENT_STREAMS {
        client.open(Request::WriteStdin(process("c"))).await.unwrap();
    }
}

#[tokio::test]
async fn more_calls_than_the_guest_works_on_are_answered_with_a_failure() {
    let (client, guest, _) = connected().await;
    guest.hung.store(true, Ordering::Relaxed);
    let calls = futures::future::join_all(
        (0..limits::SERVER_CALLS + 5)
            .map(|_| client.call_with_timeout(Request::Info, Duration::from_millis(500))),
    );
    let outcomes = calls.await;
    let exhausted = |outcome: &&Result<Reply, CallError>| {
        matches!(outcome, Err(CallError::Refused(Failure { kind: FailureKind::Exhausted, .. })))
    };
    assert_eq!(outcomes.iter().filter(exhausted).count(), 5);
}

#[tokio::test]
async fn a_request_or_reply_beyond_the_limit_fails_alone() {
    let (client, _, _) = connected().await;
    let huge = Request::PullImage(PullImage { image: "x".repeat(limits::FRAME_BYTES) });
    let error = client.call(huge).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { what: "the request", .. }), "{error}");
    let error = client.call(Request::PullImage(PullImage { image: "huge".into() })).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(Failure { kind: FailureKind::Internal, .. })), "{error}");
    let init_data = Request::PullImage(PullImage { image: "x".repeat(limits::FRAME_BYTES - 100) });
    let error = client.call(init_data).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(_)), "just below the limit it arrives: {error}");
    client.call(Request::Info).await.unwrap();
}

#[tokio::test]
async fn the_next_host_begins_anew_on_the_same_transport() {
    let (mut host, mut guest) = tokio::io::duplex(8 << 10);
    let handler = Arc::new(Guest::default());
    let serving = tokio::spawn(async move {
        // The first session breaks when the second host's hello arrives in it.
        let first = serve(&mut guest, handler.clone()).await;
        assert!(first.is_err());
        serve(&mut guest, handler).await
    });
    let crashed = take_first_session(&mut host).await;
    assert!(crashed.is_ok());
    let client = Client::connect(host).await.unwrap();
    client.call(Request::Info).await.unwrap();
    drop(client);
    serving.await.unwrap().unwrap();
}

/// Does a session's beginning by hand and stops in the middle of a frame.
async fn take_first_session(host: &mut DuplexStream) -> std::io::Result<()> {
    let message = |kind: u8| [b"SEALPOD\x01".as_slice(), &[kind], &[5; 16]].concat();
    let mut answer = [0; 25];
    host.write_all(&message(b'h')).await?;
    host.read_exact(&mut answer).await?;
    host.write_all(&message(b's')).await?;
    host.read_exact(&mut answer).await?;
    assert_eq!(answer.as_slice(), message(b'r'));
    Ok(())
}
