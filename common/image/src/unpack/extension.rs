//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header"), as far as they matter to a layer.

use super::UnpackError;
use super::numeric::{Time, decimal, pax_time};

/// Where sparse files have their data: offset and length, ascending.
pub(super) type Segments = Vec<(u64, u64)>;

/// The most segments that a sparse file may have.
pub(super) const MAX_SEGMENTS: usize = 256 * 1024;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What the records before an entry say of it.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Sparse>,
}

/// What the records before a sparse file say, in any of GNU tar's three ways.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// Version 1.0: the map stands before the data.
    pub(super) map_in_data: bool,
    /// Versions 0.0 and 0.1: the map.
    pub(super) segments: Segments,
    pub(super) real_size: Option<u64>,
    name: Option<Vec<u8>>,
    major: u64,
    offset: Option<u64>,
}

impl Extension {
    /// Reads the records of a local extended header.
    pub(super) fn parse(data: &[u8]) -> Result<Self, UnpackError> {
        let mut extension = Self::default();
        for record in records(data) {
            let (key, value) = record?;
            extension.take(key, value).ok_or_else(|| {
                let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
                let value: String = value.chars().take(100).collect();
                UnpackError::Malformed(format!("the PAX record {key}={value:?}"))
            })?;
        }
        if let Some(sparse) = &mut extension.sparse {
            sparse.map_in_data = sparse.major == 1;
            extension.path = sparse.name.take().or(extension.path);
        }
        Ok(extension)
    }

    /// One record. Later ones replace earlier ones, and an empty one takes the earlier back.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, id)?,
            b"gid" => self.gid = optional(value, id)?,
            b"mtime" => self.mtime = optional(value, pax_time)?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().take(name, value)?;
                }
            }
        }
        Some(())
    }
}

impl Sparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = decimal(value).filter(|major| *major <= 1)?,
            b"minor" | b"numblocks" => {}
            b"name" => self.name = text(value)?,
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => self.push(self.offset?, decimal(value)?)?,
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    self.push(decimal(offset)?, decimal(numbers.next()?)?)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Option<()> {
        self.segments.push((offset, length));
        (self.segments.len() <= MAX_SEGMENTS).then_some(())
    }
}

/// The records `LENGTH KEY=VALUE\n`. Values may hold any byte, line breaks too: the length counts.
pub(super) fn records(mut data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), UnpackError>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let Some((record, rest)) = split_record(data) else {
            data = &[];
            return Some(Err(UnpackError::Malformed("a PAX record".into())));
        };
        data = rest;
        Some(Ok(record))
    })
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(data.get(..space)?).filter(|_| space > 0)?).ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = record.get(..equals).filter(|key| !key.is_empty())?;
    Some(((key, record.get(equals + 1..)?), data.get(length..)?))
}

/// A name; empty is none. The outer `None` is an error.
fn text(value: &[u8]) -> Option<Option<Vec<u8>>> {
    if value.contains(&0) {
        return None;
    }
    Some(Some(value.to_vec()).filter(|value| !value.is_empty()))
}

fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

fn id(value: &[u8]) -> Option<u32> {
    // The highest is chown's word for "leave it".
    decimal(value)?.try_into().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + body.to_string().len();
        length = body + length.to_string().len();
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn a_value_may_hold_line_breaks_and_equals_signs() {
        let value = b"a\n12 path=evil\n=\0";
        let data = [record("SCHILY.xattr.user.x", value), record("path", b"good")].concat();
        let extension = Extension::parse(&data).unwrap();
        assert_eq!(extension.xattrs, [(b"user.x".to_vec(), value.to_vec())]);
        assert_eq!(extension.path.unwrap(), b"good");
    }

    #[rstest]
    fn broken_records_are_refused(
        #[values(
            &b"6 a=b"[..], b"7 a=b\n", b"5 a=b\n", b"a=b\n", b" a=b\n", b"6  a=b\n", b"6 =ab\n", b"6 aaa\n",
            b"99999999999999999999 a=b\n", b"9 size=x\n", b"9 size=-1", b"9 path=\0\n", b"8 uid=-\n"
        )]
        data: &[u8],
    ) {
        assert!(Extension::parse(data).is_err());
    }

    #[test]
    fn user_ids_out_of_range_are_refused() {
        assert!(Extension::parse(&record("uid", b"4294967295")).is_err());
        assert!(Extension::parse(&record("uid", b"4294967296")).is_err());
        assert_eq!(Extension::parse(&record("uid", b"4294967294")).unwrap().uid, Some(u32::MAX - 1));
    }

    #[test]
    fn a_later_record_replaces_and_an_empty_one_takes_back() {
        let data = [record("path", b"a"), record("path", b"b"), record("size", b"5"), record("size", b"")];
        let extension = Extension::parse(&data.concat()).unwrap();
        assert_eq!((extension.path.unwrap(), extension.size), (b"b".to_vec(), None));
    }

    proptest! {
        #[test]
        fn no_data_makes_the_parser_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extension::parse(&data);
        }
    }
}
