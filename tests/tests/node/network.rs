//! The network that CNI gave a pod.

use std::path::{Path, PathBuf};
use std::process::Command;

use sealpod_tests::node::namespaces::ADDRESS;
use sealpod_tests::node::{RUNTIME, cri, map};
use sealpod_tests::{ImageOptions, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

use crate::world::World;

/// Serves one page, which says so.
const SERVER: &str = "echo page > /tmp/index.html; httpd -f -p 80 -h /tmp";

/// A point-to-point link, ports of the node, and limits.
const LINK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "links",
  "plugins": [
    {
      "type": "ptp",
      "mtu": 1300,
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "10.99.0.0/24" }]],
        "routes": [{ "dst": "198.51.100.0/24" }],
        "dataDir": "/run/sealpod/cni"
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } },
    { "type": "bandwidth", "capabilities": { "bandwidth": true } }
  ]
}
"#;

/// A bridge without IPv4.
const SIX: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "six",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "sealpod6",
      "isGateway": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "fd00:66::/64" }]],
        "routes": [{ "dst": "::/0" }],
        "dataDir": "/run/sealpod/cni"
      }
    }
  ]
}
"#;

/// The file of a network that pods have while this is there.
struct Network {
    path: PathBuf,
    /// What was there before.
    before: Option<String>,
}

impl Network {
    /// Writes the file.
    fn new(path: PathBuf, content: &str) -> Self {
        let before = std::fs::read_to_string(&path).ok();
        std::fs::write(&path, content).unwrap();
        Self { path, before }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = match &self.before {
            Some(content) => std::fs::write(&self.path, content),
            None => std::fs::remove_file(&self.path),
        };
    }
}

/// A service's address, which leads to a pod while this is there, as kube-proxy has it.
struct Service([Vec<String>; 2]);

impl Service {
    fn new(address: &str, pod: &str) -> Self {
        let rule = |words: &str| words.split(' ').map(str::to_owned).collect();
        let this = Self([
            rule(&format!("PREROUTING -d {address} -p tcp --dport 80 -j DNAT --to-destination {pod}:80")),
            // The answer comes back through the node.
            rule(&format!("POSTROUTING -d {pod} -p tcp --dport 80 -j MASQUERADE")),
        ]);
        assert!(this.change("-A"));
        this
    }

    fn change(&self, how: &str) -> bool {
        let change =
            |rule: &Vec<String>| Command::new("iptables").args(["-t", "nat", how]).args(rule).status();
        self.0.iter().all(|rule| change(rule).is_ok_and(|status| status.success()))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.change("-D");
    }
}

/// Waits until a server in a pod answers.
async fn served(node: &Node, address: &str, port: u16) {
    let page = node
        .until(&format!("{address}:{port} answers"), async || {
            let mut stream = tokio::net::TcpStream::connect((address, port)).await.ok()?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.ends_with("page\n").then_some(answer)
        })
        .await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
}

/// Waits until containerd has read the folder of networks, and knows one or not.
async fn known(node: &Node, network: &str, wanted: bool) {
    node.until("containerd has read the networks", async || {
        let request = cri::StatusRequest { verbose: true };
        let status = node.runtime().status(request).await.ok()?.into_inner();
        let networks = status.info.get("cniconfig")?;
        (networks.contains(&format!("\"{network}\"")) == wanted).then_some(())
    })
    .await;
}

pub(crate) async fn a_pod_is_reached_by_its_address_and_reaches_others(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "echo page > /tmp/index.html; hostname; cat /etc/resolv.conf; grep ^fd000088 /proc/net/if_inet6 | awk '{print $5, $6}';
        cat /sys/class/net/eth0/mtu; httpd -f -p 80 -h /tmp";
    let server = node.spawn(&pod, node.container_config("server", &world.image(), script)).await;
    let address = node.address(&pod).await;
    served(&node, &address, 80).await;
    served(&node, &node.second_address(&pod).await, 80).await;
    let lines = sealpod_tests::node::log_lines(node.status(&server).await.log_path.as_ref());
    let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(
        text,
        [
            "shared",
            "nameserver 192.0.2.53",
            "search default.svc.cluster.local",
            "options ndots:5",
            // Permanent (0x80), and used at once: nobody searches for a duplicate first (0x02).
            "82 eth0",
            "1400"
        ]
    );
    // Another container of the pod by loopback, and the machine's own address through the gateway.
    let registry = world.owner().registry_in_guest();
    let script = format!(
        "wget -q -O - http://127.0.0.1/ && wget -q -O - http://{registry}/v2/ > /dev/null && echo reached"
    );
    let (status, lines) = node.run(&pod, node.container_config("client", &world.image(), &script)).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    assert_eq!(lines.last().unwrap().text, "reached");
}

/// `grpc.health.v1.HealthCheckRequest`: of all that a server has, if it names no service.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING` of `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// Asks as kubelet does, from the node, by the gRPC Health Checking Protocol.
async fn health(address: &str, port: u16) -> Option<i32> {
    let channel = Endpoint::from_shared(format!("http://{address}:{port}")).unwrap().connect().await.ok()?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.ok()?;
    let check = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthCheckRequest::default());
    let codec = tonic_prost::ProstCodec::<_, HealthCheckResponse>::default();
    Some(client.unary(request, check, codec).await.ok()?.into_inner().status)
}

