//! A key's public area (`TPMT_PUBLIC`, part 2 §12.2.4).

use super::codec::{Endian, Reader, Truncated, Writer};
use super::{StructureError, hash_algorithm, hash_algorithm_id};
use crate::HashAlgorithm;

const STRUCTURE: &str = "public area";
const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_NULL: u16 = 0x0010;
const ALG_ECC: u16 = 0x0023;
const ALG_RSAES: u16 = 0x0015;
const ALG_CFB: u16 = 0x0043;

/// Bits of `TPMA_OBJECT` (part 2 §8.3).
pub mod attributes {
    /// Never leaves its TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// Never gets another parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// Its private part was made by the TPM.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// May be used with its (empty) authorisation value.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Signs or decrypts only what the TPM itself made.
    pub const RESTRICTED: u32 = 1 << 16;
    /// Decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// Signs.
    pub const SIGN: u32 = 1 << 18;
}

/// A public area with its exact bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// What the key's name is made with.
    pub name_algorithm: HashAlgorithm,
    /// `TPMA_OBJECT`, see [`attributes`].
    pub attributes: u32,
    /// The symmetric cipher of a storage key, such as an endorsement key.
    pub symmetric: Option<Symmetric>,
    /// The key itself.
    pub parameters: Parameters,
    bytes: Vec<u8>,
}

/// The key of a public area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameters {
    /// RSA.
    Rsa {
        /// The public exponent.
        exponent: u32,
        /// Big-endian, without leading zeros in a key that a TPM made.
        modulus: Vec<u8>,
    },
    /// Elliptic curve.
    Ecc {
        /// Which curve.
        curve: Curve,
        /// Big-endian, as long as the field.
        x: Vec<u8>,
        /// Big-endian, as long as the field.
        y: Vec<u8>,
    },
}

/// A NIST curve (`TPM_ECC_CURVE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// P-256.
    P256,
    /// P-384.
    P384,
}

/// AES in CFB mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symmetric {
    /// The key's length in bits: 128 or 256.
    pub key_bits: u16,
}

impl Curve {
    /// The length of a coordinate, in bytes.
    pub fn field_length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    fn object_identifier(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        }
    }
}

