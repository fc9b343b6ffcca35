//! The chart, rendered by Helm's own library: what it takes, what it gives, and that Kubernetes knows every field of it.

use std::collections::BTreeSet;
use std::process::Command;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use sealpod_deploy_tests::{render, repository, run, said, text};
use sealpod_kbs::config::Store;
use serde_json::{Value, json};

const BROKER: &str = "node: {enabled: false}\nbroker: {enabled: true}\n";
const REPLICAS: &str = "\
node: {enabled: false}
broker: {enabled: true, replicas: 3, store: {kind: postgres, postgres: {cidrs: [10.1.0.0/16], port: 6432}}}
";
/// Every value is another than its default.
const EVERYTHING: &str = "\
image: {registry: 'localhost:5000/mine', tag: v9, pullPolicy: Always, pullSecrets: [{name: registry}]}
node:
  digest: sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  nodeSelector: {confidential: 'true'}
  tolerations: [{key: confidential, operator: Exists, effect: NoSchedule}]
  images: ['registry.example/*', '*/app:1']
  maxUnavailable: 20%
  restrictToken: false
  resources: {requests: {cpu: 20m}, limits: {memory: 300Mi}}
  apiServerCidrs: [10.0.0.1/32, 'fd00::1/128']
runtimeClass:
  name: confidential
  overhead: {memory: 1Gi, cpu: '1'}
  tolerations: [{key: confidential, operator: Equal, value: 'yes', effect: NoExecute, tolerationSeconds: 60}]
broker:
  enabled: true
  digest: sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
  listen: '::'
  store: {volume: {size: 5Gi, storageClassName: fast}}
  admins: {configMap: admins, files: [a.pub, b.pub]}
  tls: {enabled: false}
  tpm:
    ekRootsConfigMap: roots
    ekRootFiles: [vendor.pem]
    enrolledAks: [cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc]
  tokenLifetimeSeconds: 60
  service: {type: LoadBalancer, port: 8443, annotations: {a.example/b: c}}
  allowFrom: [{ipBlock: {cidr: 10.0.0.0/8}}, {namespaceSelector: {matchLabels: {a: b}}}]
  resources: {limits: {cpu: '2'}}
  nodeSelector: {trusted: 'true'}
  tolerations: [{operator: Exists}]
";
const ALL: [&str; 4] = ["", BROKER, REPLICAS, EVERYTHING];

