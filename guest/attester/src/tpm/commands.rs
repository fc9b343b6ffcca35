//! The commands that attestation needs (TCG TPM 2.0 Library, part 3).

use std::ops::RangeInclusive;

use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::tpm::codec::{Endian, Reader, Truncated, Writer};
use sealpod_evidence::tpm::{PcrSelection, Public, hash_algorithm_id};
use zeroize::Zeroizing;

use super::Transport;
use crate::Error;

/// A key, a session, an NV index or a hierarchy.
pub(super) type Handle = u32;

/// The handle is not there (a format-one code without its parameter number).
pub(super) const RC_HANDLE: u32 = 0x8b;

const TAG_NO_SESSIONS: u16 = 0x8001;
const TAG_SESSIONS: u16 = 0x8002;
const HIERARCHY_OWNER: Handle = 0x4000_0001;
const HIERARCHY_NULL: Handle = 0x4000_0007;
const HIERARCHY_ENDORSEMENT: Handle = 0x4000_000b;
const PASSWORD_SESSION: Handle = 0x4000_0009;
const ALG_NULL: u16 = 0x0010;
const SESSION_POLICY: u8 = 1;
/// How much of an NV index is read at once.
const NV_CHUNK: u16 = 512;
/// No certificate is larger.
const MAX_NV_SIZE: u16 = 8192;

