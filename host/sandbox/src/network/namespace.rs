//! A pod's network in Kubernetes: the namespace that CNI made, whose interfaces the VM takes over.
//!
//! Beside each interface of the namespace a tap is made, and everything that arrives at the one leaves by the other.
//! The guest takes the interface's MAC, addresses and routes; QEMU runs in the namespace and holds the taps, which
//! vanish with it.

mod error;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use sealpod_agent_protocol::Interface;

use super::interfaces::Found;
use super::loopback::{Heard, Loopback};
use super::netlink::Netlink;
use crate::error::Error;
use crate::process::{self, Step};

pub use error::NamespaceError;

const TUN: &str = "/dev/net/tun";
/// The namespace of this process; its threads never leave it, those of [`inside`] excepted.
const OWN: &str = "/proc/self/ns/net";

/// A namespace whose interfaces lead to taps. Dropping it gives the interfaces back.
#[derive(Debug)]
pub(crate) struct Namespace {
    descriptor: OwnedFd,
    interfaces: Vec<Found>,
    /// One for each interface, until the VM has them.
    taps: Vec<OwnedFd>,
}

/// One of the guest's network cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Card<'a> {
    pub(crate) mac: &'a str,
    pub(crate) mtu: Option<u32>,
    /// The number of the tap's descriptor, here and in the child that becomes QEMU.
    pub(crate) tap: RawFd,
}

impl Namespace {
    /// Makes a tap for each interface of a namespace.
    pub(crate) fn join(path: &Path) -> Result<Self, Error> {
        let join = || {
            let descriptor = open(path)?;
            let (interfaces, taps) = inside(&descriptor, join_interfaces)?;
            Ok(Self { descriptor, interfaces, taps })
        };
        join().map_err(|source| Error::Namespace { path: path.to_owned(), source })
    }

    /// What the guest has to know of its interfaces.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().map(|found| &found.interface)
    }

    /// The guest's cards, in the order of the interfaces.
    pub(crate) fn cards(&self) -> Vec<Card<'_>> {
        let cards = self.interfaces().zip(&self.taps);
        cards
            .map(|(interface, tap)| Card { mac: &interface.mac, mtu: interface.mtu, tap: tap.as_raw_fd() })
            .collect()
    }

    /// Hears the connections to its loopback. Must be called in a tokio runtime's context.
    pub(crate) fn loopback(&self) -> Result<Loopback, NamespaceError> {
        let namespace = self.descriptor.try_clone().map_err(NamespaceError::Enter)?;
        let heard = inside(&self.descriptor, move || {
            Heard::in_namespace(namespace.as_fd()).map_err(NamespaceError::Loopback)
        });
        Loopback::new(heard?).map_err(NamespaceError::Loopback)
    }

    /// What a child does before it becomes QEMU: it enters the namespace and keeps the taps.
    pub(crate) fn steps_of_child(&self) -> Result<Vec<Step>, Error> {
        let cannot = "QEMU cannot enter the pod's network namespace";
        let namespace = self.descriptor.try_clone().map_err(Error::io(cannot))?;
        let enter =
            move || Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?);
        // SAFETY: this is one system call, and nothing is allocated.
        let mut steps = vec![unsafe { Step::new(cannot, enter) }];
        steps.extend(process::keep(self.taps.iter().map(AsFd::as_fd), "QEMU cannot keep the pod's taps"));
        Ok(steps)
    }

    /// Leaves the taps to the child that has them now, so that they vanish with it.
    pub(crate) fn release_taps(&mut self) {
        self.taps.clear();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let indices: Vec<_> = self.interfaces.iter().map(|found| found.index).collect();
        let given_back = inside(&self.descriptor, move || {
            let mut netlink = Netlink::open().map_err(NamespaceError::Read)?;
            give_back(&mut netlink, &indices);
            Ok(())
        });
        if let Err(error) = given_back {
            tracing::debug!(%error, "the pod's interfaces are not given back");
        }
    }
}