/// A program that answers such probes. Fetched where there still is a network.
pub(crate) fn grpc_server() -> PathBuf {
    let cache = sealpod_tests::repository().join("target/test-packages");
    sealpod_guest_image::debian::file("etcd-server", "usr/bin/etcd", &cache).expect("etcd comes from Debian")
}

pub(crate) async fn a_grpc_probe_is_answered(world: &World) {
    let etcd = world.owner().root("etcd");
    let copy = |from: &Path, to: &str| {
        let to = etcd.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    copy(&grpc_server(), "bin/etcd");
    // What it is linked with, which is what everything here is.
    for library in ["ld-linux-x86-64.so.2", "libc.so.6"] {
        copy(&Path::new("/lib/x86_64-linux-gnu").join(library), &format!("lib64/{library}"));
    }
    let image = world.owner().publish("guest/etcd", &etcd, &ImageOptions::default());
    let node = world.node().await;
    node.pull(&image).await;
    let pod = world.pod(&node).await;
    let address = node.address(&pod).await;
    assert_eq!(health(&address, 2379).await, None, "nothing serves yet");
    let script = format!(
        "LD_LIBRARY_PATH=/lib64 exec etcd --data-dir /tmp/etcd --listen-client-urls http://0.0.0.0:2379 \
         --advertise-client-urls http://{address}:2379"
    );
    let server = node.spawn(&pod, node.container_config("etcd", &image, &script)).await;
    let serving = async || health(&address, 2379).await.filter(|status| *status == SERVING);
    node.until("etcd says that it serves", serving).await;
    node.runtime()
        .stop_container(cri::StopContainerRequest { container_id: server, timeout: 10 })
        .await
        .unwrap();
}

pub(crate) async fn a_pod_has_the_interfaces_ports_and_limits_that_its_networks_give(world: &World) {
    let node = world.node().await;
    node.pull(&world.image()).await;
    let network = Network::new(node.path("cni/05-links.conflist"), LINK);
    known(&node, "links", true).await;
    let mut config = node.pod_config("links", Some(&world.init_data()));
    config
        .annotations
        .extend(map(&[("kubernetes.io/egress-bandwidth", "7M"), ("kubernetes.io/ingress-bandwidth", "9M")]));
    config.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 18_080,
        host_ip: String::new(),
    }];
    let started = node.try_run_pod(config, RUNTIME).await;
    let pod = started.unwrap_or_else(|status| panic!("{}\n{}", status.message(), node.log()));
    node.spawn(&pod, node.container_config("server", &world.image(), SERVER)).await;
    let script =
        "cat /sys/class/net/eth0/mtu /sys/class/net/eth1/mtu; ip -4 -o addr show dev eth1 | awk '{print $4}'
        ip route show 198.51.100.0/24";
    let (_, lines) = node.run(&pod, node.container_config("looks", &world.image(), script)).await;
    let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(text[..2], ["1300", "1400"]);
    assert!(text[3].starts_with("198.51.100.0/24 via 10.99.0.1 dev eth0"), "{text:?}");
    let (first, second) = (node.address(&pod).await, text[2].split('/').next().unwrap());
    assert!(first.starts_with("10.99.0.") && second.starts_with("10.88."), "{first} {second}");
    served(&node, &first, 80).await;
    served(&node, second, 80).await;
    served(&node, ADDRESS, 18_080).await;
    // Another pod reaches it, by its address and by that of a service.
    let shared = world.pod(&node).await;
    let _service = Service::new("10.96.0.10", second);
    let script =
        format!("timeout 20 wget -q -O - http://{second}/ && timeout 20 wget -q -O - http://10.96.0.10/");
    let (status, lines) = node.run(&shared, node.container_config("asks", &world.image(), &script)).await;
    let lines: Vec<_> = lines.into_iter().map(|line| line.text).collect();
    assert_eq!((status.exit_code, lines), (0, vec!["page".to_owned(); 2]));
    let limits = Command::new("tc").args(["qdisc", "show"]).output().expect("tc is part of iproute2");
    let limits = String::from_utf8_lossy(&limits.stdout).into_owned();
    // Its bursts are as large as numbers get (containerd's choice), so that a test would not live to see the rate.
    for rate in ["rate 7Mbit", "rate 9Mbit"] {
        assert!(limits.contains(rate), "the plugin's limits stay where the pod's packets pass: {limits}");
    }
    node.remove(&pod).await;
    drop(network);
    known(&node, "links", false).await;
}

pub(crate) async fn a_pod_may_have_no_address_but_of_ipv6(world: &World) {
    let node = world.node().await;
    let network = Network::new(node.path("cni/10-pods.conflist"), SIX);
    known(&node, "six", true).await;
    let pod = node.run_pod("six", &world.init_data()).await;
    let address = node.address(&pod).await;
    assert!(address.starts_with("fd00:66::"), "{address}");
    // The guest's kernel answers, so it has the address, and a way back.
    let ping = Command::new("ping").args(["-c", "1", "-W", "10", &address]).output().unwrap();
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    node.remove(&pod).await;
    let bridge = Command::new("ip").args(["link", "delete", "sealpod6"]).status().unwrap();
    assert!(bridge.success());
    drop(network);
    known(&node, "six", false).await;
}
