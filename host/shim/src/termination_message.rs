//! Why a container ended, in its own words: asked of the guest, and written where kubelet looks once it knows of the end.
//!
//! The words are the workload's and the guest's, the file is the host's: it is written only where it is what kubelet made
//! for this, a plain file with nothing in it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sealpod_agent_protocol::{
    CallError, Client, ContainerRef, FailureKind, Reply, Request, TerminationMessage,
};

/// How long a container's end is kept back for it at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// How deep in the folder of its pod kubelet keeps such a file: `containers/NAME/ID`.
const DEPTH: usize = 3;

/// Passes on what a container that has ended says. Its end is told in any case.
pub(crate) async fn pass_on(agent: &Client, container: &str, file: &Path) {
    let request = Request::ReadTerminationMessage(ContainerRef { container: container.into() });
    let answer = agent.call_with_timeout(request, PATIENCE).await;
    let written = match answer {
        Ok(Reply::TerminationMessage(message)) => decode(&message).and_then(|text| write(file, &text)),
        Ok(other) => Err(io::Error::other(format!("the guest answered with {other:?}"))),
        Err(CallError::Refused(failure)) if failure.kind == FailureKind::DeniedByPolicy => {
            return tracing::debug!(container, "{}", failure.message);
        }
        Err(error) => Err(io::Error::other(error)),
    };
    if let Err(error) = written {
        tracing::warn!(container, file = %file.display(), %error, "a termination message is not passed on");
    }
}

fn decode(message: &TerminationMessage) -> io::Result<Vec<u8>> {
    let text = STANDARD.decode(&message.content).map_err(io::Error::other)?;
    match text.len() <= TerminationMessage::LONGEST {
        true => Ok(text),
        false => Err(io::Error::other(format!(
            "expected {} bytes at most, came {}",
            TerminationMessage::LONGEST,
            text.len()
        ))),
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    open(path)?.write_all(text)
}

/// Opens what is there, and only what kubelet made: no link leads from its pod's folder elsewhere, no other name has the
/// file, and nothing in it is lost.
fn open(path: &Path) -> io::Result<File> {
    let pod = path.ancestors().nth(DEPTH).ok_or(io::ErrorKind::NotFound)?;
    let inside = path.strip_prefix(pod).map_err(io::Error::other)?;
    let pod = rustix::fs::open(pod, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(openat2(&pod, inside, flags, Mode::empty(), resolve)?);
    let metadata = file.metadata()?;
    match metadata.is_file() && metadata.nlink() == 1 && metadata.len() == 0 {
        true => Ok(file),
        false => Err(io::Error::other("expected an empty plain file with one name, as kubelet makes it")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Instant;

    use rustix::fs::{CWD, FileType, mknodat};
    use sealpod_agent_protocol::{ByteStream, Failure, Handler, serve};

    use super::*;

    /// As kubelet makes it.
    fn kubelets() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pods/0a1b/containers/web/4f2a");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        (folder, file)
    }

    /// A guest that answers with this, or not at all.
    struct Guest(Option<Result<Reply, Failure>>);

    impl Handler for Guest {
        type Opened = ();

        async fn call(&self, request: Request) -> Result<Reply, Failure> {
            assert_eq!(request, Request::ReadTerminationMessage(ContainerRef { container: "web".into() }));
            match &self.0 {
                Some(answer) => answer.clone(),
                None => std::future::pending().await,
            }
        }

        async fn open(&self, _: Request) -> Result<(), Failure> {
            Ok(())
        }

        async fn stream(&self, (): (), _: ByteStream) {}
    }

    async fn said(answer: Option<Result<Reply, Failure>>) -> Vec<u8> {
        let (_folder, file) = kubelets();
        let (host, guest) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(guest, Arc::new(Guest(answer))));
        let agent = Client::connect(host).await.unwrap();
        pass_on(&agent, "web", &file).await;
        fs::read(file).unwrap()
    }

    fn message(text: &[u8]) -> Reply {
        Reply::TerminationMessage(TerminationMessage { content: STANDARD.encode(text) })
    }

    #[tokio::test]
    async fn what_the_guest_says_is_written() {
        let longest = vec![b'x'; TerminationMessage::LONGEST];
        for text in [&b"last \xff words\n"[..], b"", &longest] {
            assert_eq!(said(Some(Ok(message(text)))).await, text);
        }
    }

    #[tokio::test]
    async fn a_guest_that_refuses_or_lies_says_nothing() {
        let refused =
            |kind| Err(Failure { kind, message: "it is not allowed".into(), hint: None, denial: None });
        for answer in [
            refused(FailureKind::DeniedByPolicy),
            refused(FailureKind::NotFound),
            Ok(Reply::Done),
            Ok(message(&[b'x'; TerminationMessage::LONGEST + 1])),
            Ok(Reply::TerminationMessage(TerminationMessage { content: "no base64!".into() })),
        ] {
            assert_eq!(said(Some(answer.clone())).await, b"", "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_silent_guest_is_not_waited_for_long() {
        let began = Instant::now();
        assert_eq!(said(None).await, b"");
        assert!(began.elapsed() < PATIENCE * 5);
    }

    #[test]
    fn only_the_empty_file_that_kubelet_made_is_written() {
        let (folder, file) = kubelets();
        let victim = folder.path().join("victim");
        fs::write(&victim, "").unwrap();
        let refuse = |what: &str| assert!(write(&file, b"words").is_err(), "{what}");

        fs::remove_file(&file).unwrap();
        refuse("nothing is there");
        assert!(!file.exists());
        symlink(&victim, &file).unwrap();
        refuse("a link");
        fs::remove_file(&file).unwrap();
        fs::hard_link(&victim, &file).unwrap();
        refuse("a second name");
        fs::remove_file(&file).unwrap();
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        refuse("a pipe");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        refuse("a folder");
        fs::remove_dir(&file).unwrap();
        fs::write(&file, "there").unwrap();
        refuse("content");
        assert_eq!(fs::read_to_string(&file).unwrap(), "there");

        // A link on the way within the pod's folder, and one above it.
        let web = file.parent().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&file, "").unwrap();
        fs::rename(web, &elsewhere).unwrap();
        symlink(&elsewhere, web).unwrap();
        refuse("a link on the way");
        fs::remove_file(web).unwrap();
        fs::rename(&elsewhere, web).unwrap();
        let known_by = folder.path().join("kubelet");
        symlink(folder.path().join("pods"), &known_by).unwrap();
        write(&known_by.join("0a1b/containers/web/4f2a"), b"words").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "words");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "");
    }
}