#[test]
fn kubernetes_knows_every_field() {
    for values in ALL {
        for manifest in rendered(values) {
            let understood = understood(&manifest);
            if let Some(lost) = lost(&manifest, &understood, String::new()) {
                panic!("Kubernetes does not know {lost} of {manifest:#}");
            }
        }
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_noticed() {
    let mut manifest = only(&rendered(""), "DaemonSet");
    manifest["spec"]["template"]["spec"]["containers"][0]["securityContexts"] = json!({});
    let lost = lost(&manifest, &understood(&manifest), String::new());
    assert_eq!(lost.as_deref(), Some("/spec/template/spec/containers/0/securityContexts"));
}

#[test]
fn each_half_has_its_parts_and_no_others() {
    let kinds = |values: &str| -> Vec<String> {
        let mut kinds: Vec<_> = rendered(values).iter().map(|it| string(&it["kind"])).collect();
        kinds.sort();
        kinds
    };
    let broker = ["ConfigMap", "NetworkPolicy", "Service", "Service", "ServiceAccount", "StatefulSet"]
        .map(str::to_owned);
    assert_eq!(kinds(BROKER), broker);
    assert!(kinds(REPLICAS).contains(&"PodDisruptionBudget".to_owned()));
    let node = kinds("");
    for kind in ["DaemonSet", "RuntimeClass", "Job", "ValidatingAdmissionPolicy"] {
        assert!(node.contains(&kind.to_owned()), "{node:?}");
    }
    assert!(!node.contains(&"StatefulSet".to_owned()));
    assert_eq!(kinds("node: {enabled: false}"), Vec::<String>::new());
    assert!(!kinds("node: {restrictToken: false}").iter().any(|kind| kind.starts_with("Validating")));
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (values, named) in [
        ("nodes: {}", "nodes"),
        ("node: {enable: true}", "enable"),
        ("node: {maxUnavailable: 0}", "/node/maxUnavailable"),
        ("node: {maxUnavailable: 101%}", "/node/maxUnavailable"),
        ("node: {digest: 'sha256:1'}", "/node/digest"),
        ("node: {apiServerCidrs: [everywhere]}", "/node/apiServerCidrs/0"),
        ("node: {images: ['a b']}", "/node/images/0"),
        ("image: {tag: 'a b'}", "/image/tag"),
        ("image: {pullPolicy: Sometimes}", "/image/pullPolicy"),
        ("runtimeClass: {name: Sealpod}", "/runtimeClass/name"),
        ("runtimeClass: {overhead: {memory: much}}", "/runtimeClass/overhead/memory"),
        ("broker: {replicas: 0}", "/broker/replicas"),
        ("broker: {replicas: 2}", "/broker/store/kind"),
        ("broker: {listen: 127.0.0.1}", "/broker/listen"),
        ("broker: {store: {kind: mysql}}", "/broker/store/kind"),
        ("broker: {admins: {files: []}}", "/broker/admins/files"),
        ("broker: {admins: {files: ['../x']}}", "/broker/admins/files/0"),
        ("broker: {admins: {files: ['a\"b']}}", "/broker/admins/files/0"),
        ("broker: {tokenLifetimeSeconds: 86401}", "/broker/tokenLifetimeSeconds"),
        ("broker: {tpm: {ekRootsConfigMap: roots}}", "/broker/tpm/ekRootFiles"),
        ("broker: {tpm: {ekRootFiles: [a.pem]}}", "/broker/tpm/ekRootFiles"),
        ("broker: {tpm: {enrolledAks: [abc]}}", "/broker/tpm/enrolledAks/0"),
        ("broker: {service: {port: 0}}", "/broker/service/port"),
        ("broker: {service: {type: ExternalName}}", "/broker/service/type"),
        ("broker: {allowFrom: [{}]}", "/broker/allowFrom/0"),
    ] {
        let refusal = render(values).expect_err(values);
        assert!(refusal.contains(named), "{values}: expected {named} in {refusal}");
    }
}

#[test]
fn the_schema_has_no_value_that_the_chart_lacks() {
    fn compare(schema: &Value, values: &Value, path: &str) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}/{name}");
            // Helm's own, which reaches every chart; and what Kubernetes defines.
            if path == "/global" || inner.get("properties").is_none() {
                let there = path == "/global" || values.get(name).is_some();
                assert!(there, "values.yaml does not have {path}");
                continue;
            }
            compare(inner, &values[name], &path);
        }
    }
    let output = run(Command::new(script()).arg("--values"));
    let values: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    let schema: Value = serde_json::from_str(&text("deploy/helm/sealpod/values.schema.json")).unwrap();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    compare(&schema, &values, "");
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let output = run(Command::new(script()).arg("--lint"));
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert_eq!(report["total_charts_linted"], 1);
    assert_eq!(report["errors"], json!([]));
}

#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let folder = tempfile::tempdir().unwrap();
    for (file, values) in [("node.yaml", ""), ("broker.yaml", BROKER)] {
        let path = folder.path().join(file);
        std::fs::write(&path, values).unwrap();
        let output = run(Command::new(script()).arg(&path));
        assert!(output.status.success(), "{}", said(&output));
        let expected = String::from_utf8(output.stdout).unwrap();
        assert!(
            text(&format!("deploy/manifests/{file}")) == expected,
            "deploy/manifests/{file} is not what the chart renders: run deploy/helm/render.sh --write"
        );
        assert!(!expected.contains("helm.sh/hook"), "{file} has what only Helm may run");
    }
}

#[test]
fn the_installer_alone_is_root_and_not_even_it_is_privileged() {
    for values in ALL {
        for (name, pod) in rendered(values).iter().filter_map(pod) {
            let installer = name == "sealpod-node";
            for field in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.get(field).is_none(), "{name} has {field}");
            }
            let volumes = pod["volumes"].as_array().into_iter().flatten();
            let of_host = volumes.filter(|volume| volume.get("hostPath").is_some()).count();
            assert_eq!(of_host, usize::from(installer), "{name}");
            if !installer {
                assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
                assert_eq!(pod["securityContext"]["runAsUser"], 65532, "{name}");
                assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            }
            for container in pod["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_ne!(context["privileged"], true, "{name}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
                let kept = if installer {
                    json!(["CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_CHROOT"])
                } else {
                    Value::Null
                };
                assert_eq!(context["capabilities"]["add"], kept, "{name}");
                assert!(container["resources"].get("limits").is_some(), "{name}");
            }
        }
    }
}

