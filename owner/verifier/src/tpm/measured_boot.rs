//! What the event log says was booted, once it is shown to explain the registers.

use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::event_log::{Event, EventLog, kind};
use sealpod_evidence::tpm::{INIT_DATA_PCR, QUOTED_PCRS};
use serde_json::{Map, Value};

use crate::Refusal;
use crate::claims::hexadecimal;

const FIRMWARE_PCR: u32 = 0;
const SECURE_BOOT_PCR: u32 = 7;
const BOOT_PCR: u32 = 4;
const KERNEL_PCR: u32 = 9;
/// The kernel's EFI stub tags what it measures (Linux `drivers/firmware/efi/libstub/efistub.h`).
const TAG_INITRD: u32 = 0x8f3b_22ec;
const TAG_LOAD_OPTIONS: u32 = 0x8f3b_22ed;
/// What the firmware says before it starts the kernel, and after the kernel left boot services.
const ACTIONS: [&[u8]; 3] = [
    b"Calling EFI Application from Boot Option",
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Success",
];
/// `SecureBoot` in UTF-16LE.
const SECURE_BOOT: &[u8] = b"S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0";

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
    let [initrd, cmdline] = kernel_inputs(&log)?;
    Ok(MeasuredBoot {
        firmware: firmware(&log)?,
        kernel: kernel(&log)?,
        initrd,
        cmdline,
        secure_boot: secure_boot(&log),
    })
}

/// The volume of the firmware's drivers (DXE), the second of two that are measured.
///
/// The first, which the firmware runs from and writes its findings about the machine into before it measures it,
/// differs with the number of processors and cannot be computed from the firmware's file.
fn firmware(log: &EventLog) -> Result<String, Refusal> {
    let volumes: Vec<&Event> = log
        .of_register(FIRMWARE_PCR)
        .filter(|event| {
            matches!(event.kind, kind::EFI_PLATFORM_FIRMWARE_BLOB | kind::EFI_PLATFORM_FIRMWARE_BLOB2)
        })
        .collect();
    match volumes.as_slice() {
        [_, drivers] => digest(drivers).map(hexadecimal),
        other => Err(Refusal::new("firmware", "two measured firmware volumes in PCR 0", other.len())),
    }
}

/// The one application that the firmware started; anything else in its register is refused.
fn kernel(log: &EventLog) -> Result<String, Refusal> {
    let expected = "exactly one EFI application in PCR 4, the kernel";
    let mut kernel = None;
    for event in log.of_register(BOOT_PCR) {
        match event.kind {
            kind::NO_ACTION | kind::SEPARATOR => {}
            kind::EFI_ACTION if ACTIONS.contains(&event.data.as_slice()) => {}
            kind::EFI_BOOT_SERVICES_APPLICATION if kernel.is_none() => {
                kernel = Some(hexadecimal(digest(event)?))
            }
            kind::EFI_BOOT_SERVICES_APPLICATION => {
                return Err(Refusal::new("kernel", expected, "a second application"));
            }
            other => return Err(Refusal::new("kernel", expected, format!("an event of type {other:#x}"))),
        }
    }
    kernel.ok_or_else(|| Refusal::new("kernel", expected, "none"))
}

/// The initrd and the command line, as the kernel's EFI stub measured them; anything else in its register is refused.
fn kernel_inputs(log: &EventLog) -> Result<[String; 2], Refusal> {
    let (mut initrd, mut cmdline) = (None, None);
    for event in log.of_register(KERNEL_PCR) {
        let tag = event.data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let (place, claim) = match (event.kind, tag) {
            (kind::EVENT_TAG, Some(TAG_INITRD)) => (&mut initrd, "initrd"),
            (kind::EVENT_TAG, Some(TAG_LOAD_OPTIONS)) => (&mut cmdline, "cmdline"),
            (other, _) => {
                let actual = format!("an event of type {other:#x}");
                return Err(Refusal::new("event_log", "an initrd and a command line in PCR 9", actual));
            }
        };
        if place.replace(hexadecimal(digest(event)?)).is_some() {
            return Err(Refusal::new(claim, "one measurement in PCR 9", "a second one"));
        }
    }
    let one = |place: Option<String>, claim| {
        place.ok_or_else(|| Refusal::new(claim, "one measurement in PCR 9", "none"))
    };
    Ok([one(initrd, "initrd")?, one(cmdline, "cmdline")?])
}

/// Whether the variable `SecureBoot` was measured with the value 1.
fn secure_boot(log: &EventLog) -> bool {
    log.of_register(SECURE_BOOT_PCR)
        .filter(|event| event.kind == kind::EFI_VARIABLE_DRIVER_CONFIG)
        // Vendor GUID, name's length in characters, data's length, name, data (UEFI_VARIABLE_DATA).
        .filter_map(|event| event.data.get(32..)?.strip_prefix(SECURE_BOOT))
        .any(|value| value == [1])
}

fn digest(event: &Event) -> Result<&[u8], Refusal> {
    let digest = event.digests.get(&HashAlgorithm::Sha256).map(Vec::as_slice);
    digest.ok_or_else(|| Refusal::new("event_log", "a SHA-256 digest in each event", "none"))
}
