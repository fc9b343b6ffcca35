//! `sealpod demo`: the whole system on this machine, and the attacks that it stops.
//!
//! The owner's part runs by the same commands that an owner types; they are shown as they run.

mod attacks;
mod owner;
mod recorder;
mod report;
mod services;
mod shell;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::error::{Context, Error, Result};
use crate::file;
use crate::output::{self, Progress};
use crate::pod::signals::Signals;
use owner::Owner;
use report::{Report, Stages};
use shell::{PodRun, Shell};

/// How long a pod may take to its first answer on a slow machine.
const POD_LIMIT: Duration = Duration::from_secs(120);

/// Show the whole story on this machine: an encrypted image in a measured VM, and the attacks it withstands
#[derive(Debug, Args)]
#[command(
    after_help = "Everything that the demo starts or writes is gone when it ends, the report excepted. \
`make demo` builds what it needs and runs it.

Examples:
  sealpod demo
  sealpod demo --guest guest/ --report report.json"
)]
pub(crate) struct DemoArgs {
    /// The guest that `sealpod guest build` made
    #[arg(long, value_name = "FOLDER", env = "SEALPOD_GUEST")]
    guest: Option<PathBuf>,
    /// The key broker's program [default: beside this one, then in PATH]
    #[arg(long, value_name = "FILE")]
    kbs_program: Option<PathBuf>,
    /// Where to write what was measured and observed
    #[arg(long, value_name = "FILE", default_value = "target/demo/report.json")]
    report: PathBuf,
}

pub(crate) async fn run(args: DemoArgs) -> Result<ExitCode> {
    let mut signals = Signals::watch()?;
    // Whatever the story started is dropped with it, and ends.
    let report = tokio::select! {
        report = tell(&args) => report.map_err(half_way)?,
        interrupted = signals.end() => return Err(interrupted),
    };
    write_report(&args.report, &report)?;
    report.print()?;
    output::line(format!("\nThe same as JSON: {}", args.report.display()))?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A story of which the rest is not told has not shown what it is for.
fn half_way(error: Error) -> Error {
    if error.is_output_closed() {
        return Error::new("the demo ended half way: nobody reads what it shows any more");
    }
    error
}

async fn tell(args: &DemoArgs) -> Result<Report> {
    let guest = crate::guest::folder(args.guest.as_deref())?;
    let temporary =
        tempfile::Builder::new().prefix("sealpod-demo-").tempdir().context("no temporary folder")?;
    let folder = temporary.path();
    let mut shell = Shell::new(folder)?;

    shell.chapter("1. The owner's key broker")?;
    shell.say("It keeps keys and policies, and gives them to guests that prove what they run.")?;
    let owner = Owner::start(&mut shell, args.kbs_program.as_deref(), folder).await?;

    shell.chapter("2. An image, signed and encrypted")?;
    let image = owner.publish_image(&mut shell, folder).await?;

    shell.chapter("3. What a trustworthy guest measures to")?;
    owner.register_guest(&mut shell, &guest).await?;

    shell.chapter("4. A pod")?;
    shell.say(
        "The VM's TPM is emulated by this very host: a development TEE. The code path is that of production,\n\
         but it gives no protection from this machine.",
    )?;
    let mut first = shell.start_pod(&owner.pod(&guest, &image))?;
    let page = answer(&mut first).await?;
    shell.say(&format!("HTTP request to the pod: {page}"))?;

    let mut attacks = Vec::new();
    let exec = attacks::exec_in_a_pod(&mut shell, &first).await?;
    let first = first.stop().await?;
    let stages_ms = stages(&first)?;

    shell.chapter("5. The same image in a second pod")?;
    let mut second = shell.start_pod(&owner.pod(&guest, &image))?;
    answer(&mut second).await?;
    second.stop().await?;
    let grants = owner.grants().await?;
    shell.say(&format!("The broker granted the image's key {grants} times: once for each attestation."))?;

    shell.chapter("6. Attacks")?;
    let (command_line, initrd) = attacks::changed_guests(&mut shell, &owner, &guest, &image, folder).await?;
    let (unsigned, altered) = attacks::changed_images(&mut shell, &owner, &guest, &image, folder).await?;
    attacks.extend([command_line, initrd, unsigned, altered, exec]);
    attacks.extend(attacks::replays(&mut shell, &owner).await?);

    owner.stop().await;
    let ok = grants == 2 && attacks.len() == 7 && attacks.iter().all(|attack| attack.ok);
    Ok(Report { stages_ms, attacks, ok })
}

/// Asks the pod's web server for its page until it answers.
async fn answer(pod: &mut PodRun) -> Result<String> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let progress = Progress::start("waiting for the pod's web server");
    let name = pod.name.clone();
    let asked = async {
        loop {
            if let Some(port) = shell::web_port(&name)?
                && let Ok(response) = http.get(format!("http://127.0.0.1:{port}/")).send().await
                && response.status().is_success()
            {
                return Ok::<_, Error>(response.text().await?);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let page = tokio::select! {
        page = tokio::time::timeout(POD_LIMIT, asked) => page.map_err(|_| Error::new("the pod did not answer in time"))??,
        ended = pod.ended() => return Err(Error::new(format!("the pod ended early: {}", ended?))),
    };
    drop(progress);
    Ok(page.trim().to_owned())
}

fn stages(report: &shell::RunReport) -> Result<Stages> {
    let stage = |name: &str| {
        report
            .stages_ms
            .get(name)
            .copied()
            .ok_or_else(|| Error::new(format!("the first pod never got to {name}")))
    };
    Ok(Stages {
        boot: stage("boot")?,
        agent: stage("agent")?,
        attest: stage("attest")?,
        image: stage("image")?,
        start: stage("start")?,
    })
}

fn write_report(path: &Path, report: &Report) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).context(format!("cannot make {}", folder.display()))?;
    // As a whole, so that two demos at once leave one.
    file::replace(path, &serde_json::to_vec_pretty(report)?)
}
