//! A writer of tar archives, in pax format unless told otherwise.

/// An entry's header.
#[derive(Debug, Clone)]
pub struct Header {
    /// Name.
    pub path: Vec<u8>,
    /// Type flag.
    pub kind: u8,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number.
    pub device: (u32, u32),
    /// Records of the extended header.
    pub pax: Vec<(String, Vec<u8>)>,
}

/// A header of some type.
pub fn header(path: impl AsRef<[u8]>, kind: u8) -> Header {
    Header {
        path: path.as_ref().to_vec(),
        kind,
        link: Vec::new(),
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 0),
        device: (0, 0),
        pax: Vec::new(),
    }
}

/// A regular file's header.
pub fn file(path: impl AsRef<[u8]>) -> Header {
    header(path, b'0')
}

/// A directory's header.
pub fn directory(path: impl AsRef<[u8]>) -> Header {
    header(path, b'5')
}

/// A link's header.
pub fn link(path: impl AsRef<[u8]>, kind: u8, target: impl AsRef<[u8]>) -> Header {
    Header {
        link: target.as_ref().to_vec(),
        ..header(path, kind)
    }
}

/// An archive that is being made.
#[derive(Debug, Clone, Default)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    /// Adds an entry with its data, and whatever extended header it needs.
    pub fn add(&mut self, header: &Header, data: &[u8]) -> &mut Self {
        let mut records = header.pax.clone();
        if header.path.len() > 100 {
            records.push(("path".into(), header.path.clone()));
        }
        if header.link.len() > 100 {
            records.push(("linkpath".into(), header.link.clone()));
        }
        if header.uid > 0o777_7777 {
            records.push(("uid".into(), header.uid.to_string().into()));
        }
        if header.gid > 0o777_7777 {
            records.push(("gid".into(), header.gid.to_string().into()));
        }
        let (seconds, nanoseconds) = header.mtime;
        if seconds < 0 || nanoseconds > 0 {
            let time = if seconds < 0 && nanoseconds > 0 {
                format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
            } else {
                format!("{seconds}.{nanoseconds:09}")
            };
            records.push(("mtime".into(), time.into()));
        }
        if !records.is_empty() {
            let mut text = Vec::new();
            for (key, value) in &records {
                text.extend(record(key, value));
            }
            self.block(&block(
                &super::archive::header("pax", b'x'),
                text.len() as u64,
            ));
            self.data(&text);
        }
        self.block(&block(header, data.len() as u64));
        self.data(data)
    }

    /// Adds a header block.
    pub fn block(&mut self, block: &[u8; 512]) -> &mut Self {
        self.0.extend(block);
        self
    }

    /// Adds data and fills up its last block.
    pub fn data(&mut self, data: &[u8]) -> &mut Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The whole archive.
    pub fn end(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

/// A record of an extended header, which counts its own length.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    let mut record = format!("{len} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    record
}

/// A header block.
pub fn block(header: &Header, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &header.path[..header.path.len().min(100)]);
    put(100, format!("{:07o}", header.mode).as_bytes());
    put(108, format!("{:07o}", header.uid & 0o777_7777).as_bytes());
    put(116, format!("{:07o}", header.gid & 0o777_7777).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{:011o}", header.mtime.0.max(0)).as_bytes());
    put(156, &[header.kind]);
    put(157, &header.link[..header.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", header.device.0).as_bytes());
    put(337, format!("{:07o}", header.device.1).as_bytes());
    sum(&mut block);
    block
}

/// Sets a header block's checksum.
pub fn sum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
