//! Kernel parameters of the pod's namespaces. The guest has one of each, so they are the guest's.
//!
//! Which of them the host may set, the policy decides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sealpod_agent_protocol::{Failure, FailureKind};

use crate::failure::{Hint, failure, internal};

/// Those that belong to a namespace (the network's and IPC's): what Kubernetes lets a pod set.
const OF_NAMESPACES: [&str; 5] = ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

/// With these the kernel takes frames from the network for the loopback interface's (the last two by IPv6 routing
/// headers), or for the guest's own. What listens on a container's loopback relies on the network not reaching it, so
/// no policy allows them.
const OPEN_LOOPBACK: [&str; 4] = ["route_localnet", "accept_local", "seg6_enabled", "rpl_seg_enabled"];

/// Sets the parameters.
pub(crate) fn apply(sysctls: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (name, value) in sysctls {
        let path = path(Path::new("/proc/sys"), name)?;
        std::fs::write(&path, value).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failure(FailureKind::Invalid, format!("there is no sysctl {name:?}")),
            io::ErrorKind::InvalidInput => {
                failure(FailureKind::Invalid, format!("sysctl {name:?} does not take {value:?}"))
            }
            _ => internal(&format!("set sysctl {name:?}"), &error),
        })?;
    }
    Ok(())
}

/// Dots separate, as everywhere; where a name has slashes, those do, and dots are part of the names.
fn path(root: &Path, name: &str) -> Result<PathBuf, Failure> {
    let dotted = name.replace('/', ".");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    let known = OF_NAMESPACES.iter().any(|prefix| dotted.starts_with(prefix));
    if !known || !name.bytes().all(plain) || dotted.contains("..") {
        return Err(failure(FailureKind::Invalid, format!("sysctl {name:?} is not one of the pod's"))
            .hint("those of the network and IPC namespaces can be set: net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*"));
    }
    if dotted.split('.').any(|part| OPEN_LOOPBACK.contains(&part)) {
        let message = format!("sysctl {name:?} would open the containers' loopback to the network");
        return Err(failure(FailureKind::Invalid, message).hint("leave it out of the pod's sysctls"));
    }
    Ok(root.join(if name.contains('/') { name.to_owned() } else { name.replace('.', "/") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        let path = |name: &str| path(Path::new("/proc/sys"), name).map_err(|failure| failure.kind);
        assert_eq!(path("net.core.somaxconn").unwrap(), Path::new("/proc/sys/net/core/somaxconn"));
        assert_eq!(
            path("net/ipv4/conf/eth0.1/mtu").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/mtu")
        );
        for name in [
            "",
            "vm.swappiness",
            "kernel.core_pattern",
            "net..x",
            "net/../vm/swappiness",
            "net.a b",
            "/net/x",
        ] {
            assert_eq!(path(name), Err(FailureKind::Invalid), "{name:?}");
        }
    }

    #[test]
    fn what_opens_the_loopback_to_the_network_is_never_set() {
        for name in [
            "net.ipv4.conf.all.route_localnet",
            "net.ipv4.conf.eth0.accept_local",
            "net/ipv4/conf/eth0.1/route_localnet",
            "net/ipv4/conf/all/accept_local/",
            "net.ipv6.conf.default.seg6_enabled",
            "net.ipv6.conf.all.rpl_seg_enabled",
        ] {
            let refused = path(Path::new("/proc/sys"), name).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Invalid, "{name}");
            assert!(refused.message.contains("loopback"), "{refused}");
        }
        assert!(path(Path::new("/proc/sys"), "net.ipv4.conf.all.rp_filter").is_ok());
    }
}
