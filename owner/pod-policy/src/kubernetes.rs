//! What of Kubernetes' objects says what a pod is. Other fields, such as where it is scheduled, change nothing of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// An object's names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) generate_name: Option<String>,
    pub(crate) namespace: Option<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A pod, or the template that pods are made from.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PodTemplate {
    #[serde(default)]
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(crate) runtime_class_name: Option<String>,
    pub(crate) containers: Vec<Container>,
    #[serde(default)]
    pub(crate) init_containers: Vec<Container>,
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
    #[serde(default)]
    pub(crate) security_context: PodSecurityContext,
    #[serde(default)]
    pub(crate) host_aliases: Vec<HostAlias>,
    pub(crate) enable_service_links: Option<bool>,
    pub(crate) automount_service_account_token: Option<bool>,
    pub(crate) service_account_name: Option<String>,
    /// Its older name.
    pub(crate) service_account: Option<String>,
    #[serde(default, rename = "hostNetwork")]
    pub(crate) host_network: bool,
    #[serde(default, rename = "hostPID")]
    pub(crate) host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    pub(crate) host_ipc: bool,
    pub(crate) host_users: Option<bool>,
    #[serde(default)]
    pub(crate) share_process_namespace: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSecurityContext {
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) fs_group: Option<u32>,
    #[serde(default)]
    pub(crate) supplemental_groups: Vec<u32>,
    pub(crate) supplemental_groups_policy: Option<String>,
    #[serde(default)]
    pub(crate) sysctls: Vec<Sysctl>,
    pub(crate) seccomp_profile: Option<Profile>,
    pub(crate) app_armor_profile: Option<Profile>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Sysctl {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HostAlias {
    pub(crate) ip: String,
    #[serde(default)]
    pub(crate) hostnames: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: Option<String>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<EnvVar>,
    #[serde(default)]
    pub(crate) env_from: Vec<EnvFrom>,
    pub(crate) working_dir: Option<String>,
    #[serde(default)]
    pub(crate) stdin: bool,
    #[serde(default)]
    pub(crate) tty: bool,
    #[serde(default)]
    pub(crate) security_context: SecurityContext,
    #[serde(default)]
    pub(crate) volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    pub(crate) volume_devices: Vec<VolumeDevice>,
    #[serde(default)]
    pub(crate) resources: ContainerResources,
    pub(crate) termination_message_path: Option<String>,
    pub(crate) liveness_probe: Option<Handler>,
    pub(crate) readiness_probe: Option<Handler>,
    pub(crate) startup_probe: Option<Handler>,
    pub(crate) lifecycle: Option<Lifecycle>,
}

/// Of which only the names matter.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ContainerResources {
    #[serde(default)]
    pub(crate) limits: BTreeMap<String, IgnoredAny>,
    /// Of devices.
    #[serde(default)]
    pub(crate) claims: Vec<IgnoredAny>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeDevice {
    pub(crate) name: String,
    pub(crate) device_path: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) value: String,
    pub(crate) value_from: Option<EnvSource>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvSource {
    pub(crate) config_map_key_ref: Option<KeyRef>,
    pub(crate) secret_key_ref: Option<KeyRef>,
    pub(crate) field_ref: Option<FieldRef>,
    pub(crate) resource_field_ref: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct KeyRef {
    pub(crate) name: String,
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) optional: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FieldRef {
    pub(crate) field_path: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvFrom {
    #[serde(default)]
    pub(crate) prefix: String,
    pub(crate) config_map_ref: Option<ObjectRef>,
    pub(crate) secret_ref: Option<ObjectRef>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ObjectRef {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) optional: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecurityContext {
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    #[serde(default)]
    pub(crate) privileged: bool,
    pub(crate) allow_privilege_escalation: Option<bool>,
    #[serde(default)]
    pub(crate) read_only_root_filesystem: bool,
    pub(crate) proc_mount: Option<String>,
    pub(crate) seccomp_profile: Option<Profile>,
    pub(crate) app_armor_profile: Option<Profile>,
    #[serde(default)]
    pub(crate) capabilities: Capabilities,
}

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Profile {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Capabilities {
    #[serde(default)]
    pub(crate) add: Vec<String>,
    #[serde(default)]
    pub(crate) drop: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) sub_path: String,
    #[serde(default)]
    pub(crate) sub_path_expr: String,
    pub(crate) mount_propagation: Option<String>,
}

/// A probe or a hook, of which only commands are the guest's concern: the others come over the network.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Handler {
    pub(crate) exec: Option<ExecAction>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ExecAction {
    #[serde(default)]
    pub(crate) command: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lifecycle {
    pub(crate) post_start: Option<Handler>,
    pub(crate) pre_stop: Option<Handler>,
}

/// A volume: its name, and one more key that says what it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) config_map: Option<VolumeOfObject>,
    pub(crate) secret: Option<VolumeOfObject>,
    #[serde(rename = "downwardAPI")]
    pub(crate) downward_api: Option<DownwardApi>,
    pub(crate) projected: Option<Projected>,
    pub(crate) empty_dir: Option<EmptyDir>,
    pub(crate) persistent_volume_claim: Option<Claim>,
    /// A claim that is made for the pod.
    pub(crate) ephemeral: Option<Ephemeral>,
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, serde_json::Value>,
}

/// A claim that a StatefulSet makes for each of its pods, and gives them under its name.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ClaimTemplate {
    #[serde(default)]
    metadata: Metadata,
}

impl PodSpec {
    /// Adds a volume for a claim, instead of one of the same name.
    pub(crate) fn add_claim(&mut self, claim: ClaimTemplate) {
        let name = claim.metadata.name.unwrap_or_default();
        self.volumes.retain(|volume| volume.name != name);
        let claim = Some(Claim::default());
        self.volumes.push(Volume { name, persistent_volume_claim: claim, ..Volume::default() });
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Claim {
    #[serde(default)]
    pub(crate) read_only: bool,
}

/// What the claim is like is the cluster's matter.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ephemeral {}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeOfObject {
    /// A ConfigMap's.
    pub(crate) name: Option<String>,
    /// A Secret's.
    pub(crate) secret_name: Option<String>,
    pub(crate) items: Option<Vec<KeyToPath>>,
    #[serde(default)]
    pub(crate) optional: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct KeyToPath {
    pub(crate) key: String,
    pub(crate) path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct DownwardApi {
    #[serde(default)]
    pub(crate) items: Vec<DownwardFile>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DownwardFile {
    pub(crate) path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Projected {
    #[serde(default)]
    pub(crate) sources: Vec<ProjectedSource>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProjectedSource {
    pub(crate) config_map: Option<VolumeOfObject>,
    pub(crate) secret: Option<VolumeOfObject>,
    #[serde(rename = "downwardAPI")]
    pub(crate) downward_api: Option<DownwardApi>,
    pub(crate) service_account_token: Option<DownwardFile>,
    pub(crate) cluster_trust_bundle: Option<DownwardFile>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EmptyDir {
    #[serde(default)]
    pub(crate) medium: String,
    pub(crate) size_limit: Option<Quantity>,
}

/// As `64Mi` or `1.5Gi`, or a plain number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Quantity {
    Number(serde_json::Number),
    Text(String),
}

impl Quantity {
    /// In whole bytes, rounded up; none for what is no quantity of bytes.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let text = match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.trim().to_owned(),
        };
        let digits =
            text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let number: u128 = format!("{whole}{fraction}").parse().ok()?;
        let (base, power) = match unit {
            "" => (1, 0),
            "m" => (1000_u128, -1),
            "k" => (1000, 1),
            "M" => (1000, 2),
            "G" => (1000, 3),
            "T" => (1000, 4),
            "P" => (1000, 5),
            "E" => (1000, 6),
            "Ki" => (1024, 1),
            "Mi" => (1024, 2),
            "Gi" => (1024, 3),
            "Ti" => (1024, 4),
            "Pi" => (1024, 5),
            "Ei" => (1024, 6),
            exponent => (10, exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
        };
        let parts = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let scale = base.checked_pow(power.unsigned_abs())?;
        let (times, parts) = if power < 0 { (1, parts.checked_mul(scale)?) } else { (scale, parts) };
        number.checked_mul(times)?.div_ceil(parts).try_into().ok()
    }
}

/// A ConfigMap or a Secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DataObject {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) data: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) binary_data: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) string_data: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bytes() {
        let whole = [("64Mi", 64 << 20), ("1k", 1000), ("17", 17), ("2Gi", 2 << 30)];
        let parts = [("1.5Gi", 3 << 29), ("0.1k", 100), (".5Ki", 512), ("2.k", 2000), ("1.0001k", 1001)];
        for (text, bytes) in whole.into_iter().chain(parts) {
            assert_eq!(Quantity::Text(text.into()).bytes(), Some(bytes), "{text}");
        }
        for (text, bytes) in
            [("1Pi", 1 << 50), ("1E", 10_u64.pow(18)), ("500m", 1), ("1e3", 1000), ("5E-1", 1), ("2.5e1", 25)]
        {
            assert_eq!(Quantity::Text(text.into()).bytes(), Some(bytes), "{text}");
        }
        let number = |text: &str| Quantity::Number(text.parse().unwrap());
        assert_eq!(number("7").bytes(), Some(7));
        assert_eq!(number("1e9").bytes(), Some(1_000_000_000));
        assert_eq!(number("-1").bytes(), None);
        let long = format!("0.{}Gi", "1".repeat(40));
        for text in [
            "",
            ".",
            "1.5.5Gi",
            "-1",
            "1.-5",
            "x",
            "1Zi",
            "1e",
            "1e99",
            "1e-99",
            "1ee3",
            "e3",
            "99999999999999999999",
            "18446744073709551615Ti",
            &long,
        ] {
            assert_eq!(Quantity::Text(text.into()).bytes(), None, "{text}");
        }
    }
}
