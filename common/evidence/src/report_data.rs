//! What evidence binds: the handshake's nonce and the guest's public key, by one hash.

use serde_json::Value;

use crate::{HashAlgorithm, jcs};

/// The report data of protocol 0.4.0: the hash of the runtime data in canonical form (RFC 8785).
pub fn report_data(algorithm: HashAlgorithm, runtime_data: &Value) -> Vec<u8> {
    algorithm.digest(&jcs::canonical(runtime_data))
}

/// Cuts bytes to a field's length or fills it up with zeros at the end.
pub fn fit(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut field: Vec<u8> = bytes.iter().copied().take(length).collect();
    field.resize(length, 0);
    field
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_members_does_not_matter() {
        let one = json!({ "nonce": "AAAA", "tee-pubkey": { "kty": "EC", "crv": "P-256" }, "additional-evidence": "" });
        let other = json!({ "additional-evidence": "", "tee-pubkey": { "crv": "P-256", "kty": "EC" }, "nonce": "AAAA" });
        assert_eq!(report_data(HashAlgorithm::Sha384, &one), report_data(HashAlgorithm::Sha384, &other));
    }

    #[test]
    fn another_nonce_gives_other_report_data() {
        let of = |nonce: &str| report_data(HashAlgorithm::Sha384, &json!({ "nonce": nonce }));
        assert_ne!(of("AAAA"), of("AAAB"));
    }

    #[test]
    fn a_field_is_cut_or_filled_with_zeros() {
        assert_eq!(fit(&[1, 2, 3], 2), [1, 2]);
        assert_eq!(fit(&[1, 2, 3], 5), [1, 2, 3, 0, 0]);
    }
}
