//! Mounts: what the engine and kubelet mean by each, told by where its source lies on the host.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use sealpod_agent_protocol::{Dns, HostEntry, Mount, MountSource, VolumeLimits};
use sealpod_sandbox::Disk;

use super::disks::DirectVolume;
use super::{Error, parts, refused};

/// File systems of the kernel's that every container has, and the guest makes itself.
const KERNELS: [&str; 7] = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
/// What an engine makes for a pod and the guest makes itself, unless the pod mounts a volume there.
const PODS: [&str; 2] = ["/dev/shm", "/etc/hostname"];
/// What CRI-O puts into each container, or its administrator by it: the guest has its own, or has no use for it.
const CRIOS: [&str; 5] =
    ["/run/.containerenv", "/run/secrets", "/etc/passwd", "/etc/group", "/etc/localtime"];
/// Where containerd keeps what it makes for pods.
const CONTAINERD: &str = "io.containerd.grpc.v1.cri";
/// The same of CRI-O, with its storage driver before it.
const CRIO: &str = "*-containers";
/// kubelet's plugins whose volumes are files that it wrote.
const FILES: [&str; 4] = ["configmap", "secret", "downward-api", "projected"];
const KINDS: &str =
    "only ConfigMap, Secret, downward API, projected, emptyDir and CSI volumes reach a confidential pod";
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What nodes call themselves in their own files.
const LOOPBACKS_NAMES: [&str; 6] = [
    "localhost",
    "localhost.localdomain",
    "localhost4",
    "localhost4.localdomain4",
    "localhost6",
    "localhost6.localdomain6",
];
/// The most that is read of a file of the host's.
const LONGEST_FILE: u64 = 1 << 20;

/// The mounts of a specification.
pub(super) struct Mounts {
    hosts: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
    volumes: Vec<(Mount, Volume)>,
}

/// A volume of the pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// Files that kubelet wrote to the host and that the guest gets by RPC.
    Files(HostFolder),
    /// A disk that is plugged into the VM.
    Disk(Disk),
    /// A file that kubelet made for what the container says when it ends.
    TerminationMessage(PathBuf),
    /// The guest's own.
    Guest,
}

/// Files of a volume on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostFolder {
    /// The volume's name in the pod.
    pub(crate) volume: String,
    /// The folder, or a single file.
    pub(crate) path: PathBuf,
}

impl Mounts {
    /// Sorts a specification's mounts; refuses those that cannot be had. `pod` is the pod's UID, if the engine says it.
    pub(super) fn read(spec: &Spec, pod: Option<&str>) -> Result<Self, Error> {
        let mut mounts = Self { hosts: None, resolv_conf: None, volumes: Vec::new() };
        for mount in spec.mounts().iter().flatten() {
            let destination = mount.destination().to_string_lossy().into_owned();
            let source = mount.source().clone().unwrap_or_default();
            match destination.as_str() {
                HOSTS if is_hosts(&source, pod) => mounts.hosts = Some(source),
                RESOLV_CONF if is_engines(&source) => mounts.resolv_conf = Some(source),
                kernels if KERNELS.contains(&kernels) && !is_bind(mount) => {}
                pods if PODS.contains(&pods) && is_engines(&source) => {}
                _ if is_image_volume(&source) => {}
                crios if CRIOS.contains(&crios) && is_crios(&source) => {}
                _ if mount.typ().as_deref() == Some("tmpfs") => {
                    return Err(refused(
                        format!("the tmpfs at {destination:?}"),
                        "an engine adds it for a read-only root or systemd; give an emptyDir volume, or turn that off",
                    ));
                }
                _ => mounts.volumes.push(volume(
                    &destination,
                    &source,
                    pod,
                    mount.options().as_deref().unwrap_or_default(),
                )?),
            }
        }
        Ok(mounts)
    }

