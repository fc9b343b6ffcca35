//! The ephemeral disk: room for images and containers beyond the memory, encrypted under a key that nobody keeps.
//!
//! The guest's files live in a tmpfs either way. If the host gives a disk with the serial `ephemeral`, it becomes
//! swap space behind dm-crypt (AES-256-XTS, the key random and only ever in the kernel), and the tmpfs
//! grows by its size. So there is no file system on it whose structures the host could forge, and one
//! way in which images are kept. What it holds has no integrity: the host can destroy it, or bring back what stood
//! in the same place before.

mod device_mapper;

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount_remount};
use zeroize::Zeroizing;

use crate::disks::with_serial;
use crate::modules;

/// Its serial number.
pub(crate) const SERIAL: &str = "ephemeral";
const PAGE: usize = 4096;
const SECTOR: u64 = 512;
/// Two AES-256 keys, as XTS takes them.
const KEY: usize = 64;

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub(crate) struct Error {
    doing: &'static str,
    source: io::Error,
}

/// Takes the ephemeral disk into use, if the machine has one.
pub(crate) fn attach() -> Result<(), Error> {
    let Some(disk) = with_serial(SERIAL).map_err(while_("look for the disk"))? else { return Ok(()) };
    let loaded = modules::load(modules::ENCRYPTION).map_err(io::Error::other);
    loaded.map_err(while_("load the kernel modules of encryption"))?;
    let disk = Path::new("/dev").join(disk);
    let encrypted = encrypt(&disk).map_err(while_("encrypt the disk"))?;
    let size = make_swap(&encrypted).map_err(while_("write the swap header"))?;
    swap_on(&encrypted).map_err(while_("use the disk as swap space"))?;
    grow_run(size).map_err(while_("enlarge /run"))?;
    tracing::info!("the ephemeral disk gives {} MiB", size >> 20);
    Ok(())
}

fn while_(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { doing, source }
}

/// Puts dm-crypt over the disk and returns the device that encrypts.
fn encrypt(disk: &Path) -> io::Result<PathBuf> {
    let sectors = size(disk)? / PAGE as u64 * (PAGE as u64 / SECTOR);
    let mut key = Zeroizing::new([0; KEY]);
    File::open("/dev/urandom")?.read_exact(key.as_mut())?;
    let mut parameters = Zeroizing::new(String::with_capacity(512));
    parameters.push_str("aes-xts-plain64 ");
    for byte in key.iter() {
        let _ = write!(parameters, "{byte:02x}");
    }
    // Sectors of a page: eight times fewer operations.
    let _ = write!(parameters, " 0 {} 0 1 sector_size:4096", disk.display());
    let minor = device_mapper::create(SERIAL, sectors, "crypt", &parameters)?;
    Ok(PathBuf::from(format!("/dev/dm-{minor}")))
}

/// Writes the header that makes a device swap space, and returns its size in bytes.
fn make_swap(device: &Path) -> io::Result<u64> {
    let size = size(device)?;
    let last_page = u32::try_from((size / PAGE as u64).saturating_sub(1)).unwrap_or(u32::MAX);
    let header = swap_header(last_page);
    let mut file = File::options().write(true).open(device)?;
    file.write_all(&header)?;
    file.sync_all()?;
    Ok(size)
}

/// `union swap_header` of linux/swap.h: version and last page after 1 KiB, the signature at the page's end.
fn swap_header(last_page: u32) -> [u8; PAGE] {
    let mut header = [0; PAGE];
    header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    header
}

fn swap_on(device: &Path) -> io::Result<()> {
    let path = CString::new(device.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: the path is a string that ends in NUL and lives until the call returns.
    match unsafe { libc::swapon(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn grow_run(more: u64) -> io::Result<()> {
    let now = rustix::fs::statvfs("/run")?;
    let size = now.f_blocks * now.f_frsize + more;
    let options = CString::new(format!("mode=755,size={size}")).map_err(io::Error::other)?;
    mount_remount("/run", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    Ok(())
}

fn size(device: &Path) -> io::Result<u64> {
    File::open(device)?.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_mkswap_writes() {
        let header = swap_header(255);
        assert_eq!(header[1024..1032], [1, 0, 0, 0, 255, 0, 0, 0]);
        assert_eq!(header[4086..], *b"SWAPSPACE2");
        assert_eq!(header.iter().filter(|byte| **byte != 0).count(), 12);
    }
}
