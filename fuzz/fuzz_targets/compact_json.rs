//! The numbers of a compaction, and lists of files to prefetch.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rafs_fuzz::compact_json(data));
