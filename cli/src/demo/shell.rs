//! The demo's terminal: it shows each command before it runs it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use sealpod_agent_protocol::Failure;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::services::{end_with_parent, output_of};
use crate::error::{Context, Error, Result};
use crate::output;
use crate::pod::control;

/// How long a pod gets to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Where the container serves HTTP.
const WEB_PORT: u16 = 8080;

/// The words of a command: texts and paths.
macro_rules! words {
    ($($word:expr),* $(,)?) => { [$(std::ffi::OsString::from($word)),*] };
}
pub(super) use words;

/// Runs this very program with other words.
pub(crate) struct Shell {
    program: PathBuf,
    folder: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    pods: usize,
}

/// What a pod of the demo is started with.
#[derive(Clone, Debug)]
pub(crate) struct PodWords {
    pub(crate) guest: PathBuf,
    pub(crate) image: String,
    pub(crate) init_data: PathBuf,
    pub(crate) tpm_authority: PathBuf,
}

/// A running `sealpod run`; ends with its value.
pub(crate) struct PodRun {
    child: Child,
    output: JoinHandle<()>,
    pub(crate) name: String,
    report: PathBuf,
}

/// What `sealpod run --report` wrote.
#[derive(Debug, Deserialize)]
pub(crate) struct RunReport {
    pub(crate) stages_ms: BTreeMap<String, u64>,
    pub(crate) exit_code: Option<u8>,
    pub(crate) error: Option<String>,
    pub(crate) failure: Option<Failure>,
}

impl Shell {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        Ok(Self { program, folder: folder.to_owned(), environment: Vec::new(), pods: 0 })
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    pub(crate) fn chapter(&self, title: &str) -> Result<()> {
        output::line(format!("\n== {title}"))
    }

    pub(crate) fn say(&self, text: &str) -> Result<()> {
        output::line(text)
    }

    /// Runs a command of this tool to its end and gives what it printed.
    pub(crate) async fn sealpod(&self, words: &[OsString]) -> Result<String> {
        self.show(words)?;
        self.quietly(words).await
    }

    /// The same, without showing it.
    pub(crate) async fn quietly(&self, words: &[OsString]) -> Result<String> {
        let output = output_of(self.command(words)).await.context("cannot run this program")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(said.trim().trim_start_matches("error: ")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a pod whose output is shown as it comes.
    pub(crate) fn start_pod(&mut self, words: &PodWords) -> Result<PodRun> {
        self.start(words, true)
    }

    /// Starts a pod without a word and waits for its end.
    pub(crate) async fn try_pod(&mut self, words: &PodWords) -> Result<RunReport> {
        let mut pod = self.start(words, false)?;
        pod.child.wait().await.context("cannot wait for the pod")?;
        pod.read_report()
    }

    fn start(&mut self, words: &PodWords, shown: bool) -> Result<PodRun> {
        self.pods += 1;
        // Unlike that of any other demo on this machine.
        let name = format!("demo-{}-{}", std::process::id(), self.pods);
        let report = self.folder.join(format!("{name}.json"));
        let arguments: Vec<OsString> = vec![
            "run".into(),
            "--name".into(),
            name.clone().into(),
            "--guest".into(),
            words.guest.clone().into(),
            "--tpm-authority".into(),
            words.tpm_authority.clone().into(),
            "--init-data".into(),
            words.init_data.clone().into(),
            "--port".into(),
            format!("0:{WEB_PORT}").into(),
            "--report".into(),
            report.clone().into(),
            words.image.clone().into(),
        ];
        let mut command = self.command(&arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if shown {
            self.show(&arguments)?;
        } else {
            command.stderr(Stdio::null());
        }
        end_with_parent(&mut command);
        let mut child = Command::from(command).spawn().context("cannot start a pod")?;
        let stdout = child.stdout.take();
        let output = tokio::spawn(async move {
            let Some(stdout) = stdout else { return };
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if shown {
                    let _ = output::line(format!("   pod | {line}"));
                }
            }
        });
        Ok(PodRun { child, output, name, report })
    }

    fn command(&self, words: &[OsString]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(words).envs(self.environment.iter().cloned());
        command
    }

    fn show(&self, words: &[OsString]) -> Result<()> {
        let words: Vec<String> = words.iter().map(|word| self.shorten(word)).collect();
        output::line(format!("$ sealpod {}", words.join(" ")))
    }

    /// A word as a person would type it in the demo's folder.
    fn shorten(&self, word: &OsStr) -> String {
        let word = word.to_string_lossy();
        let folder = format!("{}/", self.folder.display());
        let word = word.replace(&folder, "");
        if word.contains(' ') { format!("'{word}'") } else { word }
    }
}

impl PodRun {
    /// Waits for an end that nobody asked for, and tells how it was.
    pub(crate) async fn ended(&mut self) -> Result<String> {
        let status: ExitStatus = self.child.wait().await.context("cannot wait for the pod")?;
        let report = self.read_report()?;
        Ok(report.error.unwrap_or_else(|| status.to_string()))
    }

    /// Asks the container to end, as Ctrl-C would, and waits for it.
    pub(crate) async fn stop(mut self) -> Result<RunReport> {
        self.signal(Signal::TERM);
        if tokio::time::timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            return Err(Error::new(format!("the pod {} did not end in time", self.name)));
        }
        let _ = (&mut self.output).await;
        let report = self.read_report()?;
        match (&report.error, report.exit_code) {
            (None, Some(0)) => Ok(report),
            (Some(error), _) => Err(Error::new(format!("the pod failed: {error}"))),
            (None, code) => Err(Error::new(format!("the container ended with {code:?} instead of 0"))),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended on its own, which is what is wanted.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn read_report(&self) -> Result<RunReport> {
        let json = std::fs::read(&self.report).context(format!("the pod {} left no report", self.name))?;
        serde_json::from_slice(&json).context("the pod's report is not what this version expects")
    }
}

/// The port of this machine's that leads to a pod's web server, once its container is being started.
pub(super) fn web_port(pod: &str) -> Result<Option<u16>> {
    Ok(control::find(pod)?.and_then(|pod| pod.ports.get(&WEB_PORT).copied()))
}

impl Drop for PodRun {
    /// A pod that is still there is asked to end and waited for: it has a VM and files to clear away.
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = std::time::Instant::now() + STOP_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.start_kill();
    }
}
