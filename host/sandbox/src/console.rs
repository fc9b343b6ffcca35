//! What a guest writes to its console (or QEMU to its standard error): the last of it, in bounded memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// Bytes that are kept.
const KEPT: usize = 64 << 10;
/// Lines that are shown.
const SHOWN_LINES: usize = 40;
/// Characters of a line that are shown.
const SHOWN_WIDTH: usize = 240;

/// The last of an output that is being read.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// When the first text came, and whether the end did.
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    begun: Option<Instant>,
    /// Bytes read so far.
    read: u64,
    ended: bool,
}

impl Console {
    /// Reads in a task of its own until the end.
    pub(crate) fn follow(mut output: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, progress) = watch::channel(Progress::default());
        let console = Self { kept: kept.clone(), progress };
        tokio::spawn(async move {
            let mut buffer = vec![0; 8 << 10];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                keep(&kept, buffer.get(..count).unwrap_or_default());
                // Firmware clears the screen long before the guest says its first word.
                let said = sender.borrow().begun.is_some() || !printable(&text(&kept)).is_empty();
                sender.send_modify(|progress| {
                    progress.begun = progress.begun.or_else(|| said.then(Instant::now));
                    progress.read = progress.read.saturating_add(count as u64);
                });
            }
            sender.send_modify(|progress| progress.ended = true);
        });
        console
    }

    /// An output on which nothing ever comes.
    pub(crate) fn silent() -> Self {
        Self::follow(tokio::io::empty())
    }

    /// Waits for the first text, control characters aside; for ever if none comes.
    pub(crate) async fn begun(&self) -> Instant {
        let mut progress = self.progress.clone();
        match progress.wait_for(|progress| progress.begun.is_some()).await.map(|progress| progress.begun) {
            Ok(Some(begun)) => begun,
            _ => std::future::pending().await,
        }
    }

    /// Waits until what is kept has the words in it; for ever if that does not happen.
    pub(crate) async fn says(&self, words: &str) -> Instant {
        let heard = |_: &Progress| text(&self.kept).contains(words);
        match self.progress.clone().wait_for(heard).await {
            Ok(_) => Instant::now(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until all that was written is read.
    pub(crate) async fn ended(&self) {
        // An error means that the task is gone, which is an end as well.
        let _ = self.progress.clone().wait_for(|progress| progress.ended).await;
    }

    /// The last lines, without anything that could change a terminal.
    pub(crate) fn tail(&self) -> String {
        printable(&text(&self.kept))
    }
}

fn keep(kept: &Mutex<VecDeque<u8>>, bytes: &[u8]) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend(bytes);
    let excess = kept.len().saturating_sub(KEPT);
    kept.drain(..excess);
}

fn text(kept: &Mutex<VecDeque<u8>>) -> String {
    let bytes: Vec<u8> = kept.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of a text that somebody hostile wrote.
fn printable(text: &str) -> String {
    let text = without_escapes(text);
    let lines: Vec<String> = text
        .split(['\n', '\r'])
        .map(|line| line.trim_end().chars().take(SHOWN_WIDTH).collect::<String>())
        .filter(|line| !line.is_empty())
        .collect();
    let skipped = lines.len().saturating_sub(SHOWN_LINES);
    lines.into_iter().skip(skipped).collect::<Vec<_>>().join("\n")
}

/// Leaves out control characters, and of ANSI control sequences (ECMA-48 §5.4) their printable rest too.
fn without_escapes(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                while characters.next_if(|next| matches!(next, ' '..='?')).is_some() {}
                characters.next_if(|next| matches!(next, '@'..='~'));
            }
            '\n' | '\r' => clean.push(character),
            '\t' => clean.push(' '),
            _ if character.is_control() => {}
            // Marks that reorder text.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            _ => clean.push(character),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn tail_of(text: &[u8]) -> String {
        let (mut writer, reader) = tokio::io::duplex(1024);
        let console = Console::follow(reader);
        writer.write_all(text).await.unwrap();
        drop(writer);
        console.ended().await;
        console.tail()
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_and_no_more() {
        let text: String = (0..100_000).map(|line| format!("line {line}\r\n")).collect();
        let tail = tail_of(text.as_bytes()).await;
        assert_eq!(tail.lines().count(), SHOWN_LINES);
        assert!(tail.ends_with("line 99999"));
    }

    #[tokio::test]
    async fn memory_stays_bounded_however_much_is_written() {
        let (mut writer, reader) = tokio::io::duplex(1 << 20);
        let console = Console::follow(reader);
        writer.write_all(&vec![b'x'; 3 << 20]).await.unwrap();
        drop(writer);
        console.ended().await;
        assert_eq!(console.kept.lock().unwrap().len(), KEPT);
        assert_eq!(console.tail().len(), SHOWN_WIDTH);
    }

    #[tokio::test]
    async fn a_guest_cannot_reach_the_terminal_of_who_reads_its_console() {
        let tail = tail_of(b"\x1b[2J\x1b[31mred\x1b]0;title\x07 \x9b1m\xff\x08\x00 \xe2\x80\xaeend").await;
        assert!(tail.chars().all(|character| !character.is_control() && character != '\u{202e}'), "{tail:?}");
        assert!(tail.starts_with("red"), "{tail:?}");
    }

    #[tokio::test]
    async fn the_console_begins_with_the_first_text_and_not_with_the_firmwares_control_sequences() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let console = Console::follow(reader);
        writer.write_all(b"\x1b[2J\x1b[01;01H").await.unwrap();
        let mut read = console.progress.clone();
        read.wait_for(|progress| progress.read == 12).await.unwrap();
        assert_eq!(read.borrow().begun, None);
        let before = Instant::now();
        writer.write_all(b"sealpod: starting").await.unwrap();
        assert!(console.begun().await >= before);
        console.says("pod: start").await;
    }
}
