//! Annotations by which container engines say what a specification is for: containerd's, and CRI-O's beside them.

use std::collections::HashMap;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use oci_spec::runtime::Spec;

use super::{Error, refused};

const CONTAINER_TYPE: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
const SANDBOX_ID: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
const CONTAINER_NAME: [&str; 2] = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name"];
const IMAGE_NAME: [&str; 2] = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"];
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// base64(gzip(TOML)), as existing users of confidential pods write it.
const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// More init data than any pod has: Kubernetes allows 256 KiB for all annotations.
const LONGEST_INIT_DATA: u64 = 4 << 20;

pub(super) type Annotations = HashMap<String, String>;

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

pub(super) fn of(spec: &Spec) -> Annotations {
    spec.annotations().clone().unwrap_or_default()
}

pub(super) fn role(annotations: &Annotations) -> Result<Role, Error> {
    let kind = match find(annotations, CONTAINER_TYPE) {
        Some("sandbox") => Kind::Sandbox,
        Some("container") => Kind::Container,
        _ => {
            return Err(refused(
                "a container that belongs to no pod",
                "this runtime runs pods, by CRI; `sealpod run` runs an image without Kubernetes",
            ));
        }
    };
    let sandbox = find(annotations, SANDBOX_ID).ok_or(Error::Missing("annotation with the sandbox's id"))?;
    Ok(Role { kind, sandbox: sandbox.into() })
}

pub(super) fn container_name(annotations: &Annotations) -> Option<String> {
    find(annotations, CONTAINER_NAME).map(str::to_owned)
}

/// The reference under which the guest pulls.
pub(super) fn image(annotations: &Annotations) -> Result<String, Error> {
    let image = find(annotations, IMAGE_NAME).filter(|image| !image.is_empty());
    image.map(str::to_owned).ok_or(Error::Missing("annotation with the image's name"))
}

/// Memory in bytes, and whole processors.
pub(super) fn size(annotations: &Annotations) -> (Option<u64>, Option<u32>) {
    let number = |name: &str| annotations.get(name)?.parse::<u64>().ok().filter(|number| *number > 0);
    let cpus = || {
        let (quota, period) = (number(CPU_QUOTA)?, number(CPU_PERIOD)?);
        u32::try_from(quota.div_ceil(period)).ok()
    };
    (number(MEMORY), cpus())
}

pub(super) fn init_data(annotations: &Annotations) -> Result<Option<String>, Error> {
    let Some(value) = annotations.get(INIT_DATA).filter(|value| !value.is_empty()) else { return Ok(None) };
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

fn find<'a>(annotations: &'a Annotations, names: [&str; 2]) -> Option<&'a str> {
    names.iter().find_map(|name| annotations.get(*name)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn both_engines_are_understood() {
        for [kind, sandbox] in [[CONTAINER_TYPE[0], SANDBOX_ID[0]], [CONTAINER_TYPE[1], SANDBOX_ID[1]]] {
            let role = role(&annotations(&[(kind, "container"), (sandbox, "abc")])).unwrap();
            assert_eq!(role, Role { kind: Kind::Container, sandbox: "abc".into() });
        }
        assert!(role(&annotations(&[])).unwrap_err().to_string().contains("sealpod run"));
    }

    #[test]
    fn a_pods_size_is_the_sum_that_kubelet_gives() {
        let given = annotations(&[(MEMORY, "268435456"), (CPU_QUOTA, "150000"), (CPU_PERIOD, "100000")]);
        assert_eq!(size(&given), (Some(256 << 20), Some(2)));
        let unlimited = annotations(&[(MEMORY, "0"), (CPU_QUOTA, "-1"), (CPU_PERIOD, "0")]);
        assert_eq!(size(&unlimited), (None, None));
    }

    #[test]
    fn init_data_is_unpacked_within_bounds() {
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            STANDARD.encode(encoder.finish().unwrap())
        };
        let read = |value: &str| init_data(&annotations(&[(INIT_DATA, value)]));
        assert_eq!(read(&pack(b"version = \"0.1.0\"\n")).unwrap().unwrap(), "version = \"0.1.0\"\n");
        assert_eq!(read("").unwrap(), None);
        for value in ["%%%", "aGVsbG8=", &pack(&[0xFF; 10]), &pack(&vec![b'a'; 5 << 20])] {
            assert!(matches!(read(value), Err(Error::Annotation { .. })));
        }
    }
}
