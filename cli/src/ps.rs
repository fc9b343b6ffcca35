//! `sealpod ps`: the pods that this user runs on this machine.

use clap::Args;

use crate::error::Result;
use crate::output;
use crate::pod::control;

/// List this user's running pods
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod ps
  sealpod ps --json")]
pub(crate) struct PsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: PsArgs) -> Result<()> {
    let pods = control::list().await?;
    if args.json {
        return output::json(&pods);
    }
    let mut rows = vec![["NAME", "PID", "PORTS", "IMAGE"].map(str::to_owned).to_vec()];
    rows.extend(pods.into_iter().map(|pod| {
        let ports: Vec<_> = pod.ports.iter().map(|(pod, host)| format!("{host}:{pod}")).collect();
        vec![pod.name, pod.pid.to_string(), ports.join(","), pod.image]
    }));
    output::table(&rows)
}
