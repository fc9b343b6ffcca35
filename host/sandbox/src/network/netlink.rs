//! The few netlink requests (rtnetlink(7), tc(8)) by which a namespace's interfaces are read and joined to taps.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use sealpod_agent_protocol::{Interface, Route};

/// The ingress queueing discipline's own handle, and its place.
const INGRESS: TcHandle = TcHandle { major: 0xFFFF, minor: 0 };
const INGRESS_PARENT: TcHandle = TcHandle { major: 0xFFFF, minor: 0xFFF1 };
/// `ETH_P_ALL` in network byte order, below a priority of 1: what a filter's `info` holds.
const ALL_PROTOCOLS: u32 = 1 << 16 | (0x0003u16.to_be() as u32);
/// `TCA_ACT_TAB`'s first place.
const FIRST_ACTION: u16 = 1;

/// A connection to the kernel, in the namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// An interface and the number by which the kernel knows it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) index: u32,
    pub(super) interface: Interface,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Ethernet interfaces that are up, with their addresses and routes.
    pub(super) fn interfaces(&mut self) -> io::Result<Vec<Found>> {
        let links = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let mut found: Vec<Found> = links.into_iter().filter_map(found).collect();
        let addresses =
            self.request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        for answer in addresses {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            if let Some((index, address)) = address(&message)
                && let Some(found) = found.iter_mut().find(|found| found.index == index)
            {
                found.interface.addresses.push(address);
            }
        }
        let routes = self.request(RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        for answer in routes {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            if let Some((index, route)) = route(&message)
                && let Some(found) = found.iter_mut().find(|found| found.index == index)
            {
                found.interface.routes.push(route);
            }
        }
        for found in &mut found {
            // A gateway must be reachable before a route leads through it.
            found.interface.routes.sort_by_key(|route| route.gateway.is_some());
        }
        Ok(found)
    }

    /// The number of an interface.
    pub(super) fn index(&mut self, name: &str) -> io::Result<u32> {
        let links = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let named = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewLink(link) => link
                .attributes
                .iter()
                .any(|it| matches!(it, LinkAttribute::IfName(own) if own == name))
                .then_some(link.header.index),
            _ => None,
        };
        links.iter().find_map(named).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Sets an interface's MTU and brings it up.
    pub(super) fn bring_up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Sends everything that arrives at one interface out of another.
    pub(super) fn redirect(&mut self, from: u32, to: u32) -> io::Result<()> {
        let create = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(RouteNetlinkMessage::NewQueueDiscipline(ingress(from)), create)?;
        self.request(RouteNetlinkMessage::NewTrafficFilter(redirection(from, to)), create).map(drop)
    }

    /// Undoes it.
    pub(super) fn stop_redirecting(&mut self, from: u32) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelQueueDiscipline(ingress(from)), NLM_F_ACK).map(drop)
    }

    /// Sends a request and collects the answers until its acknowledgement or the end of its dump.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(_) => return Err(error.to_io()),
                    },
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => (),
                }
            }
        }
    }
}

fn found(answer: RouteNetlinkMessage) -> Option<Found> {
    let RouteNetlinkMessage::NewLink(link) = answer else { return None };
    let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    if !ethernet
        || !link.header.flags.contains(LinkFlags::Up)
        || link.header.flags.contains(LinkFlags::Loopback)
    {
        return None;
    }
    let mut interface = Interface {
        mac: String::new(),
        name: String::new(),
        addresses: Vec::new(),
        mtu: None,
        routes: Vec::new(),
    };
    for attribute in &link.attributes {
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
    Some(Found { index: link.header.index, interface })
}

/// Addresses that the guest's kernel does not give itself.
fn address(message: &AddressMessage) -> Option<(u32, String)> {
    if message.header.scope == AddressScope::Link {
        return None;
    }
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let address = find(true).or_else(|| find(false))?;
    Some((message.header.index, format!("{address}/{}", message.header.prefix_len)))
}

/// Routes that do not come with an address by themselves.
fn route(message: &RouteMessage) -> Option<(u32, Route)> {
    let header = &message.header;
    let kernels_own = header.protocol == RouteProtocol::Kernel;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast || kernels_own {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let (mut index, mut destination, mut gateway) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => index = Some(*interface),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    let anywhere = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => "0.0.0.0",
        netlink_packet_route::AddressFamily::Inet6 => "::",
        _ => return None,
    };
    let destination = destination.map_or_else(|| anywhere.to_owned(), |address| address.to_string());
    let route = Route {
        destination: format!("{destination}/{}", header.destination_prefix_length),
        gateway: gateway.map(|gateway| gateway.to_string()),
    };
    Some((index?, route))
}

fn ingress(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.handle = INGRESS;
    message.header.parent = INGRESS_PARENT;
    message.attributes.push(TcAttribute::Kind("ingress".into()));
    message
}

/// A u32 filter that matches everything (no bit of the first byte), and redirects it.
fn redirection(from: u32, to: u32) -> TcMessage {
    let mut message = TcMessage::with_index(from as i32);
    message.header.parent = INGRESS;
    message.header.info = ALL_PROTOCOLS;
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.tab = FIRST_ACTION;
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    message.attributes.push(TcAttribute::Kind("u32".into()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    message
}
