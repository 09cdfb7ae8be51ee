//! Any bytes as a v6 bootstrap, or as a blob with an inlined one at its tail.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rafs_fuzz::bootstrap(data));
