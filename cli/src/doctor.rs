//! `sealpod doctor`: is this machine ready to run pods, and if not, what is to be done.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::error::Result;
use crate::output::{self, Progress};

/// Check whether this machine can run pods, and say what to do where it can not
#[derive(Debug, Args)]
#[command(after_help = "Exit status 0 if pods can run here, 1 otherwise.

Examples:
  sealpod doctor
  sealpod doctor --json")]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Finding {
    name: String,
    ok: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let progress = Progress::start("checking this machine");
    let mut findings: Vec<Finding> = sealpod_sandbox::doctor::check()
        .await
        .into_iter()
        .map(|check| Finding {
            name: check.name.to_string(),
            ok: check.ok,
            detail: check.detail,
            advice: check.advice,
        })
        .collect();
    findings.push(guest());
    drop(progress);

    let ready = findings.iter().all(|finding| finding.ok);
    if args.json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok  " } else { "FAIL" };
            output::line(format!("{mark}  {}: {}", finding.name, finding.detail))?;
            if let Some(advice) = &finding.advice {
                output::line(format!("      {advice}"))?;
            }
        }
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn guest() -> Finding {
    let named = std::env::var_os("SEALPOD_GUEST").map(std::path::PathBuf::from);
    let found = crate::guest::folder(named.as_deref()).and_then(|folder| {
        sealpod_sandbox::GuestImage::open(&folder)?;
        Ok(folder)
    });
    match found {
        Ok(folder) => {
            Finding { name: "guest".into(), ok: true, detail: folder.display().to_string(), advice: None }
        }
        Err(error) => Finding {
            name: "guest".into(),
            ok: false,
            detail: error.message(),
            advice: Some("build one: `sealpod guest build`".into()),
        },
    }
}
