//! Small foreign texts that the builder reads.
//!
//! Invariants: no panic, no work out of proportion to the input, and what was accepted is in range.

use rafs_builder::{Attributes, CompactConfig, PrefetchFiles, StargzIndex};

/// Parses a stargz index; it has no more entries than its text has room for.
pub fn stargz_toc(data: &[u8]) {
    if let Ok(index) = StargzIndex::parse(data) {
        assert!(index.len() <= data.len());
    }
}

/// Parses the numbers of a compaction, and a list of files.
pub fn compact_json(data: &[u8]) {
    if let Ok(config) = CompactConfig::parse(data) {
        assert!(config.settings().min_used_ratio < 100);
    }
    if let Ok(list) = PrefetchFiles::parse(data) {
        assert!(list.files.iter().all(|file| file.path.starts_with('/')));
    }
}

/// Parses attributes, and asks them about paths, some of which come from the input itself.
pub fn attributes(data: &[u8]) {
    let Ok(attributes) = Attributes::parse(data) else { return };
    let line = data.split(|b| *b == b'\n').next().unwrap_or_default();
    for path in [&b"/"[..], b"/a", b"/a/b/c.bin", &[b'a'; 300], line] {
        if let Ok(Some(file)) = attributes.external(path) {
            assert!(attributes.is_external(path));
            assert!(file.blob_index < 255 && (1..=64).contains(&file.blob_id.len()));
        }
    }
}
