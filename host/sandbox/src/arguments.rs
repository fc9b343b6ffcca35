//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::accelerator::Hypervisor;
use crate::config::SandboxConfig;
use crate::network::namespace::Card;
use crate::network::{GUEST_ADDRESS, MAC, PortForward};

/// The name of the virtio-serial port, which the agent looks for.
pub(crate) const PORT_NAME: &str = "sealpod.agent";

/// The drive of the guest's ephemeral disk.
pub(crate) const EPHEMERAL: &str = "ephemeral";
/// The bus that waits for other disks.
pub(crate) const DISKS: &str = "disks";

/// The slot of the agent's ROM, where the guest looks for it.
const ROM_SLOT: &str = "1e.0";

/// What a card has unless it is told otherwise, in bytes.
const ETHERNET_MTU: u32 = 1500;

/// Everything that decides QEMU's command line.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) config: &'a SandboxConfig,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) network: Cards<'a>,
    /// The VM's own copy of the firmware's variables, where it has firmware.
    pub(crate) variables: Option<PathBuf>,
    pub(crate) disk: Option<RawFd>,
    /// The size of the agent's ROM.
    pub(crate) rom_bytes: u64,
    /// Sockets on which this process listens, or swtpm does.
    pub(crate) console: PathBuf,
    pub(crate) qmp: PathBuf,
    pub(crate) tpm: Option<PathBuf>,
    pub(crate) channel: AgentChannel,
}

