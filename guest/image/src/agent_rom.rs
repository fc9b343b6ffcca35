//! The ROM that the agent comes in, and the kernel modules which the guest does not need for hearing the host.

/// What files begin at multiples of, in bytes, as memory's pages do.
const PAGE: usize = 4096;

/// Files one after another, each from a page's begin.
#[derive(Debug, Default)]
pub(crate) struct AgentRom(Vec<u8>);

impl AgentRom {
    /// Puts a file behind those that are there; returns the line that says where it is and what it must be
    /// (`sealpod_loader::rom::Entry`).
    pub(crate) fn add(&mut self, name: &str, content: &[u8]) -> String {
        let (offset, length) = (self.0.len(), content.len());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(PAGE), 0);
        format!("{name} {offset} {length} {}\n", blake2b_simd::blake2b(content).to_hex())
    }

    /// The ROM's bytes: a power of two of them, as a region of PCI memory has it (PCI 3.0, 6.2.5.1).
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_power_of_two(), 0);
        self.0
    }
}