/// A command: its name for errors, and its code (part 2 §6.5.2).
#[derive(Clone, Copy)]
struct Command(&'static str, u32);

const CREATE_PRIMARY: Command = Command("TPM2_CreatePrimary", 0x131);
const ACTIVATE_CREDENTIAL: Command = Command("TPM2_ActivateCredential", 0x147);
const FLUSH_CONTEXT: Command = Command("TPM2_FlushContext", 0x165);
const NV_READ: Command = Command("TPM2_NV_Read", 0x14e);
const NV_READ_PUBLIC: Command = Command("TPM2_NV_ReadPublic", 0x169);
const PCR_EXTEND: Command = Command("TPM2_PCR_Extend", 0x182);
const PCR_READ: Command = Command("TPM2_PCR_Read", 0x17e);
const POLICY_SECRET: Command = Command("TPM2_PolicySecret", 0x151);
const QUOTE: Command = Command("TPM2_Quote", 0x158);
const READ_PUBLIC: Command = Command("TPM2_ReadPublic", 0x173);
const START_AUTH_SESSION: Command = Command("TPM2_StartAuthSession", 0x176);

/// A TPM 2.0.
pub struct Tpm<T> {
    transport: T,
}

impl<T: Transport> Tpm<T> {
    /// A TPM behind a transport.
    pub fn new(transport: T) -> Self {
        Self { transport }
    }

    /// Makes a primary key of the endorsement hierarchy: the same one from the same template until the TPM is cleared.
    pub(super) fn create_primary(&mut self, template: &[u8]) -> Result<(Handle, Public), Error> {
        let mut body = Writer::new(Endian::Big);
        // No authorisation value and no data in the sensitive part.
        body.sized(&[0, 0, 0, 0]).sized(template).sized(&[]).u32(0);
        let response =
            self.run(CREATE_PRIMARY, &[HIERARCHY_ENDORSEMENT], &[PASSWORD_SESSION], &body.into_bytes())?;
        let mut reader = Reader::new(&response, Endian::Big);
        let mut parse = || -> Result<(Handle, &[u8]), Truncated> {
            let handle = reader.u32()?;
            let _parameter_size = reader.u32()?;
            Ok((handle, reader.sized()?))
        };
        let (handle, public) = parse().map_err(|_| unexpected(CREATE_PRIMARY))?;
        let public = Public::parse(public).map_err(|_| unexpected(CREATE_PRIMARY))?;
        Ok((handle, public))
    }

    /// The public area of a loaded or persistent key.
    pub(super) fn read_public(&mut self, key: Handle) -> Result<Public, Error> {
        let response = self.run(READ_PUBLIC, &[key], &[], &[])?;
        let public = Reader::new(&response, Endian::Big).sized().map_err(|_| unexpected(READ_PUBLIC))?;
        Public::parse(public).map_err(|_| unexpected(READ_PUBLIC))
    }

    /// All of an NV index.
    pub(super) fn nv_read(&mut self, index: Handle) -> Result<Vec<u8>, Error> {
        let response = self.run(NV_READ_PUBLIC, &[index], &[], &[])?;
        let public = Reader::new(&response, Endian::Big).sized().map_err(|_| unexpected(NV_READ_PUBLIC))?;
        let size = nv_size(public).ok().filter(|size| *size <= MAX_NV_SIZE);
        let size = size.ok_or_else(|| unexpected(NV_READ_PUBLIC))?;
        let mut data = Vec::new();
        let mut offset = 0;
        while offset < size {
            let count = NV_CHUNK.min(size - offset);
            let mut body = Writer::new(Endian::Big);
            body.u16(count).u16(offset);
            let response =
                self.run(NV_READ, &[HIERARCHY_OWNER, index], &[PASSWORD_SESSION], &body.into_bytes())?;
            let mut reader = Reader::new(&response, Endian::Big);
            let chunk = reader.u32().and_then(|_| reader.sized()).map_err(|_| unexpected(NV_READ))?;
            if chunk.len() != usize::from(count) {
                return Err(unexpected(NV_READ));
            }
            data.extend_from_slice(chunk);
            offset += count;
        }
        Ok(data)
    }

    /// Extends a register of the SHA-256 bank.
    pub(super) fn extend(&mut self, register: u32, digest: &[u8]) -> Result<(), Error> {
        let mut body = Writer::new(Endian::Big);
        body.u32(1).u16(hash_algorithm_id(HashAlgorithm::Sha256)).bytes(digest);
        self.run(PCR_EXTEND, &[register], &[PASSWORD_SESSION], &body.into_bytes()).map(drop)
    }

    /// Registers of the SHA-256 bank, in order. A TPM gives at most eight at a time.
    pub(super) fn read_pcrs(&mut self, registers: RangeInclusive<u32>) -> Result<Vec<Vec<u8>>, Error> {
        let mut values = Vec::new();
        let registers: Vec<u32> = registers.collect();
        for some in registers.chunks(8) {
            let mut body = Writer::new(Endian::Big);
            PcrSelection::of(HashAlgorithm::Sha256, some.iter().copied()).write(&mut body);
            let response = self.run(PCR_READ, &[], &[], &body.into_bytes())?;
            let read = pcr_values(&response).map_err(|_| unexpected(PCR_READ))?;
            if read.len() != some.len() {
                return Err(unexpected(PCR_READ));
            }
            values.extend(read);
        }
        Ok(values)
    }

    /// A quote over registers of the SHA-256 bank: the message and its signature.
    pub(super) fn quote(
        &mut self,
        key: Handle,
        qualifying_data: &[u8],
        registers: RangeInclusive<u32>,
    ) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut body = Writer::new(Endian::Big);
        // The scheme is the key's own.
        body.sized(qualifying_data).u16(ALG_NULL);
        PcrSelection::of(HashAlgorithm::Sha256, registers).write(&mut body);
        let response = self.run(QUOTE, &[key], &[PASSWORD_SESSION], &body.into_bytes())?;
        let parse = || -> Result<(Vec<u8>, Vec<u8>), Truncated> {
            let mut reader = Reader::new(&response, Endian::Big);
            let size = usize::try_from(reader.u32()?).map_err(|_| Truncated)?;
            let mut parameters = Reader::new(reader.bytes(size)?, Endian::Big);
            let message = parameters.sized()?.to_vec();
            Ok((message, parameters.rest().to_vec()))
        };
        parse().map_err(|_| unexpected(QUOTE))
    }

    /// Opens a credential that was made for these two keys (part 1 §24).
    ///
    /// `policy` says whether the endorsement key takes a policy session (`PolicySecret` of its hierarchy) or its empty
    /// authorisation value.
    pub(super) fn activate_credential(
        &mut self,
        attestation: Handle,
        endorsement: Handle,
        policy: bool,
        credential_blob: &[u8],
        encrypted_secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut body = Writer::new(Endian::Big);
        body.sized(credential_blob).sized(encrypted_secret);
        let body = body.into_bytes();
        let session = if policy { self.endorsement_policy()? } else { PASSWORD_SESSION };
        let activated =
            self.run(ACTIVATE_CREDENTIAL, &[attestation, endorsement], &[PASSWORD_SESSION, session], &body);
        if activated.is_err() && policy {
            // A session that was used ends with the command; one whose command failed stays.
            self.run(FLUSH_CONTEXT, &[], &[], &session.to_be_bytes())?;
        }
        let response = activated?;
        let mut reader = Reader::new(&response, Endian::Big);
        let secret =
            reader.u32().and_then(|_| reader.sized()).map_err(|_| unexpected(ACTIVATE_CREDENTIAL))?;
        Ok(Zeroizing::new(secret.to_vec()))
    }

    /// A policy session that holds the endorsement hierarchy's (empty) secret.
    fn endorsement_policy(&mut self) -> Result<Handle, Error> {
        let mut body = Writer::new(Endian::Big);
        // A nonce, no salt, a policy session, no symmetric cipher.
        body.sized(&[0; 16])
            .sized(&[])
            .u8(SESSION_POLICY)
            .u16(ALG_NULL)
            .u16(hash_algorithm_id(HashAlgorithm::Sha256));
        let response =
            self.run(START_AUTH_SESSION, &[HIERARCHY_NULL, HIERARCHY_NULL], &[], &body.into_bytes())?;
        let session =
            Reader::new(&response, Endian::Big).u32().map_err(|_| unexpected(START_AUTH_SESSION))?;
        let mut body = Writer::new(Endian::Big);
        // No nonce, no command parameters, no reference, no expiration.
        body.sized(&[]).sized(&[]).sized(&[]).u32(0);
        self.run(POLICY_SECRET, &[HIERARCHY_ENDORSEMENT, session], &[PASSWORD_SESSION], &body.into_bytes())?;
        Ok(session)
    }

    /// Sends a command; gives what follows the response's header.
    fn run(
        &mut self,
        command: Command,
        handles: &[Handle],
        sessions: &[Handle],
        body: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let Command(name, code) = command;
        let mut rest = Writer::new(Endian::Big);
        for handle in handles {
            rest.u32(*handle);
        }
        if !sessions.is_empty() {
            // Each: handle, empty nonce, attributes 0, empty value.
            rest.u32(u32::try_from(sessions.len() * 9).unwrap_or(u32::MAX));
            for session in sessions {
                rest.u32(*session).u16(0).u8(0).u16(0);
            }
        }
        rest.bytes(body);
        let rest = rest.into_bytes();
        let tag = if sessions.is_empty() { TAG_NO_SESSIONS } else { TAG_SESSIONS };
        let mut whole = Writer::new(Endian::Big);
        whole.u16(tag).u32(u32::try_from(rest.len() + 10).unwrap_or(u32::MAX)).u32(code).bytes(&rest);

        let response = self.transport.transmit(&whole.into_bytes())?;
        let mut reader = Reader::new(&response, Endian::Big);
        let mut header = || -> Result<(u32, u32), Truncated> {
            reader.u16()?;
            Ok((reader.u32()?, reader.u32()?))
        };
        let (length, code) = header().map_err(|_| Error::Answer { command: name })?;
        if code != 0 {
            return Err(Error::Tpm { command: name, code, meaning: meaning(code) });
        }
        if usize::try_from(length) != Ok(response.len()) {
            return Err(Error::Answer { command: name });
        }
        Ok(Zeroizing::new(reader.rest().to_vec()))
    }
}

