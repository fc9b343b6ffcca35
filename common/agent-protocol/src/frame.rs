//! A frame: a length (u32, little-endian) and that many bytes of JSON.

use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

use crate::failure::Failure;
use crate::limits::{FRAME_BYTES, FRAME_BYTES_IN_FLIGHT, FRAME_TIME};
use crate::request::Reply;

/// What a request's frame is answered with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Answer {
    /// It was done.
    Ok(Reply),
    /// It was not done.
    Failed(Failure),
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("{0}")]
    Transport(#[from] io::Error),
    #[error("the stream ended before a whole frame")]
    Ended,
    #[error("a frame of {actual} bytes, at most {FRAME_BYTES} are allowed")]
    TooLarge { actual: usize },
    #[error("the frame did not end within {FRAME_TIME:?}")]
    TooSlow,
    #[error("not well-formed: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The bytes of frames that a connection may be reading.
#[derive(Debug)]
pub(crate) struct Budget(Semaphore);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(FRAME_BYTES_IN_FLIGHT))
    }
}

/// Writes a value as a frame.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let actual = frame.len().saturating_sub(4);
    let length = u32::try_from(actual).ok().filter(|_| actual <= FRAME_BYTES);
    let length = length.ok_or(FrameError::TooLarge { actual })?.to_le_bytes();
    frame.iter_mut().zip(length).for_each(|(to, from)| *to = from);
    Ok(frame)
}

/// Reads one frame and nothing beyond it. Waits for its first byte as long as the caller does.
pub(crate) async fn read<V: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    budget: &Budget,
) -> Result<V, FrameError> {
    read_within(FRAME_TIME, stream, budget).await
}

async fn read_within<V: DeserializeOwned>(
    limit: Duration,
    stream: &mut (impl AsyncRead + Unpin),
    budget: &Budget,
) -> Result<V, FrameError> {
    let mut first = [0];
    if stream.read(&mut first).await? == 0 {
        return Err(FrameError::Ended);
    }
    let rest = read_begun(first, stream, budget);
    tokio::time::timeout(limit, rest).await.map_err(|_| FrameError::TooSlow)?
}

async fn read_begun<V: DeserializeOwned>(
    [first]: [u8; 1],
    stream: &mut (impl AsyncRead + Unpin),
    budget: &Budget,
) -> Result<V, FrameError> {
    let mut others = [0; 3];
    read_whole(stream, &mut others).await?;
    let [second, third, fourth] = others;
    let length = u32::from_le_bytes([first, second, third, fourth]);
    let actual = usize::try_from(length).unwrap_or(usize::MAX);
    if actual > FRAME_BYTES {
        return Err(FrameError::TooLarge { actual });
    }
    let _reserved = budget.0.acquire_many(length).await.map_err(|_| FrameError::Ended)?;
    let mut json = vec![0; actual];
    read_whole(stream, &mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}

async fn read_whole(stream: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> Result<(), FrameError> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FrameError::Ended),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{PullImage, Request};

    #[tokio::test]
    async fn a_frame_is_read_to_its_end_and_no_further() {
        let request = Request::PullImage(PullImage { image: "a/b:1".into() });
        let mut bytes = encode(&request).unwrap();
        bytes.extend_from_slice(b"raw bytes");
        let mut stream = bytes.as_slice();
        assert_eq!(read::<Request>(&mut stream, &Budget::new()).await.unwrap(), request);
        assert_eq!(stream, b"raw bytes");
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let mut stream: &[u8] = &[0xff; 8];
        let error = read::<Request>(&mut stream, &Budget::new()).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { actual: 0xffff_ffff }), "{error}");
    }

    #[tokio::test]
    async fn a_frame_cut_short_is_told_from_a_malformed_one() {
        let whole = encode(&Request::Info).unwrap();
        for length in 0..whole.len() {
            let error = read::<Request>(&mut &whole[..length], &Budget::new()).await.unwrap_err();
            assert!(matches!(error, FrameError::Ended), "{length}: {error}");
        }
        let error =
            read::<Request>(&mut [2, 0, 0, 0, b'{', b'{'].as_slice(), &Budget::new()).await.unwrap_err();
        assert!(matches!(error, FrameError::Malformed(_)), "{error}");
    }

    #[tokio::test]
    async fn a_frame_that_does_not_go_on_is_given_up() {
        use tokio::io::AsyncWriteExt;
        let (mut slow, mut reader) = tokio::io::duplex(64);
        slow.write_all(&[20, 0, 0, 0, b'{']).await.unwrap();
        let limit = Duration::from_millis(20);
        let error = read_within::<Request>(limit, &mut reader, &Budget::new()).await.unwrap_err();
        assert!(matches!(error, FrameError::TooSlow), "{error}");
    }

    #[tokio::test]
    async fn frames_being_read_share_a_budget() {
        use std::task::{Context, Waker};

        use tokio::io::AsyncWriteExt;
        let budget = Budget::new();
        let length = u32::try_from(FRAME_BYTES).unwrap().to_le_bytes();
        let mut writers = Vec::new();
        let mut reads: Vec<_> = (0..FRAME_BYTES_IN_FLIGHT / FRAME_BYTES + 1)
            .map(|_| {
                let (writer, mut reader) = tokio::io::duplex(64);
                writers.push(writer);
                let budget = &budget;
                Box::pin(async move { read::<Request>(&mut reader, budget).await.map(drop) })
            })
            .collect();
        for writer in &mut writers {
            writer.write_all(&length).await.unwrap();
        }
        for reading in &mut reads {
            assert!(reading.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(budget.0.available_permits(), 0, "the last one waits without a buffer");
        drop(reads);
        assert_eq!(budget.0.available_permits(), FRAME_BYTES_IN_FLIGHT);
    }

    #[test]
    fn a_value_beyond_the_limit_is_not_written() {
        let request = Request::PullImage(PullImage { image: "x".repeat(FRAME_BYTES) });
        assert!(matches!(encode(&request), Err(FrameError::TooLarge { actual }) if actual > FRAME_BYTES));
    }
}
