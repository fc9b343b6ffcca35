//! The few netlink requests that configure a network (rtnetlink(7)), made one after the other.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Error, ParsedInterface};

/// A connection to the kernel.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket =
            open().map_err(|source| Error::Kernel { doing: "open a netlink socket".into(), source })?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings an interface up.
    pub(super) fn bring_up(&mut self, index: u32, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK, || format!("bring {name} up"))?;
        Ok(())
    }

    /// MAC addresses and indices of all interfaces.
    pub(super) fn links(&mut self) -> Result<Vec<([u8; 6], u32)>, Error> {
        let answers =
            self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, || {
                "list the network interfaces".into()
            })?;
        let mac = |link: &LinkMessage| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                _ => None,
            })
        };
        let links = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some((mac(link)?, link.header.index)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Gives an interface that is down another name.
    pub(super) fn rename(&mut self, index: u32, name: &str) -> Result<(), Error> {
        self.set(index, LinkAttribute::IfName(name.to_owned()), || format!("name an interface {name}"))
    }

    fn set(&mut self, index: u32, what: LinkAttribute, doing: impl Fn() -> String) -> Result<(), Error> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(what);
        self.request(RouteNetlinkMessage::SetLink(link), NLM_F_ACK, doing)?;
        Ok(())
    }

    /// Gives one interface its name, addresses and routes.
    pub(super) fn configure(&mut self, index: u32, interface: &ParsedInterface<'_>) -> Result<(), Error> {
        let name = &interface.given.name;
        self.rename(index, name)?;
        if let Some(mtu) = interface.given.mtu {
            self.set(index, LinkAttribute::Mtu(mtu), || format!("set the MTU of {name}"))?;
        }
        self.bring_up(index, name)?;
        let create = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        for (address, length) in &interface.addresses {
            let message = RouteNetlinkMessage::NewAddress(address_message(index, *address, *length));
            self.request(message, create, || format!("add {address}/{length} to {name}"))?;
        }
        for (destination, length, gateway) in &interface.routes {
            let message =
                RouteNetlinkMessage::NewRoute(route_message(index, *destination, *length, *gateway));
            // An address brings a route of its own, in whose place the pod's may lead through a gateway.
            self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, || {
                format!("add the route to {destination}/{length} through {name}")
            })?;
        }
        Ok(())
    }

    /// Sends a request and collects the answers until its acknowledgement or the end of its dump.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        doing: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        self.exchange(message, flags).map_err(|source| Error::Kernel { doing: doing(), source })
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
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

/// The pod's network has given the address to this pod alone, so it is used at once: the search for duplicates of IPv6
/// (RFC 4862, 5.4) would keep the pod from answering, and a program from listening on it, for the first two seconds.
fn address_message(index: u32, address: IpAddr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.index = index;
    message.header.family = family(&address);
    message.header.prefix_len = length;
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Local(address));
    message
}

fn route_message(index: u32, destination: IpAddr, length: u8, gateway: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&destination);
    message.header.destination_prefix_length = length;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    if length > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(destination)));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(route_address(gateway))));
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
