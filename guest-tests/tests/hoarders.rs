//! Guests that ask for as much as a ring holds of what no store delivers: the daemon's memory stays in bounds, and each
//! request gets its answer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::client::Client;
use guest_tests::frontend::device::Options;
use guest_tests::frontend::fuse::{in_header, read_in};
use guest_tests::frontend::ring::Segment;
use guest_tests::servers::BlobServer;
use guest_tests::support::afar::READ;
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use guest_tests::support::process::usage;
use guest_tests::support::random::Random;
use guest_tests::support::wait::until;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Of the file, and of each request: more than any kernel asks for, and the most that is answered.
const SIZE: u32 = 16 << 20;
const HEADER: u32 = 16;
/// Requests at once: 1.6 million chunks.
const REQUESTS: u64 = 400;
/// What all of them may cost, KiB; without a limit they cost 120 MiB.
const MEMORY_KIB: u64 = 48 << 10;

/// An image with one file in the smallest chunks there are, behind a server that does not answer yet.
struct Store {
    data: Vec<u8>,
    image: Image,
    server: BlobServer,
}

impl Store {
    fn new() -> Self {
        let source = tempfile::tempdir().unwrap();
        let mut random = Random::new(3);
        let data: Vec<u8> = (0..SIZE).map(|_| random.next().to_le_bytes()[0]).collect();
        std::fs::write(source.path().join("file"), &data).unwrap();
        let image = Image::build(source.path(), 6, &["--chunk-size", "0x1000"]).unwrap();
        let server = BlobServer::start(&image.blobs).unwrap();
        Self { data, image, server }
    }

    fn daemon(&self, dir: &Path, deadline: u32) -> Daemon {
        let config = dir.join("config");
        let text = format!(
            "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\n\
             scheme = \"http\"\ntimeout = {deadline}\ndeadline = {deadline}\n[cache]\ntype = \"filecache\"\n\
             [cache.filecache]\nwork_dir = \"{}\"\n[rafs]\n",
            self.server.host(),
            dir.join("cache").display()
        );
        std::fs::write(&config, text).unwrap();
        Daemon::rafsd_configured(&self.image.bootstrap, &config, &[]).unwrap()
    }
}

/// A guest with all its requests on one ring. They share one place for the answers, which are all the same.
struct Hoarder {
    client: Client,
    answers: u64,
}

impl Hoarder {
    fn new(daemon: &Daemon) -> Self {
        let options = Options { queue_size: 1024, memory_mib: 64, ..Options::default() };
        let mut client = Client::connect(&daemon.socket, &options).unwrap();
        let node = client.resolve(b"/file").unwrap().node;
        let device = &mut client.session.device;
        let answers = device.buffers.alloc((SIZE + HEADER) as usize).unwrap().gpa;
        for unique in 0..REQUESTS {
            let body = read_in(0, 0, SIZE);
            let len = 40 + u32::try_from(body.len()).unwrap();
            let request = [&in_header(len, READ, 1000 + unique, node)[..], &body].concat();
            let place = device.buffers.alloc(request.len()).unwrap().gpa;
            let table = device.buffers.alloc(4096).unwrap().gpa;
            device.mem.write(place, &request).unwrap();
            let segments = [
                Segment { gpa: place, len, writable: false },
                Segment { gpa: answers, len: SIZE + HEADER, writable: true },
            ];
            device.rings[1].add(&device.mem, &segments, Some(table)).unwrap();
        }
        device.rings[1].publish(&device.mem).unwrap();
        device.rings[1].kick_now().unwrap();
        Self { client, answers }
    }

    /// Waits for all answers; the bytes of each, header included.
    fn lengths(&mut self) -> Vec<u32> {
        let device = &mut self.client.session.device;
        let mut lengths = Vec::new();
        for part in 1..=4 {
            until("a quarter of the answers", || {
                while let Some((_, len)) = device.rings[1].pop_used(&device.mem).unwrap() {
                    lengths.push(len);
                }
                lengths.len() as u64 >= REQUESTS * part / 4
            });
        }
        lengths
    }
}

/// Pieces of each scattered answer.
const PIECES: u64 = 1000;
/// Scattered requests at once.
const SCATTERED: u16 = 8192;
/// What they may cost, KiB: the room there is, and the fetch side's part. All of them would cost 128 MiB and more.
const SCATTERED_KIB: u64 = 96 << 10;

