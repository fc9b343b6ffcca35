//! What the event log says was booted, once it is shown to explain the registers.

use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::event_log::{Event, EventLog, kind};
use sealpod_evidence::tpm::{INIT_DATA_PCR, QUOTED_PCRS};
use serde_json::{Map, Value};

use crate::Refusal;
use crate::claims::hexadecimal;

const FIRMWARE_PCR: u32 = 0;
const DRIVERS_PCR: u32 = 2;
const BOOT_PCR: u32 = 4;
const SECURE_BOOT_PCR: u32 = 7;
const KERNEL_PCR: u32 = 9;
/// The version of the firmware's first part (EV_S_CRTM_VERSION).
const FIRMWARE_VERSION: u32 = 0x08;
/// A separator that tells of no error.
const SEPARATOR: [u8; 4] = [0; 4];
/// What the firmware says once it is ready to boot.
const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
/// The kernel's EFI stub tags what it measures (Linux `drivers/firmware/efi/libstub/efistub.h`).
const TAG_INITRD: u32 = 0x8f3b_22ec;
const TAG_LOAD_OPTIONS: u32 = 0x8f3b_22ed;
/// The variable `SecureBoot` with the value 1, as it is measured (UEFI_VARIABLE_DATA): the GUID of the UEFI's own
/// variables, the name's length in characters, the value's length, the name in UTF-16LE, the value.
const SECURE_BOOT_ENABLED: &[u8] = b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c\
    \x0a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0\x01";
/// A refusal names at most so many events.
const NAMED_EVENTS: usize = 8;

/// What was booted, each by its SHA-256 digest in hexadecimal.
pub(super) struct MeasuredBoot {
    firmware: String,
    kernel: String,
    initrd: String,
    cmdline: String,
    secure_boot: bool,
}

impl MeasuredBoot {
    pub(super) fn into_claims(self) -> Map<String, Value> {
        Map::from_iter([
            ("firmware".into(), self.firmware.into()),
            ("kernel".into(), self.kernel.into()),
            ("initrd".into(), self.initrd.into()),
            ("cmdline".into(), self.cmdline.into()),
            ("secure_boot".into(), self.secure_boot.into()),
        ])
    }
}

/// Replays the log onto the registers and takes from it what was booted.
pub(super) fn explain(log: &[u8], registers: &[Vec<u8>]) -> Result<MeasuredBoot, Refusal> {
    let refused = |error| Refusal::new("event_log", "a well-formed event log", error);
    let log = EventLog::parse(log).map_err(refused)?;
    let replayed = log.replay(HashAlgorithm::Sha256).map_err(refused)?;
    for (register, value) in QUOTED_PCRS.zip(registers) {
        // The guest extends init data after the firmware's log ended.
        if register == INIT_DATA_PCR {
            if let Some(replayed) = replayed.get(&register) {
                return Err(Refusal::new(
                    "event_log",
                    "nothing in PCR 8 before the guest",
                    hexadecimal(replayed),
                ));
            }
            continue;
        }
        let zeros = vec![0; HashAlgorithm::Sha256.length()];
        let replayed = replayed.get(&register).unwrap_or(&zeros);
        if replayed != value {
            return Err(Refusal::new(
                "event_log",
                format!("PCR {register} {}", hexadecimal(value)),
                format!("a log that gives {}", hexadecimal(replayed)),
            ));
        }
    }
    for event in QUOTED_PCRS.flat_map(|register| log.of_register(register)) {
        says_what_was_extended(event)?;
    }
    no_other_drivers(&log)?;
    let [cmdline, initrd] = kernel_inputs(&log)?;
    Ok(MeasuredBoot {
        firmware: firmware(&log)?,
        kernel: kernel(&log)?,
        initrd,
        cmdline,
        secure_boot: secure_boot(&log),
    })
}

/// For the types whose digest is that of their data, that it is. A log is written by whoever sends it: an event that is
/// trusted for what it says must not hide what was extended.
fn says_what_was_extended(event: &Event) -> Result<(), Refusal> {
    let described =
        matches!(event.kind, kind::SEPARATOR | kind::EFI_ACTION | kind::EFI_VARIABLE_DRIVER_CONFIG);
    let of_data = HashAlgorithm::Sha256.digest(&event.data);
    if described && digest(event)? != of_data {
        return Err(Refusal::new(
            "event_log",
            format!("an event in PCR {} with the digest {} of its data", event.pcr, hexadecimal(&of_data)),
            hexadecimal(digest(event)?),
        ));
    }
    Ok(())
}

