//! `sealpod node`: set this machine up as a Kubernetes node that runs pods in measured VMs, and take it back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use sealpod_node::{Error as NodeError, Installation, Options, Places, Removal, Status};

use crate::error::{Error, Result};
use crate::output;

/// Set this machine up as a Kubernetes node that runs pods in measured VMs, or take it back
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod node doctor
  sealpod node install --dry-run
  sealpod node install --images 'registry.example/confidential/*'
  sealpod node status
  sealpod node uninstall")]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    Install(InstallArgs),
    Uninstall(UninstallArgs),
    Status(StatusArgs),
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Where programs, guest image and the record of the installation are
    #[arg(long, value_name = "FOLDER", default_value = "/opt/sealpod")]
    prefix: PathBuf,
    /// Work on an image below this folder: its files only, no service
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// containerd's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
}

/// Place the programs and tell containerd or CRI-O about them; may be run again at any time
#[derive(Debug, Args)]
#[command(
    after_help = "What was changed before stays changed by whoever changed it: files in /etc/sealpod are not \
overwritten once they were edited, and containerd's configuration is edited, not replaced. It is checked by \
containerd itself before it is put in place; if containerd does not start with it, the old one is restored.

Examples:
  sealpod node install --dry-run
  sealpod node install --from /media/sealpod
  sealpod node install --root /mnt/image --containerd-version 2.1"
)]
struct InstallArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Where the programs come from [default: beside this program]
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
    /// The guest image [default: `guest` in or beside that folder, else that of `sealpod guest build`]
    #[arg(long, value_name = "FOLDER", env = "SEALPOD_GUEST")]
    guest: Option<PathBuf>,
    /// Images that are left to guests, `*` stands for any text; may be repeated [default: all; needed for containerd 1.6]
    #[arg(long, value_name = "PATTERN")]
    images: Vec<String>,
    /// The containerd that will be there, if it is not there yet
    #[arg(long, value_name = "VERSION")]
    containerd_version: Option<String>,
    /// Say what would be done, with the changes of each file, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Start and restart no service
    #[arg(long)]
    no_restart: bool,
}

/// Take everything back: files that nobody else edited are as they were, byte by byte
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod node uninstall --dry-run
  sealpod node uninstall")]
struct UninstallArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Even if pods use it
    #[arg(long)]
    force: bool,
    /// Remove snapshots, the emulated TPMs' authority and edited configuration files, too
    #[arg(long)]
    purge: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Start, restart and stop no service
    #[arg(long)]
    no_restart: bool,
}

/// Show what is installed, and whether it is as it was installed and runs
#[derive(Debug, Args)]
#[command(after_help = "Exit status 0 if it is installed and all is well, 1 otherwise.

Examples:
  sealpod node status
  sealpod node status --json")]
struct StatusArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Check whether this node can run pods in measured VMs, and say what to do where it can not
#[derive(Debug, Args)]
#[command(after_help = "Exit status 0 if pods can run here, 1 otherwise.

Examples:
  sealpod node doctor
  sealpod node doctor --json")]
struct DoctorArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl PlaceArgs {
    fn places(self) -> Places {
        let Self { prefix, root, containerd_config: containerd } = self;
        Places { prefix, root, containerd, ..Places::default() }
    }
}

pub(crate) async fn run(args: NodeArgs) -> Result<ExitCode> {
    match args.command {
        NodeCommand::Install(args) => tokio::task::spawn_blocking(move || install(args)).await?,
        NodeCommand::Uninstall(args) => tokio::task::spawn_blocking(move || uninstall(args)).await?,
        NodeCommand::Status(args) => tokio::task::spawn_blocking(move || status(args)).await?,
        NodeCommand::Doctor(args) => {
            let checks = sealpod_node::doctor::check(&args.places.places()).await;
            crate::doctor::report(checks.into_iter().map(Into::into).collect(), args.json)
        }
    }
}

fn install(args: InstallArgs) -> Result<ExitCode> {
    let programs = match args.from {
        Some(folder) => folder,
        None => std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default(),
    };
    let guest = match args.guest {
        Some(guest) => guest,
        None => guest_of(&programs)?,
    };
    let options = Options {
        places: args.places.places(),
        programs,
        guest,
        images: args.images,
        containerd_version: args.containerd_version,
        restart: !args.no_restart,
    };
    let plan = Installation::plan(&options).map_err(explain)?;
    if args.dry_run {
        return show(plan.lines());
    }
    if plan.is_done() {
        for note in plan.notes() {
            output::line(format!("note: {note}"))?;
        }
        output::line("everything is installed already")?;
        return Ok(ExitCode::SUCCESS);
    }
    carry_out(|say| plan.carry_out(say))?;
    output::line("installed")?;
    Ok(ExitCode::SUCCESS)
}

/// Beside the programs, or where `sealpod guest build` puts it.
fn guest_of(programs: &Path) -> Result<PathBuf> {
    let places = [programs.join("guest"), programs.join("../guest")];
    match places.into_iter().find(|folder| folder.join("guest.json").exists()) {
        Some(folder) => Ok(folder),
        None => crate::guest::folder(None),
    }
}

fn uninstall(args: UninstallArgs) -> Result<ExitCode> {
    let places = args.places.places();
    let plan = Removal::plan(&places, args.force, args.purge, !args.no_restart).map_err(explain)?;
    if args.dry_run {
        return show(plan.lines());
    }
    carry_out(|say| plan.carry_out(say))?;
    output::line("uninstalled")?;
    Ok(ExitCode::SUCCESS)
}

fn status(args: StatusArgs) -> Result<ExitCode> {
    let status = Status::of(&args.places.places()).map_err(explain)?;
    let code = if status.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        output::json(&status)?;
        return Ok(code);
    }
    let Some(version) = &status.version else {
        output::line("not installed")?;
        return Ok(code);
    };
    output::line(format!(
        "sealpod {version}, containerd {}",
        status.containerd.as_deref().unwrap_or("none")
    ))?;
    for part in &status.parts {
        let mark = if part.ok { "ok  " } else { "FAIL" };
        output::line(format!("{mark}  {}: {}", part.name, part.detail))?;
    }
    for unit in &status.pending {
        output::line(format!("FAIL  {unit}: waits for a restart: `systemctl restart {unit}`"))?;
    }
    Ok(code)
}

fn show(lines: Vec<String>) -> Result<ExitCode> {
    if lines.is_empty() {
        output::line("nothing is to be done")?;
    }
    for line in lines {
        output::line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows progress as it comes. A reader that went away does not stop what was begun.
fn carry_out(act: impl FnOnce(&mut dyn FnMut(&str)) -> std::result::Result<(), NodeError>) -> Result<()> {
    let mut printed = Ok(());
    let mut say = |line: &str| {
        if printed.is_ok() {
            printed = output::line(line);
        }
    };
    act(&mut say).map_err(explain)?;
    printed
}

fn explain(error: NodeError) -> Error {
    let hint = error.hint();
    let explained = Error::from(error);
    match hint {
        Some(hint) => explained.hint(hint),
        None => explained,
    }
}
