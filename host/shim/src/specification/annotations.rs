//! Annotations by which container engines say what a specification is for.
//!
//! A pod's author writes annotations too, and CRI-O hands on whatever they are called. So whose words count is decided
//! once for a specification, and the other engine's are then nobody's. CRI-O is known by its own: containerd hands on
//! only what its configuration lists (`pod_annotations`), where those are not.

use std::collections::HashMap;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use oci_spec::runtime::Spec;
use sealpod_agent_protocol::{VolumeLimits, VolumeLimitsError};
use serde::Deserialize;

use super::{Error, refused};

/// What an engine calls what it says of each container.
#[derive(Debug)]
struct Words {
    kind: &'static str,
    sandbox: &'static str,
    pod: &'static str,
    name: &'static str,
    image: &'static str,
}

const CONTAINERD: Words = Words {
    kind: "io.kubernetes.cri.container-type",
    sandbox: "io.kubernetes.cri.sandbox-id",
    pod: "io.kubernetes.cri.sandbox-uid",
    name: "io.kubernetes.cri.container-name",
    image: "io.kubernetes.cri.image-name",
};
const CRIO: Words = Words {
    kind: "io.kubernetes.cri-o.ContainerType",
    sandbox: "io.kubernetes.cri-o.SandboxID",
    // These two are labels of kubelet's, which CRI-O adds last.
    pod: "io.kubernetes.pod.uid",
    name: "io.kubernetes.container.name",
    // Some name of the image: not always the one that the pod gave, or any.
    image: "io.kubernetes.cri-o.ImageName",
};
/// CRI-O's: what kubelet passed, which is what the pod gave, the name of a digest, or an id on this node.
const CRIO_GIVEN_IMAGE: &str = "io.kubernetes.cri-o.Image";
/// CRI-O's: CRI's `LinuxContainerResources` in JSON. The second name is of newer releases.
const CRIO_RESOURCES: [&str; 2] = ["io.kubernetes.cri-o.PodLinuxResources", "pod-linux-resources.crio.io"];
/// CRI-O's: the same of the RuntimeClass's overhead.
const CRIO_OVERHEAD: [&str; 2] = ["io.kubernetes.cri-o.PodLinuxOverhead", "pod-linux-overhead.crio.io"];
/// containerd's.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// base64(gzip(TOML)), as existing users of confidential pods write it.
const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// As much init data as a guest takes.
const LONGEST_INIT_DATA: u64 = 1 << 20;

/// A specification's annotations, read as those of one engine.
#[derive(Debug)]
pub(super) struct Annotations {
    words: &'static Words,
    values: HashMap<String, String>,
}

/// What a specification is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sandbox,
    Container,
}

/// What a specification is for, and in which pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) kind: Kind,
    pub(crate) sandbox: String,
}

/// What kubelet says of a pod's containers together, or of what it takes beside them. Less than 1 is no limit.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PodResources {
    memory_limit_in_bytes: i64,
    cpu_quota: i64,
    cpu_period: i64,
}

impl Annotations {
    pub(super) fn of(spec: &Spec) -> Self {
        Self::new(spec.annotations().clone().unwrap_or_default())
    }

    fn new(values: HashMap<String, String>) -> Self {
        Self { words: if values.contains_key(CRIO.kind) { &CRIO } else { &CONTAINERD }, values }
    }

    /// One that says something.
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn is_crio(&self) -> bool {
        self.words.kind == CRIO.kind
    }

    /// What the container with an id is.
    pub(super) fn role(&self, id: &str) -> Result<Role, Error> {
        let kind = match self.get(self.words.kind) {
            Some("sandbox") => Kind::Sandbox,
            Some("container") => Kind::Container,
            _ => {
                return Err(refused(
                    "a container that belongs to no pod",
                    "this runtime runs pods, by CRI; `sealpod run` runs an image without Kubernetes",
                ));
            }
        };
        let sandbox =
            self.get(self.words.sandbox).ok_or(Error::Missing("annotation with the sandbox's id"))?;
        if kind == Kind::Sandbox && sandbox != id {
            return Err(refused(
                format!("the annotation {} of a pod", self.words.sandbox),
                "the engine alone says which pod this is; leave it out",
            ));
        }
        Ok(Role { kind, sandbox: sandbox.into() })
    }

    /// The UID that Kubernetes knows the pod by.
    pub(super) fn pod(&self) -> Option<&str> {
        self.get(self.words.pod)
    }

    pub(super) fn container_name(&self) -> Option<String> {
        self.get(self.words.name).map(str::to_owned)
    }

