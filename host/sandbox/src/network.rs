//! The VM's network: QEMU's user networking with ports of this machine that lead into it, or a namespace of CNI's.

mod interfaces;
pub(crate) mod loopback;
pub(crate) mod namespace;
mod netlink;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;

use sealpod_agent_protocol::{Dns, Interface, Route};

use crate::error::Error;

/// The guest's network card.
pub(crate) const MAC: &str = "52:54:00:12:34:56";
/// The guest's address in QEMU's own network. The host's loopback is 10.0.2.2 there.
pub(crate) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// How the pod reaches others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// By QEMU itself, as this user: from the guest to everywhere, this machine's loopback as 10.0.2.2.
    User {
        /// Ports of this machine that lead to the pod.
        ports: Vec<PortForward>,
    },
    /// By a network namespace that somebody else made (CNI): the VM takes over its interfaces. Needs root.
    Namespace {
        /// The namespace's file.
        path: PathBuf,
    },
}

impl Default for Network {
    fn default() -> Self {
        Self::User { ports: Vec::new() }
    }
}

impl Network {
    /// Ports of this machine that are to lead to the pod.
    pub(crate) fn ports(&self) -> &[PortForward] {
        match self {
            Self::User { ports } => ports,
            Self::Namespace { .. } => &[],
        }
    }
}

/// A TCP port of this machine that leads to one of the pod: `[ADDRESS:]HOST:POD`, `[::1]:8080:80` for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// Where this machine listens: its loopback unless said otherwise.
    pub address: IpAddr,
    /// This machine's port; 0 for a free one.
    pub host: u16,
    /// The pod's port.
    pub guest: u16,
}

/// A port forward that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected [ADDRESS:]HOST:POD such as 8080:80 or 0.0.0.0:8080:80, got {actual:?}")]
pub struct PortForwardError {
    /// What was given.
    pub actual: String,
}

impl FromStr for PortForward {
    type Err = PortForwardError;

    fn from_str(text: &str) -> Result<Self, PortForwardError> {
        let forward = || {
            let (rest, guest) = text.rsplit_once(':')?;
            let (address, host) = match rest.rsplit_once(':') {
                Some((address, host)) => {
                    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
                    let address: IpAddr = bare.unwrap_or(address).parse().ok()?;
                    // An IPv6 address without brackets could be cut anywhere.
                    (address.is_ipv6() == bare.is_some()).then_some((address, host))?
                }
                None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            };
            let guest = guest.parse().ok().filter(|port| *port != 0)?;
            Some(Self { address, host: host.parse().ok()?, guest })
        };
        forward().ok_or_else(|| PortForwardError { actual: text.to_owned() })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", SocketAddr::new(self.address, self.host), self.guest)
    }
}

/// Makes sure that each port is free, and chooses one where that was left open.
///
/// QEMU listens a moment later. Until then another program may take a port, which QEMU then reports.
pub(crate) fn settle(ports: &[PortForward]) -> Result<Vec<PortForward>, Error> {
    let mut reserved = Vec::new();
    for port in ports {
        let address = SocketAddr::new(port.address, port.host);
        let refuse = |source| Error::Port { address, source };
        let listener = TcpListener::bind(address).map_err(refuse)?;
        let host = listener.local_addr().map_err(refuse)?.port();
        // Held until all are settled, so that none is chosen twice.
        reserved.push((PortForward { host, ..*port }, listener));
    }
    Ok(reserved.into_iter().map(|(port, _)| port).collect())
}

/// What the agent needs to know about QEMU's own network, for its `StartPod`.
pub(crate) fn user_network() -> (Vec<Interface>, Dns) {
    let default_route = Route { destination: "0.0.0.0/0".into(), gateway: Some("10.0.2.2".into()) };
    let interface = Interface {
        mac: MAC.into(),
        name: "eth0".into(),
        addresses: vec![format!("{GUEST_ADDRESS}/24")],
        mtu: None,
        routes: vec![default_route],
    };
    let dns = Dns { servers: vec!["10.0.2.3".into()], ..Dns::default() };
    (vec![interface], dns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PortForward {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_forward_listens_on_loopback_unless_told_otherwise() {
        assert_eq!(parse("8080:80"), PortForward { address: [127, 0, 0, 1].into(), host: 8080, guest: 80 });
        assert_eq!(parse("0.0.0.0:8080:80").address, IpAddr::from([0, 0, 0, 0]));
        assert_eq!(parse("[::1]:0:80"), PortForward { address: "::1".parse().unwrap(), host: 0, guest: 80 });
        for text in ["8080:80", "[::1]:8080:80"] {
            assert_eq!(parse(&parse(text).to_string()), parse(text));
        }
    }

    #[test]
    fn what_is_no_port_forward_is_refused() {
        for text in [
            "",
            "80",
            ":80",
            "8080:",
            "8080:0",
            "65536:80",
            "host:8080:80",
            "::1:8080:80",
            "[1.2.3.4]:1:2",
            "1:2:3",
            "80:80/udp",
            "8080:80,x=y",
        ] {
            let error = text.parse::<PortForward>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn a_taken_port_is_refused_by_its_address() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = settle(&[parse(&format!("{}:80", address.port()))]).unwrap_err();
        assert!(matches!(&error, Error::Port { address: named, .. } if *named == address), "{error}");
        assert!(error.hint().unwrap().contains("port 0"));
    }

    #[test]
    fn free_ports_are_chosen_and_differ() {
        let settled = settle(&[parse("0:80"), parse("0:81")]).unwrap();
        assert!(settled.iter().all(|port| port.host != 0));
        assert_ne!(settled[0].host, settled[1].host);
    }
}
