//! docs/owner.md is true: its commands run as they stand, in their order, on a real broker, registry and VMs.
//!
//! They run in a network and process namespace of their own, where the registry and the broker have the address by which
//! a guest calls them, and which ends whatever was started. The node is a home folder of its own, and `scp` copies there.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealpod_tests::{LOOPBACK_IN_GUEST, busybox, guest, program, repository};
use serde_json::Value;
use tempfile::TempDir;

/// Seconds for the page, with five VMs.
const LIMIT: &str = "600";
const HELLO: &str = "hello from an image of my own";

/// Some commands of the page.
struct Block {
    commands: String,
    place: Place,
}

/// Where commands are typed, and how they end there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Owner,
    Node,
    NodeRefused,
}

/// The page's shell blocks, in order.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(words) = line.strip_prefix("```") else { continue };
        let place = match words {
            "sh" => Place::Owner,
            "sh node" => Place::Node,
            "sh node, refused" => Place::NodeRefused,
            other => panic!("the page has a block {other:?}, which is no shell's"),
        };
        let commands = lines
            .by_ref()
            .take_while(|line| *line != "```")
            .fold(String::new(), |all, line| all + line + "\n");
        blocks.push(Block { commands, place });
    }
    blocks
}

/// Commands with other values of some variables, each of which they set.
fn set(commands: &str, values: &[(&str, String)]) -> String {
    let mut lines: Vec<String> = commands.lines().map(|line| format!("{line}\n")).collect();
    for (name, value) in values {
        let line = lines.iter_mut().find(|line| line.starts_with(&format!("{name}=")));
        *line.unwrap_or_else(|| panic!("{commands} sets no {name}")) = format!("{name}={value}\n");
    }
    lines.concat()
}