    /// The reference under which the guest pulls; `left` is that of an image which CRI-O has left to it.
    ///
    /// The host is not believed: the guest asks the pod's policy whether the image may run.
    pub(super) fn image(&self, left: Option<&str>) -> Result<String, Error> {
        let named = self.get(self.words.image);
        if !self.is_crio() {
            return named.map(str::to_owned).ok_or(Error::Missing("annotation with the image's name"));
        }
        let by_digest = self
            .get(CRIO_GIVEN_IMAGE)
            .filter(|image| image.split_once("@sha256:").is_some_and(|(name, _)| !name.is_empty()));
        let image = by_digest.or(left.filter(|name| !name.is_empty())).or(named);
        image.map(str::to_owned).ok_or_else(|| {
            refused(
                "an image of which CRI-O knows no name",
                "the guest pulls by name; name the image by its digest in the pod, as NAME@sha256:...",
            )
        })
    }

    /// Memory in bytes, and whole processors.
    pub(super) fn size(&self) -> (Option<u64>, Option<u32>) {
        let resources = if self.is_crio() {
            self.pod_resources(&CRIO_RESOURCES)
        } else {
            let number = |name: &str| self.get(name)?.parse::<i64>().ok();
            PodResources {
                memory_limit_in_bytes: number(MEMORY).unwrap_or_default(),
                cpu_quota: number(CPU_QUOTA).unwrap_or_default(),
                cpu_period: number(CPU_PERIOD).unwrap_or_default(),
            }
        };
        let cpus = || {
            let (quota, period) = (positive(resources.cpu_quota)?, positive(resources.cpu_period)?);
            u32::try_from(quota.div_ceil(period)).ok()
        };
        (positive(resources.memory_limit_in_bytes), cpus())
    }

    /// The memory of the RuntimeClass's overhead, in bytes. containerd does not say it.
    pub(super) fn overhead(&self) -> Option<u64> {
        let overhead = self.is_crio().then(|| self.pod_resources(&CRIO_OVERHEAD))?;
        positive(overhead.memory_limit_in_bytes)
    }

    /// CRI's words in JSON, under one of an annotation's names.
    fn pod_resources(&self, names: &[&str]) -> PodResources {
        let text = names.iter().find_map(|name| self.get(name));
        text.and_then(|text| serde_json::from_str::<Option<_>>(text).ok().flatten()).unwrap_or_default()
    }

    pub(super) fn init_data(&self) -> Result<Option<String>, Error> {
        let Some(value) = self.get(INIT_DATA) else { return Ok(None) };
        let wrong = |problem: String| Error::Annotation { name: INIT_DATA, problem };
        let compressed =
            STANDARD.decode(value.trim()).map_err(|error| wrong(format!("is no base64: {error}")))?;
        let mut text = String::new();
        let mut decoder = GzDecoder::new(compressed.as_slice()).take(LONGEST_INIT_DATA + 1);
        decoder.read_to_string(&mut text).map_err(|error| wrong(format!("is no gzip of text: {error}")))?;
        match text.len() as u64 <= LONGEST_INIT_DATA {
            true => Ok(Some(text)),
            false => Err(wrong(format!("is more than {LONGEST_INIT_DATA} bytes"))),
        }
    }

