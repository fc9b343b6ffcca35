//! TCG event logs (TCG PC Client Platform Firmware Profile §10, and the CC event log of TDX guests, which has the
//! same form): parsing, and the register values that they explain.

use std::collections::BTreeMap;

use crate::HashAlgorithm;
use crate::tpm::codec::{Endian, Reader, Truncated};

/// The event types that claims are made from (TCG PC Client PFP §10.4.1).
pub mod kind {
    /// Informs only; never extended.
    pub const NO_ACTION: u32 = 0x03;
    /// Ends a register's pre-OS part.
    pub const SEPARATOR: u32 = 0x04;
    /// Something that a boot loader or the kernel's EFI stub measured.
    pub const EVENT_TAG: u32 = 0x06;
    /// A string that a boot loader measured.
    pub const IPL: u32 = 0x0d;
    /// An UEFI variable's value.
    pub const EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
    /// An UEFI application that was loaded: a boot loader or a kernel.
    pub const EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
    /// A driver that was loaded.
    pub const EFI_BOOT_SERVICES_DRIVER: u32 = 0x8000_0004;
    /// Something that the firmware did, as text.
    pub const EFI_ACTION: u32 = 0x8000_0007;
    /// A part of the firmware.
    pub const EFI_PLATFORM_FIRMWARE_BLOB: u32 = 0x8000_0008;
    /// A part of the firmware, with a description.
    pub const EFI_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000a;
}

/// At most this many bytes of log.
pub const MAX_LENGTH: usize = 4 << 20;
/// At most this many events.
pub const MAX_EVENTS: usize = 4096;
/// Registers are numbered below this.
const REGISTERS: u32 = 24;
/// At most this many digest algorithms.
const MAX_ALGORITHMS: u32 = 16;
/// What the first event's data begins with in a crypto-agile log.
const SPEC_ID: &[u8] = b"Spec ID Event03\0";
/// What the data of an event begins with that tells from which locality the TPM was started.
const STARTUP_LOCALITY: &[u8] = b"StartupLocality\0";

/// A parsed log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// The events after the header, in order.
    pub events: Vec<Event>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The register that it was extended into.
    pub pcr: u32,
    /// Its type, see [`kind`].
    pub kind: u32,
    /// What was extended, by algorithm. Algorithms that are not known here are left out.
    pub digests: BTreeMap<HashAlgorithm, Vec<u8>>,
    /// What the event says of itself; its relation to the digest depends on the type.
    pub data: Vec<u8>,
}

/// Why bytes are no event log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// More than [`MAX_LENGTH`] bytes.
    #[error("the event log has {0} bytes, at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// More than [`MAX_EVENTS`] events.
    #[error("the event log has more than {MAX_EVENTS} events")]
    TooManyEvents,
    /// It ends within an event.
    #[error("the event log ends within an event")]
    Truncated(#[from] Truncated),
    /// It does not begin with the header of a crypto-agile log.
    #[error("the event log does not begin with a Spec ID event of version 3")]
    NoHeader,
    /// A register that does not exist.
    #[error("the event log names register {0}, expected less than {REGISTERS}")]
    Register(u32),
    /// A digest of an algorithm that the header does not announce.
    #[error("an event has a digest of algorithm {0:#06x}, which the header does not announce")]
    Unannounced(u16),
    /// An event has no digest of the algorithm that the registers are replayed with.
    #[error("an event of register {register} has no {algorithm} digest")]
    NoDigest {
        /// The event's register.
        register: u32,
        /// The algorithm in question.
        algorithm: HashAlgorithm,
    },
}

impl Event {
    /// The event's data up to a trailing NUL, as text.
    pub fn text(&self) -> Option<&str> {
        let end = self.data.iter().position(|byte| *byte == 0).unwrap_or(self.data.len());
        std::str::from_utf8(self.data.get(..end)?).ok()
    }
}

