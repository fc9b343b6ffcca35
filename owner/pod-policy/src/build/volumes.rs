//! A container's volumes, in the guest's words, and the files that the host may give them.

use std::collections::BTreeMap;
use std::path::Path;

use sealpod_agent_protocol::{MountSource, VolumeLimits};
use sealpod_evidence::HashAlgorithm;

use crate::expansion::expand_word;
use crate::kubernetes::{
    Container, EmptyDir, PodSpec, Projected, Quantity, Volume, VolumeMount, VolumeOfObject,
};
use crate::manifest::{ObjectKind, Value};
use crate::policy::{FilesVolume, MountPolicy, Part, Word};

use super::environment::{Environment, not_in_input};
use super::{Context, Problem, Result, disks, problem};

/// File systems of the kernel's, at or below which the guest mounts no volume.
const KERNELS: [&str; 2] = ["/proc", "/sys"];
/// Others that it makes itself.
const GUESTS_OWN: [&str; 4] = ["/", "/dev", "/dev/pts", "/dev/mqueue"];
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where, and under which name, Kubernetes adds the service account's token to every container.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_VOLUME: &str = "kube-api-access-";
const TOKEN_FILES: [&str; 3] = ["token", "ca.crt", "namespace"];
/// File systems in memory have whole pages, of 64 KiB at most.
const LARGEST_PAGE: u64 = 64 << 10;

/// The pod's volumes of files, by name.
pub(super) type Files = BTreeMap<String, FilesVolume>;

/// Files by path, each with its digest where it is known; nothing stands for any files.
type Paths = Option<BTreeMap<String, Option<String>>>;

