//! The images, built from the Containerfiles as they are.
//!
//! No registry is asked: both base images are a Debian that is made here. And nothing is compiled: in the compiler's place
//! stands a script that gives what the tests' own build has made.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sealpod_deploy_tests::{repository, run, said, text};
use tempfile::TempDir;

const RELEASE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org";
/// What nobody reads here.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*"];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Stands for cargo: asked for a package, it sees that what compiling it takes is installed, and copies what it would be.
const CARGO: &str = r#"#!/bin/sh
set -eu
guest=x86_64-unknown-linux-gnu
give() {
    from=/prebuilt/$1 to=target/$2
    mkdir -p "$to"
    shift 2
    for program; do cp "$from/$program" "$to"; done
}
command -v cc > /dev/null
command -v pkg-config > /dev/null
case " $* " in
  *" sealpod-kbs "*) give debug release sealpod-kbs ;;
  *" sealpod-cli "*)
    command -v protoc > /dev/null
    test -e /usr/include/google/protobuf/empty.proto
    give debug release sealpod containerd-shim-sealpod-v2 sealpod-snapshotter ;;
  *" sealpod-loader "*) give $guest/guest $guest/loader sealpod-loader ;;
  *" sealpod-agent "*)
    test -e /usr/lib/x86_64-linux-gnu/libseccomp.a
    give $guest/guest $guest/guest sealpod-agent ;;
  *) echo "cargo $*: not expected" >&2; exit 1 ;;
esac
"#;

/// Images of the tests' own.
struct Store {
    folder: TempDir,
}

impl Store {
    fn new() -> Self {
        // Not in /tmp, which may be memory.
        let store = Self { folder: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        std::fs::write(store.path("cargo"), CARGO).unwrap();
        std::fs::set_permissions(store.path("cargo"), PermissionsExt::from_mode(0o755)).unwrap();
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn try_buildah(&self, words: &[&str]) -> Output {
        let mut buildah = Command::new("buildah");
        buildah.arg("--root").arg(self.path("storage")).arg("--runroot").arg(self.path("run"));
        buildah.args(["--storage-driver", "overlay"]).args(words).current_dir(repository());
        buildah.output().expect("`make setup` installs buildah")
    }

    /// What it says.
    fn buildah(&self, words: &[&str]) -> String {
        let output = self.try_buildah(words);
        assert!(output.status.success(), "buildah {words:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A small Debian under the names that the Containerfiles have for their base images.
    fn make_bases(&self) {
        let (tar, name) = (self.path("base.tar"), |suite: &str| format!("deb {MIRROR}/{suite} main"));
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io"]);
        mmdebstrap.args(LEFT_OUT.map(|files| format!("--dpkgopt=path-exclude={files}")));
        mmdebstrap.arg(RELEASE).arg(&tar).arg(name(&format!("debian {RELEASE}")));
        mmdebstrap.arg(name(&format!("debian {RELEASE}-updates")));
        mmdebstrap.arg(name(&format!("debian-security {RELEASE}-security")));
        let made = run(&mut mmdebstrap);
        assert!(made.status.success(), "{}", said(&made));
        let container = self.buildah(&["from", "scratch"]);
        self.buildah(&["add", "--quiet", &container, tar.to_str().unwrap(), "/"]);
        self.buildah(&["config", "--cmd", "bash", "--env", PATH, &container]);
        let image = self.buildah(&["commit", "--quiet", "--rm", &container]);
        for file in ["kbs", "node"] {
            let text = text(&format!("deploy/containers/{file}.Containerfile"));
            for line in text.lines().filter_map(|line| line.strip_prefix("FROM ")) {
                self.buildah(&["tag", &image, line.split(' ').next().unwrap()]);
            }
        }
    }

    /// Builds an image; gives a container of it.
    fn build(&self, name: &str) -> String {
        let file = format!("deploy/containers/{name}.Containerfile");
        let prebuilt = format!("{}:/prebuilt:ro", target().display());
        let cargo = format!("{}:/usr/local/bin/cargo:ro", self.path("cargo").display());
        let tag = format!("localhost/sealpod/{name}:test");
        let volumes = ["--volume", &prebuilt, "--volume", &cargo];
        let build = ["bud", "--quiet", "--pull-never", "--isolation", "chroot"];
        self.buildah(&[&build[..], &volumes, &["--file", &file, "--tag", &tag, "."]].concat());
        self.buildah(&["from", "--pull-never", &tag])
    }

    /// Runs a script in a container, as who the image says.
    fn runs(&self, container: &str, script: &str) -> String {
        self.buildah(&["run", "--isolation", "chroot", container, "--", "sh", "-ec", script])
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Nothing stays mounted.
        self.try_buildah(&["rm", "--all"]);
    }
}

/// The folder that cargo builds into.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// The names of a folder's files with their digests.
fn digests(listed: &str) -> BTreeMap<&str, &str> {
    listed.lines().filter_map(|line| line.split_once("  ")).map(|(digest, name)| (name, digest)).collect()
}

/// Whether programs that were linked here run in Debian 12, whose C library is of version 2.36.
fn runs_in_bookworm() -> bool {
    let version = String::from_utf8(run(Command::new("getconf").arg("GNU_LIBC_VERSION")).stdout).unwrap();
    version
        .trim()
        .rsplit('.')
        .next()
        .and_then(|minor| minor.parse::<u32>().ok())
        .is_some_and(|minor| minor <= 36)
}

#[test]
fn images_are_built_and_run_as_nobody() {
    if !runs_in_bookworm() {
        assert!(std::env::var_os("CI").is_none(), "continuous integration runs on Debian 12");
        eprintln!("skipped: what was compiled here needs a newer C library than the images' Debian 12 has");
        return;
    }
    let store = Store::new();
    store.make_bases();

    let broker = store.build("kbs");
    let script = "id -u; cd /tmp; sealpod-kbs init --dir broker --host localhost; sealpod-kbs check --config broker/kbs.toml";
    let said = store.runs(&broker, script);
    assert!(said.starts_with("65532\n"), "{said}");

    let node = store.build("node");
    let said =
        store.runs(&node, "id -u; cd /opt/sealpod/bin; for program in *; do ./$program --version; done");
    assert!(said.starts_with("65532\n"), "{said}");
    for program in ["containerd-shim-sealpod-v2", "sealpod", "sealpod-snapshotter"] {
        let version = format!("{program} {}", env!("CARGO_PKG_VERSION"));
        assert!(said.lines().any(|line| line.starts_with(&version)), "{version} is missing in {said}");
    }
    let said = store.runs(&node, "SEALPOD_ACTION=dance sealpod-node 2>&1 || echo failed: $?");
    assert!(said.contains("SEALPOD_ACTION is \"dance\"") && said.ends_with("failed: 1"), "{said}");
    // The guest in it is, byte by byte, the one that was made here, unless Debian has had a newer kernel since then. The
    // firmware is this machine's own distribution's.
    let inside = store.runs(&node, "cd /opt/sealpod/guest; sha256sum *");
    let mut outside = Command::new("sh");
    outside.args(["-ec", "sha256sum *"]).current_dir(target().join("guest-image"));
    let outside = String::from_utf8(run(&mut outside).stdout).unwrap();
    let (inside, outside) = (digests(&inside), digests(&outside));
    assert!(inside.keys().eq(outside.keys()), "{inside:?} {outside:?}");
    assert_eq!(inside["agent.rom"], outside["agent.rom"]);
    if inside["vmlinuz"] == outside["vmlinuz"] {
        assert_eq!(inside["initrd.cpio.lz4"], outside["initrd.cpio.lz4"]);
    }
}