/// Two machines in one folder.
struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["bin", "owner", "node", "node/run", "next-guest"] {
            std::fs::create_dir(world.path(name)).unwrap();
        }
        std::fs::copy(busybox(), world.path("bin/busybox")).unwrap();
        world.write(
            "bin/scp",
            &format!(
                "#!/bin/sh\nfor word; do shift; case $word in\n\
                 node.example:*) set -- \"$@\" {0}/${{word#*:}} ;;\n*) set -- \"$@\" \"$word\" ;;\nesac; done\nexec cp \"$@\"\n",
                world.word("node")
            ),
        );
        std::fs::set_permissions(world.path("bin/scp"), PermissionsExt::from_mode(0o755)).unwrap();
        world.make_next_guest();
        world.make_registry();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// The guest under test with one word more on its command line.
    fn make_next_guest(&self) {
        for entry in std::fs::read_dir(guest()).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), self.path("next-guest").join(entry.file_name())).unwrap();
        }
        let manifest = self.path("next-guest/guest.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
        json["cmdline"] = format!("{} loglevel=3", json["cmdline"].as_str().unwrap()).into();
        std::fs::write(&manifest, json.to_string()).unwrap();
    }

    /// A registry's configuration, and a certificate that is no public authority's.
    fn make_registry(&self) {
        let (certificate, key) = (self.word("registry.crt"), self.word("registry.key"));
        self.write(
            "certificate.cnf",
            &format!(
                "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n\
                 [name]\nCN = registry\n[extensions]\nsubjectAltName = IP:{LOOPBACK_IN_GUEST}\n"
            ),
        );
        let mut make = Command::new("openssl");
        make.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-config",
        ]);
        make.arg(self.path("certificate.cnf")).args(["-out", &certificate, "-keyout", &key]);
        let made = make.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.write(
            "registry.yml",
            &format!(
                "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '0.0.0.0:5000', tls: {{certificate: {certificate}, key: {key}}}}}\n",
                self.word("registry")
            ),
        );
    }

    /// What the page's first block says here.
    fn settings(&self) -> [(&'static str, String); 5] {
        [
            ("BROKER", LOOPBACK_IN_GUEST.to_owned()),
            ("REGISTRY", format!("{LOOPBACK_IN_GUEST}:5000")),
            ("REGISTRY_OPTIONS", format!("'--registry-authority {}'", self.word("registry.crt"))),
            ("GUEST", guest().display().to_string()),
            ("NEW_GUEST", self.word("next-guest")),
        ]
    }

    /// One script that types the whole page.
    fn script(&self, blocks: &[Block]) -> String {
        let settings = set(&blocks[0].commands, &self.settings());
        let mut script = format!(
            "ip link set lo up\nip address add {LOOPBACK_IN_GUEST}/32 dev lo\n\
             (docker-registry serve {0}/registry.yml > {0}/registry.log 2>&1 &)\n\
             answers() {{ until (: > /dev/tcp/{LOOPBACK_IN_GUEST}/\"$1\") 2> {0}/connect.log; do sleep 0.05; done; }}\n\
             denial() {{ sed -n 's/.*(denial \\([0-9a-f]*\\)).*/\\1/p' \"$1\"; }}\n\
             on_node() {{ (cd {0}/node && exec env -i HOME=\"$PWD\" XDG_RUNTIME_DIR=\"$PWD/run\" PATH=\"$PATH\" \
             bash -euo pipefail \"$1\" > \"$1.log\" 2>&1); }}\n\
             answers 5000\n{settings}",
            self.folder.path().display()
        );
        let mut last = String::new();
        for (number, Block { commands, place }) in blocks.iter().enumerate().skip(1) {
            writeln!(script, "echo '== block {number}'").unwrap();
            let file = self.word(&format!("block-{number}"));
            if *place != Place::Owner {
                std::fs::write(&file, format!("{settings}{commands}")).unwrap();
            }
            match place {
                // A shell reads the id where a person would type it.
                Place::Owner if commands.contains("DENIAL=") => {
                    script += &set(commands, &[("DENIAL", format!("$(denial {last})"))]);
                }
                Place::Owner => script += commands,
                Place::Node => {
                    writeln!(script, "on_node {file} || {{ cat {file}.log; exit 1; }}\ncat {file}.log")
                        .unwrap();
                }
                Place::NodeRefused => {
                    last = format!("{file}.log");
                    writeln!(script, "if on_node {file}; then cat {last}; exit 1; fi\ncat {last}").unwrap();
                }
            }
            if commands.contains("sealpod-kbs serve") {
                script += "answers 8080\n";
            }
        }
        script + &format!("echo '== why'\nsealpod kbs why \"$(denial {last})\"\n")
    }
}

fn search_path(world: &World) -> String {
    let beside = |name| program(name).parent().map(Path::to_owned).unwrap();
    let (tool, broker) = (beside("sealpod"), beside("sealpod-kbs"));
    let system = std::env::var("PATH").unwrap();
    format!("{}:{}:{}:{system}", world.word("bin"), tool.display(), broker.display())
}

#[test]
fn the_owners_page_can_be_typed_from_its_beginning_to_its_end() {
    let page = std::fs::read_to_string(repository().join("docs/owner.md")).unwrap();
    let blocks = blocks(&page);
    let count = |place| blocks.iter().filter(|block| block.place == place).count();
    assert_eq!((count(Place::Node), count(Place::NodeRefused)), (3, 2));

    let world = World::new();
    world.write("page.sh", &world.script(&blocks));
    let mut shell = Command::new("timeout");
    shell.args([LIMIT, "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    shell.args(["bash", "-euo", "pipefail"]).arg(world.path("page.sh")).current_dir(world.path("owner"));
    for name in ["SEALPOD_GUEST", "SEALPOD_TPM_AUTHORITY", "XDG_DATA_HOME"] {
        shell.env_remove(name);
    }
    let output = shell.env("PATH", search_path(&world)).env("HOME", world.path("owner")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complaint}", output.status);

    assert_eq!(said.matches(HELLO).count(), 3, "{said}");
    let explained: Vec<&str> = said.split("denied: attestation of a tpm guest").skip(1).collect();
    let [first, last] = explained.as_slice() else { panic!("{said}") };
    assert!(first.contains("ek_certificate"), "{first}");
    assert!(last.contains("cmdline"), "{last}");
}