impl EventLog {
    /// Parses a crypto-agile log. Zeros or ones that fill a log's buffer after its last event are ignored.
    ///
    /// # Errors
    /// If the log is too long, cut, or not of the form that the TCG PC Client Platform Firmware Profile gives it.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        if bytes.len() > MAX_LENGTH {
            return Err(EventLogError::TooLong(bytes.len()));
        }
        let mut reader = Reader::new(bytes, Endian::Little);
        let sizes = parse_header(&mut reader)?;
        let mut events = Vec::new();
        while !is_filling(reader.rest()) {
            if events.len() == MAX_EVENTS {
                return Err(EventLogError::TooManyEvents);
            }
            events.push(parse_event(&mut reader, &sizes)?);
        }
        Ok(Self { events })
    }

    /// The values of all registers that events were extended into, beginning with a TPM's start.
    ///
    /// # Errors
    /// [`EventLogError::NoDigest`], where an event that was extended has none of this algorithm.
    pub fn replay(&self, algorithm: HashAlgorithm) -> Result<BTreeMap<u32, Vec<u8>>, EventLogError> {
        let mut registers: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for event in &self.events {
            if event.kind == kind::NO_ACTION {
                if let Some([locality]) = event.data.strip_prefix(STARTUP_LOCALITY)
                    && event.pcr == 0
                {
                    let mut start = vec![0; algorithm.length()];
                    if let Some(last) = start.last_mut() {
                        *last = *locality;
                    }
                    registers.entry(0).or_insert(start);
                }
                continue;
            }
            let digest = event
                .digests
                .get(&algorithm)
                .ok_or(EventLogError::NoDigest { register: event.pcr, algorithm })?;
            let register = registers.entry(event.pcr).or_insert_with(|| vec![0; algorithm.length()]);
            *register = algorithm.digest_parts(&[register, digest]);
        }
        Ok(registers)
    }

    /// The events of one register, in order.
    pub fn of_register(&self, pcr: u32) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.pcr == pcr)
    }
}

/// The header: an event of the old form whose data announces the algorithms and their digests' sizes.
fn parse_header(reader: &mut Reader<'_>) -> Result<BTreeMap<u16, usize>, EventLogError> {
    let (_pcr, kind) = (reader.u32()?, reader.u32()?);
    let _sha1 = reader.bytes(20)?;
    let length = reader.u32()?;
    let data = reader.bytes(usize::try_from(length).map_err(|_| Truncated)?)?;
    if kind != kind::NO_ACTION || !data.starts_with(SPEC_ID) {
        return Err(EventLogError::NoHeader);
    }
    let mut header = Reader::new(data, Endian::Little);
    // Signature, platform class, version, errata, size of UINTN.
    header.bytes(SPEC_ID.len() + 4 + 4)?;
    let count = header.u32()?;
    if count > MAX_ALGORITHMS {
        return Err(EventLogError::NoHeader);
    }
    (0..count).map(|_| Ok((header.u16()?, usize::from(header.u16()?)))).collect()
}

