//! The whole story on real parts: key broker, registry, measured VMs with TPMs, containers, and the attacks.

use sealpod_tests::{assert_no_process_mentions, sealpod};
use serde_json::Value;

#[test]
fn the_demo_does_what_it_says_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let report = folder.path().join("report.json");
    let output = sealpod()
        .args(["demo", "--report"])
        .arg(&report)
        .env("TMPDIR", &temporary)
        .env("XDG_RUNTIME_DIR", folder.path().join("run"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));

    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["ok"], true);
    for stage in ["boot", "agent", "attest", "image", "start"] {
        assert!(report["stages_ms"][stage].as_u64().is_some(), "{stage} is missing");
    }
    let attacks = report["attacks"].as_array().unwrap();
    assert_eq!(attacks.len(), 7);
    for attack in attacks {
        assert_eq!(attack["ok"], true, "{attack}");
    }
    // What the container printed and served came through, and so did its secret.
    assert!(said.contains("serving HTTP on port 8080"));
    assert!(said.contains("a secret of 43 bytes"));
    assert!(said.contains("Hello from a measured VM."));

    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    // Every program of the demo has a file of its own in the temporary folder on its command line.
    assert_no_process_mentions(&temporary);
}
