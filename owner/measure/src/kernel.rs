//! The kernel, whose header QEMU's loader fills in before the firmware measures it
//! (`x86_load_linux`; the fields: Documentation/x86/boot.rst).

use crate::bytes::{u16_at, u32_at};
use crate::error::Error;
use crate::{GuestFiles, authenticode};

const MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const LOADER_TYPE: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const INITRD_ADDRESS: usize = 0x218;
const INITRD_LENGTH: usize = 0x21c;
const HEAP_END: usize = 0x224;
const CMDLINE_ADDRESS: usize = 0x228;
const INITRD_MAX: usize = 0x22c;
const EXTRA_LOAD_FLAGS: usize = 0x236;

/// The first protocol with [`INITRD_MAX`], and that with [`EXTRA_LOAD_FLAGS`].
const OLDEST_PROTOCOL: u16 = 0x203;
const EXTRA_PROTOCOL: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const CAN_USE_HEAP: u8 = 0x80;
const LOADABLE_ABOVE_4G: u16 = 2;

const QEMU: u8 = 0xb0;
const QEMU_SETUP: u32 = 0x10000;
const QEMU_CMDLINE: u32 = 0x20000;
/// Below the end of low memory, kept for ACPI tables by all of QEMU's PC machines since 2.x.
const QEMU_ACPI: u32 = 0x28000;
const PAGE: u32 = 4096;

/// The digests under which the kernel can be measured.
pub(crate) fn digests(files: &GuestFiles<'_>) -> Result<Vec<String>, Error> {
    if files.cmdline.contains("vga=") {
        return Err(Error::VideoMode(files.cmdline.to_owned()));
    }
    let mut patched = files.kernel.to_vec();
    patch(&mut patched, files)?;
    Ok(vec![authenticode::hash(&patched)?, authenticode::hash(files.kernel)?])
}

/// Writes what QEMU writes.
fn patch(kernel: &mut [u8], files: &GuestFiles<'_>) -> Result<(), Error> {
    check(kernel)?;
    let ends = || Error::Kernel { expected: "a setup header", actual: "one that ends early".into() };
    let flags = kernel.get(LOAD_FLAGS).ok_or_else(ends)? | CAN_USE_HEAP;
    // An initrd of no bytes is none.
    if !files.initrd.is_empty() {
        let (address, length) = initrd_place(kernel, files)?;
        put(kernel, INITRD_ADDRESS, &address.to_le_bytes()).ok_or_else(ends)?;
        put(kernel, INITRD_LENGTH, &length.to_le_bytes()).ok_or_else(ends)?;
    }
    let heap_end = (QEMU_CMDLINE - QEMU_SETUP - 0x200) as u16;
    put(kernel, LOADER_TYPE, &[QEMU, flags]).ok_or_else(ends)?;
    put(kernel, HEAP_END, &heap_end.to_le_bytes()).ok_or_else(ends)?;
    put(kernel, CMDLINE_ADDRESS, &QEMU_CMDLINE.to_le_bytes()).ok_or_else(ends)
}

fn check(kernel: &[u8]) -> Result<(), Error> {
    let refuse = |expected, actual| Err(Error::Kernel { expected, actual });
    if kernel.get(MAGIC..PROTOCOL) != Some(b"HdrS") {
        return refuse("a bzImage", "something else".into());
    }
    let protocol = u16_at(kernel, PROTOCOL);
    if protocol.is_none_or(|protocol| protocol < OLDEST_PROTOCOL) {
        return refuse("boot protocol 2.03 or newer", format!("{protocol:x?}"));
    }
    match kernel.get(LOAD_FLAGS) {
        Some(flags) if flags & LOADED_HIGH != 0 => Ok(()),
        flags => refuse("a kernel that is loaded high", format!("load flags {flags:x?}")),
    }
}

/// QEMU puts the initrd as high in low memory as the kernel allows.
fn initrd_place(kernel: &[u8], files: &GuestFiles<'_>) -> Result<(u32, u32), Error> {
    let above_4g = u16_at(kernel, PROTOCOL).is_some_and(|protocol| protocol >= EXTRA_PROTOCOL)
        && u16_at(kernel, EXTRA_LOAD_FLAGS).is_some_and(|flags| flags & LOADABLE_ABOVE_4G != 0);
    let allowed = if above_4g { u32::MAX } else { u32_at(kernel, INITRD_MAX).unwrap_or(0) };
    let memory_end = files.low_memory_mib.saturating_mul(1 << 20).saturating_sub(QEMU_ACPI);
    let limit = allowed.min(memory_end.saturating_sub(1));
    let length = u32::try_from(files.initrd.len()).ok().filter(|length| *length < limit);
    let length = length.ok_or(Error::Initrd {
        limit,
        low_memory_mib: files.low_memory_mib,
        length: files.initrd.len(),
    })?;
    Ok(((limit - length) & !(PAGE - 1), length))
}

fn put(kernel: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    kernel.get_mut(at..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(())
}
