//! Bounded reading and writing of integers and sized buffers: big-endian in TPM structures, little-endian in event logs.

/// The input ends before the structure does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the input ends early")]
pub struct Truncated;

/// The order of an integer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Most significant byte first.
    Big,
    /// Least significant byte first.
    Little,
}

/// Takes integers and buffers from the front of some bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    endian: Endian,
}

/// Puts integers and buffers together.
#[derive(Clone, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    endian: Endian,
}

impl<'a> Reader<'a> {
    /// Reads from the front of `bytes`.
    pub fn new(bytes: &'a [u8], endian: Endian) -> Self {
        Self { rest: bytes, endian }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next bytes.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next byte.
    ///
    /// # Errors
    /// If there is none.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array().map(|[byte]| byte)
    }

    /// The next two bytes as an integer.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        let bytes = self.array()?;
        Ok(if self.endian == Endian::Big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    /// The next four bytes as an integer.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        let bytes = self.array()?;
        Ok(if self.endian == Endian::Big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// The next eight bytes as an integer.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        let bytes = self.array()?;
        Ok(if self.endian == Endian::Big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }

    /// A buffer behind its length in two bytes (`TPM2B`).
    ///
    /// # Errors
    /// If there are fewer bytes than it says, or none that say it.
    pub fn sized(&mut self) -> Result<&'a [u8], Truncated> {
        let count = self.u16()?;
        self.bytes(usize::from(count))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        self.bytes(N)?.try_into().map_err(|_| Truncated)
    }
}

impl Writer {
    /// An empty writer.
    pub fn new(endian: Endian) -> Self {
        Self { bytes: Vec::new(), endian }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends an integer of two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        let bytes = if self.endian == Endian::Big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes(&bytes)
    }

    /// Appends an integer of four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        let bytes = if self.endian == Endian::Big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes(&bytes)
    }

    /// Appends a buffer behind its length in two bytes (`TPM2B`).
    ///
    /// # Panics
    ///
    /// If the buffer has more than 65,535 bytes: nothing that a TPM takes does. What comes from elsewhere must have a
    /// bound before it gets here.
    pub fn sized(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u16::try_from(bytes.len()).expect("a TPM's buffer is shorter than 64 KiB");
        self.u16(length).bytes(bytes)
    }
}