    /// What the pod's volumes may hold that are not in memory.
    pub(super) fn volume_limits(&self) -> Result<VolumeLimits, Error> {
        let name = VolumeLimits::ANNOTATION;
        let wrong = |problem: VolumeLimitsError| Error::Annotation { name, problem: problem.to_string() };
        self.get(name).map(str::parse).transpose().map_err(wrong).map(Option::unwrap_or_default)
    }
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        Annotations::new(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn both_engines_are_understood() {
        for words in [&CONTAINERD, &CRIO] {
            let role = annotations(&[(words.kind, "container"), (words.sandbox, "abc")]).role("web").unwrap();
            assert_eq!(role, Role { kind: Kind::Container, sandbox: "abc".into() });
        }
        assert!(annotations(&[]).role("web").unwrap_err().to_string().contains("sealpod run"));
    }

    #[test]
    fn under_crio_containerds_words_are_a_pods_own_and_say_nothing() {
        let given = annotations(&[
            (CRIO.kind, "sandbox"),
            (CRIO.sandbox, "abc"),
            (CONTAINERD.kind, "container"),
            (CONTAINERD.sandbox, "victim"),
            (CONTAINERD.name, "victim"),
            (CONTAINERD.image, "registry.example/other"),
            (MEMORY, "1"),
        ]);
        assert_eq!(given.role("abc").unwrap(), Role { kind: Kind::Sandbox, sandbox: "abc".into() });
        assert_eq!((given.container_name(), given.size()), (None, (None, None)));
        assert!(given.image(None).is_err());
    }

    #[test]
    fn a_sandbox_has_its_own_id_alone() {
        for words in [&CONTAINERD, &CRIO] {
            let forged = annotations(&[(words.kind, "sandbox"), (words.sandbox, "victim")]);
            let refusal = forged.role("abc").unwrap_err().to_string();
            assert!(refusal.contains(words.sandbox) && refusal.contains(" is refused: "), "{refusal}");
            assert!(forged.role("victim").is_ok());
        }
    }

    #[test]
    fn the_name_that_comes_closest_to_the_pods_is_the_images() {
        const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let by_digest = format!("registry.example/app@{DIGEST}");
        let some = "registry.example/some:1";
        for (given, left, name, expected) in [
            (by_digest.as_str(), Some("x"), some, by_digest.as_str()),
            (DIGEST, Some("registry.example/left:1"), some, "registry.example/left:1"),
            (DIGEST, Some(""), some, some),
            (&format!("@{DIGEST}"), None, some, some),
        ] {
            let known =
                annotations(&[(CRIO.kind, "container"), (CRIO_GIVEN_IMAGE, given), (CRIO.image, name)]);
            assert_eq!(known.image(left).unwrap(), expected);
        }
        let unknown = annotations(&[(CRIO.kind, "container"), (CRIO_GIVEN_IMAGE, DIGEST), (CRIO.image, "")]);
        assert!(unknown.image(None).unwrap_err().to_string().contains("@sha256:"));
        let by_containerd = annotations(&[(CONTAINERD.image, some), (CRIO_GIVEN_IMAGE, &by_digest)]);
        assert_eq!(by_containerd.image(Some("x")).unwrap(), some);
    }

    #[test]
    fn a_pods_size_is_the_sum_that_kubelet_gives() {
        let given = annotations(&[(MEMORY, "268435456"), (CPU_QUOTA, "150000"), (CPU_PERIOD, "100000")]);
        assert_eq!(given.size(), (Some(256 << 20), Some(2)));
        let unlimited = annotations(&[(MEMORY, "0"), (CPU_QUOTA, "-1"), (CPU_PERIOD, "0")]);
        assert_eq!(unlimited.size(), (None, None));
    }

    #[test]
    fn crio_says_a_pods_size_in_json() {
        let limits = r#"{"memory_limit_in_bytes": 268435456, "cpu_quota": 150000, "cpu_period": 100000, "cpu_shares": 2}"#;
        let unlimited = r#"{"cpu_quota": -1, "cpu_period": 100000}"#;
        for name in CRIO_RESOURCES {
            let size = |text: &str| annotations(&[(CRIO.kind, "sandbox"), (name, text)]).size();
            assert_eq!(size(limits), (Some(256 << 20), Some(2)));
            for none in [unlimited, "null", "{}", "", "[", r#"{"memory_limit_in_bytes": null}"#] {
                assert_eq!(size(none), (None, None), "{none}");
            }
        }
    }

    #[test]
    fn limits_of_volumes_are_read_or_refused_by_the_annotations_name() {
        let read = |value: &str| annotations(&[(VolumeLimits::ANNOTATION, value)]).volume_limits();
        assert_eq!(read("cache=65536 b=2").unwrap().of("cache"), Some(65536));
        assert!(read("none").unwrap().is_empty() && read("").unwrap().is_empty());
        assert!(annotations(&[]).volume_limits().unwrap().is_empty());
        let refusal = read("cache=64Mi").unwrap_err().to_string();
        assert!(refusal.contains(VolumeLimits::ANNOTATION) && refusal.contains("64Mi"), "{refusal}");
    }

    #[test]
    fn init_data_is_unpacked_within_bounds() {
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            STANDARD.encode(encoder.finish().unwrap())
        };
        let read = |value: &str| annotations(&[(INIT_DATA, value)]).init_data();
        assert_eq!(read(&pack(b"version = \"0.1.0\"\n")).unwrap().unwrap(), "version = \"0.1.0\"\n");
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read(&pack(&vec![b'a'; 1 << 20])).unwrap().unwrap().len(), 1 << 20);
        for value in ["%%%", "aGVsbG8=", &pack(&[0xFF; 10]), &pack(&vec![b'a'; (1 << 20) + 1])] {
            assert!(matches!(read(value), Err(Error::Annotation { .. })));
        }
    }
}
