//! Peers that do not keep to the protocol: none of them may cause a panic, a wait without end, or memory without bound.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sealpod_agent_protocol::{
    ByteStream, CallError, Client, Failure, FailureKind, Handler, ProcessRef, Reply, Request, limits, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

struct Quiet;

impl Handler for Quiet {
    type Opened = ();

    async fn call(&self, _: Request) -> Result<Reply, Failure> {
        Ok(Reply::Done)
    }
    async fn open(&self, _: Request) -> Result<(), Failure> {
        Ok(())
    }
    async fn stream(&self, (): (), mut stream: ByteStream) {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
}

fn message(kind: u8, session: &[u8]) -> Vec<u8> {
    [b"SEALPOD\x01".as_slice(), &[kind], session].concat()
}

/// The host's part of a session's beginning, and then the transport for whatever it likes.
async fn host_of(
    guest: DuplexStream,
    host: &mut DuplexStream,
) -> tokio::task::JoinHandle<std::io::Result<()>> {
    let served = tokio::spawn(serve(guest, Arc::new(Quiet)));
    let mut answer = [0; 25];
    for kind in [b'h', b's'] {
        host.write_all(&message(kind, &[9; 16])).await.unwrap();
        host.read_exact(&mut answer).await.unwrap();
    }
    served
}

/// The guest's part.
async fn guest_of(host: DuplexStream, guest: &mut DuplexStream) -> Client {
    let connecting = tokio::spawn(Client::connect(host));
    let mut hello = [0; 25];
    for kind in [b'e', b'r'] {
        guest.read_exact(&mut hello).await.unwrap();
        guest.write_all(&message(kind, &hello[9..])).await.unwrap();
    }
    connecting.await.unwrap().unwrap()
}

const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;

fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    [[0, kind].as_slice(), &flags.to_be_bytes(), &stream.to_be_bytes(), &length.to_be_bytes()].concat()
}

fn frame(json: &[u8]) -> Vec<u8> {
    [&u32::try_from(json.len()).unwrap().to_le_bytes(), json].concat()
}

