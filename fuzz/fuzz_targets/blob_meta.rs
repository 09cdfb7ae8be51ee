//! Chunk info tables, tables of contents, and units of data.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rafs_fuzz::blob_meta(data));
