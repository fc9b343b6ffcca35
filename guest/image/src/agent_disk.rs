//! The disk that the agent comes on, and the kernel modules which the guest does not need for having a disk.

/// What files and the disk are multiples of, in bytes: Linux reads such a disk a page at a time, and another by sectors.
pub(crate) const PAGE: usize = 4096;

/// Files one after another, each from a page's begin.
#[derive(Debug, Default)]
pub(crate) struct AgentDisk(Vec<u8>);

impl AgentDisk {
    /// Puts a file behind those that are there; returns the line that says where it is and what it must be
    /// (`sealpod_loader::disk::Entry`).
    pub(crate) fn add(&mut self, name: &str, content: &[u8]) -> String {
        let (offset, length) = (self.0.len(), content.len());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(PAGE), 0);
        format!("{name} {offset} {length} {}\n", blake2b_simd::blake2b(content).to_hex())
    }

    /// The disk's bytes: whole pages.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
