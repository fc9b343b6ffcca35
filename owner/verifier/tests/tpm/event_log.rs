//! Event logs made from events, and the registers that these give.

use aws_lc_rs::digest;
use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::event_log::{Event, EventLog};
use sealpod_evidence::tpm::codec::{Endian, Writer};

/// What the firmware and the kernel's EFI stub logged in a boot of OVMF with a kernel, an initrd and a command line.
const GENUINE: &[u8] = include_bytes!("../data/ovmf-direct-boot.eventlog");
/// The registers after it.
const GENUINE_PCRS: &str = include_str!("../data/ovmf-direct-boot.pcrs");

pub(crate) fn genuine() -> Vec<u8> {
    GENUINE.to_vec()
}

/// The values of the registers 0 to 9.
pub(crate) fn genuine_registers() -> Vec<Vec<u8>> {
    GENUINE_PCRS.lines().map(|line| hex::decode(line).unwrap()).collect()
}

pub(crate) fn genuine_events() -> Vec<Event> {
    EventLog::parse(GENUINE).unwrap().events
}

/// An event whose digest is that of its data.
pub(crate) fn event(pcr: u32, kind: u32, data: &[u8]) -> Event {
    event_with(pcr, kind, &sha256(data), data)
}

/// An event that says one thing and extends another.
pub(crate) fn event_with(pcr: u32, kind: u32, digest: &[u8], data: &[u8]) -> Event {
    Event { pcr, kind, digests: [(HashAlgorithm::Sha256, digest.to_vec())].into(), data: data.to_vec() }
}

pub(crate) fn sha256(data: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, data).as_ref().to_vec()
}

/// The place of the event of a register and a type.
pub(crate) fn position(events: &[Event], pcr: u32, kind: u32) -> usize {
    events.iter().position(|event| (event.pcr, event.kind) == (pcr, kind)).unwrap()
}

/// A crypto-agile log with SHA-256 digests.
pub(crate) fn encode(events: &[Event]) -> Vec<u8> {
    let mut header = b"Spec ID Event03\0".to_vec();
    // Platform class, version, errata, size of UINTN; one algorithm, its size; no vendor information.
    header.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut out = Writer::new(Endian::Little);
    out.u32(0).u32(3).bytes(&[0; 20]).u32(header.len() as u32).bytes(&header);
    for event in events {
        out.u32(event.pcr).u32(event.kind).u32(event.digests.len() as u32);
        for digest in event.digests.values() {
            out.u16(0x0b).bytes(digest);
        }
        out.u32(event.data.len() as u32).bytes(&event.data);
    }
    out.into_bytes()
}

/// The registers 0 to 9 after these events were extended.
pub(crate) fn extend(events: &[Event]) -> Vec<Vec<u8>> {
    let mut registers = vec![vec![0; 32]; 10];
    for event in events.iter().filter(|event| event.kind != 3) {
        if let Some(register) = registers.get_mut(event.pcr as usize) {
            *register = sha256(&[register.as_slice(), &event.digests[&HashAlgorithm::Sha256]].concat());
        }
    }
    registers
}
