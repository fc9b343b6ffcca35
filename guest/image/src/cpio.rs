//! A writer of cpio archives in the "newc" format, as the kernel unpacks them
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;

use crate::error::Error;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// An archive in the making. Its bytes depend on nothing but names, kinds and contents: entries are sorted,
/// numbered from 1, owned by root and without a time.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    /// Adds a folder, whose parent must be there already or be the root.
    pub(crate) fn folder(&mut self, name: &str) {
        self.entries.insert(name.to_owned(), (FOLDER, Vec::new()));
    }

    /// Adds a file of mode 644.
    pub(crate) fn file(&mut self, name: &str, content: Vec<u8>) {
        self.entries.insert(name.to_owned(), (FILE, content));
    }

    /// Adds a file of mode 755.
    pub(crate) fn program(&mut self, name: &str, content: Vec<u8>) {
        self.entries.insert(name.to_owned(), (PROGRAM, content));
    }

    /// The archive's bytes. A folder sorts before what it contains, as the kernel needs it.
    pub(crate) fn into_bytes(self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        for (inode, (name, (mode, content))) in (1..).zip(&self.entries) {
            append(&mut bytes, inode, name, *mode, content)?;
        }
        append(&mut bytes, 0, TRAILER, 0, &[])?;
        Ok(bytes)
    }
}

fn append(bytes: &mut Vec<u8>, inode: u32, name: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
    let length = u32::try_from(content.len())
        .map_err(|_| Error::TooLong { name: name.to_owned(), length: content.len() })?;
    let links = if mode == FOLDER { 2 } else { 1 };
    bytes.extend_from_slice(MAGIC.as_bytes());
    // inode, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    for field in [inode, mode, 0, 0, links, 0, length, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(content);
    pad(bytes);
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("modules/b.ko", b"12345".to_vec());
        archive.program("init", b"#!".to_vec());
        archive.folder("modules");
        archive.file("modules/a.ko", Vec::new());
        archive.into_bytes().unwrap()
    }

    #[test]
    fn cpio_reads_names_modes_owners_and_sizes() {
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs the program cpio");
        cpio.stdin.take().unwrap().write_all(&archive()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let lines: Vec<Vec<String>> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_ascii_whitespace().map(str::to_owned).collect())
            .collect();
        assert_eq!(
            lines.iter().map(|line| line.join(" ")).collect::<Vec<_>>(),
            [
                "-rwxr-xr-x 1 0 0 2 Jan 1 1970 init",
                "drwxr-xr-x 2 0 0 0 Jan 1 1970 modules",
                "-rw-r--r-- 1 0 0 0 Jan 1 1970 modules/a.ko",
                "-rw-r--r-- 1 0 0 5 Jan 1 1970 modules/b.ko",
            ]
        );
    }

    #[test]
    fn the_order_of_additions_does_not_matter() {
        let mut other = Archive::default();
        other.file("modules/a.ko", Vec::new());
        other.folder("modules");
        other.file("modules/b.ko", b"12345".to_vec());
        other.program("init", b"#!".to_vec());
        assert_eq!(other.into_bytes().unwrap(), archive());
    }
}