impl Context<'_> {
    /// By destination.
    pub(super) fn mounts(
        &self,
        spec: &PodSpec,
        container: &Container,
        environment: &Environment,
        files: &mut Files,
    ) -> Result<BTreeMap<String, MountPolicy>> {
        let mut mounts = BTreeMap::new();
        for (number, mount) in container.volume_mounts.iter().enumerate() {
            let what = format!("volumeMounts.{}", mount.name);
            let inside = |Problem { why, .. }| problem(what.clone(), why);
            let destination = destination(&mount.mount_path);
            let volume = spec.volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| problem(what.clone(), "the pod has no volume of this name"))?;
            if mount.mount_propagation.as_deref().is_some_and(|propagation| propagation != "None") {
                return Err(problem(
                    what,
                    "mounts of the host cannot appear in the guest (mountPropagation)",
                ));
            }
            let kernels = KERNELS.iter().any(|kernels| Path::new(&destination).starts_with(kernels));
            if kernels || GUESTS_OWN.contains(&destination.as_str()) {
                return Err(problem(
                    what,
                    format!("nothing can be mounted at {destination}: the guest makes it itself"),
                ));
            }
            let policy =
                self.mount(volume, mount, &container.name, number, environment, files).map_err(inside)?;
            if mounts.insert(destination.clone(), policy).is_some() {
                return Err(problem(what, format!("there are two volumes at {destination}")));
            }
        }
        for (place, _) in mounts.iter().filter(|(_, mount)| disks::is_disk(mount)) {
            let inside = mounts.keys().find(|other| Path::new(other).starts_with(place) && *other != place);
            if let Some(inside) = inside {
                let why =
                    "nothing can be mounted inside a claim's volume, whose links could lead it elsewhere";
                return Err(problem(format!("volumeMounts at {inside}"), why));
            }
        }
        if spec.automount_service_account_token.unwrap_or(true) && !mounts.contains_key(TOKEN_FOLDER) {
            mounts.insert(TOKEN_FOLDER.into(), token_mount());
            files.entry(TOKEN_VOLUME.into()).or_insert_with(token_files);
        }
        let log = destination(container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG));
        mounts.entry(log).or_insert_with(|| MountPolicy {
            read_only: false,
            optional: true,
            sources: vec![MountSource::EmptyFile { volume: format!("termination-log-{}", container.name) }],
            sub_path: None,
            volume_begins: None,
            in_memory: false,
        });
        Ok(mounts)
    }

    fn mount(
        &self,
        volume: &Volume,
        mount: &VolumeMount,
        container: &str,
        number: usize,
        environment: &Environment,
        files: &mut Files,
    ) -> Result<MountPolicy> {
        let part = part(mount, environment)?;
        if let Some(claim) = disks::claim(volume) {
            return Ok(disks::mount(&claim, mount, part));
        }
        let name = &volume.name;
        let Some(paths) = self.paths(volume)? else { return empty_folder(volume, mount, part) };
        let of_files = |sources| MountPolicy {
            read_only: true,
            optional: false,
            sources,
            sub_path: None,
            volume_begins: None,
            in_memory: false,
        };
        let path = match part {
            Some(Word::Text(path)) => path,
            Some(Word::MadeOf { .. }) => {
                return Err(problem("", "what subPathExpr comes to is known on the node only"));
            }
            None => {
                give(files, name.clone(), paths);
                let source = MountSource::Files { volume: name.clone(), file: None };
                return Ok(of_files(vec![source]));
            }
        };
        // A copy of its own, of what kubelet resolves at the container's start.
        let copy = format!("{name}.{container}.{number}");
        let source =
            |file: Option<&str>| MountSource::Files { volume: copy.clone(), file: file.map(str::to_owned) };
        let (sources, paths) = match paths {
            None => (vec![source(None), source(Some("file"))], None),
            Some(paths) if paths.is_empty() => (vec![source(None)], Some(paths)),
            Some(paths) => match paths.get(&path) {
                Some(digest) => {
                    let only = BTreeMap::from([("file".to_owned(), digest.clone())]);
                    (vec![source(Some("file"))], Some(only))
                }
                None => (vec![source(None)], Some(below(&paths, &path)?)),
            },
        };
        give(files, copy, paths);
        Ok(of_files(sources))
    }

    /// The files of a volume that the host fills, or nothing for an empty folder.
    fn paths(&self, volume: &Volume) -> Result<Option<Paths>> {
        let Volume { config_map, secret, downward_api, projected, other, .. } = volume;
        if let Some(kind) = other.keys().next() {
            let why = match kind.as_str() {
                "hostPath" => {
                    "files of the host are not the pod's; give them as a ConfigMap, a Secret or in the image"
                }
                _ => {
                    "only ConfigMap, Secret, downward API, projected and emptyDir volumes, and claims, reach a confidential pod"
                }
            };
            return Err(problem("", format!("{kind} is refused: {why}")));
        }
        Ok(match (config_map, secret, downward_api, projected) {
            (Some(volume), ..) => Some(self.paths_of(ObjectKind::ConfigMap, volume)?),
            (_, Some(volume), ..) => Some(self.paths_of(ObjectKind::Secret, volume)?),
            (_, _, Some(volume), _) => {
                Some(Some(volume.items.iter().map(|item| (item.path.clone(), None)).collect()))
            }
            (_, _, _, Some(volume)) => Some(Some(self.paths_of_projected(volume)?)),
            _ => None,
        })
    }

    fn paths_of(&self, kind: ObjectKind, volume: &VolumeOfObject) -> Result<Paths> {
        let name = volume.name.as_deref().or(volume.secret_name.as_deref()).unwrap_or_default();
        let any = kind == ObjectKind::Secret || self.may_be_anything(kind, name);
        let digest = |value: &Value| (!any).then(|| sha256(&value.bytes));
        match (self.object(kind, name), &volume.items) {
            (Some(values), None) => {
                Ok(Some(values.iter().map(|(key, value)| (key.clone(), digest(value))).collect()))
            }
            (Some(values), Some(items)) => {
                let mut paths = BTreeMap::new();
                for item in items {
                    match values.get(&item.key) {
                        Some(value) => drop(paths.insert(item.path.clone(), digest(value))),
                        None if volume.optional => {}
                        None => {
                            let (kind, key) = (kind.name(), &item.key);
                            return Err(problem("", format!("{kind} {name:?} has no key {key:?}")));
                        }
                    }
                }
                Ok(Some(paths))
            }
            (None, Some(items)) if any => {
                Ok(Some(items.iter().map(|item| (item.path.clone(), None)).collect()))
            }
            (None, None) if any => Ok(None),
            // Then it must not be there.
            (None, _) if volume.optional => Ok(Some(BTreeMap::new())),
            (None, _) => Err(problem("", not_in_input(kind, name))),
        }
    }

    fn paths_of_projected(&self, volume: &Projected) -> Result<BTreeMap<String, Option<String>>> {
        let mut paths = BTreeMap::new();
        for source in &volume.sources {
            let objects = [(ObjectKind::ConfigMap, &source.config_map), (ObjectKind::Secret, &source.secret)];
            for (kind, object) in objects {
                let Some(object) = object else { continue };
                paths.extend(self.paths_of(kind, object)?.ok_or_else(|| {
                    let name = object.name.as_deref().unwrap_or_default();
                    problem(
                        "",
                        format!(
                            "{} {name:?} is not in the input; give it by --with FILE, or list its items",
                            kind.name()
                        ),
                    )
                })?);
            }
            let files = source.downward_api.iter().flat_map(|volume| &volume.items);
            let files = files.chain(&source.service_account_token).chain(&source.cluster_trust_bundle);
            paths.extend(files.map(|file| (file.path.clone(), None)));
        }
        Ok(paths)
    }
}

