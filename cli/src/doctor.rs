//! `sealpod doctor`: is this machine ready to run pods, and if not, what is to be done.

use std::path::PathBuf;
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

/// One thing that was looked at.
#[derive(Serialize)]
pub(crate) struct Finding {
    name: String,
    ok: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl From<sealpod_sandbox::doctor::Check> for Finding {
    fn from(check: sealpod_sandbox::doctor::Check) -> Self {
        Self { name: check.name.into(), ok: check.ok, detail: check.detail, advice: check.advice }
    }
}

pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let progress = Progress::start("checking this machine");
    let mut findings: Vec<Finding> =
        sealpod_sandbox::doctor::check().await.into_iter().map(Finding::from).collect();
    findings.push(guest());
    drop(progress);
    report(findings, args.json)
}

/// Shows what was found, and fails if anything of it is wrong.
pub(crate) fn report(findings: Vec<Finding>, json: bool) -> Result<ExitCode> {
    let ready = findings.iter().all(|finding| finding.ok);
    if json {
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
    let named = std::env::var_os("SEALPOD_GUEST").map(PathBuf::from);
    judge_guest(crate::guest::folder(named.as_deref()))
}

fn judge_guest(folder: Result<PathBuf>) -> Finding {
    let found = folder.and_then(|folder| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_guest_that_is_missing_or_not_whole_is_said_with_how_to_build_one() {
        let empty = tempfile::tempdir().unwrap();
        let folder = empty.path().display().to_string();
        for (found, word) in [
            (Err(Error::new("there is no guest")), "there is no guest"),
            (Ok(empty.path().to_owned()), folder.as_str()),
        ] {
            let finding = judge_guest(found);
            assert!(!finding.ok && finding.detail.contains(word), "{}", finding.detail);
            assert!(finding.advice.is_some_and(|advice| advice.contains("sealpod guest build")));
        }
    }
}