/// The volume of the firmware's drivers (DXE), the second of two that are measured.
///
/// The first, which the firmware runs from and writes its findings about the machine into before it measures it,
/// differs with the number of processors and cannot be computed from the firmware's file. What follows the second is
/// extended by code that it measured, so the volume's place is what tells the genuine one: one more event before it,
/// of any type, would let other drivers extend the genuine digest after their own.
fn firmware(log: &EventLog) -> Result<String, Refusal> {
    let events = extended(log, FIRMWARE_PCR);
    match events.as_slice() {
        [version, first, drivers, end]
            if version.kind == FIRMWARE_VERSION && volume(first) && volume(drivers) && separator(end) =>
        {
            digest(drivers).map(hexadecimal)
        }
        other => Err(Refusal::new(
            "firmware",
            "a version, two measured firmware volumes and a separator in PCR 0",
            named(other),
        )),
    }
}

/// That nothing but the firmware's own drivers ran: one that a device brings (an option ROM) could change the kernel
/// after it was measured.
fn no_other_drivers(log: &EventLog) -> Result<(), Refusal> {
    match extended(log, DRIVERS_PCR).as_slice() {
        [end] if separator(end) => Ok(()),
        other => Err(Refusal::new("firmware", "nothing but a separator in PCR 2", named(other))),
    }
}

/// The one application that the firmware loaded, before it was ready to boot.
///
/// A boot option, such as the firmware's own shell, is called only after that and is not measured where the firmware
/// holds it. What it loads comes after the separator and is refused.
fn kernel(log: &EventLog) -> Result<String, Refusal> {
    let events = extended(log, BOOT_PCR);
    match events.as_slice() {
        [kernel, calling, end]
            if kernel.kind == kind::EFI_BOOT_SERVICES_APPLICATION
                && calling.kind == kind::EFI_ACTION
                && calling.data == CALLING
                && separator(end) =>
        {
            digest(kernel).map(hexadecimal)
        }
        other => Err(Refusal::new(
            "kernel",
            "exactly one EFI application in PCR 4, the kernel, then the boot and a separator",
            named(other),
        )),
    }
}

/// The command line and the initrd, in the order in which the kernel's EFI stub measures them; anything else in its
/// register is refused.
///
/// Their digests do not cover the tags: the order alone keeps one from being presented as the other.
fn kernel_inputs(log: &EventLog) -> Result<[String; 2], Refusal> {
    let events = extended(log, KERNEL_PCR);
    match events.as_slice() {
        [cmdline, initrd] if tag(cmdline) == Some(TAG_LOAD_OPTIONS) && tag(initrd) == Some(TAG_INITRD) => {
            Ok([hexadecimal(digest(cmdline)?), hexadecimal(digest(initrd)?)])
        }
        other => {
            let begins = other.first().is_some_and(|event| tag(event) == Some(TAG_LOAD_OPTIONS));
            Err(Refusal::new(
                if begins { "initrd" } else { "cmdline" },
                "a command line, then an initrd and nothing else in PCR 9",
                named(other),
            ))
        }
    }
}

/// Whether the variable `SecureBoot` had the value 1. It is the register's first event; what comes later may have been
/// extended by whatever was booted.
fn secure_boot(log: &EventLog) -> bool {
    extended(log, SECURE_BOOT_PCR).first().is_some_and(|event| {
        event.kind == kind::EFI_VARIABLE_DRIVER_CONFIG && event.data == SECURE_BOOT_ENABLED
    })
}

/// The events that were extended into a register, in order.
fn extended(log: &EventLog, register: u32) -> Vec<&Event> {
    log.of_register(register).filter(|event| event.kind != kind::NO_ACTION).collect()
}

fn volume(event: &Event) -> bool {
    matches!(event.kind, kind::EFI_PLATFORM_FIRMWARE_BLOB | kind::EFI_PLATFORM_FIRMWARE_BLOB2)
}

/// A separator with any other data could stand for a program: its data would be that program, whose digest it has.
fn separator(event: &Event) -> bool {
    event.kind == kind::SEPARATOR && event.data == SEPARATOR
}

/// The tag that the data of a tagged event begins with.
fn tag(event: &Event) -> Option<u32> {
    let tag = event.data.first_chunk().filter(|_| event.kind == kind::EVENT_TAG);
    tag.map(|bytes| u32::from_le_bytes(*bytes))
}

/// The events for people, by type.
fn named(events: &[&Event]) -> String {
    let name = |event: &&Event| match tag(event) {
        Some(tag) => format!("{:#x} (tag {tag:#x})", event.kind),
        None => format!("{:#x}", event.kind),
    };
    let mut names: Vec<String> = events.iter().take(NAMED_EVENTS).map(name).collect();
    if events.len() > NAMED_EVENTS {
        names.push(format!("{} more", events.len() - NAMED_EVENTS));
    }
    if names.is_empty() { "no events".into() } else { format!("events of types {}", names.join(", ")) }
}

fn digest(event: &Event) -> Result<&[u8], Refusal> {
    let digest = event.digests.get(&HashAlgorithm::Sha256).map(Vec::as_slice);
    digest.ok_or_else(|| Refusal::new("event_log", "a SHA-256 digest in each event", "none"))
}
