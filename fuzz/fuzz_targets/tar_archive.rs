//! Tar archives: headers, pax and GNU records, entries, data.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rafs_fuzz::tar_archive(data));