impl Public {
    /// Parses a `TPMT_PUBLIC` with nothing after it.
    ///
    /// # Errors
    /// [`StructureError`]: it is cut, has bytes after it, or a type, curve or scheme that is not known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new(bytes, Endian::Big);
        let public = Self::read(&mut reader, bytes)?;
        match reader.rest().len() {
            0 => Ok(public),
            count => Err(StructureError::Trailing { structure: STRUCTURE, count }),
        }
    }

    /// The exact bytes of the `TPMT_PUBLIC`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key's name (part 1 §16): the name algorithm's id and the digest of the public area.
    pub fn name(&self) -> Vec<u8> {
        let mut name = hash_algorithm_id(self.name_algorithm).to_be_bytes().to_vec();
        name.extend(self.name_algorithm.digest(&self.bytes));
        name
    }

    /// Whether all of these attributes are set.
    pub fn has(&self, attributes: u32) -> bool {
        self.attributes & attributes == attributes
    }

    /// The public key as DER of SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub fn spki_der(&self) -> Vec<u8> {
        match &self.parameters {
            Parameters::Rsa { exponent, modulus } => {
                let exponent = if *exponent == 0 { 65537 } else { *exponent };
                let key = der(0x30, &[der_integer(modulus), der_integer(&exponent.to_be_bytes())].concat());
                let algorithm =
                    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0];
                der(0x30, &[algorithm.to_vec(), der(0x03, &[vec![0], key].concat())].concat())
            }
            Parameters::Ecc { curve, x, y } => {
                let key: [&[u8]; 2] =
                    [&[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01], curve.object_identifier()];
                let point: [&[u8]; 3] = [&[0, 4], x, y];
                der(0x30, &[der(0x30, &key.concat()), der(0x03, &point.concat())].concat())
            }
        }
    }

    fn read(reader: &mut Reader<'_>, bytes: &[u8]) -> Result<Self, StructureError> {
        let cut = || StructureError::truncated(STRUCTURE);
        let kind = reader.u16().map_err(cut())?;
        let name_algorithm = reader.u16().map_err(cut())?;
        let name_algorithm =
            hash_algorithm(name_algorithm).ok_or_else(|| unsupported("nameAlg", name_algorithm))?;
        let attributes = reader.u32().map_err(cut())?;
        let _policy = reader.sized().map_err(cut())?;
        let symmetric = read_symmetric(reader)?;
        read_scheme(reader).map_err(cut())?;
        let parameters = match kind {
            ALG_RSA => {
                let _key_bits = reader.u16().map_err(cut())?;
                let exponent = reader.u32().map_err(cut())?;
                Parameters::Rsa { exponent, modulus: reader.sized().map_err(cut())?.to_vec() }
            }
            ALG_ECC => {
                let curve = match reader.u16().map_err(cut())? {
                    0x0003 => Curve::P256,
                    0x0004 => Curve::P384,
                    other => return Err(unsupported("curveID", other)),
                };
                // The scheme of key derivation: none, or one with a hash.
                read_scheme(reader).map_err(cut())?;
                let mut coordinate = || -> Result<Vec<u8>, StructureError> {
                    let bytes = reader.sized().map_err(cut())?;
                    let zeros = curve.field_length().checked_sub(bytes.len());
                    let zeros = zeros
                        .ok_or(StructureError::Trailing { structure: "coordinate", count: bytes.len() })?;
                    Ok([&vec![0; zeros], bytes].concat())
                };
                Parameters::Ecc { curve, x: coordinate()?, y: coordinate()? }
            }
            other => return Err(unsupported("type", other)),
        };
        let length = bytes.len() - reader.rest().len();
        let bytes = bytes.get(..length).unwrap_or_default().to_vec();
        Ok(Self { name_algorithm, attributes, symmetric, parameters, bytes })
    }
}

/// `TPMT_SYM_DEF_OBJECT`.
fn read_symmetric(reader: &mut Reader<'_>) -> Result<Option<Symmetric>, StructureError> {
    let cut = || StructureError::truncated(STRUCTURE);
    match reader.u16().map_err(cut())? {
        ALG_NULL => Ok(None),
        ALG_AES => {
            let (key_bits, mode) = (reader.u16().map_err(cut())?, reader.u16().map_err(cut())?);
            match (key_bits, mode) {
                (128 | 256, ALG_CFB) => Ok(Some(Symmetric { key_bits })),
                (_, ALG_CFB) => Err(unsupported("keyBits", key_bits)),
                _ => Err(unsupported("mode", mode)),
            }
        }
        other => Err(unsupported("symmetric", other)),
    }
}

/// A scheme (`TPMT_ASYM_SCHEME`, `TPMT_KDF_SCHEME`): none, one without details, or one with a hash.
fn read_scheme(reader: &mut Reader<'_>) -> Result<(), Truncated> {
    match reader.u16()? {
        ALG_NULL | ALG_RSAES => Ok(()),
        _ => reader.u16().map(drop),
    }
}

fn unsupported(field: &'static str, actual: u16) -> StructureError {
    StructureError::Unsupported { field, actual: u32::from(actual) }
}

/// DER's tag, length and content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Writer::new(Endian::Big);
    out.u8(tag);
    match content.len() {
        length @ 0..0x80 => out.u8(length as u8),
        length @ 0x80..0x100 => out.u8(0x81).u8(length as u8),
        length => out.u8(0x82).u16(length as u16),
    };
    out.bytes(content);
    out.into_bytes()
}

/// An unsigned integer in DER.
fn der_integer(big_endian: &[u8]) -> Vec<u8> {
    let start = big_endian.iter().position(|byte| *byte != 0).unwrap_or(big_endian.len());
    let digits = big_endian.get(start..).unwrap_or_default();
    let sign = if digits.first().is_none_or(|byte| byte & 0x80 != 0) { &[0][..] } else { &[] };
    der(0x02, &[sign, digits].concat())
}
