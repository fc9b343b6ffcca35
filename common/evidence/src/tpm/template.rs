//! The public areas from which keys are created (`TPM2B_PUBLIC` of `TPM2_CreatePrimary`, without its length).

/// Endorsement key, RSA 2048: template L-1 of the TCG EK Credential Profile, whose certificate stands at NV index
/// 0x01c00002.
pub const EK_RSA_2048: &[u8] = &ek_rsa_2048();

/// Endorsement key, ECC P-256: template L-2 of the TCG EK Credential Profile, whose certificate stands at NV index
/// 0x01c0000a.
pub const EK_P256: &[u8] = &ek_p256();

/// Attestation key: a restricted signing key, ECC P-256, ECDSA with SHA-256.
pub const AK_P256: &[u8] = &[
    0x00, 0x23, // TPM_ALG_ECC
    0x00, 0x0b, // nameAlg SHA-256
    0x00, 0x05, 0x04,
    0x72, // fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign
    0x00, 0x00, // no policy
    0x00, 0x10, // no symmetric cipher
    0x00, 0x18, 0x00, 0x0b, // ECDSA with SHA-256
    0x00, 0x03, // P-256
    0x00, 0x10, // no key derivation
    0x00, 0x00, 0x00, 0x00, // x, y
];

/// `PolicySecret(TPM_RH_ENDORSEMENT)` under SHA-256 ("PolicyA" of the profile).
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// fixedTPM fixedParent sensitiveDataOrigin adminWithPolicy restricted decrypt.
const EK_ATTRIBUTES: [u8; 4] = [0x00, 0x03, 0x00, 0xb2];

const fn ek_rsa_2048() -> [u8; 314] {
    let parameters = [
        0x00, 0x06, 0x00, 0x80, 0x00, 0x43, // AES-128-CFB
        0x00, 0x10, // no scheme
        0x08, 0x00, // 2048 bits
        0x00, 0x00, 0x00, 0x00, // exponent 65537
        0x01, 0x00, // a modulus of 256 zeros follows
    ];
    ek([0x00, 0x01], parameters)
}

const fn ek_p256() -> [u8; 122] {
    let parameters = [
        0x00, 0x06, 0x00, 0x80, 0x00, 0x43, // AES-128-CFB
        0x00, 0x10, // no scheme
        0x00, 0x03, // P-256
        0x00, 0x10, // no key derivation
        0x00, 0x20, // x of 32 zeros follows, then y
    ];
    let mut template: [u8; 122] = ek([0x00, 0x23], parameters);
    template[122 - 33] = 0x20;
    template
}

/// Type, nameAlg SHA-256, attributes, policy, parameters, zeros.
const fn ek<const N: usize, const P: usize>(kind: [u8; 2], parameters: [u8; P]) -> [u8; N] {
    let mut template = [0; N];
    template[0] = kind[0];
    template[1] = kind[1];
    template[3] = 0x0b;
    let mut index = 0;
    while index < 4 {
        template[4 + index] = EK_ATTRIBUTES[index];
        index += 1;
    }
    template[9] = 32;
    index = 0;
    while index < 32 {
        template[10 + index] = POLICY_A_SHA256[index];
        index += 1;
    }
    index = 0;
    while index < P {
        template[42 + index] = parameters[index];
        index += 1;
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::{Curve, Parameters, Public, attributes};

    #[test]
    fn the_templates_are_well_formed() {
        let rsa = Public::parse(EK_RSA_2048).unwrap();
        assert!(matches!(rsa.parameters, Parameters::Rsa { ref modulus, .. } if modulus.len() == 256));
        let ecc = Public::parse(EK_P256).unwrap();
        assert!(matches!(ecc.parameters, Parameters::Ecc { curve: Curve::P256, .. }));
        for ek in [rsa, ecc] {
            assert!(ek.has(attributes::RESTRICTED | attributes::DECRYPT) && !ek.has(attributes::SIGN));
            assert_eq!(ek.symmetric.unwrap().key_bits, 128);
        }
        let ak = Public::parse(AK_P256).unwrap();
        assert!(ak.has(attributes::RESTRICTED | attributes::SIGN | attributes::FIXED_TPM));
        assert!(!ak.has(attributes::DECRYPT));
    }
}
