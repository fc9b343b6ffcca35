//! What people do with a running container: exec, attach, cp. containerd passes it on by WebSocket, as it does for
//! kubectl.

use std::process::Command;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use sealpod_tests::Node;
use sealpod_tests::node::{NodePod, cri};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::failures::{SHIM, processes};
use crate::world::World;

/// The channels of the protocol `v4.channel.k8s.io`: the first byte of each message.
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
const ENDED: u8 = 3;
const RESIZE: u8 = 4;

/// A stream to a container.
pub(crate) struct Stream {
    socket: WebSocketStream<TcpStream>,
    /// What came on each channel and was not looked at yet.
    came: [Vec<u8>; 5],
}

impl Stream {
    pub(crate) async fn open(url: &str) -> Self {
        let address = url.trim_start_matches("http://").split('/').next().unwrap();
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
        let connection = TcpStream::connect(address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(request, connection).await.unwrap();
        Self { socket, came: Default::default() }
    }

    pub(crate) async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).await.unwrap();
    }

    /// Reads a channel until that is there, and gives all up to its end.
    pub(crate) async fn until(&mut self, channel: u8, what: &[u8]) -> Vec<u8> {
        loop {
            let waiting = &mut self.came[usize::from(channel)];
            if let Some(at) = waiting.windows(what.len()).position(|window| window == what) {
                return waiting.drain(..at + what.len()).collect();
            }
            let Some((channel, bytes)) = self.next().await else {
                panic!("it ended before {:?} came: {self}", String::from_utf8_lossy(what));
            };
            self.came[usize::from(channel)].extend(bytes);
        }
    }

    /// Reads to the end, and gives what came on a channel.
    pub(crate) async fn rest(&mut self, channel: u8) -> Vec<u8> {
        while let Some((channel, bytes)) = self.next().await {
            self.came[usize::from(channel)].extend(bytes);
        }
        std::mem::take(&mut self.came[usize::from(channel)])
    }

    /// Reads to the end, and gives the exit code.
    async fn exit_code(&mut self) -> i32 {
        let status = self.rest(ENDED).await;
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        if status["status"] == "Success" {
            return 0;
        }
        let cause = &status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode", "{status}");
        cause["message"].as_str().unwrap().parse().unwrap()
    }

    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let next = timeout(Duration::from_secs(60), self.socket.next()).await;
        match next.unwrap_or_else(|_| panic!("nothing comes any more: {self}"))? {
            Ok(Message::Binary(bytes)) => {
                bytes.split_first().map(|(channel, bytes)| (*channel, bytes.to_vec()))
            }
            Ok(Message::Close(_)) | Err(_) => None,
            other => panic!("expected bytes of a channel, got {other:?}"),
        }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.came.iter().map(|bytes| String::from_utf8_lossy(bytes))).finish()
    }
}

