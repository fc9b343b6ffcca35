//! A PE file's Authenticode hash (Microsoft, "Windows Authenticode Portable Executable Signature Format"), as
//! UEFI measures an application.

use aws_lc_rs::digest::{Context, SHA256};

use crate::bytes::{size_at, u16_at};
use crate::error::Error;

/// Within the PE header: after the signature and the COFF header comes the optional header.
const SECTION_COUNT: usize = 6;
const OPTIONAL_LENGTH: usize = 20;
const OPTIONAL: usize = 24;
/// Within the optional header of 64-bit files (PE32+).
const PE32_PLUS: u16 = 0x20b;
const HEADERS_LENGTH: usize = 60;
const CHECKSUM: usize = 64;
const DIRECTORY_COUNT: usize = 108;
/// The entry of the certificate table, the fifth of the data directories.
const CERTIFICATES: usize = 112 + 4 * 8;
const DIRECTORY: usize = 8;
const SECTION: usize = 40;

/// The SHA-256 Authenticode hash in hexadecimal: all of the file but its checksum, the place of its signatures,
/// and these.
pub(crate) fn hash(file: &[u8]) -> Result<String, Error> {
    hashed_parts(file).map(|parts| {
        let mut context = Context::new(&SHA256);
        parts.into_iter().for_each(|part| context.update(part));
        hex::encode(context.finish())
    })
}

fn hashed_parts(file: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let header =
        size_at(file, 0x3c).filter(|at| file.get(*at..).is_some_and(|rest| rest.starts_with(b"PE\0\0")));
    let header = header.ok_or_else(|| refuse("a PE header", "none"))?;
    let optional = header + OPTIONAL;
    match u16_at(file, optional) {
        Some(PE32_PLUS) => {}
        other => return Err(refuse("a 64-bit PE file (PE32+)", format!("magic {other:x?}"))),
    }
    let ends = || refuse("a whole PE file", "one that ends early");
    let headers = size_at(file, optional + HEADERS_LENGTH).ok_or_else(ends)?;
    let directories = size_at(file, optional + DIRECTORY_COUNT).ok_or_else(ends)?;
    let certificates = optional + CERTIFICATES;
    if directories <= 4 || headers < certificates + DIRECTORY {
        return Err(refuse("a PE header with a certificate table", format!("{directories} directories")));
    }
    let signatures = size_at(file, certificates + 4).ok_or_else(ends)?;
    let mut parts = vec![
        file.get(..optional + CHECKSUM).ok_or_else(ends)?,
        file.get(optional + CHECKSUM + 4..certificates).ok_or_else(ends)?,
        file.get(certificates + DIRECTORY..headers).ok_or_else(ends)?,
    ];
    let mut hashed = headers;
    for (start, length) in sections(file, header).ok_or_else(ends)? {
        let end = start.checked_add(length).ok_or_else(ends)?;
        parts.push(file.get(start..end).ok_or_else(ends)?);
        hashed = hashed.checked_add(length).ok_or_else(ends)?;
    }
    // What follows the sections counts too, up to the signatures.
    let end = file.len().checked_sub(signatures).ok_or_else(ends)?;
    parts.extend(file.get(hashed..end));
    Ok(parts)
}

/// Where the sections that are in the file start, and their lengths, in the order of the file.
fn sections(file: &[u8], header: usize) -> Option<Vec<(usize, usize)>> {
    let count = usize::from(u16_at(file, header + SECTION_COUNT)?);
    let table = header + OPTIONAL + usize::from(u16_at(file, header + OPTIONAL_LENGTH)?);
    let mut sections = (0..count)
        .map(|index| table + index * SECTION)
        .map(|entry| Some((size_at(file, entry + 20)?, size_at(file, entry + 16)?)))
        .collect::<Option<Vec<_>>>()?;
    sections.retain(|(_, length)| *length > 0);
    sections.sort_unstable();
    Some(sections)
}

fn refuse(expected: &'static str, actual: impl Into<String>) -> Error {
    Error::Kernel { expected, actual: actual.into() }
}
