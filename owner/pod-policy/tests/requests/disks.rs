//! Claims of persistent volumes.

use sealpod_agent_policy::{Denial, ImageFacts, Policy};
use sealpod_agent_protocol::{CreateContainer, Device, MountSource};
use sealpod_pod_policy::Options;

use crate::world::{examine, fields, mount, pod, policy_of};

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
    MountSource::Disk { disk: "disk-1".into(), file_system: "ext4".into(), group }
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
                request.mounts[0].source =
                    MountSource::Empty { volume: "db".into(), size_bytes: None, group: None };
            },
            "mounts./db.source",
        ),
        (|request| drop(request.mounts.pop()), "mounts./seen"),
    ] {
        assert_eq!(fields(decide(&policy, change)), [field]);
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
