//! Volumes as kubelet prepares them.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use sealpod_tests::node::{NodePod, RUNTIME, cri};
use sealpod_tests::{Node, ephemeral_disks};

use crate::world::World;

/// By this annotation the manifest's limits of volumes that are not in memory arrive: kubelet says none.
pub(crate) const LIMITS: &str = "io.katacontainers.config.sealpod.volume_limits";

/// Where kubelet would keep a volume of a pod.
pub(crate) fn kubelets(node: &Node, pod: &NodePod, plugin: &str, name: &str) -> PathBuf {
    let folder = node.kubelets(pod.name(), &format!("volumes/kubernetes.io~{plugin}/{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// As kubelet writes: a folder for each version, and a link that moves.
pub(crate) fn write(volume: &Path, version: &str, files: &[(&str, &str)]) {
    let data = volume.join(format!("..{version}"));
    std::fs::create_dir(&data).unwrap();
    for (name, text) in files {
        std::fs::write(data.join(name), text).unwrap();
        let _ = symlink(Path::new("..data").join(name), volume.join(name));
    }
    symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

/// A folder of a volume as kubelet mounts it for `subPath`.
pub(crate) struct Part(pub(crate) PathBuf);

impl Part {
    pub(crate) fn of(folder: &Path, place: PathBuf) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::create_dir_all(&place).unwrap();
        let mounted = Command::new("mount").arg("--bind").args([folder, &place]).status().unwrap();
        assert!(mounted.success());
        Self(place)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

pub(crate) fn mount(container_path: &str, host_path: &Path, readonly: bool) -> cri::Mount {
    let host_path = host_path.display().to_string();
    cri::Mount { container_path: container_path.into(), host_path, readonly, ..Default::default() }
}

pub(crate) async fn files_of_the_host_arrive_and_are_updated(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let settings = kubelets(&node, &pod, "configmap", "settings");
    write(&settings, "1", &[("colour", "green"), ("other", "x")]);
    let hosts = node.kubelets(pod.name(), "etc-hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.7 database\n").unwrap();
    let script = "cat /etc/settings/colour /single; grep -c database /etc/hosts; touch /etc/settings/x 2>&1
        until grep -q red /etc/settings/colour; do sleep 0.1; done; ls /etc/settings; cat /single";
    let mut config = node.container_config("files", &world.image(), script);
    let subpath = node.kubelets(pod.name(), "volume-subpaths/settings/files/0");
    std::fs::write(&subpath, "one file\n").unwrap();
    config.mounts = vec![
        mount("/etc/settings", &settings, true),
        mount("/single", &subpath, true),
        mount("/etc/hosts", &hosts, false),
    ];
    let id = node.spawn(&pod, config).await;
    let log = node.status(&id).await.log_path;
    let lines =
        || sealpod_tests::node::log_lines(log.as_ref()).into_iter().map(|line| line.text).collect::<Vec<_>>();
    node.until("the first words", async || (lines().len() >= 3).then_some(())).await;
    write(&settings, "2", &[("colour", "red\n")]);
    assert_eq!(node.ended(&id).await.exit_code, 0);
    let lines = lines();
    assert_eq!(lines[..2], ["greenone file", "1"]);
    assert!(lines[2].contains("Read-only file system"), "{lines:?}");
    assert_eq!(lines[3..], ["colour", "one file"]);

    // When it starts again it has what is there then.
    std::fs::write(&subpath, "another file\n").unwrap();
    let mut again = node.container_config("files", &world.image(), "cat /single");
    again.metadata.as_mut().unwrap().attempt = 1;
    again.mounts = vec![mount("/single", &subpath, true)];
    let (_, lines) = node.run(&pod, again).await;
    assert_eq!(lines.last().unwrap().text, "another file");
}

pub(crate) async fn empty_volumes_are_shared_and_bounded(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let cache = kubelets(&node, &pod, "empty-dir", "cache");
    let log = node.kubelets(pod.name(), "containers/writer/4f2a");
    std::fs::write(&log, "").unwrap();
    let mut writer = node.container_config(
        "writer",
        &world.image(),
        "id -u; echo note > /cache/note; echo last words > /dev/termination-log",
    );
    writer.mounts = vec![mount("/cache", &cache, false), mount("/dev/termination-log", &log, false)];
    writer.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_user =
        Some(cri::Int64Value { value: 4000 });
    let (status, lines) = node.run(&pod, writer.clone()).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    // kubelet reads it as soon as CRI says that the container has ended.
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "last words\n");
    // Its next container has a file of its own, of which a message has the end.
    let next = node.kubelets(pod.name(), "containers/writer/4f2b");
    std::fs::write(&next, "").unwrap();
    writer.metadata.as_mut().unwrap().attempt = 1;
    writer.mounts[1] = mount("/dev/termination-log", &next, false);
    let script = "wc -c < /dev/termination-log; yes message | head -c 8000 > /dev/termination-log; exit 3";
    writer.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let (status, lines) = node.run(&pod, writer).await;
    assert_eq!((status.exit_code, lines.last().unwrap().text.as_str()), (3, "0"), "{lines:?}");
    let message = std::fs::read_to_string(&next).unwrap();
    assert_eq!((message.len(), message.trim_start_matches("message\n")), (4096, ""));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "last words\n");
    let mut reader = node.container_config("reader", &world.image(), "cat /seen/note; touch /seen/x 2>&1");
    reader.mounts = vec![mount("/seen", &cache, true)];
    let (_, lines) = node.run(&pod, reader).await;
    assert!(lines[0].text == "note" && lines[1].text.contains("Read-only"), "{lines:?}");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0, "nothing of it is on the host");

    // As kubelet prepares one in memory with a limit.
    let bounded = kubelets(&node, &pod, "empty-dir", "bounded");
    let options = ["-t", "tmpfs", "-o", "size=1m", "volume"];
    assert!(Command::new("mount").args(options).arg(&bounded).status().unwrap().success());
    let _mounted = Part(bounded.clone());
    let script = "dd if=/dev/zero of=/bounded/fits bs=1000 count=900 2> /dev/null && echo fits
        dd if=/dev/zero of=/bounded/more bs=1000 count=900";
    let mut config = node.container_config("bounded", &world.image(), script);
    config.mounts = vec![mount("/bounded", &bounded, false)];
    let (status, lines) = node.run(&pod, config).await;
    let lines: Vec<_> = lines.into_iter().map(|line| line.text).collect();
    assert_ne!(status.exit_code, 0, "{lines:?}");
    assert_eq!(lines[0], "fits");
    assert!(lines.iter().any(|line| line.contains("No space left on device")), "{lines:?}");
}

pub(crate) async fn an_empty_volume_larger_than_the_memory_is_on_a_disk_that_shows_nothing(world: &World) {
    let node = world.node().await;
    let config = std::fs::read_to_string(node.path("shim.toml")).unwrap();
    let with_disk = format!("{config}memory_mib = 256\nephemeral_disk_mib = 128\n");
    std::fs::write(node.path("shim.toml"), with_disk).unwrap();
    let pod = node.try_run_pod(node.pod_config("with-disk", Some(&world.init_data())), RUNTIME).await;
    std::fs::write(node.path("shim.toml"), config).unwrap();
    let pod = pod.unwrap_or_else(|status| panic!("{status}"));
    node.pull(&world.image()).await;
    let cache = kubelets(&node, &pod, "empty-dir", "cache");
    // As much as there is, and 20 MB more.
    let script = "yes 'plain to see' | head -c 1300000 > /cache/part
        parts=$(($(grep MemAvailable /proc/meminfo | tr -dc 0-9) / 1270 + 16)); echo $((parts * 1300000))
        while [ $parts -gt 0 ]; do cat /cache/part; parts=$((parts - 1)); done > /cache/large
        stat -c %s /cache/large";
    let mut config = node.container_config("writer", &world.image(), script);
    config.mounts = vec![mount("/cache", &cache, false)];
    let (status, lines) = node.run(&pod, config).await;
    assert_eq!((status.exit_code, &lines[1].text), (0, &lines[0].text), "{lines:?}");

    let disks = ephemeral_disks("");
    let [disk] = disks.as_slice() else { panic!("expected one: {disks:?}") };
    let place = std::fs::read_link(disk).unwrap();
    assert!(place.starts_with(world.owner().path("disks")), "{place:?}");
    let content = std::fs::read(disk).unwrap();
    assert!(content.iter().filter(|byte| **byte != 0).count() > 8 << 20, "the disk is hardly used");
    let plain = b"plain to see\nplain to see";
    assert!(!content.chunks(4096).any(|page| page.windows(plain.len()).any(|part| part == plain)));
    node.remove(&pod).await;
    assert_eq!(ephemeral_disks(""), Vec::<PathBuf>::new());
}

/// A pod of `sealpod policy generate`: the annotation says limits that the policy demands, and the message is not allowed.
pub(crate) async fn a_limit_of_the_manifests_holds_or_is_missed(world: &World) {
    let node = world.node().await;
    let image = world.image();
    let fill = "dd if=/dev/zero of=/bounded/fits bs=1000 count=900 2> /dev/null && echo fits; echo done > /dev/termination-log";
    let overflow = "dd if=/dev/zero of=/part/more bs=1000 count=900";
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: limited}}\nspec:\n  runtimeClassName: {RUNTIME}\n  \
         automountServiceAccountToken: false\n  volumes:\n  - {{name: bounded, emptyDir: {{sizeLimit: 1M}}}}\n  \
         - {{name: other, emptyDir: {{sizeLimit: 1M}}}}\n  containers:\n  \
         - {{name: fill, image: {image:?}, command: [/bin/sh, -c, {fill:?}], volumeMounts: [{{name: bounded, mountPath: /bounded}}]}}\n  \
         - {{name: overflow, image: {image:?}, command: [/bin/sh, -c, {overflow:?}], \
         volumeMounts: [{{name: bounded, mountPath: /part, subPath: part}}]}}\n  \
         - {{name: other, image: {image:?}, command: [/bin/true], volumeMounts: [{{name: other, mountPath: /other}}]}}\n"
    );
    let owner = world.owner();
    std::fs::write(owner.path("limited.yaml"), manifest).unwrap();
    let (sealed, _) = owner.generate_policy(&owner.path("limited.yaml"), &["--allow-logs"]);
    let documents = sealpod_pod_policy::documents(&sealed).unwrap();
    let mut config = node.pod_config("limited", None);
    for (name, value) in documents[0]["metadata"]["annotations"].as_object().unwrap() {
        config.annotations.insert(name.clone(), value.as_str().unwrap().to_owned());
    }
    // The host leaves one out.
    let limits = config.annotations.insert(LIMITS.into(), "bounded=1000000".into());
    assert_eq!(limits.as_deref(), Some("bounded=1000000 other=1000000"));
    node.pull(&image).await;
    let pod = node.try_run_pod(config, RUNTIME).await.unwrap_or_else(|status| panic!("{status}"));

    let bounded = kubelets(&node, &pod, "empty-dir", "bounded");
    let log = node.kubelets(pod.name(), "containers/fill/4f2a");
    std::fs::write(&log, "").unwrap();
    let mut first = node.container_config("fill", &image, fill);
    first.mounts = vec![mount("/bounded", &bounded, false), mount("/dev/termination-log", &log, false)];
    let (status, lines) = node.run(&pod, first).await;
    assert_eq!((status.exit_code, lines[0].text.as_str()), (0, "fits"), "{lines:?}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "what is not allowed stays in the guest");
    // What one container has filled another has no more room in, in a folder of it either.
    let part =
        Part::of(&bounded.join("part"), node.kubelets(pod.name(), "volume-subpaths/bounded/overflow/0"));
    let mut second = node.container_config("overflow", &image, overflow);
    second.mounts = vec![mount("/part", &part.0, false)];
    let (status, lines) = node.run(&pod, second).await;
    assert_ne!(status.exit_code, 0, "{lines:?}");
    assert!(lines.iter().any(|line| line.text.contains("No space left on device")), "{lines:?}");

    let other = kubelets(&node, &pod, "empty-dir", "other");
    let mut third = node.container_config("other", &image, "");
    third.command = vec!["/bin/true".into()];
    third.mounts = vec![mount("/other", &other, false)];
    let id = node.try_create(&pod, third).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    let why =
        "CreateContainer is false: mounts./other.source.size_bytes: expected at most 1000000, came nothing";
    assert!(refused.message().contains(why), "{refused}");
    node.remove(&pod).await;

    // An annotation that says nothing to rely on is refused when the pod starts.
    let mut broken = node.pod_config("unlimited", None);
    broken.annotations.insert(LIMITS.into(), "bounded=1M".into());
    let refused = node.try_run_pod(broken, RUNTIME).await.unwrap_err();
    assert!(refused.message().contains(LIMITS) && refused.message().contains("\"1M\""), "{refused}");
}

