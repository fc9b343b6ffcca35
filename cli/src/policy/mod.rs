//! `sealpod policy`: what a pod is allowed: made from its manifest, explained, compared, tried.

mod generate;
mod inspect;

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::error::{Context, Error, Result};

/// The most that is read of a file.
const LONGEST: u64 = 8 << 20;

/// Make, explain, compare and try what the host may ask of a Kubernetes pod
#[derive(Debug, Args)]
#[command(
    after_help = "The policy is part of the pod's init data, which the guest measures before it reads it. What a manifest \
does not say is denied, and so is looking into the pod unless it is allowed here.

Examples:
  sealpod policy generate pod.yaml --kbs https://broker.example:8080 \\
      --kbs-certificate broker/tls.crt --allow-logs \\
      --image-policy kbs:///default/image-policy/web > sealed.yaml
  sealpod policy explain sealed.yaml
  sealpod policy diff sealed.yaml newer.yaml
  sealpod policy test sealed.yaml --request exec.json"
)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    Generate(Box<generate::GenerateArgs>),
    Explain(inspect::ExplainArgs),
    Diff(inspect::DiffArgs),
    Test(inspect::TestArgs),
}

pub(crate) fn run(args: PolicyArgs) -> Result<ExitCode> {
    match args.command {
        PolicyCommand::Generate(args) => generate::run(*args).map(|()| ExitCode::SUCCESS),
        PolicyCommand::Explain(args) => inspect::explain(args).map(|()| ExitCode::SUCCESS),
        PolicyCommand::Diff(args) => inspect::diff(args).or_else(trouble),
        PolicyCommand::Test(args) => inspect::test(args).or_else(trouble),
    }
}

/// What could not be compared or tried is neither different nor denied, as with diff(1).
fn trouble(error: Error) -> Result<ExitCode> {
    if error.is_output_closed() {
        return Err(error);
    }
    error.report();
    Ok(ExitCode::from(2))
}

/// The text of a file, or of standard input for `-`.
fn read(path: &Path) -> Result<String> {
    let what = || format!("cannot read {}", name(path));
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().take(LONGEST + 1).read_to_string(&mut text),
        false => std::fs::File::open(path).context(what())?.take(LONGEST + 1).read_to_string(&mut text),
    };
    let length = read.context(what())?;
    match u64::try_from(length).is_ok_and(|length| length <= LONGEST) {
        true => Ok(text),
        false => Err(Error::new(format!("{} has more than {LONGEST} bytes", name(path)))),
    }
}

fn name(path: &Path) -> String {
    if path == Path::new("-") { "standard input".into() } else { path.display().to_string() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const POD: &str = "# the shop's\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: web, image: i}]\n";
    const EXEC: &str = r#"{"request": "ExecProcess", "input": {"container": "a", "exec": "b", "command": ["ls"],
        "environment": {}, "user": null, "working_directory": null, "terminal": true, "stdin": true}}"#;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn sealpod(words: &[&str]) -> Result<ExitCode> {
        run(Arguments::try_parse_from([&["policy"], words].concat()).unwrap().policy)
    }

    #[test]
    fn a_manifest_is_sealed_compared_and_tried() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (pod, sealed, newer, exec) =
            (path("pod.yaml"), path("sealed.yaml"), path("newer.yaml"), path("exec.json"));
        std::fs::write(&pod, POD).unwrap();
        std::fs::write(&exec, EXEC).unwrap();
        let kbs = ["--kbs", "https://b", "--image-policy", "kbs:///default/image-policy/web"];
        let generate = |more: &[&str]| sealpod(&[&["generate", &pod], &kbs[..], more].concat());
        generate(&["--output", &sealed, "--init-data-folder", &path("init-data")]).unwrap();
        generate(&["--output", &newer, "--allow-exec", "ls"]).unwrap();
        let text = std::fs::read_to_string(&sealed).unwrap();
        assert!(text.starts_with("# the shop's\n") && text.contains("cc_init_data"), "{text}");

        let (same, other) = (ExitCode::SUCCESS, ExitCode::FAILURE);
        let code = |words: &[&str]| format!("{:?}", sealpod(words).unwrap());
        assert_eq!(code(&["diff", &sealed, &sealed]), format!("{same:?}"));
        assert_eq!(code(&["diff", &sealed, &path("init-data/pod-web.toml")]), format!("{same:?}"));
        assert_eq!(code(&["diff", &sealed, &newer]), format!("{other:?}"));
        assert_eq!(code(&["test", &sealed, "--request", &exec]), format!("{other:?}"));
        assert_eq!(code(&["test", &newer, "--request", &exec]), format!("{same:?}"));
        let trouble = format!("{:?}", ExitCode::from(2));
        assert_eq!(code(&["test", &newer, "--request", &pod]), trouble);
        assert_eq!(code(&["diff", &newer, &path("nothing")]), trouble);
        assert_eq!(code(&["explain", &newer]), format!("{same:?}"));

        // Again, in place: only the annotation changes.
        sealpod(&[&["generate", "--in-place", &newer], &kbs[..]].concat()).unwrap();
        assert_eq!(std::fs::read_to_string(&newer).unwrap(), text);
    }

    #[test]
    fn what_cannot_be_generated_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let pod = folder.path().join("pod.yaml").to_str().unwrap().to_owned();
        std::fs::write(&pod, POD).unwrap();
        for (words, expected) in [
            (&["generate", pod.as_str()][..], "key broker"),
            (&["generate", &pod, "--kbs", "https://b", "--json"], "--json"),
            (&["generate", "--in-place", "--kbs", "https://b"], "standard input"),
            (&["generate", "/nowhere/pod.yaml", "--kbs", "https://b"], "/nowhere/pod.yaml"),
            (&["generate", &pod, "--kbs", "ftp://b"], "ftp://b"),
        ] {
            let message = sealpod(words).unwrap_err().message();
            assert!(message.contains(expected), "{words:?}: {message}");
        }
    }
}
