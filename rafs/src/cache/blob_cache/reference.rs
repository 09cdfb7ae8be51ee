//! The map that the reference daemon leaves beside its data files: header, then one bit a chunk (blob.md section 13).

use crate::cache::CacheDir;
use std::os::unix::fs::FileExt;

pub(super) const HEADER: usize = 4096;
pub(super) const MAGICS: [(usize, u32); 3] = [(0, 0x424d_4150), (4, 1), (8, 0x434d_4150)];
const ALL_READY: u32 = 0x4d4d_4150;

/// The bits of the reference daemon's map, when it has left a valid one.
pub(super) fn bits(dir: &CacheDir, blob_id: &str, chunk_count: u32) -> Option<Vec<u8>> {
    let (file, _) = dir.open_file(&format!("{blob_id}.blob.data.chunk_map"), false).ok()?;
    let bits_len = usize::try_from(chunk_count.div_ceil(8)).ok()?;
    let len = HEADER.checked_add(bits_len)?;
    if file.metadata().ok()?.len() != u64::try_from(len).ok()? {
        return None;
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    if MAGICS.iter().any(|&(at, magic)| word(at) != Some(magic)) {
        return None;
    }
    if word(12) == Some(ALL_READY) {
        return Some(vec![0xff; bits_len]);
    }
    Some(bytes.split_off(HEADER))
}
