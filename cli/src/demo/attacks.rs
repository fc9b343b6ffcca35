//! What a hostile node, registry or network may try, each for real against the running system.

use std::path::Path;

use sealpod_agent_protocol::FailureKind;
use serde_json::Value;

use super::owner::{Image, Owner};
use super::recorder::RecordedRequest;
use super::report::Attack;
use super::shell::{PodRun, RunReport, Shell, words};
use crate::error::{Context, Error, Result};
use crate::output::Progress;

/// A host that asks a running pod to execute a command.
pub(super) async fn exec_in_a_pod(shell: &mut Shell, pod: &PodRun) -> Result<Attack> {
    shell.say("The host asks to run a command in the pod, although the owner's policy forbids it:")?;
    let observed = match shell.sealpod(&words!["exec", &pod.name, "--", "/bin/cat", "/app/serve"]).await {
        Ok(output) => format!("the command ran: {}", output.lines().next().unwrap_or_default()),
        Err(error) => error.message().lines().next().unwrap_or_default().to_owned(),
    };
    shell.say(&observed)?;
    let ok = observed.contains("policy") && observed.contains("ExecProcess");
    Ok(Attack {
        name: "exec against the policy",
        expected: "the agent's policy denies ExecProcess".into(),
        observed,
        ok,
    })
}

