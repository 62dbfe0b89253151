//! How much of everything a hostile image may ask for.

/// Limits on an image. The defaults are far above what people build, and what they cost is bearable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers together, uncompressed.
    pub layer_bytes: u64,
    /// Bytes of the disk, at most 16 TiB, and much less than the largest file of its file system.
    pub disk_bytes: u64,
    /// Bytes of one file, holes included.
    pub file_bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of memory for names, for what directories have, and for links that are unresolved.
    pub memory: usize,
    /// Bytes of one path.
    pub path_len: usize,
    /// Directories above an entry.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 256 << 30,
            disk_bytes: 256 << 30,
            file_bytes: 16 << 40,
            entries: 4_000_000,
            memory: 512 << 20,
            path_len: 4096,
            depth: 1024,
        }
    }
}