#[test]
fn scattered_requests_that_wait_have_a_room_of_bounded_size() {
    let (store, dir) = (Store::new(), directory());
    let daemon = store.daemon(dir.path(), 60);
    store.server.set(|s| s.held = true);
    let options = Options { queue_size: SCATTERED, memory_mib: 64, ..Options::default() };
    let mut client = Client::connect(&daemon.socket, &options).unwrap();
    let node = client.resolve(b"/file").unwrap().node;
    let before = usage(daemon.process.id()).unwrap().anon_kib;
    let device = &mut client.session.device;
    // One request, one table and one place for the answers serve all of them.
    let body = read_in(0, 0, 4096);
    let len = 40 + u32::try_from(body.len()).unwrap();
    let request = device.buffers.alloc(4096).unwrap().gpa;
    device.mem.write(request, &[&in_header(len, READ, 1000, node)[..], &body].concat()).unwrap();
    let answers = device.buffers.alloc(64 << 10).unwrap().gpa;
    let table = device.buffers.alloc(64 << 10).unwrap().gpa;
    let mut segments = vec![Segment { gpa: request, len, writable: false }];
    segments.extend((0..PIECES).map(|n| Segment { gpa: answers + n * 16, len: 8, writable: true }));
    for _ in 0..SCATTERED {
        device.rings[1].add(&device.mem, &segments, Some(table)).unwrap();
    }
    device.rings[1].publish(&device.mem).unwrap();
    device.rings[1].kick_now().unwrap();
    let mut lengths = Vec::new();
    until("those without room to be told so", || {
        while let Some((_, len)) = device.rings[1].pop_used(&device.mem).unwrap() {
            lengths.push(len);
        }
        let now = usage(daemon.process.id()).unwrap().anon_kib;
        assert!(now < before + SCATTERED_KIB, "{} KiB", now - before);
        lengths.len() > usize::from(SCATTERED) / 3
    });
    assert!(lengths.iter().all(|len| *len == HEADER), "something was answered without the store");
    store.server.set(|s| s.held = false);
    until("the others to be answered", || {
        while let Some((_, len)) = device.rings[1].pop_used(&device.mem).unwrap() {
            lengths.push(len);
        }
        lengths.len() == usize::from(SCATTERED)
    });
    let answered = lengths.iter().filter(|len| **len == 4096 + HEADER).count();
    println!("{answered} of {SCATTERED} waited");
    assert!(answered > 3000, "{answered}");
    // There is room again.
    assert_eq!(client.read(node, 0, 8 << 20, 4096).unwrap(), store.data[8 << 20..][..4096]);
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn reads_that_wait_cost_bounded_memory_and_are_answered() {
    let (store, dir) = (Store::new(), directory());
    let daemon = store.daemon(dir.path(), 60);
    store.server.set(|s| s.held = true);
    let before = usage(daemon.process.id()).unwrap().anon_kib;
    let mut hoarder = Hoarder::new(&daemon);
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(50));
        let now = usage(daemon.process.id()).unwrap().anon_kib;
        assert!(now < before + MEMORY_KIB, "{} KiB", now - before);
    }
    println!("{} KiB", usage(daemon.process.id()).unwrap().anon_kib - before);
    store.server.set(|s| s.held = false);
    assert!(hoarder.lengths().into_iter().all(|len| len == SIZE + HEADER));
    let mut found = vec![0; SIZE as usize];
    hoarder.client.session.device.mem.read(hoarder.answers + u64::from(HEADER), &mut found).unwrap();
    assert!(found == store.data, "other data");
}

#[test]
fn reads_that_wait_behind_others_fail_at_their_own_deadline() {
    let (store, dir) = (Store::new(), directory());
    let daemon = store.daemon(dir.path(), 2);
    store.server.set(|s| s.held = true);
    let mut hoarder = Hoarder::new(&daemon);
    // One after the other, each with two seconds from its turn on, they would take almost a minute.
    assert!(hoarder.lengths().into_iter().all(|len| len == HEADER));
    store.server.set(|s| s.held = false);
    let node = hoarder.client.resolve(b"/file").unwrap().node;
    until("the store to be back", || hoarder.client.read(node, 0, 4096, 4096).is_ok());
}
