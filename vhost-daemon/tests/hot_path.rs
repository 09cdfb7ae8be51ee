//! The hot path allocates nothing: every kind of request that a guest sends in numbers, once it is warm.
#![allow(unsafe_code, reason = "a global allocator that counts")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{largest, largest_directory, mount, node, read_body, request};
use rafsd::fuse::abi::{GetattrIn, op};
use rafsd::mounts::{MountPath, Namespace};
use rafsd::virtio::Harness;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

struct Counting;

thread_local! {
    /// Allocations of this thread: fetch threads and other tests do not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on unchanged to the system allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's contract is System's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is System's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(case: &str, requests: &[(Vec<u8>, u32)]) -> Vec<u64> {
    let dir = tempfile::tempdir().unwrap();
    // As the daemon serves it: through a namespace, with its counters.
    let namespace = Arc::new(Namespace::new());
    namespace.mount(&MountPath::root(), mount(case, dir.path()).as_ref()).unwrap();
    let mount = namespace;
    let mut counts = Vec::new();
    for (request, room) in requests {
        let harness = Harness::new(Arc::clone(&mount)).unwrap();
        harness.prepare(0, request, *room, 4096).unwrap();
        let mut worker = harness.worker();
        for _ in 0..3 {
            harness.announce(1).unwrap();
            worker.serve();
            let start = Instant::now();
            while harness.given_back() != harness.announced() {
                assert!(start.elapsed() < Duration::from_secs(30), "no answer");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (_, error, _) = harness.reply_header(0);
        assert_eq!(error, 0, "request {}", counts.len());
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..100 {
            harness.announce(1).unwrap();
            worker.serve();
        }
        counts.push(ALLOCATIONS.with(Cell::get) - before);
        assert_eq!(harness.given_back(), harness.announced(), "a warm request was parked");
    }
    counts
}

#[test]
fn warm_requests_allocate_nothing() {
    for version in ["v5", "v6"] {
        let dir = tempfile::tempdir().unwrap();
        let (case, data) = (format!("{version}-bigdir"), format!("{version}-large-files"));
        let (directory, names) = largest_directory(&mount(&case, dir.path()));
        let getattr = GetattrIn { flags: 0, dummy: 0, fh: 0 };
        let name = [names[names.len() / 2].as_slice(), b"\0"].concat();
        let metadata = [
            (request(op::GETATTR, directory, getattr.as_bytes()), 120),
            (request(op::LOOKUP, directory, &name), 144),
            (request(op::LOOKUP, directory, b"no such name\0"), 144),
            (request(op::READDIRPLUS, directory, &read_body(0, 131_072)), 131_072 + 16),
            (request(op::READDIR, directory, &read_body(0, 4096)), 4096 + 16),
        ];
        assert_eq!(allocations(&case, &metadata), [0; 5], "{version}");
        let file = {
            let mount = mount(&data, dir.path());
            node(&mount, &[&largest(&mount).0])
        };
        let reads = [4096, 131_072, 1 << 20].map(|n| (request(op::READ, file, &read_body(0, n)), n + 16));
        assert_eq!(allocations(&data, &reads), [0; 3], "{version}");
    }
}
