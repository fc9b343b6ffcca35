//! What the guest that `make guest` built measures to, with one byte of one of its files changed.

use std::path::Path;

use sealpod_tests::{guest, repository, sealpod};
use serde_json::Value;

/// The GUID of what is packed with LZMA in firmware (EE4E5898-3914-4259-9D6E-DC7BD79403CF), as it is stored.
const LZMA: [u8; 16] =
    [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];

/// The reference values of a guest, where it can be measured.
fn measure(folder: &Path) -> Option<Value> {
    let output = sealpod().args(["guest", "measure", "--json"]).arg(folder).output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

/// Measures with one bit of one file changed.
fn measure_changed(file: &str, at: impl FnOnce(&[u8]) -> usize) -> Option<Value> {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(guest()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(file);
    let mut content = std::fs::read(&path).unwrap();
    let at = at(&content);
    content[at] ^= 1;
    std::fs::write(&path, content).unwrap();
    measure(copy.path())
}

fn find(content: &[u8], what: &[u8]) -> usize {
    content.windows(what.len()).position(|bytes| bytes == what).unwrap()
}

#[test]
fn one_changed_byte_of_the_real_files_changes_their_value_alone() {
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(guest().join("guest.json")).unwrap()).unwrap();
    let name = |member: &str| manifest[member].as_str().unwrap().to_owned();
    let before = measure(&guest()).unwrap();
    let assert_alone = |id: &str, after: Value| {
        for (other, values) in before.as_object().unwrap() {
            assert_eq!(other != id, after[other] == *values, "{id} was changed; {other}: {}", after[other]);
        }
    };
    // Into the compressed kernel, past the headers.
    assert_alone("kernel", measure_changed(&name("kernel"), |kernel| kernel.len() / 2).unwrap());
    for part in [1, 2, 3] {
        let at = |initrd: &[u8]| initrd.len() * part / 4;
        assert_alone("initrd", measure_changed(&name("initrd"), at).unwrap());
    }
    let word = |manifest: &[u8]| find(manifest, b"quiet");
    assert_alone("cmdline", measure_changed("guest.json", word).unwrap());
    // Of packed firmware, a changed byte changes all that follows; it may not unpack at all.
    if let Some(after) = measure_changed(&name("firmware"), |code| find(code, &LZMA) + (256 << 10)) {
        assert_alone("firmware", after);
    }
}

/// Or the same sources, built elsewhere, would measure to something else.
#[test]
fn the_guests_programs_name_no_path_of_the_machine_that_built_them() {
    let read = |name: &str| std::fs::read(guest().join(name)).unwrap();
    // One chunk of a legacy frame, after the frame's magic number and the chunk's length.
    let initrd = lz4::block::decompress(&read("initrd.cpio.lz4")[8..], Some(8 << 20)).unwrap();
    for (place, content) in [("initrd", initrd), ("agent.rom", read("agent.rom"))] {
        let positions = |what: &[u8]| -> Vec<usize> {
            content
                .windows(what.len())
                .enumerate()
                .filter(|(_, bytes)| *bytes == what)
                .map(|(at, _)| at)
                .collect()
        };
        let sources = positions(b"/registry/src/");
        assert!(!sources.is_empty(), "panics in {place} name files of dependencies");
        for at in sources {
            let before = String::from_utf8_lossy(&content[at.saturating_sub(40)..at]);
            assert!(before.ends_with("/cargo"), "{place}: {before}");
        }
        assert_eq!(positions(format!("{}/", repository().display()).as_bytes()), [0; 0], "{place}");
    }
}
