//! Why a measurement could not be computed.

/// Why a measurement could not be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel is no bzImage with EFI stub, or a part of it lies outside the file.
    #[error("the kernel: expected {expected}, got {actual}")]
    Kernel {
        /// What it should have.
        expected: &'static str,
        /// What it has.
        actual: String,
    },
    /// The firmware has not the form of OVMF.
    #[error("the firmware: expected {expected}, got {actual}")]
    Firmware {
        /// What it should have.
        expected: &'static str,
        /// What it has.
        actual: String,
    },
    /// QEMU would find no place for the initrd.
    #[error("the initrd: expected at most {limit} bytes with {low_memory_mib} MiB below 4 GiB, got {length}")]
    Initrd {
        /// The most that fits.
        limit: u32,
        /// The memory below 4 GiB, in MiB.
        low_memory_mib: u32,
        /// The initrd's length.
        length: usize,
    },
    /// QEMU would write a video mode from the command line into the kernel.
    #[error("the command line: expected no \"vga=\", which changes the kernel's measurement, got {0:?}")]
    VideoMode(String),
}
