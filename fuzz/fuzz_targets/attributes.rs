//! Attributes of paths, and where external files are.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rafs_fuzz::attributes(data));
