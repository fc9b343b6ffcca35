//! Archives, written byte by byte: honest tools do not write what must be refused.

/// An archive that is being made.
#[derive(Clone, Default)]
pub(crate) struct Archive(Vec<u8>);

/// A member of an archive.
#[derive(Clone)]
pub(crate) struct Member {
    path: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
    device: (u32, u32),
    records: Vec<(String, Vec<u8>)>,
}

impl Archive {
    pub(crate) fn of(members: impl IntoIterator<Item = Member>) -> Vec<u8> {
        members.into_iter().fold(Self::default(), Self::with).finish()
    }

    pub(crate) fn with(mut self, member: Member) -> Self {
        let mut records: Vec<u8> =
            member.records.iter().flat_map(|(key, value)| record(key, value)).collect();
        if member.path.len() > 100 {
            records.extend(record("path", &member.path));
        }
        if !records.is_empty() {
            self.0.extend(Member::new("pax", b'x').content(&records).block());
            self.data(&records);
        }
        self.0.extend(member.block());
        self.data(&member.content);
        self
    }

    fn data(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

impl Member {
    fn new(path: impl AsRef<[u8]>, kind: u8) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            content: Vec::new(),
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_000_000_000,
            device: (0, 0),
            records: Vec::new(),
        }
    }

    pub(crate) fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(path, b'0').content(content.as_ref())
    }

    pub(crate) fn directory(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, b'5').mode(0o755)
    }

    pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(path, b'2') }
    }

    pub(crate) fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(path, b'1') }
    }

    pub(crate) fn character_device(path: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, b'3') }
    }

    /// A member of any type.
    pub(crate) fn of_kind(path: &str, kind: u8) -> Self {
        Self::new(path, kind)
    }

    fn content(mut self, content: &[u8]) -> Self {
        self.content = content.to_vec();
        self
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, user: u32, group: u32) -> Self {
        self.owner = (user, group);
        self
    }

    pub(crate) fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// A PAX record.
    pub(crate) fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(&format!("SCHILY.xattr.{name}"), value)
    }

    fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |start: usize, bytes: &[u8]| block[start..start + bytes.len()].copy_from_slice(bytes);
        put(0, &self.path[..self.path.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.owner.0).as_bytes());
        put(116, format!("{:07o}\0", self.owner.1).as_bytes());
        put(124, format!("{:011o}\0", self.content.len()).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
