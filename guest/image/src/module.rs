//! One kernel module's file: what it depends on, and its content without the signature.

use std::path::Path;

use object::{Object, ObjectSection};

use crate::error::{Error, io};

/// Ends a module that is signed (include/linux/module_signature.h).
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`: five bytes, three of padding, and the length of the PKCS#7 message before it.
const SIGNATURE_HEADER: usize = 12;

/// A kernel module.
#[derive(Debug)]
pub(crate) struct Module {
    /// The ELF file without the appended signature, which a measured initrd makes superfluous, and whose
    /// check costs an emulated machine milliseconds.
    pub(crate) content: Vec<u8>,
    /// The names of the modules that it needs, with `_` for `-`.
    pub(crate) depends: Vec<String>,
}

impl Module {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let mut content = std::fs::read(path).map_err(io("read", path))?;
        let refuse = |expected, actual| Error::Input { path: path.to_owned(), expected, actual };
        let length = unsigned_length(&content)
            .ok_or_else(|| refuse("a kernel module", "a broken signature at its end".into()))?;
        content.truncate(length);
        let depends = depends(&content).map_err(|error| refuse("a kernel module", error.to_string()))?;
        let depends = depends.ok_or_else(|| refuse("a kernel module", "no depends= in .modinfo".into()))?;
        Ok(Self { content, depends })
    }
}

/// The name under which the kernel knows a module.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The length of what stands before the signature, if there is one.
fn unsigned_length(content: &[u8]) -> Option<usize> {
    let Some(signed) = content.strip_suffix(SIGNATURE_MAGIC) else { return Some(content.len()) };
    let (_, length) = signed.split_last_chunk::<4>()?;
    let signature = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    signed.len().checked_sub(signature.checked_add(SIGNATURE_HEADER)?)
}

fn depends(content: &[u8]) -> Result<Option<Vec<String>>, object::Error> {
    let file = object::File::parse(content)?;
    let Some(section) = file.section_by_name(".modinfo") else { return Ok(None) };
    let entries = section.data()?.split(|byte| *byte == 0);
    let value = entries.filter_map(|entry| entry.strip_prefix(b"depends=")).next();
    Ok(value.map(|names| {
        let names = String::from_utf8_lossy(names);
        names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_elf;

    fn read(content: &[u8]) -> Result<Module, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Module::read(file.path())
    }

    fn signed(content: &[u8], claimed: u32) -> Vec<u8> {
        let mut signed = content.to_vec();
        signed.extend_from_slice(b"PKCS7");
        signed.extend_from_slice(&[0; 8]);
        signed.extend_from_slice(&claimed.to_be_bytes());
        signed.extend_from_slice(SIGNATURE_MAGIC);
        signed
    }

    #[test]
    fn dependencies_are_read_with_dashes_as_underscores() {
        let module = read(&test_elf::module("crypto-simd,cryptd")).unwrap();
        assert_eq!(module.depends, ["crypto_simd", "cryptd"]);
        assert!(read(&test_elf::module("")).unwrap().depends.is_empty());
    }

    #[test]
    fn a_signature_is_cut_off() {
        let plain = test_elf::module("virtio");
        let module = read(&signed(&plain, 5)).unwrap();
        assert_eq!(module.content, plain);
        assert_eq!(module.depends, ["virtio"]);
    }

    #[test]
    fn a_signature_longer_than_the_file_is_refused() {
        let message = read(&signed(b"", u32::MAX)).unwrap_err().to_string();
        assert!(message.contains("broken signature"), "{message}");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(read(b"no ELF").unwrap_err().to_string().contains("expected a kernel module"));
        let message = read(&test_elf::program(false)).unwrap_err().to_string();
        assert!(message.contains("no depends="), "{message}");
    }
}