/// The data size of a `TPMS_NV_PUBLIC`.
fn nv_size(public: &[u8]) -> Result<u16, Truncated> {
    let mut reader = Reader::new(public, Endian::Big);
    let _index = reader.u32()?;
    let _name_algorithm = reader.u16()?;
    let _attributes = reader.u32()?;
    let _policy = reader.sized()?;
    reader.u16()
}

/// The values of a response to `TPM2_PCR_Read`.
fn pcr_values(response: &[u8]) -> Result<Vec<Vec<u8>>, Truncated> {
    let mut reader = Reader::new(response, Endian::Big);
    let _update_counter = reader.u32()?;
    for _ in 0..reader.u32()?.min(16) {
        let _algorithm = reader.u16()?;
        let length = reader.u8()?;
        reader.bytes(usize::from(length))?;
    }
    let count = reader.u32()?.min(24);
    (0..count).map(|_| reader.sized().map(<[u8]>::to_vec)).collect()
}

fn unexpected(Command(command, _): Command) -> Error {
    Error::Answer { command }
}

/// The response codes that people meet (part 2 §6.6.3).
fn meaning(code: u32) -> &'static str {
    // Format one has its number in the low bits, with the parameter or session above it.
    let format_one = code & 0x80 != 0;
    match if format_one { code & 0xbf } else { code } {
        0x8b => "no such handle",
        0x8e | 0xa2 => "wrong authorisation value",
        0x9d => "the policy is not satisfied",
        0x84 => "a value is out of range",
        0x9f => "an integrity check failed",
        0x101 => "the TPM is in failure mode",
        0x100 => "the TPM was not started",
        0x902 | 0x903 => "no memory for another object or session",
        0x921 => "locked out after wrong authorisations",
        0x922 => "to be tried again",
        _ => "see the TPM 2.0 Library, part 2, response codes",
    }
}
