//! Real namespaces, as CNI's plugins leave them.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use sealpod_agent_protocol::Route;

use super::*;

/// What a frame has before it on a tap: `virtio_net_hdr`.
const HEADER: usize = 10;

/// A namespace with an `eth0`, and the machine's end of its cable.
struct Cable {
    name: String,
    end: String,
}

impl Cable {
    fn new(name: &str) -> Self {
        let cable = Self {
            name: format!("sealpod-{name}-{}", std::process::id()),
            end: format!("{}{}", &name[..4], std::process::id()),
        };
        let (namespace, end) = (&cable.name, &cable.end);
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {end} type veth peer name eth0 netns {namespace} address 0a:58:0a:01:02:03"));
        ip(&format!("link set {end} up mtu 1400"));
        cable.within("link set eth0 up mtu 1400");
        cable
    }

    /// As the plugin `bridge` does it.
    fn bridged(name: &str) -> Self {
        let cable = Self::new(name);
        for words in [
            "addr add 10.250.7.2/24 dev eth0",
            "addr add fd00:7::2/64 dev eth0 nodad",
            "route add default via 10.250.7.1",
            "-6 route add default via fd00:7::1",
        ] {
            cable.within(words);
        }
        cable
    }

    fn within(&self, words: &str) {
        ip(&format!("-n {} {words}", self.name));
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn filters(&self) -> String {
        let arguments = ["-n", &self.name, "filter", "show", "dev", "eth0", "ingress"];
        let output = Command::new("tc").args(arguments).output().expect("iproute2 is installed");
        String::from_utf8(output.stdout).unwrap()
    }

    fn links(&self) -> String {
        let output = Command::new("ip").args(["-n", &self.name, "-o", "link"]).output();
        String::from_utf8(output.expect("iproute2 is installed").stdout).unwrap()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn route(destination: &str, gateway: Option<&str>) -> Route {
    Route { destination: destination.into(), gateway: gateway.map(str::to_owned) }
}

fn only(namespace: &Namespace) -> &Interface {
    let mut interfaces = namespace.interfaces();
    match (interfaces.next(), interfaces.next()) {
        (Some(interface), None) => interface,
        _ => panic!("{namespace:?}"),
    }
}

/// The next frame of this kind that leaves by the tap.
fn frame(tap: &mut File, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let count = tap.read(&mut buffer).unwrap();
        if wanted(&buffer[HEADER..count]) {
            return buffer[HEADER..count].to_vec();
        }
    }
    panic!("the frame did not arrive");
}

#[test]
fn a_bridges_interface_is_the_guests_with_its_addresses_and_routes() {
    let cable = Cable::bridged("told");
    let namespace = Namespace::join(&cable.path()).unwrap();
    let interface = only(&namespace);
    let facts = (interface.mac.as_str(), interface.name.as_str(), interface.mtu);
    assert_eq!(facts, ("0a:58:0a:01:02:03", "eth0", Some(1400)));
    assert_eq!(interface.addresses, ["10.250.7.2/24", "fd00:7::2/64"]);
    assert_eq!(interface.routes, [route("0.0.0.0/0", Some("10.250.7.1")), route("::/0", Some("fd00:7::1"))]);
    let cards = namespace.cards();
    assert_eq!(cards.len(), 1);
    assert_eq!((cards[0].mac, cards[0].mtu), ("0a:58:0a:01:02:03", Some(1400)));
}

/// The plugin `ptp` leads to the neighbours through the gateway, for which it makes a route of its own.
#[test]
fn the_routes_of_a_point_to_point_link_come_in_an_order_in_which_they_can_be_made() {
    let cable = Cable::new("ptp-");
    for words in [
        "addr add 10.250.7.2/24 dev eth0",
        "route del 10.250.7.0/24 dev eth0",
        "route add 10.250.7.1/32 dev eth0 scope link",
        "route add 10.250.7.0/24 via 10.250.7.1 dev eth0",
        "route add default via 10.250.7.1 dev eth0",
        "addr add fd00:7::2/64 dev eth0 nodad noprefixroute",
        "-6 route add fd00:7::1/128 dev eth0",
        "-6 route add fd00:7::/64 via fd00:7::1 dev eth0",
    ] {
        cable.within(words);
    }
    let namespace = Namespace::join(&cable.path()).unwrap();
    let interface = only(&namespace);
    // Alone: with its prefix it would bring a route to neighbours that are not there.
    assert_eq!(interface.addresses, ["10.250.7.2/24", "fd00:7::2/128"]);
    let (direct, through): (Vec<_>, Vec<_>) =
        interface.routes.iter().cloned().partition(|route| route.gateway.is_none());
    assert_eq!(interface.routes, [direct.as_slice(), through.as_slice()].concat());
    for expected in [route("10.250.7.1/32", None), route("fd00:7::1/128", None)] {
        assert!(direct.contains(&expected), "{direct:?}");
    }
    for expected in [
        route("10.250.7.0/24", Some("10.250.7.1")),
        route("0.0.0.0/0", Some("10.250.7.1")),
        route("fd00:7::/64", Some("fd00:7::1")),
    ] {
        assert!(through.contains(&expected), "{through:?}");
    }
}

#[test]
fn of_two_routes_to_one_place_the_guest_gets_the_preferred() {
    let cable = Cable::new("pref");
    for words in [
        "addr add 10.250.7.2/24 dev eth0",
        "route add default via 10.250.7.9 metric 200",
        "route add default via 10.250.7.1 metric 100",
        "route add 192.0.2.0/24 via 198.51.100.1 dev eth0 onlink",
    ] {
        cable.within(words);
    }
    let namespace = Namespace::join(&cable.path()).unwrap();
    assert_eq!(
        only(&namespace).routes,
        [
            route("198.51.100.1/32", None),
            route("192.0.2.0/24", Some("198.51.100.1")),
            route("0.0.0.0/0", Some("10.250.7.1")),
        ]
    );
}

#[test]
fn a_namespaces_frames_go_to_the_tap_and_back_until_it_is_left() {
    let cable = Cable::bridged("fram");
    let namespace = Namespace::join(&cable.path()).unwrap();

    // The machine asks who has the pod's address, and is answered by whoever holds the tap.
    ip(&format!("addr add 10.250.7.1/24 dev {}", cable.end));
    let mut ping = Command::new("ping")
        .args(["-c", "1", "-W", "5", "10.250.7.2"])
        .spawn()
        .expect("iputils-ping is installed");
    let mut tap = File::from(namespace.taps[0].try_clone().unwrap());
    let question = frame(&mut tap, |frame| frame.get(12..14) == Some(&[0x08, 0x06]));
    assert_eq!(question[38..42], [10, 250, 7, 2]);
    let mut answer = vec![0; HEADER];
    answer.extend_from_slice(&question[6..12]);
    answer.extend_from_slice(&[0x0a, 0x58, 0x0a, 1, 2, 3]);
    answer.extend_from_slice(&[
        0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2, 0x0a, 0x58, 0x0a, 1, 2, 3, 10, 250, 7, 2,
    ]);
    answer.extend_from_slice(&question[22..32]);
    tap.write_all(&answer).unwrap();
    let echo = frame(&mut tap, |frame| frame.get(12..14) == Some(&[0x08, 0x00]) && frame.get(23) == Some(&1));
    assert_eq!(echo[30..34], [10, 250, 7, 2]);
    ping.kill().unwrap();
    ping.wait().unwrap();

    assert!(cable.filters().contains("mirred"), "{}", cable.filters());
    drop(tap);
    drop(namespace);
    assert_eq!(cable.filters(), "");
    assert!(!cable.links().contains("sealpod0"), "{}", cable.links());
}

#[test]
fn the_taps_are_the_vms_alone_once_it_has_them() {
    let cable = Cable::bridged("held");
    let mut namespace = Namespace::join(&cable.path()).unwrap();
    let vms = namespace.taps[0].try_clone().unwrap();
    namespace.release_taps();
    assert!(cable.links().contains("sealpod0"), "{}", cable.links());
    drop(vms);
    assert!(!cable.links().contains("sealpod0"), "{}", cable.links());
}

#[test]
fn a_namespace_has_one_vm_at_a_time_and_the_next_after_one_that_was_killed() {
    let cable = Cable::bridged("next");
    let mut first = Namespace::join(&cable.path()).unwrap();
    let refused = Namespace::join(&cable.path()).unwrap_err();
    assert!(refused.hint().is_some_and(|hint| hint.contains("another VM")), "{refused}");
    assert!(cable.filters().contains("mirred"), "the first keeps its frames");
    // Killed: its taps are gone, and nobody has tidied up.
    first.release_taps();
    std::mem::forget(first);
    assert!(cable.filters().contains("mirred"));
    Namespace::join(&cable.path()).unwrap();
}

#[test]
fn what_is_no_pods_network_is_refused() {
    let hint = |error: &Error| error.hint().unwrap_or_default();
    let missing = Namespace::join(Path::new("/run/netns/nowhere")).unwrap_err();
    assert!(missing.to_string().contains("/run/netns/nowhere"), "{missing}");
    assert!(hint(&missing).contains("CNI"), "{missing}");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(hint(&Namespace::join(file.path()).unwrap_err()).contains("/run/netns/NAME"));
    let own = Namespace::join(Path::new(OWN)).unwrap_err();
    assert!(hint(&own).contains("hostNetwork"), "{own}");
    let empty = Cable { name: format!("sealpod-empty-{}", std::process::id()), end: String::new() };
    ip(&format!("netns add {}", empty.name));
    let error = Namespace::join(&empty.path()).unwrap_err();
    assert!(error.to_string().contains("no interface that is up"), "{error}");
}

#[test]
fn this_machine_can_join_vms_to_namespaces() {
    probe().unwrap();
}

#[tokio::test]
async fn every_port_of_the_loopback_is_heard_as_long_as_somebody_listens() {
    use tokio::io::AsyncWriteExt;

    let cable = Cable::bridged("loop");
    cable.within("link set lo up");
    let namespace = Namespace::join(&cable.path()).unwrap();
    let loopback = namespace.loopback().unwrap();
    let connect =
        |address: &'static str| {
            let path = cable.path();
            std::thread::spawn(move || {
                let connected = inside(&open(&path)?, move || {
                    Ok(std::net::TcpStream::connect(address).map_err(|e| e.kind()))
                });
                connected.map(|connected| connected.map(std::io::read_to_string))
            })
        };
    for (address, port) in [("127.0.0.1:80", 80), ("127.8.9.10:65535", 65535)] {
        let client = connect(address);
        let (mut connection, heard) = loopback.accept().await.unwrap();
        assert_eq!(heard, port);
        connection.write_all(b"hello").await.unwrap();
        drop(connection);
        assert_eq!(client.join().unwrap().unwrap().unwrap().unwrap(), "hello");
    }
    // Other addresses are not the loopback's.
    let refused = |address| connect(address).join().unwrap().unwrap().unwrap_err();
    assert_eq!(refused("10.250.7.2:80"), io::ErrorKind::ConnectionRefused);
    drop(loopback);
    assert_eq!(refused("127.0.0.1:80"), io::ErrorKind::ConnectionRefused);
}
