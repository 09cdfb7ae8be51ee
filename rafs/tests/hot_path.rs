//! Planning a read whose chunks are ready allocates nothing, and takes nanoseconds.

#![allow(unsafe_code, reason = "a counting allocator cannot be written without")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::reader::{Readiness, Run};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;
use support::*;

/// Counts allocations of the thread that asks.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting in a `Cell` of a const thread-local
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn planning_allocates_nothing() {
    for name in [
        "v5-zstd-blake3",
        "v5-large-files",
        "v6-zstd-sha256-4k",
        "v6-large-files",
        "v6-targz-ref",
        "v6-tarfs",
    ] {
        let case = case(name);
        let cache = tempfile::tempdir().unwrap();
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, "cold");
        assert_all_hot(&case, &reader, "hot");
        let inode = case.files.iter().map(|f| find(reader.image(), &f.path)).max_by_key(|i| i.size).unwrap();
        let mut runs: Vec<Run> = Vec::with_capacity(16);
        let pages = inode.size.div_ceil(4096);
        let before = ALLOCATIONS.get();
        let start = Instant::now();
        let rounds = 200_000;
        for i in 0..rounds {
            let offset = (i * 7919 % pages) * 4096;
            let readiness = reader.plan(&inode, offset, 4096, &mut runs).unwrap();
            assert!(readiness == Readiness::Ready && !runs.is_empty());
        }
        let elapsed = start.elapsed();
        assert_eq!(ALLOCATIONS.get(), before, "{name}");
        println!(
            "{name}: {:.1} ns for 4 KiB",
            elapsed.as_secs_f64() * 1e9 / f64::from(u32::try_from(rounds).unwrap())
        );
    }
}
