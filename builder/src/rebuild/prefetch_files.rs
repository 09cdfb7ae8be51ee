//! The list of files that `optimize` takes (nydus-image-cli.md section 9).
//!
//! Owns: the JSON. Does not own: finding the files in an image.

use serde::Deserialize;

/// A file, or parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PrefetchFile {
    /// Absolute path in the image.
    pub path: String,
    /// Offset and size of each part, bytes; `None` for the whole file.
    #[serde(default)]
    pub ranges: Option<Vec<(u64, u64)>>,
}

/// Files in order of importance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefetchFiles {
    /// The files.
    pub files: Vec<PrefetchFile>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    version: Option<String>,
    files: Vec<PrefetchFile>,
}

impl PrefetchFiles {
    /// Reads a text: `{"version": "v1", "files": [{"path": "/x", "ranges": [[0, 4096]]}]}`, ranges being optional.
    ///
    /// # Errors
    /// A sentence: what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(text).map_err(|e| {
            format!("it is no list of files ({{\"version\": \"v1\", \"files\": [{{\"path\": ...}}]}}): {e}")
        })?;
        match raw.version.as_deref() {
            None | Some("" | "v1") => {}
            Some(other) => return Err(format!("its version is {other:?}, only v1 is known")),
        }
        if let Some(file) = raw.files.iter().find(|file| !file.path.starts_with('/')) {
            return Err(format!("path {:?} is not absolute", file.path));
        }
        Ok(Self { files: raw.files })
    }
}

impl PrefetchFile {
    /// Whether a chunk of `len` bytes at `offset` of the file is wanted.
    pub(super) fn wants(&self, offset: u64, len: u32) -> bool {
        let Some(ranges) = self.ranges.as_ref().filter(|ranges| !ranges.is_empty()) else { return true };
        let end = offset.saturating_add(len.into());
        ranges.iter().any(|(start, size)| *start < end && offset < start.saturating_add(*size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_and_without_ranges() {
        let text =
            br#"{"version": "v1", "files": [{"path": "/a"}, {"path": "/b", "ranges": [[4096, 10], [0, 0]]},
            {"path": "/c", "ranges": []}, {"path": "/d", "ranges": null}]}"#;
        let files = PrefetchFiles::parse(text).unwrap().files;
        assert_eq!(files.len(), 4);
        assert!(files[0].wants(1 << 40, 1) && files[2].wants(0, 1) && files[3].wants(0, 1));
        assert!(!files[1].wants(0, 4096));
        assert!(files[1].wants(0, 4097));
        assert!(files[1].wants(4096, 4096));
        assert!(!files[1].wants(4106, 4096));
        for bad in
            [&b"{}"[..], br#"{"version": "v2", "files": []}"#, br#"{"files": [{"path": "a"}]}"#, b"/a\n/b\n"]
        {
            PrefetchFiles::parse(bad).unwrap_err();
        }
    }
}