fn parse_event(reader: &mut Reader<'_>, sizes: &BTreeMap<u16, usize>) -> Result<Event, EventLogError> {
    let (pcr, kind, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
    if pcr >= REGISTERS {
        return Err(EventLogError::Register(pcr));
    }
    if count > MAX_ALGORITHMS {
        return Err(EventLogError::Truncated(Truncated));
    }
    let mut digests = BTreeMap::new();
    for _ in 0..count {
        let id = reader.u16()?;
        let size = *sizes.get(&id).ok_or(EventLogError::Unannounced(id))?;
        let digest = reader.bytes(size)?;
        if let Some(algorithm) = crate::tpm::hash_algorithm(id)
            && algorithm.length() == size
        {
            digests.insert(algorithm, digest.to_vec());
        }
    }
    let length = reader.u32()?;
    let data = reader.bytes(usize::try_from(length).map_err(|_| Truncated)?)?;
    Ok(Event { pcr, kind, digests, data: data.to_vec() })
}

/// Whether nothing but a buffer's filling is left.
fn is_filling(rest: &[u8]) -> bool {
    rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::codec::Writer;

    fn log(events: &[(u32, u32, [u8; 32], &[u8])]) -> Vec<u8> {
        let mut header = SPEC_ID.to_vec();
        header.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        header.extend(1u32.to_le_bytes());
        header.extend(0x0bu16.to_le_bytes());
        header.extend(32u16.to_le_bytes());
        header.push(0);
        let mut writer = Writer::new(Endian::Little);
        writer.u32(0).u32(kind::NO_ACTION).bytes(&[0; 20]).u32(header.len() as u32).bytes(&header);
        for (pcr, kind, digest, data) in events {
            writer.u32(*pcr).u32(*kind).u32(1).u16(0x0b).bytes(digest).u32(data.len() as u32).bytes(data);
        }
        writer.into_bytes()
    }

    #[test]
    fn a_replay_extends_each_digest_in_order() {
        let log = EventLog::parse(&log(&[
            (4, kind::EFI_ACTION, [1; 32], b"a"),
            (4, kind::SEPARATOR, [2; 32], b"b"),
        ]));
        let sha = HashAlgorithm::Sha256;
        let expected = sha.digest_parts(&[&sha.digest_parts(&[&[0; 32], &[1; 32]]), &[2; 32]]);
        assert_eq!(log.unwrap().replay(sha).unwrap()[&4], expected);
    }

    #[test]
    fn events_that_only_inform_are_not_extended_but_the_startup_locality_counts() {
        let data = [STARTUP_LOCALITY, &[3]].concat();
        let log = EventLog::parse(&log(&[
            (0, kind::NO_ACTION, [9; 32], &data),
            (0, kind::SEPARATOR, [1; 32], b""),
        ]));
        let mut start = [0; 32];
        start[31] = 3;
        let sha = HashAlgorithm::Sha256;
        assert_eq!(log.unwrap().replay(sha).unwrap()[&0], sha.digest_parts(&[&start, &[1; 32]]));
    }

    #[test]
    fn the_filling_of_a_buffer_is_ignored_and_anything_else_after_the_end_is_not() {
        let mut bytes = log(&[(0, kind::SEPARATOR, [1; 32], b"x")]);
        let events = EventLog::parse(&bytes).unwrap();
        bytes.extend([0; 100]);
        assert_eq!(EventLog::parse(&bytes).unwrap(), events);
        bytes.push(1);
        assert!(EventLog::parse(&bytes).is_err());
    }

    #[test]
    fn a_log_cut_anywhere_is_refused_or_has_fewer_events() {
        let bytes = log(&[(0, kind::SEPARATOR, [1; 32], b"xyz"), (1, kind::SEPARATOR, [2; 32], b"xyz")]);
        for length in 0..bytes.len() {
            if let Ok(log) = EventLog::parse(&bytes[..length]) {
                assert!(log.events.len() < 2);
            }
        }
    }

    #[test]
    fn registers_and_algorithms_that_do_not_exist_are_refused() {
        assert_eq!(EventLog::parse(&log(&[(24, 4, [0; 32], b"")])), Err(EventLogError::Register(24)));
        let mut bytes = log(&[(1, 4, [0; 32], b"")]);
        let position = bytes.len() - 4 - 32 - 2;
        bytes[position] = 0x0c;
        assert_eq!(EventLog::parse(&bytes), Err(EventLogError::Unannounced(0x0c)));
    }

    #[test]
    #[ignore = "on genuine evidence, which SEALPOD_FIXTURES names"]
    fn a_genuine_cc_event_log_parses_and_replays() {
        let folder =
            std::env::var_os("SEALPOD_FIXTURES").expect("SEALPOD_FIXTURES names the genuine evidence");
        let bytes = std::fs::read(std::path::Path::new(&folder).join("eventlog/CCEL_data_ovmf")).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        assert!(log.events.len() > 10);
        assert!(!log.replay(HashAlgorithm::Sha384).unwrap().is_empty());
    }
}
