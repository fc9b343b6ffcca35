//! The pod's network: interfaces found by MAC, their addresses and routes, name resolution files.
//!
//! All that the host says here is parsed before any of it is used.

mod netlink;

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use netlink::Netlink;
use sealpod_agent_protocol::{Dns, HostEntry, Interface, Route};

/// Why the network was not set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A value that is not what its field says.
    #[error("{what} is {actual:?}, expected {expected}")]
    Value {
        /// The field.
        what: &'static str,
        /// What came.
        actual: String,
        /// What should have.
        expected: &'static str,
    },
    /// No interface has that address.
    #[error("no interface has the MAC address {0}")]
    NoInterface(String),
    /// The kernel refused.
    #[error("{doing}")]
    Kernel {
        /// What we were doing.
        doing: String,
        /// Why.
        source: io::Error,
    },
}

/// The loopback interface always has this index.
const LOOPBACK: u32 = 1;

/// What makes up for capabilities that containers do not get: `ping`, and servers on ports below 1024, without them.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Prepares what is the same for all pods: settings, and the loopback interface.
pub(crate) fn prepare() -> Result<(), Error> {
    for (setting, value) in SETTINGS {
        std::fs::write(setting, value)
            .map_err(|source| Error::Kernel { doing: format!("set {setting}"), source })?;
    }
    Netlink::open()?.bring_up(LOOPBACK, "the loopback interface")
}

/// Gives the interfaces their names, addresses and routes.
pub(crate) fn configure(interfaces: &[Interface]) -> Result<(), Error> {
    let interfaces: Vec<_> = interfaces.iter().map(ParsedInterface::parse).collect::<Result<_, _>>()?;
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let index = |interface: &ParsedInterface<'_>| {
        let link = links.iter().find(|(mac, _)| *mac == interface.mac);
        link.map(|(_, index)| *index).ok_or_else(|| Error::NoInterface(interface.given.mac.clone()))
    };
    let indices = interfaces.iter().map(index).collect::<Result<Vec<_>, _>>()?;
    // The kernel's own names are those that others shall have.
    for index in &indices {
        netlink.rename(*index, &format!("sealpod{index}"))?;
    }
    for (index, interface) in indices.into_iter().zip(&interfaces) {
        netlink.configure(index, interface)?;
    }
    Ok(())
}

/// The text of `/etc/resolv.conf`.
pub(crate) fn resolv_conf(dns: &Dns) -> Result<String, Error> {
    let mut text = String::new();
    for server in &dns.servers {
        let address = ip("a name server's address", server)?;
        let _ = writeln!(text, "nameserver {address}");
    }
    for (keyword, words) in [("search", &dns.searches), ("options", &dns.options)] {
        for word in words {
            one_word("a resolver setting", word)?;
        }
        if !words.is_empty() {
            let _ = writeln!(text, "{keyword} {}", words.join(" "));
        }
    }
    Ok(text)
}

/// The text of `/etc/hosts`.
pub(crate) fn hosts(hostname: &str, interfaces: &[Interface], more: &[HostEntry]) -> Result<String, Error> {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let own = interfaces.iter().flat_map(|interface| &interface.addresses).next();
    if let (Some(own), false) = (own, hostname.is_empty()) {
        let (address, _) = prefix("an interface's address", own)?;
        let _ = writeln!(text, "{address} {hostname}");
    }
    for entry in more {
        for name in &entry.names {
            one_word("a host's name", name)?;
        }
        let _ = writeln!(text, "{} {}", ip("a host's address", &entry.address)?, entry.names.join(" "));
    }
    Ok(text)
}

/// Checks a host name (RFC 1123). One of the loopback's (RFC 6761, 6.3) would open to the network what programs keep to it:
/// the name gets the pod's own address in `/etc/hosts`.
pub(crate) fn check_hostname(name: &str) -> Result<(), Error> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let mut ends = [name.split('.').next(), name.rsplit('.').next()].into_iter().flatten();
    let is_loopbacks = ends.any(|label| label.eq_ignore_ascii_case("localhost"));
    // 64 is the kernel's limit.
    match name.len() <= 64 && name.split('.').all(label) && !is_loopbacks {
        true => Ok(()),
        false => Err(Error::Value {
            what: "hostname",
            actual: name.into(),
            expected: "a name as in RFC 1123, and not localhost",
        }),
    }
}

struct ParsedInterface<'a> {
    given: &'a Interface,
    mac: [u8; 6],
    addresses: Vec<(IpAddr, u8)>,
    routes: Vec<(IpAddr, u8, Option<IpAddr>)>,
}

impl<'a> ParsedInterface<'a> {
    fn parse(given: &'a Interface) -> Result<Self, Error> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        if !(1..=15).contains(&given.name.len())
            || !given.name.bytes().all(valid)
            || given.name.starts_with('.')
        {
            let expected = "1 to 15 letters, digits, '-', '_' or '.'";
            return Err(Error::Value { what: "an interface's name", actual: given.name.clone(), expected });
        }
        Ok(Self {
            given,
            mac: mac(&given.mac)?,
            addresses: given
                .addresses
                .iter()
                .map(|address| prefix("an interface's address", address))
                .collect::<Result<_, _>>()?,
            routes: given.routes.iter().map(route).collect::<Result<_, _>>()?,
        })
    }
}

