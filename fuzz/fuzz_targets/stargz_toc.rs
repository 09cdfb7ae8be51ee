//! Indexes of stargz layers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rafs_fuzz::stargz_toc(data));
