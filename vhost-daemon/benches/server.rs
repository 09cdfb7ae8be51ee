//! Server-side cost of a request, from descriptor chain to used ring, in one thread: nanoseconds and
//! allocations per operation, beside the system call alone.
//!
//! Runs on the interop corpus: a directory of 3000 entries and a file of 5 MiB. Numbers are minima over
//! many batches, since machines are shared; a batch is 16 requests. `cargo bench -p rafsd --bench server -- 'READ 4K'`
//! runs what has that in its name.
#![allow(unsafe_code, reason = "a global allocator that counts, and preadv2 as the floor")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{largest, largest_directory, mount, node, read_body, request};
use rafsd::fuse::GuestFs;
use rafsd::fuse::abi::{GetattrIn, op};
use rafsd::mounts::{MountPath, Namespace, RafsMount};
use rafsd::virtio::Harness;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

struct Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on unchanged to the system allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is System's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is System's.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is System's.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BATCH: u16 = 16;
const BATCHES: u16 = 8;
const ROUNDS: usize = 300;

struct Row {
    name: String,
    ns: f64,
    allocations: f64,
    floor: Option<f64>,
}

/// What one measurement does.
struct Case<'a> {
    name: String,
    /// Operations that a request stands for.
    per: f64,
    requests: &'a [Vec<u8>],
    room: u32,
    /// Bytes of a descriptor of the reply's room; 0 for one descriptor.
    piece: u32,
    /// Of the first reply.
    want_error: i32,
    floor: Option<Floor>,
}

