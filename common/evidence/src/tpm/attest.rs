//! A quote as the TPM signs it (`TPMS_ATTEST` with `TPMS_QUOTE_INFO`, part 2 §10.12).

use std::collections::{BTreeMap, BTreeSet};

use super::codec::{Endian, Reader, Truncated, Writer};
use super::{StructureError, hash_algorithm_id};
use crate::HashAlgorithm;

const STRUCTURE: &str = "quote";
const GENERATED: u32 = 0xff54_4347;
const ATTEST_QUOTE: u16 = 0x8018;
const MAX_SELECTIONS: u32 = 16;

/// What a quote says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    /// The name of the signing key and its ancestors.
    pub qualified_signer: Vec<u8>,
    /// What the caller asked to be bound (the report data).
    pub extra_data: Vec<u8>,
    /// Which registers are covered.
    pub selection: PcrSelection,
    /// The digest over their values, by the signature's hash.
    pub pcr_digest: Vec<u8>,
}

/// Registers by the algorithm of their bank (`TPML_PCR_SELECTION`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    banks: BTreeMap<u16, BTreeSet<u32>>,
}

impl Attest {
    /// Parses a quote with nothing after it; any other attestation is an error.
    ///
    /// # Errors
    /// If it is no quote, is cut, has bytes after it or too many banks, or did not come out of a TPM.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let cut = || StructureError::truncated(STRUCTURE);
        let mut reader = Reader::new(bytes, Endian::Big);
        let magic = reader.u32().map_err(cut())?;
        if magic != GENERATED {
            return Err(StructureError::NotGenerated(magic));
        }
        let kind = reader.u16().map_err(cut())?;
        if kind != ATTEST_QUOTE {
            return Err(StructureError::Unsupported { field: "attestation type", actual: u32::from(kind) });
        }
        let qualified_signer = reader.sized().map_err(cut())?.to_vec();
        let extra_data = reader.sized().map_err(cut())?.to_vec();
        // Clock, reset and restart counts, whether the clock is safe, firmware version.
        reader.bytes(8 + 4 + 4 + 1 + 8).map_err(cut())?;
        let selection = PcrSelection::read(&mut reader)?;
        let pcr_digest = reader.sized().map_err(cut())?.to_vec();
        match reader.rest().len() {
            0 => Ok(Self { qualified_signer, extra_data, selection, pcr_digest }),
            count => Err(StructureError::Trailing { structure: STRUCTURE, count }),
        }
    }
}

impl PcrSelection {
    /// Registers of one bank.
    pub fn of(algorithm: HashAlgorithm, registers: impl IntoIterator<Item = u32>) -> Self {
        Self { banks: BTreeMap::from([(hash_algorithm_id(algorithm), registers.into_iter().collect())]) }
    }

    /// The `TPML_PCR_SELECTION`, with three bytes a bank as PC clients have.
    pub fn write(&self, writer: &mut Writer) {
        writer.u32(u32::try_from(self.banks.len()).unwrap_or(u32::MAX));
        for (algorithm, registers) in &self.banks {
            let bits =
                registers.iter().fold(0u32, |bits, register| bits | 1u32.checked_shl(*register).unwrap_or(0));
            let bits = bits.to_le_bytes();
            writer.u16(*algorithm).u8(3).bytes(bits.get(..3).unwrap_or_default());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, StructureError> {
        let cut = || StructureError::truncated(STRUCTURE);
        let count = reader.u32().map_err(cut())?;
        if count > MAX_SELECTIONS {
            return Err(StructureError::Unsupported { field: "number of PCR banks", actual: count });
        }
        let mut banks: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
        for _ in 0..count {
            let (algorithm, registers) = read_bank(reader).map_err(cut())?;
            // A bank may be named without a register of it being selected.
            if !registers.is_empty() {
                banks.entry(algorithm).or_default().extend(registers);
            }
        }
        Ok(Self { banks })
    }
}

fn read_bank(reader: &mut Reader<'_>) -> Result<(u16, BTreeSet<u32>), Truncated> {
    let algorithm = reader.u16()?;
    let length = reader.u8()?;
    let bits = reader.bytes(usize::from(length))?;
    let registers = bits.iter().zip(0u32..).flat_map(|(byte, index)| {
        (0..8u32).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| index * 8 + bit)
    });
    Ok((algorithm, registers.collect()))
}

impl std::fmt::Display for PcrSelection {
    /// As `sha256:0,1,2`, banks separated by `+`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (algorithm, registers)) in self.banks.iter().enumerate() {
            if index > 0 {
                formatter.write_str("+")?;
            }
            match super::hash_algorithm(*algorithm) {
                Some(algorithm) => write!(formatter, "{algorithm}:")?,
                None => write!(formatter, "{algorithm:#06x}:")?,
            }
            let registers: Vec<String> = registers.iter().map(u32::to_string).collect();
            formatter.write_str(&registers.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_read_as_it_was_written() {
        let selection = PcrSelection::of(HashAlgorithm::Sha256, [0, 7, 8, 16, 23]);
        let mut writer = Writer::new(Endian::Big);
        selection.write(&mut writer);
        let bytes = writer.into_bytes();
        assert_eq!(bytes, [0, 0, 0, 1, 0, 0x0b, 3, 0x81, 0x01, 0x81]);
        assert_eq!(PcrSelection::read(&mut Reader::new(&bytes, Endian::Big)), Ok(selection.clone()));
        assert_eq!(selection.to_string(), "sha256:0,7,8,16,23");
    }

    #[test]
    fn what_a_tpm_did_not_generate_is_refused() {
        assert_eq!(Attest::parse(&[0; 64]), Err(StructureError::NotGenerated(0)));
    }

    #[test]
    fn another_kind_of_attestation_is_refused() {
        let mut writer = Writer::new(Endian::Big);
        writer.u32(GENERATED).u16(0x8017);
        assert!(matches!(Attest::parse(&writer.into_bytes()), Err(StructureError::Unsupported { .. })));
    }
}
