//! Reading tar archives: POSIX ustar and pax, GNU, and the original form.
//!
//! Our own reader rather than a crate's, for what hostile archives need: extension headers are bounded (a
//! compressed gigabyte of file name must not fill the memory), records may hold line breaks (binary
//! attributes do), all of GNU tar's sparse files are known, and nothing is passed over in silence.

use std::io::Read;

use super::UnpackError;
use super::extension::{Extension, MAX_SEGMENTS, Segments, records};
use super::numeric::{Time, decimal, header_number, header_size};

const BLOCK: usize = 512;
const BLOCK_SIZE: u64 = 512;
/// The longest extension header or long name, in bytes. Linux takes names of 4096 and attributes of 65536.
const MAX_EXTENSION_LENGTH: u64 = 1024 * 1024;

/// One member of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) metadata: Metadata,
}

/// What a file has besides its content.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    /// Permission bits, set-user-id and the like included.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug)]
pub(super) enum Kind {
    File { data: Data },
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// A file's content: what is stored follows in the archive.
#[derive(Debug)]
pub(super) struct Data {
    /// The file's length.
    pub(super) real_size: u64,
    /// The bytes in the archive.
    pub(super) stored_size: u64,
    /// Where they belong.
    pub(super) segments: Segments,
}

/// An archive that is read once, from beginning to end.
pub(super) struct Archive<R> {
    source: R,
    /// Bytes of the current member that are still to come, and what fills its last block.
    left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0 }
    }

    /// The next member; passes over what was not read of the one before. `None` at the archive's end.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extension: Option<Extension> = None;
        let mut long_path: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                let dangling = extension.is_some() || long_path.is_some() || long_link.is_some();
                return if dangling { Err(malformed("it ends after an extension header")) } else { Ok(None) };
            };
            let twice = || malformed("two extension headers of the same kind for one member");
            match header.kind() {
                b'x' if extension.is_some() => return Err(twice()),
                b'x' => extension = Some(Extension::parse(&self.extension_data(&header)?)?),
                b'g' => check_global(&self.extension_data(&header)?)?,
                b'L' if long_path.is_some() => return Err(twice()),
                b'L' => long_path = Some(until_nul(&self.extension_data(&header)?).to_vec()),
                b'K' if long_link.is_some() => return Err(twice()),
                b'K' => long_link = Some(until_nul(&self.extension_data(&header)?).to_vec()),
                _ => {
                    let mut extension = extension.unwrap_or_default();
                    extension.path = extension.path.or(long_path);
                    extension.link = extension.link.or(long_link);
                    return self.member(&header, extension).map(Some);
                }
            }
        }
    }

    /// Reads the current file's next stored bytes; 0 at their end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let count = self.source.read(buffer).map_err(UnpackError::read)?;
        if count == 0 {
            return Err(malformed("it ends within a file"));
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads whatever follows the archive's end.
    pub(super) fn drain(&mut self) -> Result<(), UnpackError> {
        std::io::copy(&mut self.source, &mut std::io::sink()).map(|_| ()).map_err(UnpackError::read)
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(block);
        if !header.checksum_matches() {
            return Err(malformed("a header's checksum does not match"));
        }
        Ok(Some(header))
    }

    /// Makes a member of its header and what came before it.
    fn member(&mut self, header: &Header, extension: Extension) -> Result<Entry, UnpackError> {
        let path = extension.path.unwrap_or_else(|| header.path());
        if path.is_empty() {
            return Err(malformed("a member without a name"));
        }
        let link = extension.link.unwrap_or_else(|| until_nul(header.field(157, 100)).to_vec());
        let metadata = Metadata {
            mode: u32::try_from(header.number(100, 8, "mode")? & 0o7777).unwrap_or_default(),
            uid: extension.uid.map_or_else(|| header.id(108, "user id"), Ok)?,
            gid: extension.gid.map_or_else(|| header.id(116, "group id"), Ok)?,
            mtime: extension.mtime.map_or_else(|| header.number(136, 12, "time").map(|t| (t, 0)), Ok)?,
            xattrs: extension.xattrs,
        };
        let kind = match header.kind() {
            // The original form had no type for directories.
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                let size = extension.size.map_or_else(|| header.size(), Ok)?;
                self.begin_data(size)?;
                let sparse =
                    extension.sparse.map(|sparse| (sparse.map_in_data, sparse.segments, sparse.real_size));
                Kind::File { data: self.file_data(header, size, sparse)? }
            }
            b'1' => Kind::HardLink { target: link },
            b'2' => Kind::Symlink { target: link },
            b'3' => Kind::CharacterDevice { major: header.device(329)?, minor: header.device(337)? },
            b'4' => Kind::BlockDevice { major: header.device(329)?, minor: header.device(337)? },
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let reason = format!("a member of the unknown type {:?}", char::from(other));
                return Err(UnpackError::refused(&path, reason));
            }
        };
        Ok(Entry { path, kind, metadata })
    }

    fn file_data(
        &mut self,
        header: &Header,
        size: u64,
        pax: Option<(bool, Segments, Option<u64>)>,
    ) -> Result<Data, UnpackError> {
        let (segments, real_size) = match pax {
            _ if header.kind() == b'S' => self.gnu_map(header)?,
            Some((map_in_data, segments, real_size)) => {
                let real_size = real_size.ok_or_else(|| malformed("a sparse file without its size"))?;
                (if map_in_data { self.map_in_data()? } else { segments }, real_size)
            }
            None => return Ok(Data { real_size: size, stored_size: size, segments: vec![(0, size)] }),
        };
        let stored_size = self.left;
        check_segments(&segments, stored_size, real_size)?;
        Ok(Data { real_size, stored_size, segments })
    }

    /// The map of GNU tar's own sparse files: in the header, and in blocks between it and the data.
    fn gnu_map(&mut self, header: &Header) -> Result<(Segments, u64), UnpackError> {
        let mut segments = Segments::new();
        let mut take = |entries: &[u8]| -> Result<(), UnpackError> {
            for entry in entries.chunks_exact(24) {
                let (offset, length) = entry.split_at(12);
                if offset.first() == Some(&0) || offset.iter().all(|byte| *byte == 0) {
                    return Ok(());
                }
                let number = |field| header_size(field).ok_or_else(|| malformed("a sparse file's map"));
                segments.push((number(offset)?, number(length)?));
            }
            if segments.len() > MAX_SEGMENTS {
                Err(malformed("a sparse file's map is too long"))
            } else {
                Ok(())
            }
        };
        take(header.field(386, 96))?;
        let mut extended = header.field(482, 1) == [1];
        while extended {
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? {
                return Err(malformed("it ends within a sparse file's map"));
            }
            take(block.get(..504).unwrap_or_default())?;
            extended = block.get(504) == Some(&1);
        }
        let real_size =
            header_size(header.field(483, 12)).ok_or_else(|| malformed("a sparse file's size"))?;
        Ok((segments, real_size))
    }

    /// The map of PAX sparse files of version 1.0: decimal numbers, a line each, in whole blocks before the
    /// data.
    fn map_in_data(&mut self) -> Result<Segments, UnpackError> {
        let mut numbers = MapNumbers { archive: self, block: [0; BLOCK], position: BLOCK };
        let count = numbers.next_number()?;
        if count > MAX_SEGMENTS as u64 {
            return Err(malformed("a sparse file's map is too long"));
        }
        let mut segments = Segments::new();
        for _ in 0..count {
            segments.push((numbers.next_number()?, numbers.next_number()?));
        }
        Ok(segments)
    }

    fn extension_data(&mut self, header: &Header) -> Result<Vec<u8>, UnpackError> {
        let size = header.size()?;
        if size > MAX_EXTENSION_LENGTH {
            let text =
                format!("an extension header of {size} bytes, at most {MAX_EXTENSION_LENGTH} are read");
            return Err(malformed(&text));
        }
        self.begin_data(size)?;
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        let mut filled = 0;
        while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += self.read_data(rest)?;
        }
        Ok(data)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), UnpackError> {
        self.padding = (BLOCK_SIZE - size % BLOCK_SIZE) % BLOCK_SIZE;
        self.left = size;
        if size > i64::MAX as u64 { Err(malformed("a file's size is out of range")) } else { Ok(()) }
    }

    fn skip_rest(&mut self) -> Result<(), UnpackError> {
        let count = self.left.saturating_add(std::mem::take(&mut self.padding));
        self.left = 0;
        let mut rest = self.source.by_ref().take(count);
        let skipped = std::io::copy(&mut rest, &mut std::io::sink()).map_err(UnpackError::read)?;
        if skipped == count { Ok(()) } else { Err(malformed("it ends within a file")) }
    }

    /// Whether there was a block; `false` where the source ends before it.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest).map_err(UnpackError::read)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(malformed("it ends within a block")),
                count => filled += count,
            }
        }
        Ok(true)
    }
}

