//! Whom servers' certificates may come from: what browsers trust, and what the owner adds.
//!
//! They are for registries, and for a key broker whose certificate the owner did not pin. An image's authenticity
//! never rests on these: its policy, signatures and digests decide that. A secret is sealed to the guest's key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// The owner's certificates and the public ones, each in PEM.
pub(crate) fn with(more: &[String]) -> Vec<String> {
    let public = TLS_SERVER_ROOT_CERTS.iter().map(|certificate| pem(certificate));
    public.chain(more.iter().cloned()).collect()
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

#[cfg(test)]
mod tests {
    use sealpod_image::registry::{Client, ClientOptions};

    use super::*;

    #[test]
    fn a_registry_client_takes_them() {
        let extra_root_certificates = with(&[]);
        assert!(extra_root_certificates.len() > 50);
        let options =
            ClientOptions { extra_root_certificates, system_roots: false, ..ClientOptions::default() };
        Client::new(options).unwrap();
    }
}