    /// In the guest's words. The limits are of volumes that are not in memory on the host.
    pub(super) fn typed(&self, limits: &VolumeLimits) -> Vec<Mount> {
        let limited = |(mount, _): &(Mount, Volume)| {
            let mut mount = mount.clone();
            if let MountSource::Empty { volume, size_bytes, .. } = &mut mount.source {
                *size_bytes = size_bytes.or(limits.of(volume));
            }
            mount
        };
        self.volumes.iter().map(limited).collect()
    }

    /// Those of which the host has something.
    pub(super) fn volumes(&self) -> Vec<Volume> {
        self.volumes
            .iter()
            .map(|(_, volume)| volume.clone())
            .filter(|volume| *volume != Volume::Guest)
            .collect()
    }

    /// The lines of `/etc/hosts` beyond those that the guest writes itself.
    pub(super) fn hosts(&self) -> Result<Vec<HostEntry>, Error> {
        let Some(path) = &self.hosts else { return Ok(Vec::new()) };
        Ok(parse_hosts(&read_text(path)?))
    }

    /// What `/etc/resolv.conf` says.
    pub(super) fn dns(&self) -> Result<Dns, Error> {
        let Some(path) = &self.resolv_conf else { return Ok(Dns::default()) };
        Ok(parse_resolv_conf(&read_text(path)?))
    }
}

fn read_text(path: &Path) -> Result<String, Error> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text));
    read.map_err(|source| Error::File { path: path.into(), source })?;
    Ok(text)
}

/// Whether an engine made a folder for a `VOLUME` of the image, filled from the image's files: in the guest those are
/// where the image has them, and live as long as the container, which is what such a volume is.
fn is_image_volume(source: &Path) -> bool {
    passes(source, &[CONTAINERD, "containers", "*", "volumes"])
        || passes(source, &[CRIO, "*", "userdata", "mounts"])
}

/// Whether a hosts file is the one that kubelet wrote for the pod, or its engine. Any other would be read for whoever
/// names it.
fn is_hosts(source: &Path, pod: Option<&str>) -> bool {
    kubelets(&words(source), pod) == ["etc-hosts"] || is_engines(source)
}

/// Whether an engine made a file or folder for the pod.
fn is_engines(source: &Path) -> bool {
    passes(source, &[CONTAINERD, "sandboxes", "*", "*"]) || is_crios(source)
}

/// Whether something of the host's is to be mounted, as volumes are, and not a new file system.
fn is_bind(mount: &oci_spec::runtime::Mount) -> bool {
    mount.typ().as_deref().is_none_or(|kind| kind == "bind")
}

/// Whether a source lies in the folder that CRI-O has for each container. What it is at, a pod's author may say too;
/// where CRI-O keeps its files, only CRI-O.
fn is_crios(source: &Path) -> bool {
    passes(source, &[CRIO, "*", "userdata", "*"])
}

fn words(path: &Path) -> Vec<&str> {
    path.iter().filter_map(|word| word.to_str()).collect()
}

/// Whether a path leads through folders of these names, each in the one before. `*` is any text, or begins a name.
fn passes(path: &Path, names: &[&str]) -> bool {
    let is = |word: &str, name: &str| name.strip_prefix('*').map_or(word == name, |end| word.ends_with(end));
    words(path).windows(names.len()).any(|words| words.iter().zip(names).all(|(word, name)| is(word, name)))
}

