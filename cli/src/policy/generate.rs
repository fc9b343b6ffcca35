//! `sealpod policy generate`: from a manifest to the same manifest with init data.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use clap::Args;
use sealpod_agent_protocol::WORKLOAD_API_PORT;
use sealpod_pod_policy::{
    ImagePolicy, Manifest, ObjectKind, Options, Pod, PodAnnotations, PodPolicy, RUNTIME, build, render,
};
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::file;
use crate::init_data::{Owner, digest};
use crate::output;

/// Write a manifest's pods their init data: what they are, and nothing else, is allowed
#[derive(Debug, Args)]
#[command(
    after_help = "Every Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job and CronJob of the input gets the \
annotation io.katacontainers.config.hypervisor.cc_init_data, and one for the limits of its volumes \
(emptyDir.sizeLimit) where it has any; all else stays as it is, comments too. Where some say \
runtimeClassName: sealpod, the others are left alone. \
ConfigMaps are fixed with their content, and must be in the input or in a file named by --with; of Secrets, \
which the cluster knows anyway and the annotation must not tell, any content is allowed. An image with a digest \
is that one; with a tag only, its signer decides by the image policy.

Denied unless allowed here: logs, termination messages, exec (but for the exact commands of probes and \
hooks), attach, cp, port-forward, debug containers.

Examples:
  sealpod policy generate pod.yaml --kbs https://broker.example:8080 \\
      --kbs-certificate broker/tls.crt \\
      --image-policy kbs:///default/image-policy/web > sealed.yaml
  kustomize build . |
      sealpod policy generate - --kbs https://broker.example:8080 |
      kubectl apply -f -
  sealpod policy generate pod.yaml --kbs https://broker.example:8080 \\
      --in-place --allow-logs --allow-exec 'ls -l /data'"
)]
pub(crate) struct GenerateArgs {
    /// The manifest (YAML or JSON, one or many documents); - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// More ConfigMaps and Secrets that the pods use; they are read only. - for standard input
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// The name of Sealpod's RuntimeClass in the cluster
    #[arg(long, value_name = "NAME", default_value = RUNTIME)]
    runtime_class: String,
    #[command(flatten)]
    owner: Owner,
    /// Let people run this command, word by word as a shell splits it, with a terminal if they like; '*' for any command
    #[arg(long, value_name = "COMMAND", value_parser = parse_exec)]
    allow_exec: Vec<Exec>,
    /// Let the host read what containers print (kubectl logs)
    #[arg(long)]
    allow_logs: bool,
    /// Let the host read what containers write to their terminationMessagePath (kubectl describe)
    #[arg(long)]
    allow_termination_messages: bool,
    /// Let people type into containers (kubectl attach; to see their output takes --allow-logs)
    #[arg(long)]
    allow_attach: bool,
    /// Let people copy files out of and into containers (kubectl cp); who can put files in can run programs
    #[arg(long)]
    allow_cp: bool,
    /// Let people connect to this port of the pod's loopback (kubectl port-forward); '*' for any port
    #[arg(long, value_name = "PORT", value_parser = parse_port)]
    allow_port_forward: Vec<Port>,
    /// Let people add debug containers of this image (kubectl debug) and run in them what they like: they can read all
    /// that the pod has, its secrets included
    #[arg(long, value_name = "IMAGE")]
    allow_debug: Vec<String>,
    /// Let the cluster choose the content of a ConfigMap that is not in the input, or that is to change later
    #[arg(long, value_name = "ConfigMap/NAME", value_parser = parse_object)]
    allow_any_content: Vec<(ObjectKind, String)>,
    /// Write the manifest to this file instead of standard output
    #[arg(short, long, value_name = "FILE", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Write the manifest back to the file that it came from
    #[arg(short, long)]
    in_place: bool,
    /// Also write each pod's init data (TOML) into this folder, as deployment-web.toml
    #[arg(long, value_name = "FOLDER")]
    init_data_folder: Option<PathBuf>,
    /// Print what was made as JSON on standard output; the manifest goes to --output or --in-place
    #[arg(long)]
    json: bool,
}

/// A command that people may run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exec {
    Any,
    Words(Vec<String>),
}

/// A port to which people may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Any,
    One(NonZeroU16),
}

/// What was made for a pod.
#[derive(Serialize)]
struct Made<'a> {
    pod: &'a str,
    /// The reference value `init_data`.
    init_data_digest: String,
    annotation_bytes: usize,
    policy: &'a PodPolicy,
    #[serde(skip)]
    init_data: String,
}

