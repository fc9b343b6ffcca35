//! `sealpod ps`: the pods that this user runs on this machine.

use clap::Args;

use crate::error::Result;
use crate::output;
use crate::pod::control;

/// List this user's running pods
#[derive(Debug, Args)]
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
    let mut rows = vec![vec!["NAME".into(), "PID".into(), "IMAGE".into()]];
    rows.extend(pods.into_iter().map(|pod| vec![pod.name, pod.pid.to_string(), pod.image]));
    output::table(&rows)
}