/// kubelet keeps a pod's files at `…/pods/<uid>/…`: gives what follows, which says what a source is. Another pod's are
/// files of the host.
fn kubelets<'a>(words: &'a [&'a str], pod: Option<&str>) -> &'a [&'a str] {
    let at = words.windows(2).position(|pair| pair[0] == "pods" && pod.is_none_or(|pod| pair[1] == pod));
    at.and_then(|at| words.get(at + 2..)).unwrap_or_default()
}

/// A volume, told by what its source is to kubelet.
fn volume(
    destination: &str,
    source: &Path,
    pod: Option<&str>,
    options: &[String],
) -> Result<(Mount, Volume), Error> {
    let has = |option: &str| options.iter().any(|given| given == option);
    if has("rshared") || has("shared") || has("rslave") || has("slave") {
        let what = format!("mount propagation of the volume at {destination:?}");
        return Err(refused(what, "mounts of the host cannot appear in the guest"));
    }
    let read_only = has("ro") || has("rro");
    let typed = |source| Mount { destination: destination.into(), read_only, source };
    match kubelets(&words(source), pod) {
        ["volumes", plugin, name] => match plugin.strip_prefix("kubernetes.io~") {
            Some(plugin) if FILES.contains(&plugin) => {
                let files = MountSource::Files { volume: name.to_string(), file: None };
                let folder = HostFolder { volume: name.to_string(), path: source.into() };
                Ok((typed(files), Volume::Files(folder)))
            }
            Some("empty-dir") => Ok((typed(empty(name, source, None)), Volume::Guest)),
            _ => Err(refused(format!("the volume {name:?} at {destination:?} ({plugin})"), KINDS)),
        },
        ["volumes", "kubernetes.io~csi", name, "mount"] => {
            let volume = DirectVolume { name, place: source, destination, read_only, sub_path: None };
            volume.disk().map(|(mount, disk)| (mount, Volume::Disk(disk)))
        }
        ["volume-subpaths", name, container, number] => {
            let of_pod = |place: &str| source.ancestors().nth(4).map(|pod| pod.join("volumes").join(place));
            let is_there = |volume: &PathBuf| volume.exists();
            let part = |volume: &Path| {
                let path = parts::path(volume, source);
                path.map_err(|problem| Error::Part { destination: destination.into(), problem })
            };
            if let Some(volume) = of_pod(&format!("kubernetes.io~empty-dir/{name}")).filter(is_there) {
                return Ok((typed(empty(name, &volume, part(&volume)?)), Volume::Guest));
            }
            if let Some(place) = of_pod(&format!("kubernetes.io~csi/{name}/mount")).filter(is_there) {
                let sub_path = part(&place)?;
                let volume = DirectVolume { name, place: &place, destination, read_only, sub_path };
                return volume.disk().map(|(mount, disk)| (mount, Volume::Disk(disk)));
            }
            let of_files = |plugin: &&str| of_pod(&format!("kubernetes.io~{plugin}/{name}")).filter(is_there);
            if FILES.iter().find_map(of_files).is_none() {
                return Err(refused(
                    format!("a part (subPath) of the volume {name:?} at {destination:?}"),
                    KINDS,
                ));
            }
            // A copy of its own: what kubelet resolved for this container, at its start.
            let volume = format!("{name}.{container}.{number}");
            let file = source.is_file().then(|| "file".to_owned());
            let folder = HostFolder { volume: volume.clone(), path: source.into() };
            Ok((typed(MountSource::Files { volume, file }), Volume::Files(folder)))
        }
        ["containers", container, _] => {
            let volume = format!("termination-log-{container}");
            Ok((typed(MountSource::EmptyFile { volume }), Volume::TerminationMessage(source.into())))
        }
        _ => Err(refused(
            format!("hostPath {} at {destination:?}", source.display()),
            "files of the host are not the pod's; give them as a ConfigMap, a Secret or in the image",
        )),
    }
}

/// An emptyDir, or a part of it, as kubelet made it on the host.
fn empty(name: &str, folder: &Path, sub_path: Option<String>) -> MountSource {
    MountSource::Empty {
        volume: name.into(),
        size_bytes: memory_limit(folder),
        group: group(folder),
        sub_path,
    }
}

/// The size of an emptyDir in memory: kubelet mounted a tmpfs of that size.
fn memory_limit(folder: &Path) -> Option<u64> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let status = rustix::fs::statfs(folder).ok()?;
    let is_own = {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
        device(folder).ok()? != device(folder.parent()?).ok()?
    };
    let size = status.f_blocks.checked_mul(u64::try_from(status.f_bsize).ok()?)?;
    (is_own && status.f_type == TMPFS_MAGIC && size > 0).then_some(size)
}

