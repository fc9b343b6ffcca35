//! A namespace's interfaces as the guest is told of them, from the kernel's own words (rtnetlink(7)).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use sealpod_agent_protocol::{Interface, Route};

/// An interface and the number by which the kernel knows it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) index: u32,
    pub(super) interface: Interface,
}

/// Puts together what the kernel lists: Ethernet interfaces that are up, with their addresses and routes.
///
/// Tunnels that the kernel puts into every namespace are neither.
pub(super) fn assemble(
    links: &[RouteNetlinkMessage],
    addresses: &[RouteNetlinkMessage],
    routes: &[RouteNetlinkMessage],
) -> Vec<Found> {
    let mut interfaces: Vec<Found> = links.iter().filter_map(interface).collect();
    let routes: Vec<Way> = routes.iter().filter_map(way).collect();
    for answer in addresses {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if let Some(found) = interfaces.iter_mut().find(|found| found.index == message.header.index) {
            found.interface.addresses.extend(address(message, &routes));
        }
    }
    for way in preferred(routes) {
        if let Some(found) = interfaces.iter_mut().find(|found| found.index == way.index) {
            found.interface.routes.push(way.into());
        }
    }
    interfaces
}

fn interface(answer: &RouteNetlinkMessage) -> Option<Found> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = answer else { return None };
    let ethernet = header.link_layer_type == LinkLayerType::Ether;
    if !ethernet || !header.flags.contains(LinkFlags::Up) || header.flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let mut interface = Interface {
        mac: String::new(),
        name: String::new(),
        addresses: Vec::new(),
        mtu: None,
        routes: Vec::new(),
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = Some(*mtu),
            LinkAttribute::Address(bytes) => {
                let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                interface.mac = bytes.join(":");
            }
            _ => {}
        }
    }
    Some(Found { index: header.index, interface })
}

/// An address that the guest's kernel does not give itself, with its prefix length.
fn address(message: &AddressMessage, routes: &[Way]) -> Option<String> {
    let AddressMessage { header, attributes, .. } = message;
    if header.scope == AddressScope::Link {
        return None;
    }
    // The two differ where the interface has one other end (IFA_ADDRESS is the peer's then).
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(any)?;
    let length = match address {
        // In the guest an address brings a route to its neighbours, which for IPv6 wins over every other route to them.
        // Where they are not reached so (CNI's ptp leads to them through a gateway), the address has to come alone.
        IpAddr::V6(own) if !has_neighbours(header.index, own, header.prefix_len, routes) => 128,
        _ => header.prefix_len,
    };
    Some(format!("{address}/{length}"))
}

/// Whether the addresses of the same prefix are reached without a gateway.
fn has_neighbours(index: u32, own: Ipv6Addr, length: u8, routes: &[Way]) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
    let prefix = IpAddr::from(Ipv6Addr::from_bits(own.to_bits() & mask));
    let leads_there = |way: &Way| {
        way.index == index && way.gateway.is_none() && (way.destination, way.length) == (prefix, length)
    };
    routes.iter().any(leads_there)
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    index: u32,
    destination: IpAddr,
    length: u8,
    gateway: Option<IpAddr>,
    /// Whether the gateway needs no route of its own.
    onlink: bool,
    /// The lowest is preferred.
    metric: u32,
    /// Whether the kernel made it for an address, as the guest's kernel will.
    kernels_own: bool,
}

impl From<Way> for Route {
    fn from(way: Way) -> Self {
        let destination = format!("{}/{}", way.destination, way.length);
        Self { destination, gateway: way.gateway.map(|gateway| gateway.to_string()) }
    }
}

fn way(answer: &RouteNetlinkMessage) -> Option<Way> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = answer else { return None };
    let ordinary = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && !header.flags.contains(RouteFlags::Cloned);
    if !ordinary {
        return None;
    }
    let anywhere = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut way = Way {
        index: 0,
        destination: anywhere,
        length: header.destination_prefix_length,
        gateway: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric: 0,
        kernels_own: header.protocol == RouteProtocol::Kernel,
    };
    // Words that [`Route`] does not have.
    let mut unspeakable = header.tos != 0 || header.source_prefix_length != 0;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.index = *index,
            RouteAttribute::Destination(address) => way.destination = ip(address)?,
            RouteAttribute::Gateway(address) => way.gateway = ip(address),
            RouteAttribute::Priority(metric) => way.metric = *metric,
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => {
                unspeakable = true;
            }
            _ => {}
        }
    }
    if unspeakable {
        tracing::warn!(destination = %way.destination, "the guest goes without a route of several paths, for some packets only, or through another family");
        return None;
    }
    Some(way)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    }
}

/// What the guest is told of the routes, in an order in which they can be made.
fn preferred(mut routes: Vec<Way>) -> Vec<Way> {
    let neighbours: Vec<_> = routes.iter().filter_map(to_gateway).collect();
    routes.extend(neighbours);
    // The guest's routes have no metric: of those to the same destination it gets what this machine prefers.
    routes.sort_by_key(|way| way.metric);
    let mut seen = BTreeSet::new();
    routes.retain(|way| seen.insert((way.destination, way.length)));
    routes.retain(|way| !way.kernels_own);
    // A gateway must be reachable before a route leads through it.
    routes.sort_by_key(|way| way.gateway.is_some());
    routes
}

/// The route to an `onlink` gateway, which [`Route`] cannot call so; any other to the same place goes first.
fn to_gateway(way: &Way) -> Option<Way> {
    let gateway = way.gateway.filter(|_| way.onlink)?;
    let length = match gateway {
        IpAddr::V4(_) => 32,
        IpAddr::V6(address) if address.is_unicast_link_local() => return None,
        IpAddr::V6(_) => 128,
    };
    let metric = u32::MAX;
    Some(Way { destination: gateway, length, gateway: None, onlink: false, metric, ..*way })
}
