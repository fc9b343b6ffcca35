//! How containerd's versions begin with a shim: what they call its service, and what `start` and `-info` answer.
//!
//! 1.6 and 1.7 take the socket's bare address and speak `containerd.task.v2`. 2.x says with `MAX_SHIM_VERSION` that it
//! understands version 3: it takes JSON (`BootstrapParams`) and speaks `containerd.task.v3`, whose messages have the same
//! fields under the same numbers. So one service stands under both names.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::asynchronous::Service;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use serde_json::json;

use crate::error::Error;

/// Set by containerd from 1.7 on: the newest version of the service that it speaks.
pub(crate) const MAX_SHIM_VERSION: &str = "MAX_SHIM_VERSION";
/// From here on the answer to `start` is JSON.
const JSON_VERSION: u32 = 3;
const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";
/// The name in containerd's configuration by which this program is found.
const RUNTIME: &str = "io.containerd.sealpod.v2";
/// OCI runtime specification, features.md.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The Task API under each of its names.
pub(crate) fn services<T: Task + Send + Sync + 'static>(task: &Arc<T>) -> HashMap<String, Service> {
    let mut services = create_task(task.clone());
    // The same methods once more: they cannot be cloned.
    let again = create_task(task.clone()).remove(TASK_V2);
    services.extend(again.map(|service| (TASK_V3.to_owned(), service)));
    services
}

/// What `start` prints for a pod that is served at an address; `max_version` is what containerd said.
pub(crate) fn start_answer(address: &str, max_version: Option<&str>) -> String {
    match max_version.and_then(|version| version.parse::<u32>().ok()) {
        Some(JSON_VERSION..) => {
            json!({"version": JSON_VERSION, "address": address, "protocol": "ttrpc"}).to_string()
        }
        _ => address.to_owned(),
    }
}

/// What `-info` prints: a `containerd.types.RuntimeInfo`.
///
/// # Errors
/// None that a fixed message has.
pub fn info() -> Result<Vec<u8>, Error> {
    // Recursively read-only and id-mapped mounts are not among the options: there are no mounts of the host's.
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.0.2",
        "mountOptions": ["bind", "rbind", "ro", "rw", "private", "rprivate"],
        "linux": {"namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"]},
    });
    let features =
        Any { type_url: FEATURES_TYPE.into(), value: features.to_string().into(), ..Any::default() };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() };
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..RuntimeInfo::default()
    };
    info.write_to_bytes().map_err(|error| Error::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_start_is_one_that_containerds_version_understands() {
        let address = "unix:///run/sealpod/7-4f2a";
        for version in [None, Some("2"), Some("x"), Some("")] {
            assert_eq!(start_answer(address, version), address, "{version:?}");
        }
        for version in ["3", "4"] {
            let json: serde_json::Value =
                serde_json::from_str(&start_answer(address, Some(version))).unwrap();
            assert_eq!(json, json!({"version": 3, "address": address, "protocol": "ttrpc"}));
        }
    }

    #[test]
    fn info_names_the_runtime_and_its_version() {
        let info = RuntimeInfo::parse_from_bytes(&info().unwrap()).unwrap();
        assert_eq!(info.name, RUNTIME);
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["ociVersionMin"], "1.0.0");
    }
}
