//! What cannot be had, or what only the cluster knows, is refused by name.

use std::collections::BTreeSet;

use sealpod_pod_policy::{Expected, Manifest, ObjectKind, Options, build};

fn pod(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n")
}

fn refusal(spec: &str) -> String {
    let manifest = Manifest::read(&pod(spec)).unwrap();
    match build(&manifest, &manifest.pods()[0], &Options::default()) {
        Ok(policy) => panic!("{spec} is allowed {policy:?}"),
        Err(refusal) => refusal.to_string(),
    }
}

fn container(fields: &str) -> String {
    format!("{{containers: [{{name: a, image: i, {fields}}}]}}")
}

fn disk(claim: &str, fields: &str) -> String {
    format!(
        "{{containers: [{{name: a, image: i, {fields}}}], volumes: [{{name: d, persistentVolumeClaim: {{claimName: c, {claim}}}}}]}}"
    )
}

fn volume(volume: &str, mount: &str) -> String {
    format!(
        "{{containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: /v, {mount}}}]}}], volumes: [{{name: v, {volume}}}]}}"
    )
}

fn volume_at(place: &str) -> String {
    volume("emptyDir: {}", "").replace("mountPath: /v", &format!("mountPath: {place}"))
}

#[test]
fn what_the_guest_cannot_have_is_refused() {
    for (spec, words) in [
        ("{hostNetwork: true, containers: [{name: a, image: i}]}".to_owned(), "Pod/p: hostNetwork"),
        ("{hostPID: true, containers: [{name: a, image: i}]}".into(), "hostPID"),
        ("{hostIPC: true, containers: [{name: a, image: i}]}".into(), "hostIPC"),
        ("{hostUsers: false, containers: [{name: a, image: i}]}".into(), "hostUsers"),
        ("{containers: []}".into(), "containers: there is none"),
        ("{containers: [{name: a, image: i}, {name: a, image: i}]}".into(), "two containers"),
        ("{hostAliases: [{ip: x}], containers: [{name: a, image: i}]}".into(), "hostAliases"),
        ("{containers: [{name: a}]}".into(), "containers.a.image: there is none"),
        ("{containers: [{name: a, image: 'Not An Image'}]}".into(), "containers.a.image"),
        (container("securityContext: {capabilities: {add: [ALL]}}"), "name those that it needs"),
        (
            container("securityContext: {procMount: Unmasked, capabilities: {add: [CAP_SYS_MODULE]}}"),
            "say privileged",
        ),
        (container("volumeDevices: [{name: d, devicePath: /dev/x}]"), "volumeDevices.d"),
        (disk("", "volumeDevices: [{name: d, devicePath: /x}]"), "below /dev"),
        (
            disk("", "volumeDevices: [{name: d, devicePath: /dev/x}, {name: d, devicePath: /dev/x}]"),
            "two devices",
        ),
        (disk("", "volumeDevices: [{name: d, devicePath: /dev/null}]"), "below /dev"),
        (disk("", "volumeMounts: [{name: d, mountPath: /m, subPath: a/../b}]"), "does not lead to a folder"),
        (volume("emptyDir: {}", "subPath: /a"), "does not lead to a folder"),
        (volume("emptyDir: {}", "subPathExpr: $(A_SERVICE_HOST)/"), "names with single slashes between"),
        (
            container("resources: {limits: {memory: 1Gi, hugepages-2Mi: 2Mi}}"),
            "containers.a.resources.limits.hugepages-2Mi: the guest has no huge pages to give",
        ),
        (
            container("resources: {claims: [{name: gpu}]}"),
            "containers.a.resources.claims: the guest cannot have devices of the node's",
        ),
        (
            container("securityContext: {seccompProfile: {type: Localhost, localhostProfile: p}}"),
            "seccompProfile",
        ),
        (
            "{securityContext: {seccompProfile: {type: Localhost}}, containers: [{name: a, image: i}]}"
                .into(),
            "seccompProfile",
        ),
        (
            container("securityContext: {appArmorProfile: {type: Localhost, localhostProfile: p}}"),
            "appArmorProfile",
        ),
        (
            disk("", "volumeMounts: [{name: d, mountPath: /m}, {name: d, mountPath: /m/inside}]"),
            "inside a claim's volume",
        ),
        (container("volumeMounts: [{name: missing, mountPath: /m}]"), "no volume of this name"),
        (volume("hostPath: {path: /etc}", ""), "containers.a.volumeMounts.v: hostPath is refused"),
        (volume("nfs: {server: s, path: /}", ""), "nfs is refused"),
        (volume("csi: {driver: d}", ""), "csi is refused"),
        (volume("emptyDir: {medium: HugePages}", ""), "HugePages"),
        (volume("emptyDir: {medium: Memory, sizeLimit: 1.5Zi}", ""), "sizeLimit"),
        (volume("emptyDir: {}", "mountPropagation: Bidirectional"), "mountPropagation"),
        (volume_at("/dev/"), "nothing can be mounted at /dev: the guest makes it itself"),
        (volume_at("/proc/sys/kernel"), "nothing can be mounted at /proc/sys/kernel"),
        (volume_at("/sys/fs/cgroup"), "nothing can be mounted at /sys/fs/cgroup"),
        (volume_at("/"), "nothing can be mounted at /:"),
    ] {
        let refusal = refusal(&spec);
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
}

#[test]
fn a_group_that_the_guest_cannot_be_told_is_refused() {
    let spec = |of_pod: &str, own: &str| {
        format!(
            "{{securityContext: {{{of_pod}}}, containers: [{{name: a, image: i, securityContext: {{{own}}}}}]}}"
        )
    };
    for (of_pod, own) in [
        ("", "runAsGroup: 0"),
        ("", "runAsUser: 7, runAsGroup: 0"),
        ("runAsGroup: 0", ""),
        ("runAsUser: 7, runAsGroup: 0", ""),
        ("runAsUser: 7", "runAsGroup: 0"),
        ("runAsGroup: 0", "runAsUser: 7"),
        ("runAsUser: 0, runAsGroup: 0", "runAsUser: 7"),
        ("runAsGroup: 8", "runAsGroup: 0"),
    ] {
        let refusal = refusal(&spec(of_pod, own));
        let words = "containers.a.securityContext.runAsGroup: group 0 can be told for user 0 only";
        assert!(refusal.contains(words) && refusal.contains("leave it out"), "{of_pod} {own}: {refusal}");
    }
    for policy in ["Strict", "Other"] {
        let refusal = refusal(&spec(&format!("supplementalGroupsPolicy: {policy}"), ""));
        let words = format!("Pod/p: securityContext.supplementalGroupsPolicy: {policy} cannot be had");
        assert!(refusal.contains(&words) && refusal.contains("say Merge"), "{refusal}");
    }
    for (of_pod, own) in [
        ("runAsUser: 0, runAsGroup: 0", ""),
        ("runAsGroup: 0", "runAsUser: 0"),
        ("", "runAsUser: 0, runAsGroup: 0"),
        ("runAsUser: 7, runAsGroup: 0", "runAsGroup: 8"),
        ("runAsUser: 7", ""),
        ("supplementalGroupsPolicy: Merge", ""),
    ] {
        let manifest = Manifest::read(&pod(&spec(of_pod, own))).unwrap();
        assert!(build(&manifest, &manifest.pods()[0], &Options::default()).is_ok(), "{of_pod} {own}");
    }
}

#[test]
fn what_only_the_cluster_knows_is_refused() {
    for (spec, words) in [
        (container("envFrom: [{configMapRef: {name: c}}]"), "ConfigMap \"c\" is not in the input"),
        (container("envFrom: [{secretRef: {name: s}}]"), "Secret \"s\" is not in the input"),
        (
            container("env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]"),
            "containers.a.env.A: ConfigMap \"c\" is not in the input; give it by --with FILE, or let the cluster choose its content with \
             --allow-any-content ConfigMap/c",
        ),
        (container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]"), "status.phase"),
        (container("env: [{name: A, valueFrom: {fileKeyRef: {path: x}}}]"), "valueFrom is not known"),
        (volume("configMap: {name: c}", ""), "--allow-any-content ConfigMap/c"),
        (volume("projected: {sources: [{secret: {name: s}}]}", ""), "list its items"),
    ] {
        let refusal = refusal(&spec);
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
}

#[test]
fn a_key_that_is_not_there_is_refused() {
    let config = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: v}\n";
    for (spec, words) in [
        (
            container("env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: other}}}]"),
            "has no key \"other\"",
        ),
        (volume("configMap: {name: c, items: [{key: other, path: p}]}", ""), "has no key \"other\""),
        (volume("configMap: {name: c}", "subPath: other"), "there is no \"other\""),
    ] {
        let refusal = refusal(&format!("{spec}{config}"));
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    // Of another namespace.
    let other =
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: other}\ndata: {k: v}\n";
    let spec = container("env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]");
    assert!(refusal(&format!("{spec}{other}")).contains("not in the input"));
}

#[test]
fn the_author_can_let_the_cluster_choose() {
    let text = pod(&container("env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]"));
    let manifest = Manifest::read(&text).unwrap();
    let any_content = BTreeSet::from([(ObjectKind::ConfigMap, "c".to_owned())]);
    let options = Options { any_content, ..Options::default() };
    assert!(build(&manifest, &manifest.pods()[0], &options).is_ok());
}

#[test]
fn what_the_cluster_makes_in_each_namespace_needs_not_be_given() {
    let text = pod(&volume(
        "projected: {sources: [{configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}}]}",
        "",
    ));
    let files = |text: &str| {
        let manifest = Manifest::read(text).unwrap();
        let policy = build(&manifest, &manifest.pods()[0], &Options::default()).unwrap();
        policy.volumes.into_iter().find(|volume| volume.name == "v").unwrap().files.unwrap()
    };
    assert_eq!(files(&text)["ca.crt"], None, "any content");
    let config =
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-root-ca.crt}\ndata: {ca.crt: v}\n";
    assert!(files(&format!("{text}{config}"))["ca.crt"].is_some(), "what is given is fixed");
}

#[test]
fn a_service_account_has_two_names() {
    let spec = |names: &str| {
        let account = "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]";
        container(account).replacen('{', &format!("{{{names} "), 1)
    };
    for (names, expected) in [
        ("", "default"),
        ("serviceAccount: old,", "old"),
        ("serviceAccountName: new,", "new"),
        ("serviceAccount: old, serviceAccountName: new,", "new"),
    ] {
        let manifest = Manifest::read(&pod(&spec(names))).unwrap();
        let policy = build(&manifest, &manifest.pods()[0], &Options::default()).unwrap();
        let variable = &policy.containers["a"].environment["A"];
        assert_eq!(variable.value, Expected::Exactly(expected.into()), "{names}");
    }
}
