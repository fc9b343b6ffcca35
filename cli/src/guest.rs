//! `sealpod guest`: build the guest that pods boot, and compute what it measures to.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sealpod_guest_image::{BuildOptions, GuestManifest, debian};
use sealpod_measure::{GuestFiles, Measurements};
use sealpod_sandbox::GuestImage;

use crate::error::{Context, Error, Result};
use crate::output::{self, Progress};
use crate::pod::data_folder;

/// Build the guest that pods boot, and compute what it measures to
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod guest build --agent sealpod-agent --output guest/
  sealpod guest measure guest/ --json > measurements.json
  sealpod kbs reference-value set --from measurements.json")]
pub(crate) struct GuestArgs {
    #[command(subcommand)]
    command: GuestCommand,
}

#[derive(Debug, Subcommand)]
enum GuestCommand {
    /// Make a guest: kernel, initrd, firmware and command line in one folder; the same inputs give the same bytes
    #[command(after_help = "Examples:
  sealpod guest build
  sealpod guest build --agent sealpod-agent --output guest/")]
    Build(BuildArgs),
    /// Compute from a guest's files alone what a machine that boots it will measure
    #[command(after_help = "Examples:
  sealpod guest measure guest/
  sealpod guest measure guest/ --json > measurements.json")]
    Measure {
        /// The guest's folder
        #[arg(env = "SEALPOD_GUEST")]
        folder: Option<PathBuf>,
        /// Print JSON, as `sealpod kbs reference-value set --from` reads it
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// The agent, one static program [default: sealpod-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The program that the kernel starts, and that starts the agent [default: sealpod-loader beside the agent]
    #[arg(long, value_name = "FILE")]
    loader: Option<PathBuf>,
    /// An own kernel instead of Debian's cloud kernel
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// The modules of that kernel, as /lib/modules/VERSION
    #[arg(long, value_name = "FOLDER", requires = "kernel")]
    modules: Option<PathBuf>,
    /// The UEFI firmware's code [default: that of the package ovmf]
    #[arg(long, value_name = "FILE", requires = "firmware_variables")]
    firmware: Option<PathBuf>,
    /// The UEFI firmware's variables
    #[arg(long, value_name = "FILE", requires = "firmware")]
    firmware_variables: Option<PathBuf>,
    /// Words to add to the kernel's command line
    #[arg(long, value_name = "WORDS")]
    cmdline: Option<String>,
    /// Where the guest goes [default: where other commands look for it, sealpod/guest in the user's data folder]
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(args: GuestArgs) -> Result<()> {
    match args.command {
        GuestCommand::Build(args) => tokio::task::spawn_blocking(move || build(args)).await?,
        GuestCommand::Measure { folder: path, json } => {
            let folder = folder(path.as_deref())?;
            let progress = Progress::start("measuring the guest");
            let measurements = tokio::task::spawn_blocking(move || measure(&folder)).await??;
            drop(progress);
            print(&measurements, json)
        }
    }
}

fn build(args: BuildArgs) -> Result<()> {
    let output = args.output.unwrap_or_else(default_output);
    let progress = Progress::start("looking for the guest's parts");
    let agent = args.agent.map_or_else(agent_beside_this_program, Ok)?;
    let loader = args.loader.map_or_else(|| loader_beside(&agent), Ok)?;
    // Clap lets each pair come only as a whole.
    let (kernel, modules) = match (args.kernel, args.modules) {
        (Some(kernel), Some(modules)) => (kernel, modules),
        _ => {
            progress.say("getting Debian's cloud kernel");
            let found = debian::kernel(&cache_folder())?;
            (found.kernel, found.modules)
        }
    };
    let (firmware, firmware_variables) = match (args.firmware, args.firmware_variables) {
        (Some(firmware), Some(variables)) => (firmware, variables),
        _ => sealpod_guest_image::firmware()?,
    };
    progress.say("building the guest");
    let cmdline = args.cmdline;
    let options = BuildOptions {
        kernel,
        modules,
        loader,
        agent,
        firmware,
        firmware_variables,
        cmdline,
        output: output.clone(),
    };
    let manifest = sealpod_guest_image::build(&options)?;
    drop(progress);
    print_guest(&output, &manifest)
}

fn agent_beside_this_program() -> Result<PathBuf> {
    let agent = std::env::current_exe()?.with_file_name("sealpod-agent");
    if agent.is_file() {
        return Ok(agent);
    }
    Err(Error::new(format!("there is no agent at {}", agent.display())).hint("name it with --agent"))
}

fn loader_beside(agent: &Path) -> Result<PathBuf> {
    let loader = agent.with_file_name("sealpod-loader");
    if loader.is_file() {
        return Ok(loader);
    }
    Err(Error::new(format!("there is no loader at {}", loader.display())).hint("name it with --loader"))
}

fn print_guest(folder: &Path, manifest: &GuestManifest) -> Result<()> {
    output::line(format!("built {}", folder.display()))?;
    let mut rows = vec![vec!["FILE".into(), "SIZE".into()]];
    for name in [
        &manifest.kernel,
        &manifest.initrd,
        &manifest.agent,
        &manifest.firmware,
        &manifest.firmware_variables,
    ] {
        let length = folder.join(name).metadata().context(format!("cannot read {name}"))?.len();
        rows.push(vec![name.clone(), output::bytes(length)]);
    }
    output::table(&rows)
}

/// The guest to use: the one named, or where `guest build` puts it, or where packages do.
pub(crate) fn folder(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = named {
        return Ok(folder.to_owned());
    }
    let places = [default_output(), PathBuf::from("/usr/lib/sealpod/guest")];
    let [own, packaged] = places.each_ref().map(|folder| folder.display().to_string());
    places.into_iter().find(|folder| folder.join("guest.json").exists()).ok_or_else(|| {
        Error::new(format!("there is no guest in {own} or {packaged}"))
            .hint("build one with `sealpod guest build`, or name one with --guest or in SEALPOD_GUEST")
    })
}

/// Where downloaded packages stay.
pub(crate) fn cache_folder() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from).join("sealpod")
}

/// What a machine that boots this guest will measure.
pub(crate) fn measure(folder: &Path) -> Result<Measurements> {
    let guest = GuestImage::open(folder)?;
    let read = |path: &Path| std::fs::read(path).context(format!("cannot read {}", path.display()));
    let files = GuestFiles {
        firmware: &read(&guest.firmware)?,
        kernel: &read(&guest.kernel)?,
        initrd: &read(&guest.initrd)?,
        cmdline: &guest.cmdline,
        low_memory_mib: guest.low_memory_mib,
    };
    sealpod_measure::measure(&files).context("cannot measure the guest")
}

fn default_output() -> PathBuf {
    data_folder().join("guest")
}

fn print(measurements: &Measurements, json: bool) -> Result<()> {
    let values = measurements.reference_values();
    if json {
        return output::json(&values);
    }
    let mut rows = vec![vec!["ID".into(), "VALUE".into()]];
    for (id, accepted) in values {
        for value in accepted.as_array().into_iter().flatten() {
            rows.push(vec![id.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)]);
        }
    }
    output::table(&rows)
}
