//! The guest's folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use serde::Serialize;

use crate::agent_rom::AgentRom;
use crate::cpio::Archive;
use crate::error::{Error, io};
use crate::lz4;
use crate::module_groups::{BOOT, ModuleGroups};

/// The kernel's command line, before own words: the console is the first serial port, and a panic ends the VM
/// at once (with QEMU's `-no-reboot`). The other words take 0.35 s of 1.8 s off the start on an emulated machine:
/// no self-tests of ciphers, no check that the timer ticks, no rewriting of locked instructions for one processor. With
/// the last one the kernel does not wait for a tick where it replaces what others may be reading, as for each exec,
/// which joins a control group.
pub const DEFAULT_CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check noreplace-smp rcupdate.rcu_expedited=1";

/// The guest's memory below 4 GiB. QEMU derives from it an address that it writes into the measured kernel.
const LOW_MEMORY_MIB: u32 = 256;
/// A machine type with a version, so that a newer QEMU presents the same machine.
const MACHINE: &str = "pc-q35-7.1";
const CMDLINE_BYTES: usize = 2047;

const MANIFEST: &str = "guest.json";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.cpio.lz4";
const AGENT: &str = "sealpod-agent";
const AGENT_ROM: &str = "agent.rom";
const FIRMWARE: &str = "OVMF_CODE.fd";
const FIRMWARE_VARIABLES: &str = "OVMF_VARS.fd";

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The kernel, a bzImage with EFI stub.
    pub kernel: PathBuf,
    /// The kernel's modules, as `/lib/modules/VERSION`.
    pub modules: PathBuf,
    /// The program that the kernel starts, a static one.
    pub loader: PathBuf,
    /// The agent, which the loader starts: a static program too.
    pub agent: PathBuf,
    /// The UEFI firmware's code.
    pub firmware: PathBuf,
    /// The UEFI firmware's variables.
    pub firmware_variables: PathBuf,
    /// Words to add to [`DEFAULT_CMDLINE`].
    pub cmdline: Option<String>,
    /// The folder to make; a guest that is there is replaced.
    pub output: PathBuf,
}

/// `guest.json`: the names of the files beside it, and how they are booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestManifest {
    /// The format's version: 2, with the agent in a ROM.
    pub version: u32,
    /// The kernel.
    pub kernel: String,
    /// The initrd.
    pub initrd: String,
    /// The ROM with the agent, whose digest is in the initrd.
    pub agent: String,
    /// The UEFI firmware's code.
    pub firmware: String,
    /// The UEFI firmware's variables.
    pub firmware_variables: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory below 4 GiB, in MiB.
    pub low_memory_mib: u32,
    /// QEMU's machine type.
    pub machine: String,
}

/// Builds a guest. Its folder appears complete or not at all.
///
/// # Errors
/// [`Error`] for inputs that cannot be read or would not boot, and for an output that is no guest.
pub fn build(options: &BuildOptions) -> Result<GuestManifest, Error> {
    let manifest = GuestManifest {
        version: 2,
        kernel: KERNEL.into(),
        initrd: INITRD.into(),
        agent: AGENT_ROM.into(),
        firmware: FIRMWARE.into(),
        firmware_variables: FIRMWARE_VARIABLES.into(),
        cmdline: cmdline(options.cmdline.as_deref())?,
        low_memory_mib: LOW_MEMORY_MIB,
        machine: MACHINE.into(),
    };
    check_replaceable(&options.output)?;
    let json = serde_json::to_string_pretty(&manifest).map_err(std::io::Error::from);
    let (initrd, rom) = initrd_and_rom(options)?;
    let files = [
        (KERNEL, read_kernel(&options.kernel)?),
        (INITRD, initrd),
        (AGENT_ROM, rom),
        (FIRMWARE, read_firmware(&options.firmware)?),
        (FIRMWARE_VARIABLES, read_firmware(&options.firmware_variables)?),
        (MANIFEST, (json.map_err(io("write", Path::new(MANIFEST)))? + "\n").into_bytes()),
    ];
    put(&options.output, &files)?;
    Ok(manifest)
}

