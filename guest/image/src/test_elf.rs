//! The smallest ELF files for tests.

/// A module with `depends=` in `.modinfo`.
pub(crate) fn module(depends: &str) -> Vec<u8> {
    let modinfo = format!("license=GPL\0depends={depends}\0name=x\0").into_bytes();
    let names = b"\0.modinfo\0.shstrtab\0";
    let modinfo_at = 64;
    let names_at = modinfo_at + modinfo.len() as u64;
    let sections_at = (names_at + names.len() as u64).next_multiple_of(8);
    let mut file = header(1, 0, 0, sections_at, 3, 2);
    file.extend_from_slice(&modinfo);
    file.extend_from_slice(names);
    file.resize(sections_at as usize, 0);
    file.extend_from_slice(&[0; 64]);
    file.extend(section(1, 1, modinfo_at, modinfo.len() as u64));
    file.extend(section(10, 3, names_at, names.len() as u64));
    file
}

/// A program, static or with an interpreter.
pub(crate) fn program(dynamic: bool) -> Vec<u8> {
    let mut file = header(2, 64, 1, 0, 0, 0);
    file.extend_from_slice(&u32::to_le_bytes(if dynamic { 3 } else { 1 }));
    file.extend_from_slice(&[0; 52]);
    file
}

fn header(
    kind: u16,
    segments_at: u64,
    segments: u16,
    sections_at: u64,
    sections: u16,
    names: u16,
) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend_from_slice(&kind.to_le_bytes());
    file.extend_from_slice(&62u16.to_le_bytes());
    file.extend_from_slice(&1u32.to_le_bytes());
    for word in [0, segments_at, sections_at] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0; 4]);
    for half in [64, 56, segments, 64, sections, names] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file
}

fn section(name: u32, kind: u32, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = name.to_le_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_le_bytes());
    for word in [0, 0, at, length, 0, 1, 0] {
        bytes.extend_from_slice(&u64::to_le_bytes(word));
    }
    bytes
}