pub(super) fn run(args: GenerateArgs) -> Result<()> {
    if args.owner.kbs.is_none() {
        return Err(Error::new("a pod without a key broker gets no image, and so needs no policy")
            .hint("add --kbs URL"));
    }
    let is_stdin = args.file == Path::new("-");
    if args.in_place && is_stdin {
        return Err(Error::new("standard input cannot be written back to")
            .hint("name a file, or leave out --in-place"));
    }
    if args.json && !args.in_place && args.output.is_none() {
        return Err(Error::new("--json takes standard output, where the manifest would go")
            .hint("add --output FILE or --in-place"));
    }
    let text = super::read(&args.file)?;
    let what = super::name(&args.file);
    let mut manifest = Manifest::read(&text).context(&what)?;
    for file in &args.with {
        manifest.add_objects(&super::read(file)?).context(super::name(file))?;
    }
    let others = manifest.leave_others(&args.runtime_class);
    let options = options(&args);
    let policies = manifest.pods().iter().map(|pod| Ok(build(&manifest, pod, &options)?));
    let policies = policies.collect::<Result<Vec<_>>>().context(&what)?;
    let mut made = Vec::new();
    let mut annotations = Vec::new();
    for (pod, policy) in manifest.pods().iter().zip(&policies) {
        let (one, annotation) = make(&args.owner, pod, policy)?;
        made.push(one);
        annotations.push(PodAnnotations { init_data: annotation, volume_limits: policy.volume_limits() });
    }
    let annotated = manifest.annotate(&annotations, &args.runtime_class).context(&what)?;
    if let Some(folder) = &args.init_data_folder {
        write_init_data(folder, &made)?;
    }
    match (&args.output, args.in_place) {
        (Some(output), _) => file::replace(output, annotated.as_bytes())?,
        (None, true) => file::replace(&args.file, annotated.as_bytes())?,
        (None, false) => output::raw(annotated.as_bytes())?,
    }
    if args.json {
        output::json(&made)?;
    }
    for other in others {
        output::note(format!(
            "note: {other} stays as it is: it is not of the RuntimeClass {}",
            args.runtime_class
        ));
    }
    for other in manifest.unknown() {
        output::note(format!("note: {other} stays as it is: pods of this kind are not known"));
    }
    manifest.pods().iter().for_each(|pod| warn(pod, &args.runtime_class));
    tell(&args, &policies, &made);
    Ok(())
}

/// Of what the cluster may do with a pod.
fn warn(pod: &Pod, runtime_class: &str) {
    let name = pod.name();
    if pod.runtime_class().is_none() {
        output::note(format!(
            "warning: {name} has no runtimeClassName: {runtime_class}; without it the node runs the pod outside of a guest"
        ));
    } else if pod.runtime_class() != Some(runtime_class) {
        output::note(format!(
            "warning: {name} is not of the RuntimeClass {runtime_class}; if its own is Sealpod's, name it by --runtime-class"
        ));
    }
    for resource in pod.extended_resources() {
        output::note(format!(
            "warning: {name} wants {resource}: a device that the node adds for it cannot be had, and the pod would not start"
        ));
    }
}

fn options(args: &GenerateArgs) -> Options {
    let words = |exec: &Exec| match exec {
        Exec::Any => None,
        Exec::Words(words) => Some(words.clone()),
    };
    let number = |port: &Port| match port {
        Port::Any => None,
        Port::One(port) => Some(port.get()),
    };
    Options {
        exec: args.allow_exec.iter().filter_map(words).collect(),
        any_exec: args.allow_exec.contains(&Exec::Any),
        logs: args.allow_logs,
        termination_messages: args.allow_termination_messages,
        attach: args.allow_attach,
        copy: args.allow_cp,
        ports: args.allow_port_forward.iter().filter_map(number).collect(),
        any_port: args.allow_port_forward.contains(&Port::Any),
        debug: args.allow_debug.clone(),
        any_content: args.allow_any_content.iter().cloned().collect(),
    }
}

fn make<'a>(owner: &Owner, pod: &'a Pod, policy: &'a PodPolicy) -> Result<(Made<'a>, String)> {
    let rego = render(policy)?;
    // What the guest would refuse is refused here.
    sealpod_agent_policy::Policy::new(Some(&rego)).context(pod.name())?;
    let init_data = owner.init_data(Some(rego))?.unwrap_or_default();
    let annotation = sealpod_evidence::init_data::encode_annotation(&init_data).context(pod.name())?;
    let made = Made {
        pod: pod.name(),
        init_data_digest: digest(&init_data)?,
        annotation_bytes: annotation.len(),
        policy,
        init_data,
    };
    Ok((made, annotation))
}