fn route(route: &Route) -> Result<(IpAddr, u8, Option<IpAddr>), Error> {
    let (destination, length) = prefix("a route's destination", &route.destination)?;
    let gateway = route.gateway.as_deref().map(|gateway| ip("a route's gateway", gateway)).transpose()?;
    match gateway {
        Some(gateway) if gateway.is_ipv4() != destination.is_ipv4() => Err(Error::Value {
            what: "a route's gateway",
            actual: gateway.to_string(),
            expected: "an address of the destination's family",
        }),
        _ => Ok((destination, length, gateway)),
    }
}

fn ip(what: &'static str, text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::Value { what, actual: text.into(), expected: "an IPv4 or IPv6 address" })
}

fn prefix(what: &'static str, text: &str) -> Result<(IpAddr, u8), Error> {
    let wrong = || Error::Value { what, actual: text.into(), expected: "address/prefix length" };
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    match length <= if address.is_ipv4() { 32 } else { 128 } {
        true => Ok((address, length)),
        false => Err(wrong()),
    }
}

fn mac(text: &str) -> Result<[u8; 6], Error> {
    let bytes: Vec<u8> = text
        .split(':')
        .filter(|byte| byte.len() == 2)
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let wrong =
        |_| Error::Value { what: "a MAC address", actual: text.into(), expected: "52:54:00:12:34:56" };
    if text.len() != 17 {
        return Err(wrong(bytes));
    }
    bytes.try_into().map_err(wrong)
}

/// Words end up in files of words and lines, which they must not break out of.
fn one_word(what: &'static str, word: &str) -> Result<(), Error> {
    match !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        true => Ok(()),
        false => Err(Error::Value { what, actual: word.into(), expected: "one word" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> Interface {
        Interface {
            mac: "52:54:00:12:34:56".into(),
            name: "eth0".into(),
            addresses: vec!["10.0.2.15/24".into(), "fec0::5/64".into()],
            mtu: Some(1500),
            routes: vec![Route { destination: "0.0.0.0/0".into(), gateway: Some("10.0.2.2".into()) }],
        }
    }

    #[test]
    fn an_interface_is_parsed() {
        let interface = interface();
        let parsed = ParsedInterface::parse(&interface).unwrap();
        assert_eq!(parsed.mac, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(parsed.addresses.len(), 2);
        assert_eq!(parsed.routes[0].1, 0);
    }

    #[test]
    fn what_is_not_an_interface_is_refused() {
        let changes: [fn(&mut Interface); 10] = [
            |i| i.mac = "52:54:00:12:34".into(),
            |i| i.mac = "52:54:00:12:34:5g".into(),
            |i| i.mac = "52-54-00-12-34-56".into(),
            |i| i.name = String::new(),
            |i| i.name = "../../etc".into(),
            |i| i.addresses = vec!["10.0.2.15".into()],
            |i| i.addresses = vec!["10.0.2.15/33".into()],
            |i| i.routes[0].destination = "default".into(),
            |i| i.routes[0].gateway = Some("fe80::1".into()),
            |i| i.routes[0].gateway = Some("gateway".into()),
        ];
        for change in changes {
            let mut interface = interface();
            change(&mut interface);
            assert!(ParsedInterface::parse(&interface).is_err(), "{interface:?}");
        }
    }

    #[test]
    fn resolv_conf_has_what_was_asked_for() {
        let dns = Dns {
            servers: vec!["10.0.2.3".into()],
            searches: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "nameserver 10.0.2.3\nsearch a.example b.example\noptions ndots:5\n"
        );
    }

    #[test]
    fn lines_cannot_be_smuggled_into_files() {
        let dns = Dns { searches: vec!["a\nnameserver 6.6.6.6".into()], ..Dns::default() };
        assert!(resolv_conf(&dns).is_err());
        let entry = HostEntry { address: "10.0.0.1".into(), names: vec!["a\n6.6.6.6 b".into()] };
        assert!(hosts("pod", &[], &[entry]).is_err());
        assert!(check_hostname("pod\n").is_err());
    }

    #[test]
    fn hosts_names_the_pod_itself() {
        let entry = HostEntry { address: "10.0.0.1".into(), names: vec!["a".into(), "b".into()] };
        let text = hosts("pod", &[interface()], &[entry]).unwrap();
        assert!(text.contains("127.0.0.1 localhost\n"));
        assert!(text.contains("10.0.2.15 pod\n"));
        assert!(text.ends_with("10.0.0.1 a b\n"));
    }

    #[test]
    fn host_names_are_those_of_rfc_1123() {
        for name in ["pod", "pod-1.example.com", "1"] {
            assert!(check_hostname(name).is_ok(), "{name}");
        }
        for name in ["", "-pod", "pod-", "a..b", "a b", "p\u{f6}d", &"a".repeat(65)] {
            assert!(check_hostname(name).is_err(), "{name}");
        }
        for name in ["localhost", "LocalHost", "pod.localhost", "localhost.localdomain"] {
            assert!(check_hostname(name).is_err(), "{name}");
        }
    }
}
