//! Claims of persistent volumes.

use sealpod_agent_policy::{Denial, ImageFacts, Policy};
use sealpod_agent_protocol::{CreateContainer, Device, MountSource};
use sealpod_pod_policy::Options;

use crate::world::{empty, examine, fields, mount, pod, policy_of};

fn decide(policy: &Policy, change: impl FnOnce(&mut CreateContainer)) -> Result<(), Denial> {
    let mut request = CreateContainer {
        name: Some("a".into()),
        image: "i".into(),
        allow_privilege_escalation: true,
        devices: vec![device("/dev/data", false)],
        supplemental_groups: [70].into(),
        mounts: vec![mount("/db", false, disk(None)), mount("/seen", true, disk(None))],
        ..CreateContainer::default()
    };
    change(&mut request);
    examine(policy, &request, &ImageFacts::default())
}

fn device(path: &str, read_only: bool) -> Device {
    Device { path: path.into(), disk: "disk-0".into(), read_only, user: 0, group: 6 }
}

fn disk(group: Option<u32>) -> MountSource {
    MountSource::Disk { disk: "disk-1".into(), file_system: "ext4".into(), group, sub_path: None }
}

fn policy() -> Policy {
    let spec = "{securityContext: {fsGroup: 70},
        containers: [{name: a, image: i, volumeDevices: [{name: raw, devicePath: /dev/data}],
            volumeMounts: [{name: db, mountPath: /db}, {name: made, mountPath: /seen, readOnly: true}]}],
        volumes: [{name: raw, persistentVolumeClaim: {claimName: c}}, {name: db, persistentVolumeClaim: {claimName: d}},
            {name: made, ephemeral: {volumeClaimTemplate: {spec: {}}}}]}";
    policy_of(&pod(spec), &Options::default())
}

#[test]
fn disks_are_where_the_manifest_has_them() {
    let policy = policy();
    assert_eq!(decide(&policy, |_| ()), Ok(()));
    assert_eq!(decide(&policy, |request| request.mounts[0].source = disk(Some(70))), Ok(()));
    for (change, field) in [
        (
            (|request| request.devices[0].read_only = true) as fn(&mut CreateContainer),
            "devices./dev/data.read_only",
        ),
        (|request| request.devices.clear(), "devices./dev/data"),
        (|request| request.devices.push(device("/dev/more", false)), "devices./dev/more"),
        (|request| request.mounts[0].read_only = true, "mounts./db.read_only"),
        (|request| request.mounts[0].source = disk(Some(71)), "mounts./db.source"),
        (
            |request| {
                request.mounts[0].source = empty("db", None, None);
            },
            "mounts./db.source",
        ),
        (|request| drop(request.mounts.pop()), "mounts./seen"),
    ] {
        assert_eq!(fields(decide(&policy, change)), [field]);
    }
}

#[test]
fn parts_are_those_of_the_manifest() {
    let spec = "{containers: [{name: a, image: i, env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}],
            volumeMounts: [{name: db, mountPath: /db, subPath: ./a//b/}, {name: logs, mountPath: /logs, subPathExpr: $(POD)/x}]}],
        volumes: [{name: db, persistentVolumeClaim: {claimName: d}}, {name: logs, emptyDir: {}}]}";
    let policy = policy_of(&pod(spec), &Options::default());
    let disk = |path: Option<&str>| MountSource::Disk {
        disk: "disk-1".into(),
        file_system: "ext4".into(),
        group: None,
        sub_path: path.map(str::to_owned),
    };
    let logs = |path: Option<&str>| MountSource::Empty {
        volume: "logs".into(),
        size_bytes: None,
        group: None,
        sub_path: path.map(str::to_owned),
    };
    let with = |db: MountSource, logs: MountSource| {
        decide(&policy, |request| {
            request.devices.clear();
            request.supplemental_groups.clear();
            request.environment.insert("POD".into(), "p".into());
            request.mounts = vec![mount("/db", false, db), mount("/logs", false, logs)];
        })
    };
    assert_eq!(with(disk(Some("a/b")), logs(Some("p/x"))), Ok(()));
    for path in [None, Some("a"), Some("a/b/c"), Some("")] {
        assert_eq!(fields(with(disk(path), logs(Some("p/x")))), ["mounts./db.source"]);
    }
    for path in [None, Some("x"), Some("other/x")] {
        assert_eq!(fields(with(disk(Some("a/b")), logs(path))), ["mounts./logs.source"]);
    }
}

#[test]
fn a_pod_without_claims_gets_no_disk() {
    let spec = "{securityContext: {fsGroup: 70}, containers: [{name: a, image: i}]}";
    let policy = policy_of(&pod(spec), &Options::default());
    assert_eq!(decide(&policy, |request| (request.devices, request.mounts) = (vec![], vec![])), Ok(()));
    assert_eq!(fields(decide(&policy, |request| request.mounts.clear())), ["devices./dev/data"]);
}

#[test]
fn a_stateful_set_gives_its_pods_claims_of_their_own() {
    let manifest = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: s}
spec:
  template: {spec: {securityContext: {fsGroup: 70}, containers: [{name: a, image: i, volumeMounts: [{name: db, mountPath: /db}]}]}}
  volumeClaimTemplates: [{metadata: {name: db}, spec: {accessModes: [ReadWriteOnce]}}]
";
    let policy = policy_of(manifest, &Options::default());
    let only_db = |request: &mut CreateContainer| {
        request.devices.clear();
        request.mounts.truncate(1);
    };
    assert_eq!(decide(&policy, only_db), Ok(()));
}