fn write_init_data(folder: &Path, made: &[Made<'_>]) -> Result<()> {
    std::fs::create_dir_all(folder).context(format!("cannot make {}", folder.display()))?;
    let mut written = BTreeSet::new();
    for one in made {
        let path = folder.join(format!("{}.toml", one.pod.replace('/', "-").to_ascii_lowercase()));
        if !written.insert(path.clone()) {
            let (pod, path) = (one.pod, path.display());
            return Err(Error::new(format!(
                "{pod} and another pod would both have their init data in {path}"
            ))
            .hint("give the pods names that differ, or seal them one manifest at a time"));
        }
        std::fs::write(&path, &one.init_data).context(format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The next step, and what the owner should know.
fn tell(args: &GenerateArgs, policies: &[PodPolicy], made: &[Made<'_>]) {
    for one in made {
        output::note(format!(
            "{}: init data {} ({} bytes as an annotation)",
            one.pod, one.init_data_digest, one.annotation_bytes
        ));
    }
    let by_tag = |image: &ImagePolicy| image.digest.is_none().then(|| image.reference.clone());
    let containers = policies.iter().flat_map(|policy| policy.containers.values());
    let by_tag: BTreeSet<_> = containers.filter_map(|container| by_tag(&container.image)).collect();
    if !by_tag.is_empty() {
        let names = by_tag.into_iter().collect::<Vec<_>>().join(", ");
        output::note(format!(
            "note: without a digest, the image policy's signer decides which image {names} is"
        ));
    }
    if args.owner.image_policy.is_none() {
        output::note("warning: without --image-policy no image may run");
    }
    let digests: Vec<_> = made.iter().map(|one| one.init_data_digest.as_str()).collect();
    output::note(
        "next: register the init data at the key broker, with those of all pods that still run (set replaces):",
    );
    output::note(format!("  sealpod kbs reference-value set init_data {}", digests.join(" ")));
}

fn parse_port(text: &str) -> Result<Port, String> {
    match text.trim() {
        "*" => Ok(Port::Any),
        number => match number.parse::<NonZeroU16>() {
            Ok(port) if port.get() == WORKLOAD_API_PORT => {
                Err(format!("port {port} is the guest's own, for the pod's containers alone"))
            }
            Ok(port) => Ok(Port::One(port)),
            Err(_) => Err("expected a port, 1 to 65535, or '*'".into()),
        },
    }
}

/// Words as a shell takes them, quotes and backslashes included, and nothing else of a shell.
fn parse_exec(text: &str) -> Result<Exec, String> {
    if text.trim() == "*" {
        return Ok(Exec::Any);
    }
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' | '"' => {
                let quoted = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        None => return Err(format!("a quote {character} is not closed")),
                        Some(end) if end == character => break,
                        Some('\\') if character == '"' => quoted.extend(characters.next()),
                        Some(other) => quoted.push(other),
                    }
                }
            }
            '\\' => {
                let escaped = characters.next().ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(escaped);
            }
            space if space.is_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        Err("it has no words".into())
    } else {
        Ok(Exec::Words(words))
    }
}

fn parse_object(text: &str) -> Result<(ObjectKind, String), String> {
    let name = text
        .split_once('/')
        .filter(|(kind, name)| kind.eq_ignore_ascii_case("configmap") && !name.is_empty());
    let (_, name) = name.ok_or("expected ConfigMap/NAME (of Secrets any content is allowed anyway)")?;
    Ok((ObjectKind::ConfigMap, name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_does_it() {
        for (text, expected) in [
            ("ls -l /data", &["ls", "-l", "/data"][..]),
            ("  sh   -c 'echo \"a  b\"' ", &["sh", "-c", "echo \"a  b\""]),
            (r#"a "b \" c" d\ e '' f"g"h"#, &["a", "b \" c", "d e", "", "fgh"]),
        ] {
            let expected = expected.iter().map(ToString::to_string).collect();
            assert_eq!(parse_exec(text), Ok(Exec::Words(expected)), "{text}");
        }
        assert_eq!(parse_exec(" * "), Ok(Exec::Any));
        for text in ["", "  ", "'a", "\"a\\", "a\\", "''"] {
            assert!(parse_exec(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_port_is_a_number_or_any() {
        assert_eq!(parse_port("80").map(|port| port != Port::Any), Ok(true));
        assert_eq!(parse_port("*"), Ok(Port::Any));
        for text in ["", "0", "65536", "http", "80:8080", "8006"] {
            assert!(parse_port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_object_is_named_by_its_kind() {
        assert_eq!(parse_object("configmap/a"), Ok((ObjectKind::ConfigMap, "a".into())));
        for text in ["a", "Secret/a", "ConfigMap/", "/a"] {
            assert!(parse_object(text).is_err(), "{text}");
        }
    }
}