/// Decimal numbers, a line each.
struct MapNumbers<'a, R> {
    archive: &'a mut Archive<R>,
    block: [u8; BLOCK],
    position: usize,
}

impl<R: Read> MapNumbers<'_, R> {
    fn next_number(&mut self) -> Result<u64, UnpackError> {
        let mut digits = Vec::new();
        loop {
            if self.position == BLOCK {
                self.next_block()?;
            }
            let byte = self.block.get(self.position).copied().unwrap_or_default();
            self.position += 1;
            if byte == b'\n' {
                let number = decimal(&digits).filter(|_| !digits.is_empty());
                return number.ok_or_else(|| malformed("a sparse file's map"));
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(malformed("a sparse file's map"));
            }
        }
    }

    fn next_block(&mut self) -> Result<(), UnpackError> {
        self.archive.left =
            self.archive.left.checked_sub(BLOCK_SIZE).ok_or_else(|| malformed("a sparse file's map"))?;
        self.position = 0;
        match self.archive.read_block(&mut self.block)? {
            true => Ok(()),
            false => Err(malformed("it ends within a sparse file's map")),
        }
    }
}

/// A header block.
struct Header([u8; BLOCK]);

impl Header {
    /// A field of the header; the bounds are constants within the block.
    fn field(&self, start: usize, length: usize) -> &[u8] {
        self.0.get(start..start + length).unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or_default()
    }

