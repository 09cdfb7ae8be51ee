//! FUSE requests and descriptor chains, from the ring to the reply.
//!
//! Invariants: nothing panics (the server would turn a panic into EIO, so the hook below aborts); every head that was
//! taken comes back; a chain that the guest made up costs no more than its walk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::image::Image;
use rafs::reader::{Reader, ReaderOptions};
use rafs::store::LocalFs;
use rafsd::mounts::{RafsMount, RafsMountOptions};
use rafsd::virtio::{Harness, RawDescriptor};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

static MOUNT: OnceLock<Arc<RafsMount>> = OnceLock::new();

/// A small image with every kind of file, its chunks kept in memory.
fn mount() -> Arc<RafsMount> {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop/v6-zstd-sha256-4k");
    let image = Arc::new(Image::open(&case.join("bootstrap")).expect("corpus image"));
    let store = LocalFs::in_dir(&case.join("blobs")).expect("corpus blobs");
    let reader = Reader::new(image, Arc::new(store), ReaderOptions::default()).expect("reader");
    let options = RafsMountOptions { index: 1, xattr: true, timeout: Duration::from_secs(1) };
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    Arc::new(RafsMount::new(reader, options))
}

fn word(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

/// One well-formed chain around a made-up message.
fn message(harness: &Harness<RafsMount>, data: &[u8]) -> bool {
    let (room, request) = data.split_at(3.min(data.len()));
    let room = u32::try_from(word(room, 0) % 0x1_0100).unwrap_or(0);
    let mut request = request.to_vec();
    request.truncate(4096);
    // Half of the time the header's length is made right, else hardly anything gets past it.
    if request.len() >= 4 && room % 2 == 0 {
        let len = u32::try_from(request.len()).unwrap_or(0);
        request[..4].copy_from_slice(&len.to_ne_bytes());
    }
    harness.prepare(0, &request, room, 0).is_ok() && harness.announce(1).is_ok()
}

/// Descriptors as the data has them.
fn chains(harness: &Harness<RafsMount>, data: &[u8]) -> bool {
    for (index, d) in data.chunks_exact(8).take(32).enumerate() {
        let raw = word(d, 0);
        let descriptor = RawDescriptor {
            addr: (raw & 0xffff_ffff) * 64,
            len: u32::try_from(raw >> 32 & 0xffff).unwrap_or(0),
            flags: u16::try_from(raw >> 48 & 7).unwrap_or(0),
            next: u16::try_from(raw >> 51 & 0x3f).unwrap_or(0),
        };
        if harness.set_descriptor(u16::try_from(index).unwrap_or(0), descriptor).is_err() {
            return false;
        }
    }
    let _ = harness.write_memory(0x1_0000, data);
    harness.announce_heads([u16::try_from(word(data, 0) % 40).unwrap_or(0)]).is_ok()
}

fuzz_target!(|data: &[u8]| {
    let mount = MOUNT.get_or_init(mount);
    let Some((kind, data)) = data.split_first() else { return };
    let harness = Harness::new(Arc::clone(mount)).expect("harness");
    let announced = if kind % 2 == 0 { message(&harness, data) } else { chains(&harness, data) };
    if !announced {
        return;
    }
    harness.worker().serve();
    let start = Instant::now();
    while harness.given_back() != harness.announced() {
        assert!(start.elapsed() < Duration::from_secs(10), "a request was not answered");
        std::thread::sleep(Duration::from_micros(50));
    }
});