/// The group that kubelet gave a folder for `fsGroup`.
pub(crate) fn group(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|metadata| metadata.gid()).filter(|gid| *gid != 0)
}

/// Without the lines of the loopback's own names, which the guest writes itself.
fn parse_hosts(text: &str) -> Vec<HostEntry> {
    let entry = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address: std::net::IpAddr = words.next()?.parse().ok()?;
        let names: Vec<_> = words.map(str::to_owned).collect();
        let of_loopback =
            |name: &String| LOOPBACKS_NAMES.contains(&name.as_str()) || name.starts_with("ip6-");
        let kubelets_own = names.iter().all(of_loopback);
        (!names.is_empty() && !kubelets_own).then(|| HostEntry { address: address.to_string(), names })
    };
    text.lines().filter_map(entry).collect()
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // The last one counts.
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "/var/lib/kubelet/pods/0a1b";

    fn typed(source: &str, options: &[&str]) -> Result<(Mount, Volume), Error> {
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        volume("/data", Path::new(source), Some("0a1b"), &options)
    }

    #[test]
    fn kubelets_volumes_are_told_by_their_place() {
        for plugin in ["configmap", "secret", "downward-api", "projected"] {
            let source = format!("{POD}/volumes/kubernetes.io~{plugin}/settings");
            let (mount, volume) = typed(&source, &["rbind", "ro"]).unwrap();
            assert!(mount.read_only);
            assert_eq!(mount.source, MountSource::Files { volume: "settings".into(), file: None });
            assert_eq!(volume, Volume::Files(HostFolder { volume: "settings".into(), path: source.into() }));
        }
        let (mount, volume) =
            typed(&format!("{POD}/volumes/kubernetes.io~empty-dir/cache"), &["rbind"]).unwrap();
        assert_eq!(
            mount.source,
            MountSource::Empty { volume: "cache".into(), size_bytes: None, group: None, sub_path: None }
        );
        assert_eq!((mount.read_only, volume), (false, Volume::Guest));
        // With all that is mounted inside, as newer engines say it.
        let recursively = typed(&format!("{POD}/volumes/kubernetes.io~empty-dir/cache"), &["rbind", "rro"]);
        assert!(recursively.unwrap().0.read_only);
        let log = format!("{POD}/containers/web/4f2a");
        let (mount, volume) = typed(&log, &["rbind"]).unwrap();
        assert_eq!(volume, Volume::TerminationMessage(log.into()));
        assert_eq!(mount.source, MountSource::EmptyFile { volume: "termination-log-web".into() });
    }

    #[test]
    fn a_part_of_files_is_a_copy_and_one_of_the_hosts_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pod = folder.path().join("pods/0a1b");
        std::fs::create_dir_all(pod.join("volumes/kubernetes.io~configmap/settings")).unwrap();
        std::fs::create_dir_all(pod.join("volumes/kubernetes.io~nfs/share")).unwrap();
        let part = |volume: &str| {
            let source = pod.join("volume-subpaths").join(volume).join("web/2");
            typed(source.to_str().unwrap(), &["rbind"])
        };
        let (mount, _) = part("settings").unwrap();
        assert_eq!(mount.source, MountSource::Files { volume: "settings.web.2".into(), file: None });
        for other in ["share", "host"] {
            let refusal = part(other).unwrap_err().to_string();
            assert!(refusal.contains(&format!("{other:?}")) && refusal.contains("subPath"), "{refusal}");
        }
    }

    #[test]
    fn another_pods_files_are_the_hosts() {
        for other in ["/var/lib/kubelet/pods/0a1c", "/srv/pods/evil", "/var/lib/kubelet/pods/0a1"] {
            for place in
                ["volumes/kubernetes.io~secret/keys", "volume-subpaths/keys/web/0", "containers/web/4f2a"]
            {
                let refusal = typed(&format!("{other}/{place}"), &["rbind"]).unwrap_err().to_string();
                assert!(refusal.contains("hostPath"), "{refusal}");
            }
            assert!(!is_hosts(Path::new(&format!("{other}/etc-hosts")), Some("0a1b")));
        }
        // Where an engine does not say whose a container is.
        let source = format!("{POD}/volumes/kubernetes.io~secret/keys");
        assert!(volume("/data", Path::new(&source), None, &[]).is_ok());
        assert!(is_hosts(Path::new(&format!("{POD}/etc-hosts")), None));
    }

    #[test]
    fn a_volume_that_an_image_declares_is_in_the_image() {
        let cri = "/var/lib/containerd/io.containerd.grpc.v1.cri";
        assert!(is_image_volume(Path::new(&format!("{cri}/containers/4f2a/volumes/9e1b"))));
        assert!(!is_image_volume(Path::new(&format!("{cri}/sandboxes/4f2a/hostname"))));
        assert!(!is_image_volume(Path::new("/etc")));
        let crio = "/run/containers/storage/overlay-containers/4f2a/userdata";
        assert!(is_image_volume(Path::new(&format!("{crio}/mounts/9e1b"))));
        assert!(!is_image_volume(Path::new(&format!("{crio}/hostname"))));
    }

    #[test]
    fn a_hosts_file_is_kubelets_or_the_engines() {
        for engines in [
            &format!("{POD}/etc-hosts"),
            "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/4f2a/hosts",
            "/run/containers/storage/vfs-containers/4f2a/userdata/hosts",
        ] {
            assert!(is_hosts(Path::new(engines), Some("0a1b")), "{engines}");
        }
        for other in ["/proc/net/arp", "/root/.ssh/known_hosts", "/etc/hosts", "/pods/etc-hosts", ""] {
            assert!(!is_hosts(Path::new(other), Some("0a1b")), "{other}");
        }
    }

    #[test]
    fn what_is_the_hosts_is_refused_with_a_reason() {
        for (source, options, word) in [
            ("/etc", &["rbind"][..], "hostPath"),
            ("/var/lib/kubelet/pods", &["rbind"], "hostPath"),
            (&format!("{POD}/volumes/kubernetes.io~csi/pvc-1"), &["rbind"], "pvc-1"),
            (&format!("{POD}/volumes/kubernetes.io~csi/pvc-1/mount"), &["rbind"], "direct-assigned"),
            (&format!("{POD}/volumes/kubernetes.io~empty-dir/a"), &["rbind", "rshared"], "propagation"),
        ] {
            let refusal = typed(source, options).unwrap_err().to_string();
            assert!(refusal.contains(word) && refusal.contains("refused: "), "{refusal}");
        }
    }

    #[test]
    fn kubelets_hosts_file_is_read_without_its_own_lines() {
        let hosts = parse_hosts(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost localhost.localdomain\n::1\tlocalhost ip6-localhost\nfe00::0\tip6-localnet\n\
             10.1.2.3\tweb-0.web.default.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n192.0.2.7\tdb db.example\n127.0.0.1\tself\nbroken\n",
        );
        let names = |entry: &HostEntry| (entry.address.clone(), entry.names.join(" "));
        assert_eq!(
            hosts.iter().map(names).collect::<Vec<_>>(),
            [
                ("10.1.2.3".to_owned(), "web-0.web.default.svc.cluster.local web-0".to_owned()),
                ("192.0.2.7".to_owned(), "db db.example".to_owned()),
                ("127.0.0.1".to_owned(), "self".to_owned())
            ]
        );
    }

    #[test]
    fn a_resolvers_configuration_is_read() {
        let dns = parse_resolv_conf(
            "search a.example b.example\nnameserver 10.96.0.10\noptions ndots:5 # five\n;x\n",
        );
        assert_eq!(dns.servers, ["10.96.0.10"]);
        assert_eq!(dns.searches, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:5"]);
    }
}