/// The guest's network cards.
#[derive(Debug)]
pub(crate) enum Cards<'a> {
    /// One, on QEMU's own network; the ports are settled: none is 0.
    User { ports: &'a [PortForward] },
    /// Those of a namespace, whose taps the child inherits.
    Taps(Vec<Card<'a>>),
}

/// How the agent is reached.
#[derive(Debug)]
pub(crate) enum AgentChannel {
    VirtioSerial(PathBuf),
    Vsock { cid: u32 },
}

impl Machine<'_> {
    /// QEMU's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments(base(&self.config.guest.machine, self.config.guest.low_memory_mib));
        arguments.words(hypervisor(self.hypervisor));
        arguments.words([
            "-m",
            &format!("{}M", self.config.memory_mib),
            "-smp",
            &self.config.cpus.to_string(),
        ]);
        if let Some(file) = &self.config.memory_file {
            let options = format!(",id=memory,size={}M,share=on", self.config.memory_mib);
            arguments.words(["-machine", "memory-backend=memory", "-object"]);
            arguments.option("memory-backend-file,mem-path=", file, &options);
        }
        self.boot(&mut arguments);
        arguments.words(["-chardev"]).option("socket,id=console,path=", &self.console, "");
        arguments.words(["-device", "isa-serial,chardev=console"]);
        arguments.words(["-chardev"]).option("socket,id=qmp,path=", &self.qmp, "");
        arguments.words(["-mon", "chardev=qmp,mode=control"]);
        self.agent(&mut arguments);
        self.network(&mut arguments);
        if let Some(tpm) = &self.tpm {
            arguments.words(["-chardev"]).option("socket,id=tpm,path=", tpm, "");
            arguments.words(["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]);
        }
        if let Some(disk) = self.disk {
            arguments.words(["-add-fd", &format!("fd={disk},set=1")]);
            // Where this machine has no room left, the guest gets an error. By default the VM would stop until there is; and
            // QEMU would open the file for reading first, for which it has no descriptor.
            let drive = format!(
                "file=/dev/fdset/1,auto-read-only=off,if=none,id={EPHEMERAL},format=raw,cache=unsafe,discard=unmap,\
                 werror=report,rerror=report"
            );
            arguments.words(["-drive", &drive]);
            let device = format!("virtio-blk-pci,drive={EPHEMERAL},serial={EPHEMERAL}");
            arguments.words(["-device", &device]);
        }
        if self.config.pluggable_disks {
            // The root bus takes none while the machine runs, and behind a bridge there is room for 31.
            arguments.words(["-device", &format!("pcie-pci-bridge,id={DISKS}")]);
        }
        arguments.0
    }

    fn boot(&self, arguments: &mut Arguments) {
        let guest = &self.config.guest;
        if let Some(variables) = &self.variables {
            let code = ",if=pflash,unit=0,format=raw,readonly=on";
            arguments.words(["-drive"]).option("file=", &guest.firmware, code);
            arguments.words(["-drive"]).option("file=", variables, ",if=pflash,unit=1,format=raw");
        }
        arguments.words(["-kernel"]).path(&guest.kernel);
        arguments.words(["-initrd"]).path(&guest.initrd);
        arguments.words(["-append", &self.config.cmdline()]);
        // All VMs have the same pages of it.
        let options = format!(",id=rom,size={},share=on,readonly=on", self.rom_bytes);
        arguments.words(["-object"]).option("memory-backend-file,mem-path=", &guest.agent, &options);
        arguments.words(["-device", &format!("ivshmem-plain,memdev=rom,addr={ROM_SLOT}")]);
    }

    fn agent(&self, arguments: &mut Arguments) {
        match &self.channel {
            AgentChannel::VirtioSerial(socket) => {
                arguments.words(["-device", "virtio-serial-pci", "-chardev"]);
                arguments.option("socket,id=agent,path=", socket, "");
                arguments.words(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
            }
            AgentChannel::Vsock { cid } => {
                arguments.words(["-device", &format!("vhost-vsock-pci,guest-cid={cid}")]);
            }
        }
    }

    fn network(&self, arguments: &mut Arguments) {
        match &self.network {
            Cards::User { ports } => {
                let mut network = "user,id=network".to_owned();
                for PortForward { address, host, guest } in *ports {
                    let address = match address {
                        std::net::IpAddr::V4(address) => address.to_string(),
                        std::net::IpAddr::V6(address) => format!("[{address}]"),
                    };
                    network.push_str(&format!(",hostfwd=tcp:{address}:{host}-{GUEST_ADDRESS}:{guest}"));
                }
                arguments.words(["-netdev", &network, "-device", &card("network", MAC, None)]);
            }
            Cards::Taps(cards) => {
                for (number, Card { mac, mtu, tap }) in cards.iter().enumerate() {
                    let network = format!("tap,id=network{number},fd={tap},vhost=off");
                    let card = card(&format!("network{number}"), mac, *mtu);
                    arguments.words(["-netdev", &network, "-device", &card]);
                }
            }
        }
    }
}

/// Without its option ROM, which firmware would run, and measure.
fn card(network: &str, mac: &str, mtu: Option<u32>) -> String {
    // QEMU and the guest's driver take what has 16 bits and is an MTU of IPv4 (RFC 791); the rest is the agent's to set.
    let unusual = mtu.filter(|mtu| *mtu != ETHERNET_MTU && (68..=0xFFFF).contains(mtu));
    let mtu = unusual.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
    format!("virtio-net-pci,netdev={network},mac={mac},romfile={mtu}")
}

/// The arguments of the probe whether a hypervisor boots a kernel: it panics for want of an initrd, and QEMU ends.
pub(crate) fn probe(machine: &str, low_memory_mib: u32, kernel: &Path, by: Hypervisor) -> Vec<OsString> {
    let mut arguments = Arguments(base(machine, low_memory_mib));
    arguments.words(hypervisor(by));
    arguments.words(["-m", "256M", "-append", "panic=-1", "-kernel"]).path(kernel);
    arguments.0
}

/// What is the same for all machines.
fn base(machine: &str, low_memory_mib: u32) -> Vec<OsString> {
    let machine = format!("{machine},max-ram-below-4g={low_memory_mib}M");
    let words = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine",
        &machine,
    ];
    words.into_iter().map(OsString::from).collect()
}

/// Everything that QEMU can emulate, but for the promise that copying byte by byte is fast ("enhanced `rep movsb`"):
/// QEMU does it one byte at a time, so that a kernel that believes it takes a third longer to boot.
const EMULATED_PROCESSOR: &str = "max,-erms,-fsrm";
/// Translated instructions are kept in 48 MiB. QEMU's default is an eighth of the machine's memory, up to 1 GiB, which no
/// pod's limit has room for; a guest that boots and pulls an image is not slower.
const EMULATION: &str = "tcg,thread=multi,tb-size=48";

fn hypervisor(hypervisor: Hypervisor) -> [&'static str; 4] {
    match hypervisor {
        Hypervisor::Kvm => ["-accel", "kvm", "-cpu", "host"],
        Hypervisor::Tcg => ["-accel", EMULATION, "-cpu", EMULATED_PROCESSOR],
    }
}

/// A command line in the making.
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) -> &mut Self {
        self.0.extend(words.into_iter().map(OsString::from));
        self
    }

    fn path(&mut self, path: &Path) {
        self.0.push(path.into());
    }

    /// A path within an option; QEMU reads two commas as one.
    fn option(&mut self, before: &str, path: &Path, after: &str) {
        let mut option = before.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            option.push(*byte);
            if *byte == b',' {
                option.push(b',');
            }
        }
        option.extend_from_slice(after.as_bytes());
        self.0.push(OsString::from_vec(option));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    const BASE: &str = "-nodefaults -no-user-config -display none -no-reboot \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
        -machine q35,max-ram-below-4g=256M";
    const KERNEL: &str = "-kernel /guest/vmlinuz -initrd /guest/initrd.cpio -append console=ttyS0 panic=-1";
    const ROM: &str = "-object memory-backend-file,mem-path=/guest/agent,id=rom,size=16777216,share=on,readonly=on \
        -device ivshmem-plain,memdev=rom,addr=1e.0";
    const FIRMWARE: &str = "-drive file=/guest/CODE.fd,if=pflash,unit=0,format=raw,readonly=on \
        -drive file=/run/vars.fd,if=pflash,unit=1,format=raw";
    const SOCKETS: &str = "-chardev socket,id=console,path=/run/console.sock -device isa-serial,chardev=console \
        -chardev socket,id=qmp,path=/run/qmp.sock -mon chardev=qmp,mode=control";
    const SERIAL: &str = "-device virtio-serial-pci -chardev socket,id=agent,path=/run/agent.sock \
        -device virtserialport,chardev=agent,name=sealpod.agent";
    const CARD: &str = "-device virtio-net-pci,netdev=network,mac=52:54:00:12:34:56,romfile=";

    fn machine(config: &SandboxConfig) -> Machine<'_> {
        Machine {
            config,
            hypervisor: Hypervisor::Tcg,
            network: Cards::User { ports: &[] },
            variables: Some("/run/vars.fd".into()),
            disk: None,
            rom_bytes: 16 << 20,
            console: "/run/console.sock".into(),
            qmp: "/run/qmp.sock".into(),
            tpm: None,
            channel: AgentChannel::VirtioSerial("/run/agent.sock".into()),
        }
    }

    fn line(machine: &Machine<'_>) -> String {
        machine.arguments().iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_machine_with_firmware_on_tcg_and_virtio_serial() {
        let tcg = "-accel tcg,thread=multi,tb-size=48 -cpu max,-erms,-fsrm -m 512M -smp 1";
        assert_eq!(
            line(&machine(&config())),
            format!(
                "{BASE} {tcg} {FIRMWARE} {KERNEL} {ROM} {SOCKETS} {SERIAL} -netdev user,id=network {CARD}"
            )
        );
    }

    #[test]
    fn a_machine_without_firmware_on_kvm_and_vsock() {
        let mut config = config();
        config.extra_cmdline = "sealpod.tee=sample".into();
        config.memory_mib = 2048;
        config.cpus = 4;
        let machine = Machine {
            hypervisor: Hypervisor::Kvm,
            variables: None,
            channel: AgentChannel::Vsock { cid: 77 },
            ..machine(&config)
        };
        let kvm = "-accel kvm -cpu host -m 2048M -smp 4";
        let vsock = "-device vhost-vsock-pci,guest-cid=77";
        assert_eq!(
            line(&machine),
            format!(
                "{BASE} {kvm} {KERNEL} sealpod.tee=sample {ROM} {SOCKETS} {vsock} -netdev user,id=network {CARD}"
            )
        );
    }

    #[test]
    fn memory_may_be_a_file() {
        let config = SandboxConfig { memory_file: Some("/proc/7/fd/8".into()), ..config() };
        let file = "-m 512M -smp 1 -machine memory-backend=memory \
            -object memory-backend-file,mem-path=/proc/7/fd/8,id=memory,size=512M,share=on";
        let line = line(&machine(&config));
        assert!(line.contains(file), "{line}");
    }

    #[test]
    fn a_tpm_a_disk_and_ports_are_added() {
        let config = config();
        let ports = ["8080:80", "[::1]:8443:443"].map(|port| port.parse().unwrap());
        let machine = Machine {
            tpm: Some("/run/tpm.sock".into()),
            disk: Some(7),
            network: Cards::User { ports: &ports },
            ..machine(&config)
        };
        let line = line(&machine);
        let forwards = "hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80,hostfwd=tcp:[::1]:8443-10.0.2.15:443";
        assert!(line.contains(&format!("-netdev user,id=network,{forwards} {CARD}")), "{line}");
        assert!(
            line.ends_with(
                "-chardev socket,id=tpm,path=/run/tpm.sock -tpmdev emulator,id=tpm0,chardev=tpm \
                 -device tpm-crb,tpmdev=tpm0 \
                 -add-fd fd=7,set=1 -drive file=/dev/fdset/1,auto-read-only=off,if=none,id=ephemeral,format=raw,cache=unsafe,discard=unmap,\
                 werror=report,rerror=report \
                 -device virtio-blk-pci,drive=ephemeral,serial=ephemeral"
            ),
            "{line}"
        );
    }

    #[test]
    fn a_bus_waits_for_disks_and_moves_no_other_device() {
        let (plain, mut config) = (config(), config());
        config.pluggable_disks = true;
        let line = |config: &SandboxConfig| line(&machine(config));
        assert_eq!(line(&config), format!("{} -device pcie-pci-bridge,id=disks", line(&plain)));
    }

    #[test]
    fn a_namespaces_interfaces_are_cards_with_their_taps_macs_and_mtus() {
        let config = config();
        let cards = vec![
            Card { mac: "0a:58:0a:01:00:02", mtu: Some(1500), tap: 7 },
            Card { mac: "0a:58:0a:02:00:02", mtu: Some(8950), tap: 9 },
        ];
        let machine = Machine { network: Cards::Taps(cards), ..machine(&config) };
        let line = line(&machine);
        assert!(
            line.ends_with(
                "-netdev tap,id=network0,fd=7,vhost=off \
                 -device virtio-net-pci,netdev=network0,mac=0a:58:0a:01:00:02,romfile= \
                 -netdev tap,id=network1,fd=9,vhost=off \
                 -device virtio-net-pci,netdev=network1,mac=0a:58:0a:02:00:02,romfile=,host_mtu=8950"
            ),
            "{line}"
        );
    }

    #[test]
    fn an_mtu_that_qemu_cannot_say_is_left_to_the_agent() {
        for mtu in [None, Some(0), Some(67), Some(1500), Some(65536), Some(u32::MAX)] {
            assert!(!card("network0", MAC, mtu).contains("host_mtu"), "{mtu:?}");
        }
        for mtu in [68, 1499, 1501, 65535] {
            assert!(card("network0", MAC, Some(mtu)).ends_with(&format!(",host_mtu={mtu}")));
        }
    }

    #[test]
    fn a_comma_in_a_path_does_not_begin_an_option() {
        let config = config();
        let machine = Machine { console: "/run,x=y/console.sock".into(), ..machine(&config) };
        assert!(line(&machine).contains("socket,id=console,path=/run,,x=y/console.sock "));
    }
}
