//! What the demo found: the table at its end, and the same as `target/demo/report.json`.

use serde::Serialize;

use crate::error::Result;
use crate::output;

/// Milliseconds of each stage of the first pod.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Stages {
    /// From starting the VM to the guest's first byte.
    pub(crate) boot: u64,
    /// From there to an agent that answers.
    pub(crate) agent: u64,
    /// The handshake with the key broker, evidence included.
    pub(crate) attest: u64,
    /// Pull, verify, decrypt, unpack.
    pub(crate) image: u64,
    /// From creating the container to its first output.
    pub(crate) start: u64,
}

/// One attack and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attack {
    /// What was tried.
    pub(crate) name: &'static str,
    /// The reason for which it must fail.
    pub(crate) expected: String,
    /// What happened.
    pub(crate) observed: String,
    /// Whether it failed for that reason.
    pub(crate) ok: bool,
}

/// The whole.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) stages_ms: Stages,
    pub(crate) attacks: Vec<Attack>,
    pub(crate) ok: bool,
}

impl Report {
    pub(crate) fn print(&self) -> Result<()> {
        let stages = &self.stages_ms;
        let mut rows = vec![vec!["STAGE".into(), "TIME".into()]];
        for (name, milliseconds) in [
            ("VM to first guest byte", stages.boot),
            ("agent ready", stages.agent),
            ("attested", stages.attest),
            ("image ready", stages.image),
            ("first output", stages.start),
        ] {
            rows.push(vec![name.into(), format!("{:>6.2} s", milliseconds as f64 / 1000.0)]);
        }
        output::line("")?;
        output::table(&rows)?;
        output::line("")?;
        let mut rows = vec![vec!["ATTACK".into(), "VERDICT".into(), "BECAUSE".into()]];
        for attack in &self.attacks {
            // What was observed has been told as it happened.
            let (verdict, because) = match attack.ok {
                true => ("stopped", &attack.expected),
                false => ("NOT AS IT MUST BE", &attack.observed),
            };
            rows.push(vec![attack.name.into(), verdict.into(), because.clone()]);
        }
        output::table(&rows)
    }
}
