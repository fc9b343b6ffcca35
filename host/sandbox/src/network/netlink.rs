//! The few netlink requests (rtnetlink(7), tc(8)) by which a namespace's interfaces are read and joined to taps.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::interfaces::{self, Found};

/// Makes what does not exist yet, and fails if it does.
const CREATE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
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
        let addresses =
            self.request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let routes = self.request(RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        Ok(interfaces::assemble(&links, &addresses, &routes))
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
        self.request(RouteNetlinkMessage::NewQueueDiscipline(ingress(from)), CREATE)?;
        self.request(RouteNetlinkMessage::NewTrafficFilter(redirection(from, to)), CREATE).map(drop)
    }

    /// Undoes it.
    pub(super) fn stop_redirecting(&mut self, from: u32) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelQueueDiscipline(ingress(from)), NLM_F_ACK).map(drop)
    }

    /// Sends a request and collects the answers until its acknowledgement or the end of its dump.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&bytes_of(message, flags, self.sequence), 0)?;

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

fn bytes_of(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.header.sequence_number = sequence;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    bytes
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
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
        TcOption::U32(TcFilterU32Option::Selector(selector)),
    ]));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are the machine's, whose order of bytes netlink has.
    fn bytes(words: &[&[u8]]) -> Vec<u8> {
        words.concat()
    }

    #[test]
    fn the_ingress_discipline_is_asked_for_as_tc_does() {
        // tc qdisc add dev NUMBER-7 ingress
        let expected = bytes(&[
            &48u32.to_ne_bytes(),     // length
            &36u16.to_ne_bytes(),     // RTM_NEWQDISC
            &0x0605u16.to_ne_bytes(), // REQUEST, ACK, EXCL, CREATE
            &9u32.to_ne_bytes(),      // sequence
            &[0; 4],                  // port
            &[0; 4],                  // family and padding
            &7u32.to_ne_bytes(),      // interface
            &0xFFFF_0000u32.to_ne_bytes(),
            &0xFFFF_FFF1u32.to_ne_bytes(),
            &[0; 4],
            &12u16.to_ne_bytes(),
            &1u16.to_ne_bytes(), // TCA_KIND
            b"ingress\0",
        ]);
        let message = RouteNetlinkMessage::NewQueueDiscipline(ingress(7));
        assert_eq!(bytes_of(message, CREATE, 9), expected);
    }

    #[test]
    fn everything_is_redirected_as_tc_does() {
        // tc filter add dev NUMBER-7 parent ffff: prio 1 protocol all u32 match u8 0 0
        //    action mirred egress redirect dev NUMBER-8
        let expected = bytes(&[
            &140u32.to_ne_bytes(),    // length
            &44u16.to_ne_bytes(),     // RTM_NEWTFILTER
            &0x0605u16.to_ne_bytes(), // REQUEST, ACK, EXCL, CREATE
            &9u32.to_ne_bytes(),      // sequence
            &[0; 4],                  // port
            &[0; 4],                  // family and padding
            &7u32.to_ne_bytes(),      // interface
            &[0; 4],                  // handle
            &0xFFFF_0000u32.to_ne_bytes(),
            &ALL_PROTOCOLS.to_ne_bytes(), // priority 1, protocol all
            &8u16.to_ne_bytes(),
            &1u16.to_ne_bytes(), // TCA_KIND
            b"u32\0",
            &96u16.to_ne_bytes(),
            &2u16.to_ne_bytes(), // TCA_OPTIONS
            &56u16.to_ne_bytes(),
            &7u16.to_ne_bytes(), // TCA_U32_ACT
            &52u16.to_ne_bytes(),
            &1u16.to_ne_bytes(), // the first action
            &11u16.to_ne_bytes(),
            &1u16.to_ne_bytes(), // TCA_ACT_KIND
            b"mirred\0\0",
            &36u16.to_ne_bytes(),
            &0x8002u16.to_ne_bytes(), // TCA_ACT_OPTIONS, nested
            &32u16.to_ne_bytes(),
            &2u16.to_ne_bytes(), // TCA_MIRRED_PARMS
            &[0; 8],
            &4u32.to_ne_bytes(), // TC_ACT_STOLEN
            &[0; 8],
            &1u32.to_ne_bytes(), // TCA_EGRESS_REDIR
            &8u32.to_ne_bytes(), // to
            &36u16.to_ne_bytes(),
            &5u16.to_ne_bytes(), // TCA_U32_SEL
            &[1, 0, 1, 0],       // terminal, one key
            &[0; 12],
            &[0; 16], // which matches everything
        ]);
        let message = RouteNetlinkMessage::NewTrafficFilter(redirection(7, 8));
        assert_eq!(bytes_of(message, CREATE, 9), expected);
    }
}