    /// Name, after the prefix where the form has one: GNU's has other things in its place.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = until_nul(self.field(345, 155));
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    fn number(&self, start: usize, length: usize, name: &str) -> Result<i64, UnpackError> {
        header_number(self.field(start, length)).ok_or_else(|| malformed(&format!("a member's {name}")))
    }

    fn size(&self) -> Result<u64, UnpackError> {
        header_size(self.field(124, 12)).ok_or_else(|| malformed("a member's size"))
    }

    fn id(&self, start: usize, name: &str) -> Result<u32, UnpackError> {
        let id = u32::try_from(self.number(start, 8, name)?).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| malformed(&format!("a member's {name} is out of range")))
    }

    fn device(&self, start: usize) -> Result<u32, UnpackError> {
        u32::try_from(self.number(start, 8, "device number")?).map_err(|_| malformed("a device number"))
    }

    /// The sum of all bytes, the checksum's own taken as spaces. Some old programs summed signed bytes.
    fn checksum_matches(&self) -> bool {
        let own = |index: &usize| (148..156).contains(index);
        let bytes = || self.0.iter().enumerate().map(|(index, byte)| if own(&index) { b' ' } else { *byte });
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        header_number(self.field(148, 8)).is_some_and(|sum| sum == unsigned || sum == signed)
    }
}

/// Global headers are for comments (git writes its commit there). Anything else would change the members
/// that follow, and no other program that reads layers heeds it.
fn check_global(data: &[u8]) -> Result<(), UnpackError> {
    for record in records(data) {
        let (key, _) = record?;
        if key != b"comment" {
            let key = String::from_utf8_lossy(key);
            return Err(malformed(&format!("a global extension header with {key:?}, only comments may be")));
        }
    }
    Ok(())
}

fn check_segments(segments: &[(u64, u64)], stored_size: u64, real_size: u64) -> Result<(), UnpackError> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for (offset, length) in segments {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= real_size);
        end = next.ok_or_else(|| malformed("a sparse file's map does not ascend within the file"))?;
        total = total.saturating_add(*length);
    }
    if total != stored_size || real_size > i64::MAX as u64 {
        return Err(malformed("a sparse file's map does not fit its data"));
    }
    Ok(())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn malformed(detail: &str) -> UnpackError {
    UnpackError::Malformed(detail.into())
}
