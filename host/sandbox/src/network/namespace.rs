//! A pod's network in Kubernetes: the namespace that CNI made, whose interfaces the VM takes over.
//!
//! Beside each interface of the namespace a tap is made, and everything that arrives at the one leaves by the other.
//! The guest takes the interface's MAC, addresses and routes; QEMU runs in the namespace and holds the taps, which
//! vanish with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sealpod_agent_protocol::Interface;

use super::netlink::Netlink;
use crate::error::Error;

const TUN: &str = "/dev/net/tun";
/// `TUNSETIFF` of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54CA;

/// A namespace whose interfaces lead to taps.
#[derive(Debug)]
pub(crate) struct Namespace {
    descriptor: OwnedFd,
    cards: Vec<Card>,
}

/// One of the guest's network cards.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) interface: Interface,
    pub(crate) tap: OwnedFd,
    /// The number of the namespace's interface.
    index: u32,
}

impl Namespace {
    /// Makes a tap for each interface of a namespace.
    pub(crate) fn join(path: &Path) -> Result<Self, Error> {
        let refuse = |what: String| move |source| Error::Namespace { what, source };
        let descriptor = File::open(path)
            .map(OwnedFd::from)
            .map_err(refuse(format!("cannot open the network namespace {}", path.display())))?;
        let cards = inside(&descriptor, make_cards)
            .map_err(refuse(format!("cannot join the VM to the network namespace {}", path.display())))?;
        if cards.is_empty() {
            let what = format!("the network namespace {} has no interface that is up", path.display());
            return Err(Error::Namespace { what, source: io::ErrorKind::NotFound.into() });
        }
        Ok(Self { descriptor, cards })
    }