/// Which part of a volume is mounted, as plain names; nothing for all of it.
fn part(mount: &VolumeMount, environment: &Environment) -> Result<Option<Word>> {
    let path = match expand_word(&mount.sub_path_expr, |name| environment.meaning(name)) {
        _ if !mount.sub_path.is_empty() => mount.sub_path.clone(),
        Word::Text(path) => path,
        // The guest sees to it that it stays inside the volume.
        Word::MadeOf { made_of } if is_plain(&made_of) => return Ok(Some(Word::MadeOf { made_of })),
        Word::MadeOf { .. } => {
            let why = "subPathExpr must be names with single slashes between, where a variable is in it";
            return Err(problem("", why));
        }
    };
    let names: Vec<_> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    match path.starts_with('/') || names.iter().any(|name| name.starts_with("..")) {
        true => Err(problem("", format!("{path:?} (subPath) does not lead to a folder of the volume"))),
        false => Ok(Some(names.join("/")).filter(|path| !path.is_empty()).map(Word::Text)),
    }
}

/// Whether a path with variables in it is how kubelet will have it.
fn is_plain(parts: &[Part]) -> bool {
    let text = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Variable { .. } => "variable".into(),
    };
    let path: String = parts.iter().map(text).collect();
    path.split('/').all(|name| !name.is_empty() && name != "." && !name.starts_with(".."))
}

fn give(files: &mut Files, name: String, paths: Paths) {
    files.insert(name.clone(), FilesVolume { name, begins: false, files: paths });
}

/// What a folder of a volume holds.
fn below(paths: &BTreeMap<String, Option<String>>, folder: &str) -> Result<BTreeMap<String, Option<String>>> {
    let inside = |path: &str| path.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned);
    let found: BTreeMap<_, _> =
        paths.iter().filter_map(|(path, digest)| Some((inside(path)?, digest.clone()))).collect();
    match found.is_empty() {
        true => Err(problem("", format!("there is no {folder:?} in the volume"))),
        false => Ok(found),
    }
}

fn empty_folder(volume: &Volume, mount: &VolumeMount, sub_path: Option<Word>) -> Result<MountPolicy> {
    let EmptyDir { medium, size_limit } = volume.empty_dir.clone().unwrap_or_default();
    let in_memory = match medium.as_str() {
        "" => false,
        "Memory" => true,
        other => return Err(problem("", format!("the guest has no {other} to give"))),
    };
    let limit = |quantity: Quantity| {
        let bytes = quantity.bytes().filter(|bytes| *bytes <= VolumeLimits::MOST);
        // In memory it is the host's file system that says the size.
        let bytes = match in_memory {
            true => bytes.and_then(|bytes| bytes.checked_next_multiple_of(LARGEST_PAGE)),
            false => bytes,
        };
        bytes.ok_or_else(|| problem("", "sizeLimit is no number of bytes, as 64Mi"))
    };
    let source = MountSource::Empty {
        volume: volume.name.clone(),
        // To kubelet 0 is no limit.
        size_bytes: size_limit.map(limit).transpose()?.filter(|bytes| *bytes > 0),
        group: None,
        sub_path: None,
    };
    Ok(MountPolicy {
        read_only: mount.read_only,
        optional: false,
        sources: vec![source],
        sub_path,
        volume_begins: None,
        in_memory,
    })
}

fn token_mount() -> MountPolicy {
    MountPolicy {
        read_only: true,
        optional: true,
        sources: Vec::new(),
        sub_path: None,
        volume_begins: Some(TOKEN_VOLUME.into()),
        in_memory: false,
    }
}

fn token_files() -> FilesVolume {
    let files = TOKEN_FILES.iter().map(|name| (name.to_string(), None)).collect();
    FilesVolume { name: TOKEN_VOLUME.into(), begins: true, files: Some(files) }
}

/// As the policy's rules compare them.
fn destination(path: &str) -> String {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    match path.trim_end_matches('/') {
        "" => "/".into(),
        plain => plain.into(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    HashAlgorithm::Sha256.digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