#[test]
fn the_broker_has_no_token_and_the_others_may_do_little() {
    for values in [BROKER, REPLICAS, EVERYTHING] {
        let manifests = rendered(values);
        assert_eq!(
            only(&manifests, "StatefulSet")["spec"]["template"]["spec"]["automountServiceAccountToken"],
            false
        );
        for binding in manifests.iter().filter(|it| string(&it["kind"]).ends_with("RoleBinding")) {
            assert_ne!(binding["subjects"][0]["name"], "sealpod-broker");
        }
    }
    let manifests = rendered("");
    assert_eq!(
        only(&manifests, "ClusterRole")["rules"],
        json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}])
    );
    assert_eq!(
        only(&manifests, "Role")["rules"],
        json!([{
            "apiGroups": ["apps"],
            "resources": ["daemonsets"],
            "resourceNames": ["sealpod-node"],
            "verbs": ["get", "patch"],
        }])
    );
}

#[test]
fn every_pod_has_a_network_policy() {
    for values in ALL {
        let manifests = rendered(values);
        let policies: Vec<_> = manifests.iter().filter(|it| it["kind"] == "NetworkPolicy").collect();
        for manifest in &manifests {
            let Some((name, _)) = pod(manifest) else { continue };
            let labels = manifest["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            let chosen = policies.iter().filter(|policy| {
                let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap();
                wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            assert_eq!(chosen.count(), 1, "{name}");
        }
        for policy in policies {
            assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        }
    }
    // Only the broker is asked, and with a store of its own it asks nobody.
    let policy = only(&rendered(BROKER), "NetworkPolicy");
    assert_eq!(policy["spec"]["ingress"][0]["ports"], json!([{"port": "broker", "protocol": "TCP"}]));
    assert!(policy["spec"].get("egress").is_none());
    for policy in rendered("").iter().filter(|it| it["kind"] == "NetworkPolicy") {
        assert!(policy["spec"].get("ingress").is_none());
    }
}

#[test]
fn services_and_selectors_find_their_pods() {
    for values in [BROKER, REPLICAS, EVERYTHING] {
        let manifests = rendered(values);
        let set = only(&manifests, "StatefulSet");
        let labels = set["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        let services: Vec<_> = manifests.iter().filter(|it| it["kind"] == "Service").collect();
        for service in &services {
            for (key, value) in service["spec"]["selector"].as_object().unwrap() {
                assert_eq!(labels.get(key), Some(value));
            }
        }
        let governing =
            services.iter().find(|it| it["metadata"]["name"] == set["spec"]["serviceName"]).unwrap();
        assert_eq!(governing["spec"]["clusterIP"], "None");
    }
}

#[test]
fn pods_in_vms_go_to_nodes_that_the_installer_labelled() {
    let manifests = rendered("");
    let class = only(&manifests, "RuntimeClass");
    let set = only(&manifests, "DaemonSet");
    let environment = set["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let label = environment.iter().find(|it| it["name"] == "SEALPOD_LABEL").unwrap();
    assert_eq!(class["scheduling"]["nodeSelector"], json!({string(&label["value"]): "true"}));
    assert_eq!(class["handler"], "sealpod");
    assert_eq!(class["overhead"]["podFixed"], json!({"memory": "384Mi", "cpu": "250m"}));
    // What the policy lets the installer change is that label.
    let policy = only(&manifests, "ValidatingAdmissionPolicy");
    assert!(policy.to_string().contains(&string(&label["value"])));
}

#[test]
fn images_are_pinned() {
    let images = |values: &str| -> BTreeSet<String> {
        let manifests = rendered(values);
        let pods = manifests.iter().filter_map(pod);
        pods.map(|(_, pod)| string(&pod["containers"][0]["image"])).collect()
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(images(""), BTreeSet::from([format!("registry.example/sealpod/node:{version}")]));
    assert_eq!(images(BROKER), BTreeSet::from([format!("registry.example/sealpod/kbs:{version}")]));
    let digest = |letter: &str| letter.repeat(64);
    assert_eq!(
        images(EVERYTHING),
        BTreeSet::from([
            format!("localhost:5000/mine/kbs@sha256:{}", digest("b")),
            format!("localhost:5000/mine/node@sha256:{}", digest("a")),
        ])
    );
}

#[test]
fn the_brokers_configuration_is_one_that_it_reads() {
    for values in [BROKER, REPLICAS, EVERYTHING] {
        let manifests = rendered(values);
        let set = only(&manifests, "StatefulSet");
        let mounts = set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        let mounted =
            |path: &std::path::Path| mounts.iter().any(|it| path.starts_with(string(&it["mountPath"])));

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kbs.toml");
        std::fs::write(&file, string(&only(&manifests, "ConfigMap")["data"]["kbs.toml"])).unwrap();
        let config = sealpod_kbs::config::Config::read(&file).unwrap();
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.listen.is_ipv6(), values == EVERYTHING);
        assert!(!config.allow_sample);
        assert_eq!(config.tls.is_some(), values != EVERYTHING);
        assert_eq!(matches!(config.store, Store::Postgres(_)), values == REPLICAS);
        let store = config.store.file();
        assert!(mounted(store), "{} is not mounted", store.display());
        let tls = config.tls.iter().flat_map(|tls| [&tls.certificate, &tls.key]);
        for path in config.admin_keys.iter().chain(&config.tpm.ek_roots).chain(tls) {
            assert!(mounted(path), "{} is not mounted", path.display());
        }
    }
}

#[test]
fn a_changed_configuration_changes_the_pods() {
    let checksum = |values: &str| {
        let set = only(&rendered(values), "StatefulSet");
        set["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert_eq!(checksum(BROKER), checksum(BROKER));
    assert_ne!(checksum(BROKER), checksum(EVERYTHING));
}

fn script() -> std::path::PathBuf {
    repository().join("deploy/helm/render.sh")
}

fn rendered(values: &str) -> Vec<Value> {
    render(values).unwrap_or_else(|refusal| panic!("{values}: {refusal}"))
}

fn only(manifests: &[Value], kind: &str) -> Value {
    let mut found = manifests.iter().filter(|it| it["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(found.next().is_none(), "there are several {kind}");
    first.clone()
}

/// The name and the pod of what makes pods.
fn pod(manifest: &Value) -> Option<(String, &Value)> {
    Some((string(&manifest["metadata"]["name"]), manifest.pointer("/spec/template/spec")?))
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// A manifest as Kubernetes' API would have it.
fn understood(manifest: &Value) -> Value {
    fn read<T: serde::de::DeserializeOwned + serde::Serialize>(manifest: &Value) -> Value {
        let typed: T = serde_json::from_value(manifest.clone())
            .unwrap_or_else(|error| panic!("{error} in {manifest:#}"));
        serde_json::to_value(typed).unwrap()
    }
    // The types check `apiVersion` and `kind` themselves.
    match string(&manifest["kind"]).as_str() {
        "ClusterRole" => read::<ClusterRole>(manifest),
        "ClusterRoleBinding" => read::<ClusterRoleBinding>(manifest),
        "ConfigMap" => read::<ConfigMap>(manifest),
        "DaemonSet" => read::<DaemonSet>(manifest),
        "Job" => read::<Job>(manifest),
        "NetworkPolicy" => read::<NetworkPolicy>(manifest),
        "PodDisruptionBudget" => read::<PodDisruptionBudget>(manifest),
        "Role" => read::<Role>(manifest),
        "RoleBinding" => read::<RoleBinding>(manifest),
        "RuntimeClass" => read::<RuntimeClass>(manifest),
        "Service" => read::<Service>(manifest),
        "ServiceAccount" => read::<ServiceAccount>(manifest),
        "StatefulSet" => read::<StatefulSet>(manifest),
        "ValidatingAdmissionPolicy" => read::<ValidatingAdmissionPolicy>(manifest),
        "ValidatingAdmissionPolicyBinding" => read::<ValidatingAdmissionPolicyBinding>(manifest),
        kind => panic!("the tests do not know {kind}"),
    }
}

/// The path of something that did not survive.
fn lost(before: &Value, after: &Value, path: String) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().find_map(|(name, value)| {
            let path = format!("{path}/{name}");
            match after.get(name) {
                Some(other) => lost(value, other, path),
                None => Some(path),
            }
        }),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            (before.iter().zip(after))
                .enumerate()
                .find_map(|(index, (value, other))| lost(value, other, format!("{path}/{index}")))
        }
        _ if before == after => None,
        _ => Some(path),
    }
}