/// Runs the requests in places 0..16 over and over, in turn with the floor: machines change their pace.
fn measure<F: GuestFs + 'static>(mount: &Arc<F>, case: Case<'_>) -> Row {
    let Case { name, per, requests, room, piece, want_error, mut floor } = case;
    let harness = Harness::new(Arc::clone(mount)).unwrap();
    for slot in 0..BATCH {
        let request = &requests[usize::from(slot) % requests.len()];
        harness.prepare(slot, request, room, piece).unwrap();
    }
    let mut worker = harness.worker();
    // What is not in the cache yet is parked and answered by the fetch side: wait before measuring.
    for _ in 0..3 {
        harness.announce(BATCH).unwrap();
        worker.serve();
        while harness.given_back() != harness.announced() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut best = f64::MAX;
    let mut allocations = u64::MAX;
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        if let Some(floor) = &mut floor {
            for _ in 0..BATCHES {
                least = least.min(floor.round());
            }
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let start = Instant::now();
        for _ in 0..BATCHES {
            harness.announce(BATCH).unwrap();
            worker.serve();
        }
        let ns = start.elapsed().as_nanos() as f64 / f64::from(BATCH) / f64::from(BATCHES);
        allocations = allocations.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
        best = best.min(ns);
    }
    assert_eq!(harness.given_back(), harness.announced(), "{name}: a request was not answered in place");
    let (len, error, unique) = harness.reply_header(0);
    assert_eq!((error, unique), (want_error, 1), "{name}: reply of {len} bytes");
    let operations = f64::from(BATCH) * f64::from(BATCHES) * per;
    let floor = floor.map(|_| least);
    Row { name, ns: best / per, allocations: allocations as f64 / operations, floor }
}

/// The system call of the same shape alone.
struct Floor {
    file: std::fs::File,
    memory: Vec<u8>,
    len: usize,
    piece: usize,
    offsets: Vec<u64>,
}

impl Floor {
    fn new(path: &Path, len: u32, piece: u32, offsets: &[u64]) -> Self {
        let piece = if piece == 0 { len } else { piece };
        Self {
            file: std::fs::File::open(path).unwrap(),
            memory: vec![1u8; 64 << 20],
            len: len as usize,
            piece: piece as usize,
            offsets: offsets.to_vec(),
        }
    }

    /// Nanoseconds of a call, mean of a batch.
    fn round(&mut self) -> f64 {
        // Guests read into whole pages; the kernel copies several times slower to an address that is not aligned.
        let skip = self.memory.as_ptr().align_offset(4096);
        let base = self.memory.as_mut_ptr().wrapping_add(skip);
        let start = Instant::now();
        for slot in 0..usize::from(BATCH) {
            let mut vectors = Vec::with_capacity(self.len.div_ceil(self.piece));
            // The places of the replies in the harness: at powers of two they would fight for cache sets.
            let mut at = 0x20_1000 + slot * 0x21_0000;
            let mut left = self.len;
            while left > 0 {
                let n = left.min(self.piece);
                vectors.push(libc::iovec { iov_base: base.wrapping_add(at).cast(), iov_len: n });
                at += if self.piece == self.len { n } else { self.piece * 2 };
                left -= n;
            }
            let count = i32::try_from(vectors.len()).unwrap();
            let offset = i64::try_from(self.offsets[slot % self.offsets.len()]).unwrap();
            let fd = self.file.as_raw_fd();
            // SAFETY: every vector lies inside `memory`, which lives on.
            let n = unsafe { libc::preadv2(fd, vectors.as_ptr(), count, offset, libc::RWF_NOWAIT) };
            assert_eq!(usize::try_from(n).unwrap(), self.len);
        }
        start.elapsed().as_nanos() as f64 / f64::from(BATCH)
    }
}

/// As the daemon serves an image: through a namespace, which counts.
fn shown_in_a_namespace(mount: &RafsMount) -> Arc<Namespace> {
    let namespace = Namespace::new();
    namespace.mount(&MountPath::root(), mount).unwrap();
    Arc::new(namespace)
}

fn metadata(version: &str, rows: &mut Vec<Row>, cache: &Path) {
    let mount = mount(&format!("{version}-bigdir"), cache);
    let (dir, names) = largest_directory(&mount);
    let getattr = GetattrIn { flags: 0, dummy: 0, fh: 0 };
    let mut row = |name: &str, per, requests: &[Vec<u8>], room, want_error| {
        let name = format!("{name} ({version})");
        let case = Case { name, per, requests, room, piece: 0, want_error, floor: None };
        rows.extend(measure_if_wanted(&mount, case));
    };
    if version == "v6" {
        row("empty request", 1.0, &[request(4095, 1, &[])], 16, -libc::ENOSYS);
    }
    row("GETATTR", 1.0, &[request(op::GETATTR, dir, getattr.as_bytes())], 120, 0);
    let namespace = shown_in_a_namespace(&mount);
    let getattrs = [request(op::GETATTR, dir, getattr.as_bytes())];
    let name = format!("GETATTR, in a namespace ({version})");
    let case = Case { name, per: 1.0, requests: &getattrs, room: 120, piece: 0, want_error: 0, floor: None };
    rows.extend(measure_if_wanted(&namespace, case));
    let mut row = |name: &str, per, requests: &[Vec<u8>], room, want_error| {
        let name = format!("{name} ({version})");
        let case = Case { name, per, requests, room, piece: 0, want_error, floor: None };
        rows.extend(measure_if_wanted(&mount, case));
    };
    let picked: Vec<_> = names.iter().filter(|n| n.len() > 2).step_by(names.len() / 16).collect();
    let lookups: Vec<_> =
        picked.iter().map(|n| request(op::LOOKUP, dir, &[n.as_slice(), b"\0"].concat())).collect();
    row("LOOKUP of 3000 names", 1.0, &lookups, 144, 0);
    let miss = [request(op::LOOKUP, dir, b"no such name\0")];
    row("LOOKUP, a miss", 1.0, &miss, 144, 0);
    for size in [4096u32, 131_072] {
        let list = request(op::READDIRPLUS, dir, &read_body(0, size));
        let mut used = 0;
        let mut entries = 0.0;
        for name in &names {
            used += 152 + name.len().next_multiple_of(8);
            if used > size as usize {
                break;
            }
            entries += 1.0;
        }
        row(&format!("READDIRPLUS {}K, per entry", size >> 10), entries, &[list], size + 16, 0);
    }
}

fn data(version: &str, rows: &mut Vec<Row>, cache: &Path) {
    let mount = mount(&format!("{version}-large-files"), cache);
    let (name, size) = largest(&mount);
    let file = node(&mount, &[&name]);
    let plain = cache.join("plain");
    let image = mount.reader().image();
    let root = image.inode(image.root()).unwrap();
    let inode = image.lookup(&root, &name).unwrap().unwrap();
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    mount.reader().read_at(&inode, 0, &mut bytes).unwrap();
    std::fs::write(&plain, &bytes).unwrap();
    for (len, pieces) in [(4096u32, &[0u32][..]), (131_072, &[0, 4096]), (1 << 20, &[0, 4096])] {
        let offsets: Vec<u64> = (0..4).map(|i| i * (1 << 20)).collect();
        let reads: Vec<_> = offsets.iter().map(|o| request(op::READ, file, &read_body(*o, len))).collect();
        for piece in pieces {
            let shape = if *piece == 0 { "contiguous" } else { "scattered pages" };
            let case = |name: &str| Case {
                name: format!("READ {}K, {name} ({version})", len >> 10),
                per: 1.0,
                requests: &reads,
                room: len + 16,
                piece: *piece,
                want_error: 0,
                floor: Some(Floor::new(&plain, len, *piece, &offsets)),
            };
            rows.extend(measure_if_wanted(&mount, case(shape)));
            if len == 4096 {
                let namespace = shown_in_a_namespace(&mount);
                rows.extend(measure_if_wanted(&namespace, case("in a namespace")));
            }
        }
    }
}

/// Flags aside, which `cargo bench` passes, arguments are parts of names of what is wanted.
fn measure_if_wanted<F: GuestFs + 'static>(mount: &Arc<F>, case: Case<'_>) -> Option<Row> {
    let mut wanted = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).peekable();
    let all = wanted.peek().is_none();
    (all || wanted.any(|part| case.name.contains(&part))).then(|| measure(mount, case))
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for version in ["v6", "v5"] {
        metadata(version, &mut rows, dir.path());
        data(version, &mut rows, dir.path());
    }
    let mut out = std::io::stdout();
    writeln!(out, "server side, one thread, minimum of {ROUNDS} rounds").unwrap();
    writeln!(out, "{:<36} {:>10} {:>8} {:>12} {:>8}", "operation", "ns", "allocs", "preadv2 ns", "over it")
        .unwrap();
    for row in &rows {
        write!(out, "{:<36} {:>10.0} {:>8.3}", row.name, row.ns, row.allocations).unwrap();
        match row.floor {
            Some(floor) => writeln!(out, " {floor:>12.0} {:>8.0}", row.ns - floor).unwrap(),
            None => writeln!(out).unwrap(),
        }
    }
}
