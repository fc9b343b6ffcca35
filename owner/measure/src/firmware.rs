//! OVMF's code: a volume with one file, in which an LZMA section holds the volumes of the PEI and DXE phases
//! (UEFI PI specification, volume 3).

use crate::bytes::{long_size_at, short_size_at, size_at, u16_at};
use crate::error::Error;

/// Within a volume's header.
const VOLUME_LENGTH: usize = 32;
const SIGNATURE: std::ops::Range<usize> = 40..44;
const HEADER_LENGTH: usize = 48;
const EXTENDED_HEADER: usize = 52;
/// Within a file's header: its GUID, two checksums, type, attributes, length.
const FILE_TYPE: usize = 18;
const FILE_ATTRIBUTES: usize = 19;
const FILE_LENGTH: usize = 20;
const FILE_HEADER: usize = 24;
const LARGE_FILE: u8 = 1;
const DXE_CORE: u8 = 0x05;
const VOLUME_FILE: u8 = 0x0b;
/// Sections: a length of 24 bits, or 32 behind a length of all ones; and a type.
const SECTION_HEADER: usize = 4;
const LARGE_SECTION: usize = 0x00ff_ffff;
const GUID_DEFINED: u8 = 0x02;
const VOLUME_IMAGE: u8 = 0x17;
/// EE4E5898-3914-4259-9D6E-DC7BD79403CF
const LZMA: [u8; 16] =
    [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];
/// The properties and dictionary size before the unpacked length.
const LZMA_LENGTH: usize = 5;
/// More than any OVMF unpacks to.
const UNPACKED_LIMIT: usize = 64 << 20;

/// The volume with the core of the DXE phase, unpacked, as the PEI phase measures it.
pub(crate) fn dxe_volume(firmware: &[u8]) -> Result<Vec<u8>, Error> {
    let mut found = Vec::new();
    for volume in volumes(firmware)? {
        // Other files may hold no sections.
        for file in files(volume)?.into_iter().filter(|file| file.kind == VOLUME_FILE) {
            for packed in sections(file.content)?.into_iter().filter_map(lzma_section) {
                let unpacked = unpack(packed)?;
                let inner = sections(&unpacked)?;
                let images = inner.iter().filter(|section| section.kind == VOLUME_IMAGE);
                for image in images.map(|section| section.content) {
                    if files(image)?.iter().any(|file| file.kind == DXE_CORE) {
                        found.push(image.to_vec());
                    }
                }
            }
        }
    }
    let count = found.len();
    match found.pop() {
        Some(volume) if count == 1 => Ok(volume),
        _ => Err(refuse("one volume with a DXE core", format!("{count}"))),
    }
}

/// A file in a volume.
struct File<'a> {
    kind: u8,
    content: &'a [u8],
}

/// A section in a file.
struct Section<'a> {
    kind: u8,
    header: &'a [u8],
    content: &'a [u8],
}

fn volumes(mut firmware: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut volumes = Vec::new();
    while !firmware.is_empty() {
        if firmware.get(SIGNATURE) != Some(b"_FVH") {
            return Err(refuse("a firmware volume", "something else"));
        }
        let length = long_size_at(firmware, VOLUME_LENGTH).filter(|length| *length > EXTENDED_HEADER);
        let (volume, rest) = length
            .and_then(|length| firmware.split_at_checked(length))
            .ok_or_else(|| refuse("a whole volume", "one that ends early"))?;
        volumes.push(volume);
        firmware = rest;
    }
    Ok(volumes)
}

fn files(volume: &[u8]) -> Result<Vec<File<'_>>, Error> {
    if volume.get(SIGNATURE) != Some(b"_FVH") {
        return Err(refuse("a firmware volume", "something else"));
    }
    let ends = || refuse("whole files in a volume", "one that ends early");
    let mut at = first_file(volume).ok_or_else(ends)?;
    let mut files = Vec::new();
    // Free space is all ones; at the end there may be too little for a header.
    while let Some(header) = volume.get(at..).and_then(|rest| rest.get(..FILE_HEADER)) {
        if header.iter().all(|byte| *byte == 0xff) {
            break;
        }
        let large = header[FILE_ATTRIBUTES] & LARGE_FILE != 0;
        let (start, length) = if large {
            (FILE_HEADER + 8, long_size_at(volume, at + FILE_HEADER))
        } else {
            (FILE_HEADER, short_size_at(header, FILE_LENGTH))
        };
        let length = length.filter(|length| *length >= start).ok_or_else(ends)?;
        let end = at.checked_add(length).ok_or_else(ends)?;
        let content = volume.get(at + start..end).ok_or_else(ends)?;
        files.push(File { kind: header[FILE_TYPE], content });
        at = end.next_multiple_of(8);
    }
    Ok(files)
}

/// Files start after the header, or after the extended header if there is one, at a multiple of 8.
fn first_file(volume: &[u8]) -> Option<usize> {
    let extended = usize::from(u16_at(volume, EXTENDED_HEADER)?);
    if extended == 0 {
        return u16_at(volume, HEADER_LENGTH).map(usize::from);
    }
    let length = size_at(volume, extended + 16)?;
    extended.checked_add(length)?.checked_next_multiple_of(8)
}

/// The sections that follow each other at multiples of 4.
fn sections(content: &[u8]) -> Result<Vec<Section<'_>>, Error> {
    let ends = || refuse("whole sections in a file", "one that ends early");
    let mut sections = Vec::new();
    let mut at = 0;
    while let Some(short) = content.get(at..).and_then(|rest| short_size_at(rest, 0)) {
        let Some(kind) = content.get(at + 3) else { break };
        let (start, length) = if short == LARGE_SECTION {
            (SECTION_HEADER + 4, size_at(content, at + SECTION_HEADER).ok_or_else(ends)?)
        } else {
            (SECTION_HEADER, short)
        };
        let end = at.checked_add(length).filter(|end| *end >= at + start).ok_or_else(ends)?;
        let whole = content.get(at..end).ok_or_else(ends)?;
        let (header, content) = whole.split_at_checked(start).ok_or_else(ends)?;
        sections.push(Section { kind: *kind, header, content });
        at = end.next_multiple_of(4);
    }
    Ok(sections)
}

/// The packed data of a section that is packed with LZMA: behind GUID, data offset and attributes.
fn lzma_section(section: Section<'_>) -> Option<&[u8]> {
    let packed = section.kind == GUID_DEFINED && section.content.starts_with(&LZMA);
    let offset = usize::from(u16_at(section.content, LZMA.len()).filter(|_| packed)?);
    section.content.get(offset.checked_sub(section.header.len())?..)
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, Error> {
    let length = long_size_at(packed, LZMA_LENGTH).unwrap_or(usize::MAX);
    if length > UNPACKED_LIMIT {
        return Err(refuse("at most 64 MiB of unpacked volumes", format!("{length} bytes")));
    }
    let mut unpacked = Vec::with_capacity(length);
    let options = lzma_rs::decompress::Options { memlimit: Some(UNPACKED_LIMIT), ..Default::default() };
    lzma_rs::lzma_decompress_with_options(&mut &packed[..], &mut unpacked, &options)
        .map_err(|error| refuse("a section packed with LZMA", format!("{error:?}")))?;
    Ok(unpacked)
}

fn refuse(expected: &'static str, actual: impl Into<String>) -> Error {
    Error::Firmware { expected, actual: actual.into() }
}