fn cmdline(more: Option<&str>) -> Result<String, Error> {
    let words = DEFAULT_CMDLINE.split_ascii_whitespace().chain(more.unwrap_or("").split(' '));
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let refuse = |expected, actual| Err(Error::Cmdline { expected, actual });
    if let Some(character) = line.chars().find(|character| !matches!(character, ' '..='~')) {
        return refuse("printable ASCII", format!("{character:?}"));
    }
    if line.len() > CMDLINE_BYTES {
        return refuse("2047 bytes at most", line.len().to_string());
    }
    Ok(line)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(io("read", path))
}

/// A kernel that UEFI can start: a PE file with Linux's boot protocol (Documentation/x86/boot.rst).
fn read_kernel(path: &Path) -> Result<Vec<u8>, Error> {
    let content = read(path)?;
    if content.starts_with(b"MZ") && content.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(content);
    }
    let actual = if content.starts_with(b"\x7fELF") { "an ELF file (vmlinux?)" } else { "something else" };
    Err(Error::Input { path: path.to_owned(), expected: "a bzImage with EFI stub", actual: actual.into() })
}

/// Firmware is a series of volumes, whose signature stands at byte 40 (UEFI PI, volume 3, 3.2.1).
fn read_firmware(path: &Path) -> Result<Vec<u8>, Error> {
    let content = read(path)?;
    if content.get(40..44) == Some(b"_FVH") {
        return Ok(content);
    }
    Err(Error::Input {
        path: path.to_owned(),
        expected: "a UEFI firmware volume",
        actual: "something else".into(),
    })
}

/// The initrd, and the ROM that it describes.
fn initrd_and_rom(options: &BuildOptions) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (mut initrd, mut rom) = (Archive::default(), AgentRom::default());
    initrd.program("init", read_program(&options.loader)?);
    let agent = rom.add(AGENT, &read_program(&options.agent)?);
    initrd.file("agent.list", agent.into_bytes());
    initrd.folder("modules");
    let ModuleGroups { lists, files } = ModuleGroups::collect(&options.modules)?;
    let (booting, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        files.into_iter().partition(|(name, _)| lists[BOOT].contains(name));
    let in_rom: BTreeMap<_, _> =
        others.iter().map(|(name, content)| (name, rom.add(name, content))).collect();
    for (group, names) in &lists {
        let list: String = names
            .iter()
            .map(|name| in_rom.get(name).cloned().unwrap_or_else(|| format!("{name}\n")))
            .collect();
        initrd.file(&format!("modules/{group}.list"), list.into_bytes());
    }
    for (name, content) in booting {
        initrd.file(&format!("modules/{name}"), content);
    }
    let packed = lz4::pack(&initrd.into_bytes()?).map_err(io("pack", Path::new(INITRD)))?;
    Ok((packed, rom.into_bytes()))
}

