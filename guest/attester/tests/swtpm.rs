//! The attester against a real TPM emulator, started and ended by the test.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sealpod_attester::tpm::Transport;
use sealpod_attester::{Attester, Error, TpmAttester};
use sealpod_evidence::tpm::{Attest, Evidence, PcrSelection, Public, RequestParams, attributes};
use sealpod_evidence::{HashAlgorithm, fit};
use serde_json::Value;
use zeroize::Zeroizing;

/// A manufactured TPM that a process emulates.
struct Emulator {
    process: Child,
    folder: tempfile::TempDir,
}

/// The emulator's data channel: a command, a response.
struct Channel(UnixStream);

impl Emulator {
    fn start(ecc: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let authority = path("ca");
        std::fs::create_dir(&authority).unwrap();
        std::fs::create_dir(path("state")).unwrap();
        std::fs::write(
            path("localca.conf"),
            format!(
                "statedir = {0}\nsigningkey = {0}/key.pem\nissuercert = {0}/issuer.pem\ncertserial = {0}/serial\n",
                authority.display()
            ),
        )
        .unwrap();
        std::fs::write(
            path("localca.options"),
            "--platform-manufacturer test\n--platform-version 1\n--platform-model x\n",
        )
        .unwrap();
        std::fs::write(
            path("setup.conf"),
            format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\nactive_pcr_banks = sha256\n",
                path("localca.conf").display(),
                path("localca.options").display()
            ),
        )
        .unwrap();
        let mut setup = Command::new("swtpm_setup");
        setup.args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--tpmstate"]).arg(path("state"));
        setup.arg("--config").arg(path("setup.conf"));
        if ecc {
            setup.arg("--ecc");
        }
        let output = setup.output().expect("swtpm_setup (package swtpm-tools) is needed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", path("state").display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", path("socket").display()))
            .stdout(Stdio::null())
            .spawn()
            .expect("swtpm (package swtpm) is needed");
        Self { process, folder }
    }

    fn attester(&self) -> TpmAttester<Channel> {
        let socket = self.folder.path().join("socket");
        let channel = loop {
            match UnixStream::connect(&socket) {
                Ok(channel) => break channel,
                Err(_) => std::thread::yield_now(),
            }
        };
        let event_log = self.folder.path().join("event_log");
        std::fs::write(&event_log, b"a log").unwrap();
        TpmAttester::new(Channel(channel), &event_log)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Transport for Channel {
    fn transmit(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        use std::io::{Read, Write};
        self.0.write_all(command).unwrap();
        let mut response = Zeroizing::new(vec![0; 4096]);
        let length = self.0.read(&mut response).unwrap();
        response.truncate(length);
        Ok(response)
    }
}

fn request_params(attester: &mut TpmAttester<Channel>) -> RequestParams {
    let params = attester.request_params().unwrap();
    serde_json::from_value(params["tpm"].clone()).unwrap()
}

#[test]
fn the_keys_are_what_a_verifier_asks_for() {
    for ecc in [true, false] {
        let emulator = Emulator::start(ecc);
        let mut attester = emulator.attester();
        let params = request_params(&mut attester);
        let ek = Public::parse(&params.ek_public).unwrap();
        assert!(ek.has(attributes::RESTRICTED | attributes::DECRYPT) && !ek.has(attributes::SIGN));
        // The certificate is for this very key.
        let key = ek.spki_der();
        assert!(params.ek_certificate.windows(key.len()).any(|window| window == key));
        let ak = Public::parse(&params.ak_public).unwrap();
        assert!(ak.has(attributes::RESTRICTED | attributes::SIGN | attributes::FIXED_TPM));
        // The same key for the whole boot.
        assert_eq!(request_params(&mut attester).ak_public, params.ak_public);
    }
}

#[test]
fn a_quote_binds_the_report_data_and_covers_the_registers_that_are_presented() {
    let emulator = Emulator::start(true);
    let mut attester = emulator.attester();
    let init_data = HashAlgorithm::Sha256.digest(b"init data");
    attester.extend_init_data(&init_data).unwrap();
    let report_data = [7; 48];
    let evidence = attester.evidence(&report_data, &Value::Null).unwrap();
    let evidence: Evidence = serde_json::from_value(evidence).unwrap();
    let attest = Attest::parse(&evidence.tpm_quote.message).unwrap();
    assert_eq!(attest.extra_data, fit(&report_data, 32));
    assert_eq!(attest.selection, PcrSelection::of(HashAlgorithm::Sha256, 0..=9));
    let pcrs: Vec<Vec<u8>> = evidence.tpm_quote.pcrs.iter().map(|pcr| decode_hex(pcr)).collect();
    let parts: Vec<&[u8]> = pcrs.iter().map(Vec::as_slice).collect();
    assert_eq!(attest.pcr_digest, HashAlgorithm::Sha256.digest_parts(&parts));
    assert_eq!(pcrs[8], HashAlgorithm::Sha256.digest_parts(&[&[0; 32], &init_data]));
    assert_eq!(evidence.event_log.unwrap(), b"a log");
    assert_eq!(evidence.credential_proof, None);
}

#[test]
fn a_credential_that_was_not_made_for_these_keys_is_refused_and_leaves_the_tpm_usable() {
    let emulator = Emulator::start(false);
    let mut attester = emulator.attester();
    let challenge = serde_json::json!({ "tpm": {
        "credential_blob": "ACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "encrypted_secret": "AAAA",
    } });
    for _ in 0..4 {
        assert!(matches!(attester.evidence(&[1; 32], &challenge), Err(Error::Tpm { .. })));
    }
    attester.evidence(&[1; 32], &Value::Null).unwrap();
}

#[test]
fn a_credential_that_is_longer_than_a_tpm_takes_is_refused() {
    let emulator = Emulator::start(true);
    let mut attester = emulator.attester();
    let long = "AAAA".repeat(1 << 15);
    for (blob, secret) in [(long.as_str(), "AAAA"), ("AAAA", &long)] {
        let challenge = serde_json::json!({ "tpm": { "credential_blob": blob, "encrypted_secret": secret } });
        assert!(matches!(attester.evidence(&[1; 32], &challenge), Err(Error::Protocol(_))));
    }
}

#[test]
fn a_missing_device_is_named() {
    let error =
        TpmAttester::open(Path::new("/nonexistent/tpm0"), Path::new("/nonexistent/log")).err().unwrap();
    assert_eq!(error.to_string(), "cannot open /nonexistent/tpm0");
}

fn decode_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|index| u8::from_str_radix(&text[index..index + 2], 16).unwrap()).collect()
}
