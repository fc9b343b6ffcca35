//! Why a VM cannot live in a network namespace.

use std::io;

/// Why a VM cannot live in a network namespace. [`NamespaceError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Its file cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// It cannot be entered.
    #[error("cannot be entered: {0}")]
    Enter(#[source] io::Error),
    /// It is that of this process: the machine would lose its own network to the pod.
    #[error("is the one in which this program runs itself")]
    Own,
    /// There is nothing that the VM could take over.
    #[error("has no interface that is up, besides the loopback")]
    Empty,
    /// Its interfaces cannot be read.
    #[error("cannot be asked for its interfaces: {0}")]
    Read(#[source] io::Error),
    /// The device that makes taps cannot be opened.
    #[error("cannot get a tap, because /dev/net/tun cannot be opened: {0}")]
    Tun(#[source] io::Error),
    /// A tap cannot be made.
    #[error("cannot get the tap {name}: {source}")]
    Tap {
        /// The tap's name.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody can hear the connections to its loopback.
    #[error("has a loopback whose connections cannot be led into the VM: {0}")]
    Loopback(#[source] io::Error),
    /// An interface's frames cannot be led to a tap.
    #[error("has an interface whose frames cannot be redirected, {interface}: {source}")]
    Redirect {
        /// The interface's name.
        interface: String,
        /// What the system says.
        source: io::Error,
    },
}

impl NamespaceError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        const ROOT: &str = "it takes root, or the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN";
        match self {
            Self::Open(source)
            | Self::Enter(source)
            | Self::Read(source)
            | Self::Tun(source)
            | Self::Loopback(source)
            | Self::Tap { source, .. }
            | Self::Redirect { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ROOT
            }
            Self::Open(_) => {
                "the network plugin (CNI) makes it before the VM starts, and has failed or removed it"
            }
            Self::Enter(_) => "give a network namespace's file, as /run/netns/NAME or /proc/PID/ns/net",
            Self::Own => {
                "a pod needs a network namespace of its own; it cannot have the machine's (hostNetwork)"
            }
            Self::Empty => {
                "the network plugin (CNI) gives it interfaces before the VM starts: see its configuration and log"
            }
            Self::Read(_) => "`sealpod doctor` checks this machine",
            Self::Tun(_) => {
                "load the kernel's module with `modprobe tun`; in a container, give it the device /dev/net/tun"
            }
            Self::Loopback(_) => "the kernel needs CONFIG_BPF_SYSCALL and Linux 5.9 or newer",
            Self::Tap { .. } => "another VM may live in the namespace; each needs one of its own",
            Self::Redirect { .. } => {
                "the kernel needs sch_ingress, cls_u32 and act_mirred: `modprobe -a sch_ingress cls_u32 act_mirred`"
            }
        }
    }
}
