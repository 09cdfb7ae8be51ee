//! A directory that is passed through, and guests of it, each behind a virtqueue.
#![allow(dead_code, reason = "each user takes a part")]
#![allow(clippy::unwrap_used, missing_docs, reason = "helpers of tests")]

use crate::common::request;
use rafsd::fuse::abi::{InitIn, OpenIn, op};
use rafsd::mounts::{Passthrough, PassthroughBackend, PassthroughOptions};
use rafsd::virtio::Harness;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zerocopy::IntoBytes;

/// Node of the root.
pub const ROOT: u64 = 1;

/// A directory, and what guests see of it.
pub struct Shared {
    pub dir: TempDir,
    backend: PassthroughBackend,
}

/// One guest.
pub struct Guest {
    pub fs: Arc<Passthrough>,
    pub ring: Harness<Passthrough>,
}

impl Shared {
    pub fn new(options: PassthroughOptions) -> Self {
        Self::on(tempfile::tempdir().unwrap(), options)
    }

    pub fn on(dir: TempDir, options: PassthroughOptions) -> Self {
        let backend = PassthroughBackend::open(dir.path(), options).unwrap();
        Self { dir, backend }
    }

    pub fn guest(&self) -> Guest {
        let fs = self.backend.alone();
        let guest = Guest { ring: Harness::new(Arc::clone(&fs)).unwrap(), fs };
        let init = InitIn { major: 7, minor: 38, max_readahead: 0, flags: 0 };
        assert_eq!(guest.call(op::INIT, 0, init.as_bytes()), 0);
        guest
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub fn node(&self, guest: &Guest, name: &str) -> u64 {
        let entry = guest.ask(op::LOOKUP, ROOT, format!("{name}\0").as_bytes());
        let ino = fs::symlink_metadata(self.path(name)).unwrap().ino();
        assert_eq!(word(&entry, 40), 1 << 56 | 1 << 48 | ino, "{name}");
        word(&entry, 0)
    }
}

impl Guest {
    pub fn call(&self, opcode: u32, node: u64, body: &[u8]) -> i32 {
        self.call_as((0, 0), opcode, node, body)
    }

    /// A request of a user and group.
    pub fn call_as(&self, (uid, gid): (u32, u32), opcode: u32, node: u64, body: &[u8]) -> i32 {
        let mut message = request(opcode, node, body);
        message[24..28].copy_from_slice(&uid.to_ne_bytes());
        message[28..32].copy_from_slice(&gid.to_ne_bytes());
        let before = self.ring.given_back();
        self.send(0, &message);
        self.wait_for(before.wrapping_add(1));
        self.ring.reply_header(0).1
    }

    /// Sends a message from place `slot`, and does not wait for the answer.
    pub fn send(&self, slot: u16, message: &[u8]) {
        self.ring.prepare(slot, message, 4096 + 16, 0).unwrap();
        self.ring.announce_heads([slot * 16]).unwrap();
        self.ring.worker().serve();
    }

    /// Waits until so many answers were given since the start.
    pub fn wait_for(&self, answers: u16) {
        let begun = Instant::now();
        while self.ring.given_back() != answers {
            assert!(begun.elapsed() < Duration::from_secs(30), "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// A request with an answer: its bytes behind the header.
    pub fn ask(&self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        assert_eq!(self.call(opcode, node, body), 0, "opcode {opcode}");
        let len = usize::try_from(self.ring.reply_header(0).0).unwrap();
        self.ring.reply_payload(0, len - 16)
    }

    pub fn open(&self, node: u64, flags: i32) -> u64 {
        let body = OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
        let out = self.ask(op::OPEN, node, body.as_bytes());
        u64::from_ne_bytes(out[..8].try_into().unwrap())
    }
}

pub fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}