/// A program that runs alone: nothing else is in the initrd.
fn read_program(path: &Path) -> Result<Vec<u8>, Error> {
    let content = read(path)?;
    let refuse =
        |actual: String| Error::Input { path: path.to_owned(), expected: "a static 64-bit program", actual };
    match has_interpreter(&content) {
        Ok(false) => Ok(content),
        Ok(true) => Err(refuse("one that needs a dynamic loader".into())),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn has_interpreter(program: &[u8]) -> Result<bool, object::Error> {
    let header = FileHeader64::<Endianness>::parse(program)?;
    let endian = header.endian()?;
    Ok(header.program_headers(endian, program)?.iter().any(|segment| segment.p_type(endian) == PT_INTERP))
}

/// A folder of someone's files must not go because its name was given by mistake.
fn check_replaceable(output: &Path) -> Result<(), Error> {
    match fs::read_dir(output) {
        Ok(_) if output.join(MANIFEST).is_file() => Ok(()),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::Output { path: output.to_owned() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io("read", output)(error)),
    }
}

/// Writes the files to a folder beside the output, then puts it in the output's place.
fn put(output: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), Error> {
    let parent = match output.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(io("create", parent))?;
    let staging =
        tempfile::Builder::new().prefix(".guest-").tempdir_in(parent).map_err(io("write", parent))?;
    let folder = staging.path().join("new");
    fs::create_dir(&folder).map_err(io("create", &folder))?;
    for (name, content) in files {
        let path = folder.join(name);
        fs::write(&path, content).map_err(io("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(io("write", &path))?;
    }
    if output.exists() {
        fs::rename(output, staging.path().join("old")).map_err(io("replace", output))?;
    }
    fs::rename(&folder, output).map_err(io("write", output))
}

#[cfg(test)]
mod tests {
    use sealpod_loader::rom::Entry;

    use super::*;
    use crate::module_groups;
    use crate::test_elf;

    struct Inputs {
        folder: tempfile::TempDir,
        modules: tempfile::TempDir,
    }

    impl Inputs {
        fn new() -> Self {
            let inputs =
                Self { folder: tempfile::tempdir().unwrap(), modules: module_groups::tests::folder() };
            let mut kernel = vec![0; 0x400];
            kernel[..2].copy_from_slice(b"MZ");
            kernel[0x202..0x206].copy_from_slice(b"HdrS");
            let mut firmware = vec![0; 64];
            firmware[40..44].copy_from_slice(b"_FVH");
            inputs.write("kernel", &kernel);
            inputs.write("loader", &test_elf::program(false));
            inputs.write("agent", &test_elf::program(false));
            inputs.write("code", &firmware);
            inputs.write("variables", &firmware);
            inputs
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, content: &[u8]) {
            fs::write(self.path(name), content).unwrap();
        }

        fn options(&self, output: &str) -> BuildOptions {
            BuildOptions {
                kernel: self.path("kernel"),
                modules: self.modules.path().to_owned(),
                loader: self.path("loader"),
                agent: self.path("agent"),
                firmware: self.path("code"),
                firmware_variables: self.path("variables"),
                cmdline: None,
                output: self.path(output),
            }
        }
    }

    #[test]
    fn two_builds_give_the_same_bytes() {
        let inputs = Inputs::new();
        let manifest = build(&inputs.options("one")).unwrap();
        assert_eq!(build(&inputs.options("two")).unwrap(), manifest);
        for name in [MANIFEST, KERNEL, INITRD, AGENT_ROM, FIRMWARE, FIRMWARE_VARIABLES] {
            let read = |folder: &str| fs::read(inputs.path(folder).join(name)).unwrap();
            assert!(read("one") == read("two"), "{name}");
        }
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(inputs.path("one/guest.json")).unwrap()).unwrap();
        assert_eq!(json["cmdline"], DEFAULT_CMDLINE);
        assert_eq!(json["low_memory_mib"], 256);
    }

    /// Neither the place nor the age of the inputs, nor the order in which a folder lists them.
    #[test]
    fn copies_of_the_inputs_elsewhere_and_of_another_age_give_the_same_bytes() {
        let inputs = Inputs::new();
        let manifest = build(&inputs.options("guest")).unwrap();
        let copies = Inputs { folder: tempfile::tempdir().unwrap(), modules: tempfile::tempdir().unwrap() };
        for name in ["variables", "code", "agent", "loader", "kernel"] {
            copies.write(name, &fs::read(inputs.path(name)).unwrap());
            make_old(&copies.path(name));
        }
        copy_backwards(inputs.modules.path(), copies.modules.path());
        assert_eq!(build(&copies.options("guest")).unwrap(), manifest);
        for name in [MANIFEST, KERNEL, INITRD, AGENT_ROM, FIRMWARE, FIRMWARE_VARIABLES] {
            let read = |inputs: &Inputs| fs::read(inputs.path("guest").join(name)).unwrap();
            assert!(read(&inputs) == read(&copies), "{name}");
        }
    }

    /// Copies a folder's entries in the other order, with other times and permissions.
    fn copy_backwards(from: &Path, to: &Path) {
        let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(Result::unwrap).collect();
        entries.reverse();
        for entry in entries {
            let copy = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&copy).unwrap();
                copy_backwards(&entry.path(), &copy);
            } else {
                fs::copy(entry.path(), &copy).unwrap();
                fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
                make_old(&copy);
            }
        }
    }

    fn make_old(path: &Path) {
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    /// The initrd is measured, and the ROM is not.
    #[test]
    fn another_agent_makes_another_initrd() {
        let inputs = Inputs::new();
        build(&inputs.options("one")).unwrap();
        let read = |path: &str| fs::read(inputs.path(path)).unwrap();
        let mut agent = read("agent");
        *agent.last_mut().unwrap() ^= 1;
        inputs.write("agent", &agent);
        build(&inputs.options("two")).unwrap();
        assert!(read("one/initrd.cpio.lz4") != read("two/initrd.cpio.lz4"));
        assert!(read("two/agent.rom").starts_with(&agent));
        assert!(read("two/agent.rom").len().is_power_of_two());
    }

    #[test]
    fn another_module_in_the_rom_makes_another_initrd() {
        let inputs = Inputs::new();
        build(&inputs.options("one")).unwrap();
        let module = inputs.modules.path().join("kernel/fs/overlay.ko");
        let mut content = fs::read(&module).unwrap();
        content.push(1);
        fs::write(&module, &content).unwrap();
        build(&inputs.options("two")).unwrap();
        let read = |path: &str| fs::read(inputs.path(path)).unwrap();
        assert!(read("one/initrd.cpio.lz4") != read("two/initrd.cpio.lz4"));
        assert!(read("one/agent.rom") != read("two/agent.rom"));
    }

    /// What the initrd says of the ROM is what is in it.
    #[test]
    fn the_rom_has_each_file_where_the_initrd_says() {
        let inputs = Inputs::new();
        build(&inputs.options("guest")).unwrap();
        let rom = fs::read(inputs.path("guest/agent.rom")).unwrap();
        let initrd = lz4::tests::unpack(&fs::read(inputs.path("guest/initrd.cpio.lz4")).unwrap());
        let initrd = String::from_utf8_lossy(&initrd);
        let mut found = Vec::new();
        for entry in initrd.split(['\n', '\0']).filter_map(Entry::of_line) {
            let content = &rom[entry.offset..][..entry.length];
            assert_eq!(blake2b_simd::blake2b(content).to_hex().as_str(), entry.digest, "{}", entry.name);
            found.push(entry.name);
        }
        let expected = "sealpod-agent virtio_blk.ko \
                        cryptd.ko crypto_simd.ko aesni_intel.ko ecb.ko xts.ko dm_mod.ko dm_crypt.ko \
                        failover.ko net_failover.ko virtio_net.ko overlay.ko \
                        vsock.ko vmw_vsock_virtio_transport_common.ko vmw_vsock_virtio_transport.ko";
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn a_guest_is_replaced_and_nothing_is_left_beside_it() {
        let inputs = Inputs::new();
        build(&inputs.options("guest")).unwrap();
        let mut options = inputs.options("guest");
        options.cmdline = Some("sealpod.tee=sample  more".into());
        let manifest = build(&options).unwrap();
        assert_eq!(manifest.cmdline, format!("{DEFAULT_CMDLINE} sealpod.tee=sample more"));
        let json = fs::read_to_string(inputs.path("guest/guest.json")).unwrap();
        assert!(json.contains("sealpod.tee=sample more"), "{json}");
        assert_eq!(fs::read_dir(inputs.folder.path()).unwrap().count(), 6);
    }

    #[test]
    fn a_folder_that_is_no_guest_is_kept() {
        let inputs = Inputs::new();
        fs::create_dir(inputs.path("mine")).unwrap();
        inputs.write("mine/letter", b"dear");
        assert!(matches!(build(&inputs.options("mine")), Err(Error::Output { .. })));
        assert_eq!(fs::read(inputs.path("mine/letter")).unwrap(), b"dear");
        fs::create_dir(inputs.path("empty")).unwrap();
        build(&inputs.options("empty")).unwrap();
    }

    #[test]
    fn inputs_that_would_not_boot_are_refused() {
        for (name, content, word) in [
            ("kernel", b"\x7fELF".to_vec(), "vmlinux"),
            ("agent", test_elf::program(true), "dynamic loader"),
            ("agent", b"#!/bin/sh".to_vec(), "expected a static 64-bit program"),
            ("loader", test_elf::program(true), "dynamic loader"),
            ("code", vec![0; 100], "firmware volume"),
            ("variables", Vec::new(), "firmware volume"),
        ] {
            let inputs = Inputs::new();
            inputs.write(name, &content);
            let message = build(&inputs.options("guest")).unwrap_err().to_string();
            assert!(message.contains(word), "{name}: {message}");
            assert!(!inputs.path("guest").exists());
        }
    }

    #[test]
    fn a_command_line_that_a_kernel_cannot_take_is_refused() {
        let inputs = Inputs::new();
        for (words, expected) in
            [("a\nb".to_owned(), "printable ASCII"), ("x".repeat(2047), "2047 bytes at most")]
        {
            let options = BuildOptions { cmdline: Some(words), ..inputs.options("guest") };
            let message = build(&options).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
