//! The SELinux module: it compiles, links with Debian's whole policy, and gives each domain what it needs and no more.
//!
//! Nothing is loaded: the policy is built in a folder, and asked by `sesearch`, `seinfo` and `selabel_lookup`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sealpod_deploy_tests::{repository, run, said};

/// What a guest talks to.
const REACHED_BY_GUESTS: [&str; 2] = ["sealpod_qemu_t", "sealpod_swtpm_t"];
const ALL: [&str; 5] =
    ["sealpod_shim_t", "sealpod_snapshotter_t", "sealpod_qemu_t", "sealpod_swtpm_t", "sealpod_swtpm_setup_t"];

#[test]
fn the_rules_for_container_selinux_compile() {
    let output = run(Command::new("make").arg("-C").arg(folder()).arg("DISTRO=redhat"));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_linker_keeps_the_modules_promises() {
    // Linking the module itself is where the promises are kept; this shows that breaking one is noticed.
    let home = tempfile::tempdir().unwrap();
    let rules = [
        "allow sealpod_swtpm_t sealpod_tpm_authority_t:file read;",
        "allow sealpod_qemu_t self:capability sys_admin;",
    ];
    let output = run(Command::new(folder().join("link.sh")).arg(compile(home.path(), "rules", &rules)));
    assert!(!output.status.success(), "they were linked");
    let said = said(&output);
    for broken in ["sealpod_swtpm_t sealpod_tpm_authority_t (file (read))", "(capability (sys_admin))"] {
        assert!(said.contains("neverallow") && said.contains(broken), "{said}");
    }
}

#[test]
fn programs_enter_their_domains() {
    let entrances = search(&["-A", "-t", "^sealpod_", "-rt", "-c", "process", "-p", "transition"]);
    let entrypoints = search(&["-A", "-s", "^sealpod_", "-rs", "-c", "file", "-p", "entrypoint"]);
    for (from, program, to) in [
        ("initrc_t", "sealpod_shim_exec_t", "sealpod_shim_t"),
        ("init_t", "sealpod_snapshotter_exec_t", "sealpod_snapshotter_t"),
        ("sealpod_shim_t", "qemu_exec_t", "sealpod_qemu_t"),
        ("sealpod_shim_t", "sealpod_qemu_exec_t", "sealpod_qemu_t"),
        ("sealpod_shim_t", "sealpod_swtpm_setup_exec_t", "sealpod_swtpm_setup_t"),
        ("sealpod_shim_t", "bin_t", "sealpod_swtpm_t"),
    ] {
        let expected = format!("type_transition {from} {program}:process {to};");
        assert!(type_transitions().contains(&expected), "{expected} is missing");
        let may = |rules: &[String], source: &str, target: &str| {
            rules.iter().any(|rule| rule.starts_with(&format!("allow {source} {target}:")))
        };
        assert!(
            may(&entrances, from, to) || may(&entrances, "sealpod_engine", to),
            "{from} may not become {to}: {entrances:?}"
        );
        assert!(may(&entrypoints, to, program), "{program} is no way into {to}");
    }
}

#[test]
fn files_that_are_made_have_the_label_of_their_place() {
    for (who, place, class, name, label) in [
        // systemd makes both for the snapshotter, whose unit says so.
        ("initrc_t", "var_run_t", "dir", "sealpod", "sealpod_runtime_t"),
        ("initrc_t", "var_lib_t", "dir", "sealpod", "sealpod_var_lib_t"),
        ("sealpod_shim_t", "var_run_t", "dir", "sealpod", "sealpod_runtime_t"),
        ("sealpod_snapshotter_t", "var_run_t", "dir", "sealpod", "sealpod_runtime_t"),
        ("sealpod_shim_t", "sealpod_runtime_t", "dir", "", "sealpod_vm_t"),
        ("sealpod_shim_t", "sealpod_vm_t", "dir", "tpm", "sealpod_tpm_t"),
        ("sealpod_shim_t", "sealpod_var_lib_t", "dir", "tpm-authority", "sealpod_tpm_authority_t"),
        ("sealpod_shim_t", "sealpod_var_lib_t", "dir", "disks", "sealpod_disk_t"),
        ("sealpod_snapshotter_t", "sealpod_var_lib_t", "dir", "snapshots", "sealpod_snapshot_t"),
        ("sealpod_snapshotter_t", "sealpod_runtime_t", "sock_file", "", "sealpod_snapshotter_runtime_t"),
    ] {
        let name = if name.is_empty() { String::new() } else { format!(" {name}") };
        let expected = format!("type_transition {who} {place}:{class} {label}{name};");
        assert!(type_transitions().contains(&expected), "{expected} is missing");
    }
}

#[test]
fn each_path_has_its_label() {
    for (path, kind, label) in [
        ("/etc/sealpod", "dir", "sealpod_etc_t"),
        ("/etc/sealpod/shim.toml", "file", "sealpod_etc_t"),
        ("/opt/sealpod/bin/containerd-shim-sealpod-v2", "file", "sealpod_shim_exec_t"),
        ("/opt/sealpod/bin/sealpod-snapshotter", "file", "sealpod_snapshotter_exec_t"),
        ("/opt/sealpod/bin/qemu-system-x86_64", "file", "sealpod_qemu_exec_t"),
        ("/opt/sealpod/bin/sealpod", "file", "bin_t"),
        ("/opt/sealpod/guest/vmlinuz", "file", "sealpod_guest_t"),
        ("/usr/local/bin/containerd-shim-sealpod-v2", "file", "sealpod_shim_exec_t"),
        ("/usr/bin/qemu-system-x86_64", "file", "qemu_exec_t"),
        ("/usr/bin/swtpm", "file", "bin_t"),
        ("/usr/bin/swtpm_setup", "file", "sealpod_swtpm_setup_exec_t"),
        ("/run/sealpod", "dir", "sealpod_runtime_t"),
        ("/run/sealpod/4711-abc", "socket", "sealpod_runtime_t"),
        ("/run/sealpod/snapshotter.sock", "socket", "sealpod_snapshotter_runtime_t"),
        ("/run/sealpod/sealpod-vm-4711-abcdef", "dir", "sealpod_vm_t"),
        ("/run/sealpod/sealpod-vm-4711-abcdef/vars.fd", "file", "sealpod_vm_t"),
        ("/run/sealpod/sealpod-vm-4711-abcdef/tpm", "dir", "sealpod_tpm_t"),
        ("/run/sealpod/sealpod-vm-4711-abcdef/tpm/tpm2-00.permall", "file", "sealpod_tpm_t"),
        ("/run/sealpod/sealpod-vm-4711-abcdef/tpm.sock", "socket", "sealpod_vm_t"),
        ("/var/lib/sealpod", "dir", "sealpod_var_lib_t"),
        ("/var/lib/sealpod/disks", "dir", "sealpod_disk_t"),
        ("/var/lib/sealpod/snapshots/7/fs/etc/shadow", "file", "sealpod_snapshot_t"),
        ("/var/lib/sealpod/tpm-authority/signkey.pem", "file", "sealpod_tpm_authority_t"),
        ("/dev/sev", "char_file", "sealpod_sev_device_t"),
    ] {
        let contexts = policy().join("contexts/files/file_contexts");
        let output = run(Command::new("/usr/sbin/selabel_lookup")
            .args(["-b", "file", "-r", "-f"])
            .arg(contexts)
            .args(["-k", path, "-t", &kind_number(kind).to_string()]));
        let expected = format!("system_u:object_r:{label}:s0");
        assert!(said(&output).contains(&expected), "{path}: expected {expected}, got {}", said(&output));
    }
}

#[test]
fn no_domain_is_unconfined() {
    for domain in ALL {
        let output = run(Command::new("seinfo").arg(binary()).args(["-t", domain, "-x"]));
        let attributes = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(attributes.contains(domain), "{}", said(&output));
        assert!(!attributes.contains("unconfined"), "{attributes}");
    }
}

#[test]
fn secrets_of_the_host_are_out_of_reach() {
    let nothing = |domain: &str, types: &[&str], of: &[&str]| {
        let types = format!("^({})$", types.join("|"));
        let rules = search(&[&["-A", "-s", domain, "-t", &types, "-rt"], of].concat());
        assert!(rules.is_empty(), "{rules:?}");
    };
    for domain in ALL {
        let secrets = ["shadow_t", "sshd_key_t", "ssh_home_t", "user_home_t", "memory_device_t"];
        nothing(domain, &secrets, &["-p", "read"]);
    }
    for domain in REACHED_BY_GUESTS {
        let files = ["sealpod_snapshot_t", "sealpod_tpm_authority_t", "var_lib_t"];
        nothing(domain, &files, &["-c", "file"]);
        let sockets = ["initrc_runtime_t", "sealpod_runtime_t", "sealpod_snapshotter_runtime_t"];
        nothing(domain, &sockets, &["-c", "sock_file"]);
    }
    // That is how a rule shows, also one that is of an attribute.
    assert!(
        !search(&["-A", "-s", "sealpod_shim_t", "-t", "^(var_lib_t|x)$", "-rt", "-c", "file"]).is_empty()
    );
    assert!(search(&["-A", "-s", "sealpod_qemu_t", "-t", "sealpod_tpm_t"]).is_empty());
    assert!(search(&["-A", "-s", "sealpod_shim_t", "-t", "sealpod_snapshot_t"]).is_empty());
    assert!(
        search(&["-A", "-s", "sealpod_shim_t", "-t", "sealpod_tpm_t", "-c", "file", "-p", "read"]).is_empty()
    );
}

#[test]
fn what_guests_reach_has_no_capability_and_no_network() {
    for domain in REACHED_BY_GUESTS {
        let capabilities = search(&["-A", "-s", domain, "-c", "capability,capability2,cap_userns,bpf"]);
        assert!(capabilities.is_empty(), "{capabilities:?}");
        let sockets = "tcp_socket,udp_socket,rawip_socket,packet_socket";
        let sockets = search(&["-A", "-s", domain, "-c", sockets, "-p", "create,connect,bind,read,write"]);
        assert!(sockets.is_empty(), "{sockets:?}");
        assert!(search(&["-A", "-s", domain, "-c", "file", "-p", "execute_no_trans"]).is_empty());
        assert!(search(&["-A", "-s", domain, "-c", "process", "-p", "transition"]).is_empty());
    }
}

#[test]
fn what_qemu_and_swtpm_may_write_is_known() {
    let written = |domain: &str| -> BTreeSet<String> {
        let rules = search(&["-A", "-s", domain, "-p", "write"]);
        let rules = rules.iter().filter(|rule| rule.starts_with(&format!("allow {domain} ")));
        // `allow SOURCE TARGET:CLASS { PERMISSIONS };`, and the switch where the rule has one.
        let what = |rule: &String| {
            let target = rule.split(' ').nth(2).unwrap().to_owned();
            match rule.split_once("; [ ") {
                Some((_, switch)) => format!("{target} if {}", switch.split(' ').next().unwrap()),
                None => target,
            }
        };
        rules.map(what).collect()
    };
    let known = |targets: &[&str]| targets.iter().map(|target| (*target).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        written("sealpod_qemu_t"),
        known(&[
            "fixed_disk_device_t:blk_file if sealpod_block_volumes",
            "kvm_device_t:chr_file",
            "sealpod_disk_t:file",
            "sealpod_qemu_t:fifo_file",
            "sealpod_qemu_t:file",
            "sealpod_qemu_t:unix_stream_socket",
            "sealpod_qemu_t:vsock_socket",
            "sealpod_qemu_tmpfs_t:file",
            "sealpod_sev_device_t:chr_file",
            "sealpod_shim_t:fifo_file",
            "sealpod_shim_t:tun_socket",
            "sealpod_vm_t:file",
            "sealpod_vm_t:sock_file",
            "tmpfs_t:dir",
            "tun_tap_device_t:chr_file",
            "vhost_device_t:chr_file",
        ])
    );
    assert_eq!(
        written("sealpod_swtpm_t"),
        known(&[
            "sealpod_qemu_t:unix_stream_socket",
            "sealpod_shim_t:fifo_file",
            "sealpod_shim_t:unix_stream_socket",
            "sealpod_swtpm_t:fifo_file",
            "sealpod_swtpm_t:file",
            "sealpod_swtpm_t:unix_stream_socket",
            "sealpod_tpm_t:dir",
            "sealpod_tpm_t:file",
        ])
    );
}

#[test]
fn switches_are_off() {
    let output = run(Command::new("seinfo").arg(binary()).args(["-b", "-x"]));
    let booleans = String::from_utf8_lossy(&output.stdout).into_owned();
    for switch in ["sealpod_emulation", "sealpod_block_volumes"] {
        assert!(booleans.contains(&format!("bool {switch} false;")), "{booleans}");
    }
    let rules = search(&["-A", "-s", "sealpod_qemu_t", "-c", "process", "-p", "execmem"]);
    assert!(rules.iter().all(|rule| rule.ends_with("[ sealpod_emulation ]:True")), "{rules:?}");
    assert_eq!(rules.len(), 1);
}

/// The linked policy's folder.
fn policy() -> &'static Path {
    static POLICY: OnceLock<PathBuf> = OnceLock::new();
    POLICY.get_or_init(|| {
        let output = run(&mut Command::new(folder().join("link.sh")));
        assert!(output.status.success(), "{}", said(&output));
        let store = String::from_utf8(output.stdout).unwrap();
        Path::new(store.trim()).join("etc/selinux/default")
    })
}