    pub(crate) fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// What a child does before it becomes QEMU: enters the namespace and keeps the taps.
    pub(crate) fn enter_in_child(
        &self,
    ) -> io::Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
        let namespace = self.descriptor.try_clone()?;
        // By number: the child has copies of all descriptors, under the same numbers.
        let taps: Vec<_> = self.cards.iter().map(|card| card.tap.as_raw_fd()).collect();
        Ok(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            for tap in &taps {
                // SAFETY: changes a flag of a descriptor that `Namespace` keeps open until the child has begun.
                if unsafe { libc::fcntl(*tap, libc::F_SETFD, 0) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let indices: Vec<_> = self.cards.iter().map(|card| card.index).collect();
        // The namespace may be on its way out with all that is in it.
        let _ = inside(&self.descriptor, move || {
            let mut netlink = Netlink::open()?;
            indices.into_iter().try_for_each(|index| netlink.stop_redirecting(index))
        });
    }
}

/// Runs something in a namespace, on a thread of its own that ends there.
fn inside<T: Send + 'static>(
    namespace: &OwnedFd,
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.try_clone()?;
    let thread = std::thread::Builder::new().name("network".into()).spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        job()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

fn make_cards() -> io::Result<Vec<Card>> {
    let mut netlink = Netlink::open()?;
    let mut cards = Vec::new();
    for (number, found) in netlink.interfaces()?.into_iter().enumerate() {
        let name = format!("sealpod{number}");
        let tap = make_tap(&name)?;
        let tap_index = netlink.index(&name)?;
        netlink.bring_up(tap_index, found.interface.mtu)?;
        // From an earlier VM that was killed; most often there is none.
        let _ = netlink.stop_redirecting(found.index);
        netlink.redirect(found.index, tap_index)?;
        netlink.redirect(tap_index, found.index)?;
        cards.push(Card { interface: found.interface, tap, index: found.index });
    }
    Ok(cards)
}

/// A tap that goes away when its last descriptor does.
fn make_tap(name: &str) -> io::Result<OwnedFd> {
    let tun = File::options().read(true).write(true).open(TUN)?;
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads an `ifreq`, which lives until the call returns.
    match unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &request) } {
        0 => Ok(tun.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::Command;

    use sealpod_agent_protocol::Route;

    use super::*;

    /// A namespace as CNI's bridge plugin leaves it, and the machine's end of its cable.
    struct Cable {
        name: String,
    }

    impl Cable {
        fn new(name: &str) -> Self {
            let cable = Self { name: format!("sealpod-{name}-{}", std::process::id()) };
            let (namespace, end) = (&cable.name, cable.end());
            ip(&format!("netns add {namespace}"));
            ip(&format!(
                "link add {end} type veth peer name eth0 netns {namespace} address 0a:58:0a:01:02:03"
            ));
            ip(&format!("link set {end} up mtu 1400"));
            for words in [
                "link set eth0 up mtu 1400",
                "addr add 10.250.7.2/24 dev eth0",
                "addr add fd00:7::2/64 dev eth0 nodad",
                "route add 10.250.7.1/32 dev eth0 scope link",
                "route add default via 10.250.7.1",
                "-6 route add default via fd00:7::1",
            ] {
                ip(&format!("-n {namespace} {words}"));
            }
            cable
        }

        fn end(&self) -> String {
            format!("sp{}", std::process::id())
        }

        fn path(&self) -> std::path::PathBuf {
            Path::new("/run/netns").join(&self.name)
        }

        fn filters(&self) -> String {
            let output = Command::new("tc")
                .args(["-n", &self.name, "filter", "show", "dev", "eth0", "ingress"])
                .output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        }
    }

    impl Drop for Cable {
        fn drop(&mut self) {
            ip(&format!("netns del {}", self.name));
        }
    }

    fn ip(words: &str) {
        let output =
            Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Behind 10 bytes of `virtio_net_hdr`.
    fn frame(tap: &mut File, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut buffer = [0; 2048];
        while std::time::Instant::now() < deadline {
            let count = tap.read(&mut buffer).unwrap();
            if wanted(&buffer[10..count]) {
                return buffer[10..count].to_vec();
            }
        }
        panic!("the frame did not arrive");
    }

    #[test]
    fn a_namespaces_frames_go_to_the_tap_and_back_until_it_is_left() {
        let cable = Cable::new("frames");
        let namespace = Namespace::join(&cable.path()).unwrap();
        let [card] = namespace.cards() else { panic!("{namespace:?}") };
        let interface = &card.interface;
        assert_eq!(
            (interface.mac.as_str(), interface.name.as_str(), interface.mtu),
            ("0a:58:0a:01:02:03", "eth0", Some(1400))
        );
        assert_eq!(interface.addresses, ["10.250.7.2/24", "fd00:7::2/64"]);
        let route = |destination: &str, gateway: Option<&str>| Route {
            destination: destination.into(),
            gateway: gateway.map(str::to_owned),
        };
        assert_eq!(
            interface.routes,
            [
                route("10.250.7.1/32", None),
                route("0.0.0.0/0", Some("10.250.7.1")),
                route("::/0", Some("fd00:7::1")),
            ]
        );

        // The machine asks who has the pod's address, and is answered by whoever holds the tap.
        ip(&format!("addr add 10.250.7.1/24 dev {}", cable.end()));
        let mut ping = Command::new("ping")
            .args(["-c", "1", "-W", "5", "10.250.7.2"])
            .spawn()
            .expect("iputils-ping is installed");
        let mut tap = File::from(card.tap.try_clone().unwrap());
        let question = frame(&mut tap, |frame| frame.get(12..14) == Some(&[0x08, 0x06]));
        assert_eq!(question[38..42], [10, 250, 7, 2]);
        let mut answer = vec![0; 10];
        answer.extend_from_slice(&question[6..12]);
        answer.extend_from_slice(&[0x0a, 0x58, 0x0a, 1, 2, 3]);
        answer.extend_from_slice(&[
            0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2, 0x0a, 0x58, 0x0a, 1, 2, 3, 10, 250, 7, 2,
        ]);
        answer.extend_from_slice(&question[22..32]);
        tap.write_all(&answer).unwrap();
        let echo =
            frame(&mut tap, |frame| frame.get(12..14) == Some(&[0x08, 0x00]) && frame.get(23) == Some(&1));
        assert_eq!(echo[30..34], [10, 250, 7, 2]);
        ping.kill().unwrap();
        ping.wait().unwrap();

        assert!(cable.filters().contains("mirred"), "{}", cable.filters());
        drop(tap);
        drop(namespace);
        assert_eq!(cable.filters(), "");
        // Also after one that could not tidy up.
        std::mem::forget(Namespace::join(&cable.path()).unwrap());
    }

    #[test]
    fn what_is_no_pods_network_is_refused() {
        let missing = Namespace::join(Path::new("/run/netns/nowhere")).unwrap_err();
        assert!(missing.to_string().contains("/run/netns/nowhere"), "{missing}");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Namespace::join(file.path()).is_err());
        assert!(missing.hint().unwrap().contains("root"));
    }
}