pub(crate) async fn a_volume_takes_the_place_of_what_every_container_has(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let memory = kubelets(&node, &pod, "empty-dir", "memory");
    let file = |name: &str, text: &str| {
        let path = node.kubelets(pod.name(), &format!("volume-subpaths/files/own/{name}"));
        kubelets(&node, &pod, "configmap", "files");
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut config = node.container_config(
        "own",
        &world.image(),
        "echo shared > /dev/shm/note; cat /kept/note /etc/hosts /etc/resolv.conf; df -P /dev/shm | tail -1",
    );
    config.mounts = vec![
        mount("/dev/shm", &memory, false),
        mount("/kept", &memory, true),
        mount("/etc/hosts", &file("0", "192.0.2.9 only\n"), true),
        mount("/etc/resolv.conf", &file("1", "nameserver 192.0.2.53\n"), true),
    ];
    let (status, lines) = node.run(&pod, config).await;
    let lines: Vec<_> = lines.into_iter().map(|line| line.text).collect();
    assert_eq!(status.exit_code, 0, "{lines:?}");
    assert_eq!(lines[..3], ["shared", "192.0.2.9 only", "nameserver 192.0.2.53"]);
    // What the pod has in common stays what it was for the others.
    let other =
        node.container_config("own-beside", &world.image(), "ls /dev/shm; grep -c . /etc/resolv.conf");
    let (_, lines) = node.run(&pod, other).await;
    assert!(lines.iter().all(|line| line.text != "note"), "{lines:?}");
    for (name, place) in [("hidden-devices", "/dev"), ("hidden-parameters", "/proc/sys")] {
        let mut config = node.container_config(name, &world.image(), "true");
        config.mounts = vec![mount(place, &memory, false)];
        let id = node.try_create(&pod, config).await.unwrap();
        let refused = node.try_start(&id).await.unwrap_err();
        assert!(refused.message().contains(&format!("nothing can be mounted at {place:?}")), "{refused}");
    }
}

pub(crate) async fn another_pods_volume_is_refused(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let others = node.kubelets("other", "volumes/kubernetes.io~secret/keys");
    std::fs::create_dir_all(&others).unwrap();
    std::fs::write(others.join("key"), "another's").unwrap();
    let mut config = node.container_config("curious", &world.image(), "cat /keys/key");
    config.mounts = vec![mount("/keys", &others, true)];
    let id = node.try_create(&pod, config).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    assert!(refused.message().contains("hostPath"), "{refused}");
}

/// What the container writes there is in the volume, and the container of another part does not see it.
pub(crate) async fn a_part_of_an_empty_volume_is_in_the_volume(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let whole = kubelets(&node, &pod, "empty-dir", "parted");
    let part = |path: &str, number: u32| {
        let place = node.kubelets(pod.name(), &format!("volume-subpaths/parted/writer/{number}"));
        Part::of(&whole.join(path), place)
    };
    let (deep, other) = (part("a/b", 0), part("other", 1));
    let mut writer = node.container_config(
        "part-writer",
        &world.image(),
        "echo note > /part/note; ls /other; ln -s /etc /whole/link; stat -c %a /whole/a/b",
    );
    writer.mounts =
        vec![mount("/part", &deep.0, false), mount("/other", &other.0, true), mount("/whole", &whole, false)];
    let (status, lines) = node.run(&pod, writer).await;
    assert_eq!((status.exit_code, lines.len()), (0, 1), "{lines:?}");
    assert_eq!(lines[0].text, "777");
    let mut reader =
        node.container_config("part-reader", &world.image(), "cat /whole/a/b/note; rm -r /whole/a");
    reader.mounts = vec![mount("/whole", &whole, false)];
    let (status, lines) = node.run(&pod, reader).await;
    assert_eq!((status.exit_code, lines[0].text.as_str()), (0, "note"), "{lines:?}");
    // A link that a container made does not lead out of the volume.
    let link = part("link", 2);
    let mut escaping = node.container_config("part-escaping", &world.image(), "ls /part");
    escaping.mounts = vec![mount("/part", &link.0, false)];
    let id = node.try_create(&pod, escaping).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    assert!(refused.message().contains("\"link\" is no folder of the volume"), "{refused}");
    // What a removed container had a part of stays.
    let mut config =
        node.container_config("part-again", &world.image(), "cat /part/kept || echo kept > /part/kept");
    config.mounts = vec![mount("/part", &other.0, false)];
    for attempt in 0..2 {
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.log_path = format!("part-again-{attempt}.log");
        let (status, lines) = node.run(&pod, config.clone()).await;
        assert_eq!(lines.last().unwrap().text == "kept", attempt == 1, "{lines:?}");
        let gone = cri::RemoveContainerRequest { container_id: status.id };
        node.runtime().remove_container(gone).await.unwrap();
    }
}

/// As kubelet has a service account's token where all containers have one user, and files where the pod has a group.
pub(crate) async fn files_belong_to_whom_kubelet_gave_them(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let token = kubelets(&node, &pod, "projected", "token");
    write(&token, "1", &[("token", "secret")]);
    let file = token.join("..data/token");
    chown(&file, Some(4000), None).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let (grouped, cache) =
        (kubelets(&node, &pod, "configmap", "grouped"), kubelets(&node, &pod, "empty-dir", "grouped-cache"));
    write(&grouped, "1", &[("file", "of the group")]);
    for folder in [&grouped, &cache] {
        chown(folder, None, Some(70)).unwrap();
    }
    std::fs::set_permissions(grouped.join("..data/file"), PermissionsExt::from_mode(0o640)).unwrap();
    let run = async |name: &str, user: i64, groups: Vec<i64>| {
        let script = "cat /token/token /grouped/file 2>&1; echo; touch /cache/x; stat -c %g /cache/x";
        let mut config = node.container_config(name, &world.image(), script);
        config.mounts = vec![
            mount("/token", &token, true),
            mount("/grouped", &grouped, true),
            mount("/cache", &cache, false),
        ];
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.run_as_user = Some(cri::Int64Value { value: user });
        security.supplemental_groups = groups;
        let (_, lines) = node.run(&pod, config).await;
        lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
    };
    assert_eq!(run("owner", 4000, vec![70]).await, ["secretof the group", "70"]);
    let stranger = run("stranger", 4001, Vec::new()).await;
    assert!(stranger[..2].iter().all(|line| line.contains("Permission denied")), "{stranger:?}");
}
