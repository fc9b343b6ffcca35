//! How bytes stand in JSON: Go writes base64 strings, existing Rust programs write arrays of integers.
//! Both are read; base64 is written.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Bytes in a JSON document. They may be secret, so that they are wiped and do not print.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Zeroizing<Vec<u8>>);

impl Bytes {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for a field that holds no secret.
    pub(crate) fn into_public(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BytesVisitor)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a base64 string or an array of integers below 256")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        // The decoder's error would name a byte of what may be a secret.
        let bytes = STANDARD.decode(text).map_err(|_| E::custom("a string that is not base64"))?;
        Ok(Bytes::new(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Bytes, A::Error> {
        // Growing by hand, because Vec's own growth would leave unwiped copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(512));
        while let Some(byte) = sequence.next_element::<u8>()? {
            if bytes.len() == bytes.capacity() {
                let mut larger = Zeroizing::new(Vec::with_capacity(bytes.capacity().saturating_mul(2)));
                larger.extend_from_slice(&bytes);
                bytes = larger;
            }
            bytes.push(byte);
        }
        Ok(Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::base64(r#""AQL/""#)]
    #[case::integers("[1, 2, 255]")]
    fn bytes_are_read_in_both_forms(#[case] json: &str) {
        assert_eq!(*serde_json::from_str::<Bytes>(json).unwrap().0, [1, 2, 255]);
    }

    #[test]
    fn a_long_array_is_read_whole() {
        let numbers: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
        let json = serde_json::to_string(&numbers).unwrap();
        assert_eq!(*serde_json::from_str::<Bytes>(&json).unwrap().0, numbers);
    }

    #[rstest]
    #[case::too_large_a_number("[1, 256]")]
    #[case::negative("[-1]")]
    #[case::not_base64(r#""*""#)]
    #[case::unpadded(r#""AQ""#)]
    #[case::number("7")]
    fn other_forms_are_refused(#[case] json: &str) {
        assert!(serde_json::from_str::<Bytes>(json).is_err());
    }

    #[test]
    fn bytes_are_written_as_base64_and_do_not_print() {
        let bytes = Bytes::new(vec![1, 2, 255]);
        assert_eq!(serde_json::to_string(&bytes).unwrap(), r#""AQL/""#);
        assert_eq!(format!("{bytes:?}"), "Bytes(3 bytes)");
    }
}
