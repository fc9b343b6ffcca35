//! Just enough DER writing to give RSA keys the form that the cryptographic library reads.

use zeroize::Zeroizing;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
/// SEQUENCE { OBJECT IDENTIFIER rsaEncryption, NULL } (RFC 8017 appendix A.1).
const RSA_ENCRYPTION: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

type Der = Zeroizing<Vec<u8>>;

/// RSAPrivateKey (PKCS#1): n, e, d, p, q, dp, dq, qi.
pub(super) fn rsa_private_key(numbers: [&[u8]; 8]) -> Der {
    let mut parts = vec![unsigned(&[0])];
    parts.extend(numbers.into_iter().map(unsigned));
    sequence(&parts)
}

/// PrivateKeyInfo (PKCS#8) around an RSAPrivateKey.
pub(super) fn rsa_private_key_info(pkcs1: &[u8]) -> Der {
    sequence(&[unsigned(&[0]), Der::new(RSA_ENCRYPTION.to_vec()), element(OCTET_STRING, pkcs1)])
}

/// SubjectPublicKeyInfo of an RSA key.
pub(super) fn rsa_public_key_info(n: &[u8], e: &[u8]) -> Der {
    rsa_public_key_info_of_pkcs1(&sequence(&[unsigned(n), unsigned(e)]))
}

/// SubjectPublicKeyInfo around an RSAPublicKey (PKCS#1).
pub(super) fn rsa_public_key_info_of_pkcs1(pkcs1: &[u8]) -> Der {
    let no_unused_bits = Der::new([&[0], pkcs1].concat());
    sequence(&[Der::new(RSA_ENCRYPTION.to_vec()), element(BIT_STRING, &no_unused_bits)])
}

fn sequence(parts: &[Der]) -> Der {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_slice()).collect();
    element(SEQUENCE, &Der::new(parts.concat()))
}

fn unsigned(number: &[u8]) -> Der {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = number.get(zeros..).unwrap_or_default();
    // A leading zero keeps the number positive, and is all there is of zero itself.
    let needs_zero = digits.first().is_none_or(|byte| byte & 0x80 != 0);
    let sign: &[u8] = if needs_zero { &[0] } else { &[] };
    element(INTEGER, &Der::new([sign, digits].concat()))
}

fn element(tag: u8, content: &[u8]) -> Der {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let length = length.get(zeros..).unwrap_or_default();
    let mut der = Der::new(Vec::with_capacity(content.len().saturating_add(10)));
    der.push(tag);
    match length {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        long => {
            // At most the eight bytes of a usize.
            der.push(0x80 | long.len() as u8);
            der.extend_from_slice(long);
        }
    }
    der.extend_from_slice(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::zero(&[0], &[2, 1, 0])]
    #[case::empty(&[], &[2, 1, 0])]
    #[case::high_bit(&[0x80], &[2, 2, 0, 0x80])]
    #[case::leading_zeros(&[0, 0, 1], &[2, 1, 1])]
    fn integers_are_minimal_and_positive(#[case] number: &[u8], #[case] expected: &[u8]) {
        assert_eq!(*unsigned(number), expected);
    }

    #[rstest]
    #[case(0, &[4, 0])]
    #[case(127, &[4, 127])]
    #[case(128, &[4, 0x81, 128])]
    #[case(256, &[4, 0x82, 1, 0])]
    fn lengths_are_minimal(#[case] length: usize, #[case] expected: &[u8]) {
        assert!(element(OCTET_STRING, &vec![7; length]).starts_with(expected));
    }
}