/// Two guests that are not the one that was measured: another command line, another initrd.
pub(super) async fn changed_guests(
    shell: &mut Shell,
    owner: &Owner,
    guest: &Path,
    image: &Image,
    folder: &Path,
) -> Result<(Attack, Attack)> {
    let reworded = copy_guest(guest, &folder.join("guest-reworded"))?;
    let manifest = reworded.join("guest.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&manifest)?)?;
    let command_line = json.get("cmdline").and_then(Value::as_str).unwrap_or_default();
    json["cmdline"] = format!("{command_line} init_on_free=0").into();
    std::fs::write(&manifest, serde_json::to_vec_pretty(&json)?)?;

    let rebuilt = copy_guest(guest, &folder.join("guest-rebuilt"))?;
    let initrd = rebuilt.join(json.get("initrd").and_then(Value::as_str).unwrap_or_default());
    // An archive of nothing before the genuine one (cpio newc): everything still works. The initrd's length stands in
    // the kernel's header, so the kernel's hash becomes another one too.
    let mut bytes = format!("070701{:0>88}{:08x}{:08x}TRAILER!!!\0\0\0\0", "", 11, 0).into_bytes();
    bytes.extend(std::fs::read(&initrd)?);
    std::fs::write(&initrd, bytes)?;

    shell.say(
        "The guest with one word more on its command line, and the guest with an empty archive before its initrd:",
    )?;
    let progress = Progress::start("booting two changed guests");
    let first = try_pod(shell, owner, &reworded, image).await?;
    progress.say("booting the second of two changed guests");
    let second = try_pod(shell, owner, &rebuilt, image).await?;
    drop(progress);
    let attacks = (
        refused_for("command line changed by one word", "cmdline", owner, &first).await?,
        refused_for("initrd changed", "initrd", owner, &second).await?,
    );
    for attack in [&attacks.0, &attacks.1] {
        shell.say(&format!("{}: {}", attack.name, attack.observed))?;
    }
    Ok(attacks)
}

/// An image that nobody signed, and one whose layer the registry altered.
pub(super) async fn changed_images(
    shell: &mut Shell,
    owner: &Owner,
    guest: &Path,
    image: &Image,
    folder: &Path,
) -> Result<(Attack, Attack)> {
    shell.say("An image encrypted with the right key, but not signed:")?;
    let unsigned = owner.publish(shell, &folder.join("plain"), "demo-unsigned", false).await?;
    let progress = Progress::start("starting a pod from the unsigned image");
    let first = try_pod(shell, owner, guest, &unsigned).await?;

    progress.say("starting a pod from an altered layer");
    let blob = owner.blob(&image.layer);
    let genuine = std::fs::read(&blob).context("the registry does not have the layer")?;
    let mut altered = genuine.clone();
    let middle = altered.len() / 2;
    if let Some(byte) = altered.get_mut(middle) {
        *byte ^= 1;
    }
    std::fs::write(&blob, altered)?;
    let second = try_pod(shell, owner, guest, image).await;
    std::fs::write(&blob, genuine)?;
    drop(progress);
    let attacks = (
        failed_as("image without a signature", FailureKind::ImageRefused, "sigstoreSigned", &first),
        failed_as("layer altered in the registry", FailureKind::ImageCorrupt, "digest", &second?),
    );
    for attack in [&attacks.0, &attacks.1] {
        shell.say(&format!("{}: {}", attack.name, attack.observed))?;
    }
    Ok(attacks)
}

/// An old quote given to a new challenge, and the same challenge answered twice.
pub(super) async fn replays(shell: &mut Shell, owner: &Owner) -> Result<[Attack; 2]> {
    shell.say(
        "What the first pod sent to the broker is sent again, from another machine: its quote with the nonce of a new\n\
         session written beside it, and its whole answer in its own session:",
    )?;
    let authentication = first(owner, "/kbs/v0/auth")?;
    let attestation = first(owner, "/kbs/v0/attest")?;
    let broker = Broker { http: reqwest::Client::new(), url: owner.broker_url() };

    let (challenge, session) = broker.post("/kbs/v0/auth", &authentication.body, None).await?;
    let session = session.ok_or_else(|| Error::new("the broker opened no session"))?;
    let nonce = challenge.body.get("nonce").and_then(Value::as_str);
    let nonce = nonce.ok_or_else(|| Error::new("the broker's challenge has no nonce"))?;
    let renewed = with_nonce(&attestation.body, nonce)?;
    let (answer, _) = broker.post("/kbs/v0/attest", &renewed, Some(&session)).await?;
    let (claim, observed) = reason(owner, &answer).await?;
    let replay = Attack {
        name: "quote of an earlier session",
        expected: "refused: the quote is not for this challenge".into(),
        // The proof that the TPM opened the challenge's credential is over the quote, and is looked at first.
        ok: claim == "report_data" || (claim == "ak" && observed.contains("challenge")),
        observed,
    };

    let (answer, _) = broker.post("/kbs/v0/attest", &attestation.body, attestation.cookie.as_deref()).await?;
    let twice = Attack {
        name: "nonce answered twice",
        expected: "the session takes no second answer (409)".into(),
        ok: answer.status == 409,
        observed: format!("{}: {}", answer.status, answer.detail()),
    };
    for attack in [&replay, &twice] {
        shell.say(&format!("{}: {}", attack.name, attack.observed))?;
    }
    Ok([replay, twice])
}

/// The answer to a challenge, with another challenge's nonce in it.
fn with_nonce(answer: &[u8], nonce: &str) -> Result<Vec<u8>> {
    let mut answer: Value = serde_json::from_slice(answer).context("the guest's answer is no JSON")?;
    let own = answer.pointer_mut("/runtime-data/nonce");
    *own.ok_or_else(|| Error::new("the guest's answer has no nonce"))? = nonce.into();
    Ok(serde_json::to_vec(&answer)?)
}

struct Broker {
    http: reqwest::Client,
    url: String,
}

struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn detail(&self) -> &str {
        self.body.get("detail").and_then(Value::as_str).unwrap_or("no reason given")
    }
}

impl Broker {
    /// Gives the answer and the session's cookie, if one was set.
    async fn post(&self, path: &str, body: &[u8], cookie: Option<&str>) -> Result<(Answer, Option<String>)> {
        let mut request =
            self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let response = request.body(body.to_vec()).send().await.context("the broker does not answer")?;
        let session = response
            .headers()
            .get("set-cookie")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(str::to_owned);
        let status = response.status().as_u16();
        let body = response.json().await.unwrap_or(Value::Null);
        Ok((Answer { status, body }, session))
    }
}