async fn exec(node: &Node, id: &str, words: &[&str], stdin: bool, tty: bool) -> Stream {
    let request = cri::ExecRequest {
        container_id: id.into(),
        cmd: words.iter().map(|&word| word.to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    Stream::open(&node.runtime().exec(request).await.unwrap().into_inner().url).await
}

pub(crate) async fn attach(node: &Node, id: &str, tty: bool) -> Stream {
    let request =
        cri::AttachRequest { container_id: id.into(), stdin: true, tty, stdout: true, stderr: !tty };
    Stream::open(&node.runtime().attach(request).await.unwrap().into_inner().url).await
}

pub(crate) async fn an_exec_on_a_terminal_heeds_its_size_and_what_is_typed(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let id = node.spawn(&pod, node.container_config("terminal", &world.image(), "sleep 1000")).await;
    let mut stream = exec(&node, &id, &["/bin/sh"], true, true).await;
    for (rows, columns) in [(33, 101), (24, 80)] {
        stream.send(RESIZE, format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes()).await;
        let ask = format!("until stty size | grep '^{rows} {columns}$'; do sleep 0.1; done\n");
        stream.send(STDIN, ask.as_bytes()).await;
        stream.until(STDOUT, format!("\n{rows} {columns}\r\n").as_bytes()).await;
    }
    // The terminal's own keys: an interrupt ends the sleep, not the shell.
    stream.send(STDIN, b"sh -c 'echo slee\"\"ping; exec sleep 1000'\n").await;
    stream.until(STDOUT, b"sleeping").await;
    stream.send(STDIN, b"\x03").await;
    stream.send(STDIN, b"echo st''ill here; exit 3\n").await;
    stream.until(STDOUT, b"still here").await;
    assert_eq!(stream.exit_code().await, 3);
}

pub(crate) async fn execs_on_terminals_leave_nothing_with_the_shim(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let id = node.spawn(&pod, node.container_config("visited", &world.image(), "sleep 1000")).await;
    let before = descriptors_of_shim(&pod);
    for _ in 0..3 {
        let mut stream = exec(&node, &id, &["/bin/sh"], true, true).await;
        stream.send(STDIN, b"exit 3\n").await;
        assert_eq!(stream.exit_code().await, 3);
    }
    let closed = async || (descriptors_of_shim(&pod) <= before).then_some(());
    node.until("their streams are closed", closed).await;
}

/// How many the shim of a pod has.
pub(crate) fn descriptors_of_shim(pod: &NodePod) -> usize {
    let shim = processes(SHIM, &pod.id)[0];
    std::fs::read_dir(format!("/proc/{}/fd", shim.as_raw_pid())).unwrap().count()
}

pub(crate) async fn files_are_copied_both_ways_as_kubectl_cp_does(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let id = node.spawn(&pod, node.container_config("copies", &world.image(), "sleep 1000")).await;
    let folder = tempfile::tempdir().unwrap();
    let contents: Vec<u8> =
        (0..3_000_000_u32).map(|number| (number.wrapping_mul(number) >> 7) as u8).collect();
    std::fs::write(folder.path().join("file"), &contents).unwrap();
    let mut tar = Command::new("tar");
    let archive = tar.arg("-C").arg(folder.path()).args(["-cf", "-", "file"]).output().unwrap().stdout;
    // The protocol cannot say that the input ends.
    let unpack = format!("head -c {} | tar -xmf - -C /tmp", archive.len());
    let mut stream = exec(&node, &id, &["/bin/sh", "-c", &unpack], true, false).await;
    for part in archive.chunks(32 << 10) {
        stream.send(STDIN, part).await;
    }
    assert_eq!(stream.exit_code().await, 0, "{stream}");
    let mut stream = exec(&node, &id, &["tar", "-cf", "-", "-C", "/tmp", "file"], false, false).await;
    let archive = stream.rest(STDOUT).await;
    assert_eq!(stream.exit_code().await, 0);
    std::fs::write(folder.path().join("archive"), archive).unwrap();
    let mut tar = Command::new("tar");
    let came = tar.arg("-xOf").arg(folder.path().join("archive")).arg("file").output().unwrap().stdout;
    assert!(came == contents, "{} bytes of {} are as they were", came.len(), contents.len());
}

pub(crate) async fn one_attaches_to_a_container_and_its_input_ends_with_that(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "while read line; do echo got $line; done; echo end; exit 4";
    let mut config = node.container_config("attached", &world.image(), script);
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.spawn(&pod, config).await;
    let mut stream = attach(&node, &id, false).await;
    for word in ["one", "two"] {
        stream.send(STDIN, format!("{word}\n").as_bytes()).await;
        stream.until(STDOUT, format!("got {word}\n").as_bytes()).await;
    }
    drop(stream);
    let status = node.ended(&id).await;
    assert_eq!(status.exit_code, 4);
    let lines = sealpod_tests::node::log_lines(status.log_path.as_ref());
    let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(text, ["got one", "got two", "end"], "the log has it too");
}

pub(crate) async fn a_containers_own_terminal_is_attached_to(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let mut config = node.container_config("own-terminal", &world.image(), "");
    (config.stdin, config.tty, config.command) = (true, true, vec!["/bin/sh".into()]);
    let id = node.spawn(&pod, config).await;
    let mut stream = attach(&node, &id, true).await;
    stream.send(RESIZE, br#"{"Width":77,"Height":11}"#).await;
    stream.send(STDIN, b"until stty size | grep '^11 77$'; do sleep 0.1; done\n").await;
    stream.until(STDOUT, b"\n11 77\r\n").await;
    drop(stream);
    // It goes on without anybody, and is found again.
    let mut stream = attach(&node, &id, true).await;
    stream.send(STDIN, b"tty; exit 6\n").await;
    stream.until(STDOUT, b"/dev/").await;
    assert_eq!(node.ended(&id).await.exit_code, 6);
}

pub(crate) async fn a_port_of_the_loopback_is_forwarded_if_the_policy_allows_it(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script =
        "mkdir /tmp/www; echo page > /tmp/www/index.html; exec httpd -f -p 127.0.0.1:8090 -h /tmp/www";
    node.spawn(&pod, node.container_config("loopback", &world.image(), script)).await;
    // Only a connection of its own tells that the server listens.
    let page = node.until("the page comes", async || {
        let mut stream = forward(&node, &pod.id, 8090).await;
        stream.send(DATA, b"GET / HTTP/1.0\r\n\r\n").await;
        let answer = stream.rest(DATA).await;
        (answer.len() > PORT_NUMBER).then_some(answer)
    });
    let page = page.await;
    let page = String::from_utf8_lossy(&page[PORT_NUMBER..]).into_owned();
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("page\n"), "{page}");
    // What the guest keeps for its own containers, whatever the policy says; and what that denies.
    for port in [8006, 9999] {
        let mut stream = forward(&node, &pod.id, port).await;
        stream.send(DATA, b"GET /info HTTP/1.0\r\n\r\n").await;
        let answer = stream.rest(DATA).await;
        assert_eq!(answer.len(), PORT_NUMBER, "{port}: {}", String::from_utf8_lossy(&answer));
    }
    let log = node.log();
    assert!(log.contains("port 8006 is the guest's own"), "{log}");
    assert!(log.contains("rule ForwardPort is false"), "{log}");
}

/// The channel of the first port's data, whose first bytes are the port's number.
const DATA: u8 = 0;
const PORT_NUMBER: usize = 2;

async fn forward(node: &Node, pod: &str, port: i32) -> Stream {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.into(), port: vec![port] };
    Stream::open(&node.runtime().port_forward(request).await.unwrap().into_inner().url).await
}
