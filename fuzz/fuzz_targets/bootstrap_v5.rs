//! Any bytes as a v5 bootstrap. The reserved 8112 bytes of the superblock carry nothing, so inputs leave them
//! out: the first 80 bytes are the superblock, the rest is what follows byte 8192.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::layout::v5::{SUPERBLOCK_SIZE, SuperBlock};

fuzz_target!(|data: &[u8]| {
    let Some((head, body)) = data.split_at_checked(size_of::<SuperBlock>()) else { return };
    let mut bytes = head.to_vec();
    bytes.resize(SUPERBLOCK_SIZE, 0);
    bytes.extend_from_slice(body);
    rafs_fuzz::bootstrap(&bytes);
});