fn first(owner: &Owner, route: &str) -> Result<RecordedRequest> {
    owner.recorded(route).into_iter().next().ok_or_else(|| Error::new(format!("no guest called {route}")))
}

async fn try_pod(shell: &mut Shell, owner: &Owner, guest: &Path, image: &Image) -> Result<RunReport> {
    shell.try_pod(&owner.pod(guest, image)).await
}

/// The broker must have refused, for this claim.
async fn refused_for(name: &'static str, claim: &str, owner: &Owner, report: &RunReport) -> Result<Attack> {
    let denial = report.failure.as_ref().and_then(|failure| failure.denial.as_deref());
    let (refused, observed) = match denial {
        Some(id) => claims(&owner.refusal(id).await?),
        None => (Vec::new(), outcome(report)),
    };
    Ok(Attack {
        name,
        expected: format!("the key broker refuses: {claim}"),
        ok: refused.iter().any(|refused| refused == claim),
        observed,
    })
}

/// The guest must have failed in this way, and said this word about it.
fn failed_as(name: &'static str, kind: FailureKind, word: &str, report: &RunReport) -> Attack {
    let observed = outcome(report);
    let ok = report.failure.as_ref().is_some_and(|failure| failure.kind == kind) && observed.contains(word);
    Attack { name, expected: format!("the guest fails: {kind:?}, {word}"), observed, ok }
}

fn outcome(report: &RunReport) -> String {
    match (&report.error, report.exit_code) {
        (Some(error), _) => error.clone(),
        (None, Some(code)) => format!("the container ran and ended with {code}"),
        (None, None) => "nothing happened".into(),
    }
}

/// The claim for which the broker refused, and the refusal in words, from the owner's log.
async fn reason(owner: &Owner, answer: &Answer) -> Result<(String, String)> {
    let Some(id) = answer.body.get("denial").and_then(Value::as_str) else {
        return Ok((String::new(), format!("{}: {}", answer.status, answer.detail())));
    };
    let (mut claims, words) = claims(&owner.refusal(id).await?);
    Ok((claims.pop().unwrap_or_default(), words))
}

/// The claims that a refusal names, and one sentence with what was expected and what came.
fn claims(entry: &crate::kbs::AuditEntry) -> (Vec<String>, String) {
    let failures = entry.get("failures").and_then(Value::as_array).cloned().unwrap_or_default();
    let text =
        |failure: &Value, key: &str| failure.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let names = failures.iter().map(|failure| text(failure, "claim")).collect();
    let words: Vec<String> = failures
        .iter()
        .map(|failure| {
            let [claim, expected, actual] =
                ["claim", "expected", "actual"].map(|key| shorten(&text(failure, key)));
            format!("{claim}: expected {expected}, came {actual}")
        })
        .collect();
    (names, words.join("; "))
}

/// Long values by their end, where command lines differ.
fn shorten(value: &str) -> String {
    const SHOWN: usize = 56;
    let count = value.chars().count();
    if count <= SHOWN {
        value.to_owned()
    } else {
        format!("…{}", value.chars().skip(count - SHOWN).collect::<String>())
    }
}

/// A copy of a guest's folder to change.
fn copy_guest(from: &Path, to: &Path) -> Result<std::path::PathBuf> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).context(format!("cannot read {}", from.display()))? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replayed_quote_comes_with_the_new_nonce_and_nothing_else_is_changed() {
        let answer = |nonce: &str| {
            json!({
                "init-data": null,
                "runtime-data": { "nonce": nonce, "tee-pubkey": { "kty": "EC" } },
                "tee-evidence": { "primary_evidence": { "tpm_quote": "AAAA" }, "additional_evidence": "" },
            })
        };
        let replayed = with_nonce(answer("old").to_string().as_bytes(), "new").unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&replayed).unwrap(), answer("new"));
        assert!(with_nonce(b"{}", "new").is_err());
        assert!(with_nonce(b"", "new").is_err());
    }
}
