//! Writes the archive form ("newc") in which Linux takes its initial file system.

/// An archive under construction; parents must be added before their children.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with permissions 0755.
    pub fn dir(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[]);
    }

    /// Adds a file; `mode` is its permissions.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, 0o100_000 | mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let links = 1;
        // inode, mode, uid, gid, links, mtime, size, device numbers (4), length of name, checksum (unused)
        let fields =
            [self.count, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path.as_bytes()) + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The form has 32-bit lengths; nothing a guest gets is near them.
fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_have_their_lengths() {
        let mut a = Archive::new();
        a.dir("bin");
        a.file("bin/x", 0o755, b"hello");
        let bytes = a.finish();
        assert_eq!(bytes.len() % 4, 0);
        let at = bytes.windows(6).position(|w| w == b"bin/x\0").unwrap();
        assert_eq!(&bytes[at - 110..at - 104], b"070701");
        assert_eq!(&bytes[at - 110 + 54..at - 110 + 62], b"00000005");
        assert_eq!(&bytes[at + 6..at + 11], b"hello");
    }
}