/// The binary policy.
fn binary() -> PathBuf {
    let entries = std::fs::read_dir(policy().join("policy")).unwrap();
    entries.map(|entry| entry.unwrap().path()).next().expect("the linker leaves a policy")
}

/// All type transitions to types of ours.
fn type_transitions() -> &'static [String] {
    static RULES: OnceLock<Vec<String>> = OnceLock::new();
    RULES.get_or_init(|| search(&["-T", "-D", "^sealpod_", "-rd"]))
}

/// Rules of the linked policy, a line each.
fn search(query: &[&str]) -> Vec<String> {
    let output = run(Command::new("sesearch").args(query).arg(binary()));
    assert!(output.status.success(), "{query:?}: {}", said(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Compiles a module of these rules.
fn compile(home: &Path, name: &str, rules: &[&str]) -> PathBuf {
    let types = "type sealpod_qemu_t, sealpod_swtpm_t, sealpod_tpm_authority_t;";
    let source = format!("policy_module({name}, 1.0)\ngen_require(` {types} ')\n{}\n", rules.join("\n"));
    std::fs::write(home.join(format!("{name}.te")), source).unwrap();
    let module = format!("{name}.pp");
    let output = run(Command::new("make")
        .args(["-f", "/usr/share/selinux/devel/Makefile", "NAME=default", &module])
        .current_dir(home));
    assert!(output.status.success(), "{}", said(&output));
    home.join(module)
}

/// As `selabel_lookup` takes it: `st_mode`.
fn kind_number(kind: &str) -> u32 {
    match kind {
        "dir" => 0o040_000,
        "char_file" => 0o020_000,
        "socket" => 0o140_000,
        _ => 0o100_000,
    }
}

fn folder() -> PathBuf {
    repository().join("deploy/selinux")
}
