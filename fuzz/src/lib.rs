//! What every bootstrap target does with an image that opened: read all of it, as a guest could.
//!
//! Invariants: no panic, no overflow, no endless walk, nothing outside the blob it belongs to, and the same
//! answer from look-up and listing when the complete check found nothing wrong.

mod archive;
mod blob_meta;
mod builder_inputs;
mod texts;

pub use archive::{patterns, tar_archive, tar_stream};
pub use blob_meta::blob_meta;
pub use builder_inputs::{attributes, compact_json, stargz_toc};
pub use texts::{api_request, config_file};

use rafs::ids::InodeNumber;
use rafs::image::{CheckOptions, FileKind, Image, Inode};
use std::collections::HashSet;

/// Entries, and chunks of a file, that are followed; the walk itself is bounded by the inodes seen.
const BUDGET: usize = 2_000;

/// Opens `bytes` and reads everything.
pub fn bootstrap(bytes: &[u8]) {
    let Ok(image) = Image::from_bytes(bytes.to_vec(), "fuzz") else { return };
    let sound = image.check_with(CheckOptions { inode_digests: true }).is_ok();
    let mut budget = BUDGET;
    let mut seen = HashSet::new();
    let mut todo = vec![image.inode(image.root()).expect("checked at open")];
    while let Some(inode) = todo.pop() {
        if !seen.insert(inode.number) {
            continue;
        }
        one(&image, &inode);
        if inode.kind != FileKind::Directory {
            continue;
        }
        for entry in image.read_dir(&inode, 0).expect("a directory") {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    assert!(!sound, "{e}");
                    break;
                }
            };
            let Some(left) = budget.checked_sub(1) else { break };
            budget = left;
            assert!(!entry.name.is_empty() && entry.name.len() <= 256 && !entry.name.contains(&0));
            assert!(entry.next_cookie > 0 && entry.next_cookie < 1 << 63);
            let found = image.lookup(&inode, entry.name);
            if sound {
                let found = found.expect("checked").expect("listed, so it can be looked up");
                assert_eq!((found.number, found.kind), (entry.number, entry.kind));
            }
            todo.extend(image.inode(entry.number));
        }
    }
    // Node ids and cookies come from guests; take some from the input itself.
    for word in bytes.chunks_exact(8).take(64).map(|w| u64::from_le_bytes(w.try_into().expect("8 bytes"))) {
        for number in [word, word & 0xffff, word >> 32] {
            if let Ok(inode) = image.inode(InodeNumber(number)) {
                one(&image, &inode);
                if let Ok(entries) = image.read_dir(&inode, word) {
                    entries.take(BUDGET).for_each(drop);
                }
            }
        }
    }
    image.for_each_chunk_record(&mut |_| {});
    let _ = (image.prefetch_list(), image.chunk_table().len(), image.v5_chunk_indexes_missing());
}

fn one(image: &Image, inode: &Inode) {
    assert!(inode.nlink != 0 && inode.mtime_nsec < 1_000_000_000 && i64::try_from(inode.size).is_ok());
    if let Ok(target) = image.read_link(inode) {
        assert!(!target.is_empty() && target.len() <= 65_535);
    }
    if let Ok(xattrs) = image.xattrs(inode) {
        xattrs.for_each(drop);
    }
    for name in [&b"."[..], b"..", b"", b"etc", &[0xff; 256]] {
        let _ = image.lookup(inode, name);
    }
    for (offset, len) in
        [(0, u64::MAX), (inode.size / 2, 4096), (inode.size.saturating_sub(1), 2), (u64::MAX, 1)]
    {
        let Ok(chunks) = image.chunks(inode, offset, len) else { continue };
        let mut previous_end = 0;
        for chunk in chunks.take(BUDGET).map_while(Result::ok) {
            let size = u64::from(chunk.uncompressed_size);
            assert!(size > 0 && chunk.uncompressed_size <= image.chunk_size());
            assert!(chunk.file_offset >= previous_end);
            previous_end = chunk.file_offset + size;
            assert!(
                previous_end <= inode.size
                    && previous_end > offset
                    && chunk.file_offset < offset.saturating_add(len)
            );
            let blob = &image.blobs()[chunk.blob.as_usize()];
            if blob.uncompressed_size != 0
                && !blob.features.contains(rafs::layout::blob::BlobFeatures::IS_CHUNKDICT_GENERATED)
            {
                assert!(chunk.uncompressed_offset + size <= blob.uncompressed_size);
            }
            let _ = image.chunk_record(&chunk);
        }
    }
}