/// Reads yamux frames until one with data for the stream comes; gives the data.
async fn data_for(host: &mut DuplexStream, stream: u32) -> Vec<u8> {
    loop {
        let mut head = [0; 12];
        host.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes(head[8..].try_into().unwrap());
        if head[1] == DATA && length > 0 {
            let mut body = vec![0; length as usize];
            host.read_exact(&mut body).await.unwrap();
            if head[4..8] == stream.to_be_bytes() {
                return body;
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_is_not_well_formed_is_answered_as_invalid() {
    for json in [
        "",
        "null",
        "{}",
        r#"{"request":"Info","more":1}"#,
        r#"{"request":"Reboot"}"#,
        r#"{"request":"PullImage","input":{"image":"a","force":true}}"#,
    ] {
        let (mut host, guest) = tokio::io::duplex(64 << 10);
        let _served = host_of(guest, &mut host).await;
        let body = frame(json.as_bytes());
        host.write_all(&header(DATA, SYN, 1, u32::try_from(body.len()).unwrap())).await.unwrap();
        host.write_all(&body).await.unwrap();
        let answer = data_for(&mut host, 1).await;
        let answer: serde_json::Value = serde_json::from_slice(&answer[4..]).unwrap();
        assert_eq!(answer["failed"]["kind"], "invalid", "{json}: {answer}");
    }
}

#[tokio::test]
async fn a_request_of_endless_length_is_refused_at_its_first_bytes() {
    let (mut host, guest) = tokio::io::duplex(64 << 10);
    let _served = host_of(guest, &mut host).await;
    host.write_all(&header(DATA, SYN, 1, 4)).await.unwrap();
    host.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let answer = data_for(&mut host, 1).await;
    let answer: serde_json::Value = serde_json::from_slice(&answer[4..]).unwrap();
    assert_eq!(answer["failed"]["kind"], "invalid");
}

#[tokio::test]
async fn more_than_a_stream_may_hold_is_not_taken() {
    let (mut host, guest) = tokio::io::duplex(64 << 10);
    let served = host_of(guest, &mut host).await;
    host.write_all(&header(DATA, SYN, 1, 1 << 31)).await.unwrap();
    let error = served.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_flood_of_streams_ends_with_a_go_away() {
    let (mut host, guest) = tokio::io::duplex(1 << 20);
    let served = host_of(guest, &mut host).await;
    for index in 0..=u32::try_from(limits::SERVER_STREAMS).unwrap() {
        host.write_all(&header(WINDOW, SYN, 2 * index + 1, 0)).await.unwrap();
    }
    let mut head = [0; 12];
    while head[1] != GO_AWAY {
        host.read_exact(&mut head).await.unwrap();
    }
    drop(host);
    served.await.expect("no panic").ok();
}

#[tokio::test]
async fn a_flood_of_pings_does_not_pile_up_answers() {
    let (mut host, guest) = tokio::io::duplex(1 << 10);
    let _served = host_of(guest, &mut host).await;
    let mut sent = 0_u32;
    // Nobody reads the answers: the guest stops reading, so that the transport fills up.
    while tokio::time::timeout(Duration::from_millis(200), host.write_all(&header(PING, SYN, 0, sent)))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 100_000, "the guest takes pings without end");
    }
}

#[tokio::test]
async fn a_guest_that_opens_streams_loses_the_connection() {
    let (host, mut guest) = tokio::io::duplex(64 << 10);
    let client = guest_of(host, &mut guest).await;
    guest.write_all(&header(WINDOW, SYN, 2, 0)).await.unwrap();
    assert_eq!(client.lost().await, "the guest opened a stream, which it may not");
}

/// What a client makes of an answer.
async fn error_of(answer: &[u8]) -> CallError {
    let (host, mut guest) = tokio::io::duplex(1 << 20);
    let client = guest_of(host, &mut guest).await;
    let call = tokio::spawn(async move { client.call(Request::Info).await });
    data_for(&mut guest, 1).await;
    guest.write_all(&header(DATA, 2, 1, u32::try_from(answer.len()).unwrap())).await.unwrap();
    guest.write_all(answer).await.unwrap();
    call.await.unwrap().unwrap_err()
}

#[tokio::test]
async fn an_answer_of_endless_length_is_refused() {
    let error = error_of(&u32::MAX.to_le_bytes()).await;
    assert!(matches!(error, CallError::TooLarge { what: "the answer", .. }), "{error}");
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_an_error_of_that_call() {
    let error = error_of(&frame(br#"{"ok":{"reply":"Exit","output":{"code":999}}}"#)).await;
    assert!(matches!(error, CallError::BadReply { request: "Info", .. }), "{error}");
}

#[tokio::test]
async fn what_a_guest_says_of_a_failure_is_one_line_of_bounded_length() {
    let message = format!("x\nlevel=error\u{1b}[2J\u{202e}{}", "y".repeat(100_000));
    let failed = serde_json::json!({ "failed": { "kind": "internal", "message": message, "hint": "a\r\nb", "denial": "\0" } });
    let CallError::Refused(failure) = error_of(&frame(failed.to_string().as_bytes())).await else {
        panic!("it is a refusal")
    };
    assert!(failure.message.starts_with("x level=error [2Jyyy"), "{}", failure.message);
    assert_eq!(failure.message.chars().count(), 8192);
    assert_eq!((failure.hint.as_deref(), failure.denial.as_deref()), (Some("a  b"), Some(" ")));
}

#[test]
fn every_failure_kind_survives_the_wire() {
    use FailureKind::*;
    for kind in [
        Invalid,
        DeniedByPolicy,
        DeniedByKeyBroker,
        ImageRefused,
        ImageCorrupt,
        Unreachable,
        NotFound,
        Conflict,
        Exhausted,
        Internal,
    ] {
        let json = serde_json::to_string(&kind).unwrap();
        assert_eq!(serde_json::from_str::<FailureKind>(&json).unwrap(), kind);
    }
}

/// Frames that look right, and garbage between them.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let frames = (0..4_u8, 0..16_u16, 0..6_u32, 0..40_u32, prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, flags, stream, length, body)| [header(kind, flags, stream, length), body].concat());
    let whole = (0..4_u32, prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(stream, body)| {
        [header(DATA, SYN, stream, u32::try_from(body.len()).unwrap()), body].concat()
    });
    let garbage = prop::collection::vec(any::<u8>(), 0..80);
    prop::collection::vec(prop_oneof![3 => frames, 3 => whole, 1 => garbage], 1..12)
        .prop_map(|parts| parts.concat())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_guest_survives_any_bytes(noise in noise()) {
        runtime().block_on(async {
            let (mut host, guest) = tokio::io::duplex(64 << 10);
            let served = host_of(guest, &mut host).await;
            let _ = host.write_all(&noise).await;
            drop(host);
            served.await.expect("no panic").ok();
        });
    }

    #[test]
    fn a_host_survives_any_bytes(noise in noise()) {
        runtime().block_on(async {
            let (host, mut guest) = tokio::io::duplex(64 << 10);
            let client = guest_of(host, &mut guest).await;
            let process = ProcessRef { container: "c".into(), exec: None };
            let calls = tokio::spawn({
                let client = client.clone();
                async move {
                    let _ = client.call(Request::Info).await;
                    let _ = client.open(Request::ReadStdout(process)).await;
                }
            });
            let _ = guest.write_all(&noise).await;
            drop(guest);
            calls.await.expect("no panic");
            client.lost().await;
        });
    }

    #[test]
    fn a_greeting_survives_any_bytes(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        runtime().block_on(async {
            let (mut far, near) = tokio::io::duplex(64 << 10);
            far.write_all(&noise).await.unwrap();
            drop(far);
            prop_assert!(serve(near, Arc::new(Quiet)).await.is_err());
            Ok(())
        })?;
    }
}