/// Whether this machine can join VMs to namespaces: does so once, in a namespace that nobody sees.
pub(crate) fn probe() -> Result<(), NamespaceError> {
    on_a_thread(|| {
        // SAFETY: of the ways in which threads depend on one another only FILES would be unsound to part.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|error| NamespaceError::Enter(error.into()))?;
        let mut netlink = Netlink::open().map_err(NamespaceError::Read)?;
        let _taps = [make_tap("sealpod0")?, make_tap("sealpod1")?];
        let index = |netlink: &mut Netlink, tap| netlink.index(tap).map_err(NamespaceError::Read);
        let (one, other) = (index(&mut netlink, "sealpod0")?, index(&mut netlink, "sealpod1")?);
        let refuse = |source| NamespaceError::Redirect { interface: "sealpod1".into(), source };
        netlink.redirect(one, other).map_err(refuse)
    })
}

fn open(path: &Path) -> Result<OwnedFd, NamespaceError> {
    let open = |path: &Path| File::open(path).map_err(NamespaceError::Open);
    let (wanted, own) = (open(path)?, open(Path::new(OWN))?);
    let identity = |file: &File| {
        let stat = rustix::fs::fstat(file).map_err(|error| NamespaceError::Open(error.into()))?;
        Ok((stat.st_dev, stat.st_ino))
    };
    if identity(&wanted)? == identity(&own)? {
        return Err(NamespaceError::Own);
    }
    Ok(wanted.into())
}

/// Runs something in a namespace.
fn inside<T: Send + 'static>(
    namespace: &OwnedFd,
    job: impl FnOnce() -> Result<T, NamespaceError> + Send + 'static,
) -> Result<T, NamespaceError> {
    let namespace = namespace.try_clone().map_err(NamespaceError::Enter)?;
    on_a_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| NamespaceError::Enter(error.into()))?;
        job()
    })
}

/// Runs something on a thread of its own, which ends wherever that took it.
fn on_a_thread<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, NamespaceError> + Send + 'static,
) -> Result<T, NamespaceError> {
    let thread = std::thread::Builder::new().name("network".into()).spawn(job);
    let panicked = |_| Err(NamespaceError::Enter(io::Error::other("the thread in it panicked")));
    thread.map_err(NamespaceError::Enter)?.join().unwrap_or_else(panicked)
}

/// Makes the taps, then leads the interfaces' frames to them; all or nothing.
fn join_interfaces() -> Result<(Vec<Found>, Vec<OwnedFd>), NamespaceError> {
    let mut netlink = Netlink::open().map_err(NamespaceError::Read)?;
    let interfaces = netlink.interfaces().map_err(NamespaceError::Read)?;
    if interfaces.is_empty() {
        return Err(NamespaceError::Empty);
    }
    let taps = (0..interfaces.len()).map(|number| make_tap(&tap_name(number))).collect::<Result<_, _>>()?;
    // Whoever has the taps has the namespace; before, its interfaces may have been another VM's.
    for (number, found) in interfaces.iter().enumerate() {
        if let Err(source) = join_to_tap(&mut netlink, found, &tap_name(number)) {
            let indices: Vec<_> = interfaces.iter().map(|found| found.index).collect();
            give_back(&mut netlink, &indices);
            let interface = found.interface.name.clone();
            return Err(NamespaceError::Redirect { interface, source });
        }
    }
    Ok((interfaces, taps))
}

fn tap_name(number: usize) -> String {
    format!("sealpod{number}")
}

fn join_to_tap(netlink: &mut Netlink, found: &Found, tap: &str) -> io::Result<()> {
    let tap = netlink.index(tap)?;
    netlink.bring_up(tap, found.interface.mtu)?;
    // What a VM left that was killed; most often there is nothing.
    let _ = netlink.stop_redirecting(found.index);
    netlink.redirect(found.index, tap)?;
    netlink.redirect(tap, found.index)
}

/// Best effort: the interfaces may be gone, or not have led anywhere yet.
fn give_back(netlink: &mut Netlink, indices: &[u32]) {
    for index in indices {
        let _ = netlink.stop_redirecting(*index);
    }
}

/// A tap that goes away when its last descriptor does.
fn make_tap(name: &str) -> Result<OwnedFd, NamespaceError> {
    let tun = File::options().read(true).write(true).open(TUN).map_err(NamespaceError::Tun)?;
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which lives until the call returns.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) } {
        0 => Ok(tun.into()),
        _ => Err(NamespaceError::Tap { name: name.to_owned(), source: io::Error::last_os_error() }),
    }
}
