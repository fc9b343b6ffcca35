//! AES key wrap (RFC 3394) with keys of 128, 192 and 256 bits. The cryptographic library's own does not
//! know 192.

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

const BLOCK: usize = 8;
const INITIAL_VALUE: [u8; BLOCK] = [0xa6; BLOCK];
const ROUNDS: u64 = 6;

/// Wraps a key; `None` for keys of lengths that RFC 3394 does not know.
pub(super) fn wrap(key_encryption_key: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let cipher = EncryptingKey::ecb(cipher_key(key_encryption_key)?).ok()?;
    let (blocks, []) = key.as_chunks::<BLOCK>() else { return None };
    if blocks.len() < 2 {
        return None;
    }
    let mut blocks = Zeroizing::new(blocks.to_vec());
    let mut integrity = INITIAL_VALUE;
    let mut step = 0u64;
    for _ in 0..ROUNDS {
        for block in blocks.iter_mut() {
            step += 1;
            let mut input = join(&integrity, block);
            cipher.encrypt(&mut *input).ok()?;
            (integrity, *block) = split(&input);
            integrity = xor(integrity, step);
        }
    }
    Some([&integrity, blocks.as_flattened()].concat())
}

/// Unwraps a key; `None` if it was not wrapped under this key, or was altered.
pub(super) fn unwrap(key_encryption_key: &[u8], wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let cipher = DecryptingKey::ecb(cipher_key(key_encryption_key)?).ok()?;
    let (blocks, []) = wrapped.as_chunks::<BLOCK>() else { return None };
    let (integrity, blocks) = blocks.split_first()?;
    if blocks.len() < 2 {
        return None;
    }
    let mut integrity = *integrity;
    let mut blocks = Zeroizing::new(blocks.to_vec());
    let mut step = ROUNDS.checked_mul(u64::try_from(blocks.len()).ok()?)?;
    for _ in 0..ROUNDS {
        for block in blocks.iter_mut().rev() {
            let mut input = join(&xor(integrity, step), block);
            cipher.decrypt(&mut *input, DecryptionContext::None).ok()?;
            (integrity, *block) = split(&input);
            step = step.checked_sub(1)?;
        }
    }
    verify_slices_are_equal(&integrity, &INITIAL_VALUE).ok()?;
    Some(Zeroizing::new(blocks.as_flattened().to_vec()))
}

fn cipher_key(key: &[u8]) -> Option<UnboundCipherKey> {
    let algorithm = match key.len() {
        16 => &AES_128,
        24 => &AES_192,
        32 => &AES_256,
        _ => return None,
    };
    UnboundCipherKey::new(algorithm, key).ok()
}

fn join(integrity: &[u8; BLOCK], block: &[u8; BLOCK]) -> Zeroizing<[u8; 2 * BLOCK]> {
    let mut joined = Zeroizing::new([0; 2 * BLOCK]);
    let (first, second) = joined.split_at_mut(BLOCK);
    first.copy_from_slice(integrity);
    second.copy_from_slice(block);
    joined
}

fn split(joined: &[u8; 2 * BLOCK]) -> ([u8; BLOCK], [u8; BLOCK]) {
    let mut halves = ([0; BLOCK], [0; BLOCK]);
    let (first, second) = joined.split_at(BLOCK);
    halves.0.copy_from_slice(first);
    halves.1.copy_from_slice(second);
    halves
}

fn xor(integrity: [u8; BLOCK], step: u64) -> [u8; BLOCK] {
    (u64::from_be_bytes(integrity) ^ step).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// RFC 3394 section 4; key encryption key, key, wrapped key.
    #[rstest]
    #[case::section_4_1(
        "000102030405060708090A0B0C0D0E0F",
        "00112233445566778899AABBCCDDEEFF",
        "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"
    )]
    #[case::section_4_2(
        "000102030405060708090A0B0C0D0E0F1011121314151617",
        "00112233445566778899AABBCCDDEEFF",
        "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D"
    )]
    #[case::section_4_3(
        "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F",
        "00112233445566778899AABBCCDDEEFF",
        "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"
    )]
    #[case::section_4_6(
        "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F",
        "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F",
        "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    )]
    fn the_vectors_of_rfc_3394_hold(#[case] kek: &str, #[case] key: &str, #[case] wrapped: &str) {
        let [kek, key, wrapped] = [kek, key, wrapped].map(|text| hex::decode(text).unwrap());
        assert_eq!(wrap(&kek, &key).unwrap(), wrapped);
        assert_eq!(*unwrap(&kek, &wrapped).unwrap(), key);
    }

    #[test]
    fn an_altered_key_does_not_unwrap() {
        let wrapped = wrap(&[1; 32], &[2; 32]).unwrap();
        for index in 0..wrapped.len() {
            let mut altered = wrapped.clone();
            altered[index] ^= 1;
            assert!(unwrap(&[1; 32], &altered).is_none());
        }
        assert!(unwrap(&[3; 32], &wrapped).is_none());
    }

    #[rstest]
    #[case(0)]
    #[case(8)]
    #[case(16)]
    #[case(39)]
    #[case(41)]
    fn keys_of_other_lengths_do_not_unwrap(#[case] length: usize) {
        assert!(unwrap(&[1; 32], &vec![0; length]).is_none());
        assert!(unwrap(&[1; 31], &[0; 40]).is_none());
    }
}
