//! An image whose blob is behind a server that misbehaves on request, and ways to read all of it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests fail by panicking"
)]

use crate::frontend::fuse::read_in;
use crate::frontend::{Client, Options};
use crate::servers::BlobServer;
use crate::support::daemon::Daemon;
use crate::support::image::Image;
use crate::support::random::Random;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Opcode of READ.
pub const READ: u32 = 15;
const EIO: i32 = 5;

/// An image behind a server, and what is in it.
#[derive(Debug)]
pub struct Afar {
    /// Paths and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// The image.
    pub image: Image,
    /// Where its blob is.
    pub server: BlobServer,
}

impl Default for Afar {
    fn default() -> Self {
        Self::new()
    }
}

impl Afar {
    /// 12 MB in 120 files of up to 300 KB, half of each compressible.
    #[must_use]
    pub fn new() -> Self {
        Self::of_version(6)
    }

    /// The same as RAFS 5 or 6.
    #[must_use]
    pub fn of_version(version: u32) -> Self {
        let source = tempfile::tempdir().unwrap();
        let (mut random, mut files) = (Random::new(7), Vec::new());
        for n in 0..120u64 {
            let len = usize::try_from(random.below(200_000) + 1 + n % 3 * 50_000).unwrap();
            let data: Vec<u8> =
                (0..len).map(|i| if i % 2 == 0 { random.next().to_le_bytes()[0] } else { 7 }).collect();
            let path = format!("d{}/f{n}", n % 7);
            std::fs::create_dir_all(source.path().join(&path).parent().unwrap()).unwrap();
            std::fs::write(source.path().join(&path), &data).unwrap();
            files.push((path, data));
        }
        let image = Image::build(source.path(), version, &["--chunk-size", "0x10000"]).unwrap();
        let server = BlobServer::start(&image.blobs).unwrap();
        Self { files, image, server }
    }

    /// A configuration file in `dir`: a registry, a cache directory, seconds until EIO, the limit of the cache.
    pub fn config(&self, dir: &Path, cache: &Path, deadline: u32, max_bytes: u64) -> PathBuf {
        let config = dir.join("config");
        let text = format!(
            "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\n\
             scheme = \"http\"\ntimeout = 1\ndeadline = {deadline}\n[cache]\ntype = \"filecache\"\n[cache.filecache]\n\
             work_dir = \"{}\"\nmax_bytes = {max_bytes}\n[rafs]\nenable_xattr = true\n",
            self.server.host(),
            cache.display()
        );
        std::fs::write(&config, text).unwrap();
        config
    }

    /// A daemon with that configuration.
    pub fn daemon(&self, cache: &Path, deadline: u32, max_bytes: u64) -> (Daemon, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let config = self.config(dir.path(), cache, deadline, max_bytes);
        (Daemon::rafsd_configured(&self.image.bootstrap, &config, &[]).unwrap(), dir)
    }

    /// Reads pieces of files at random, 8 at a time. How many failed.
    pub fn read_at_random(&self, daemon: &Daemon, reads: usize, seed: u64) -> usize {
        let mut client = connect(daemon);
        let nodes: Vec<u64> =
            self.files.iter().map(|(path, _)| client.resolve(path.as_bytes()).unwrap().node).collect();
        let mut random = Random::new(seed);
        let (mut flying, mut failed, mut sent) = (Vec::new(), 0, 0);
        while sent < reads || !flying.is_empty() {
            while sent < reads && flying.len() < 8 {
                let file = usize::try_from(random.below(nodes.len() as u64)).unwrap();
                let size = self.files[file].1.len() as u64;
                let offset = random.below(size);
                let len = u32::try_from((size - offset).min(1 + random.below(131_072))).unwrap();
                let body = read_in(0, offset, len);
                let unique = client.session.submit(1, READ, nodes[file], &body, Some(len)).unwrap();
                flying.push((unique, file, usize::try_from(offset).unwrap(), len as usize));
                sent += 1;
            }
            client.session.flush().unwrap();
            let done = client.session.next_done().unwrap();
            let at = flying.iter().position(|(unique, ..)| *unique == done.unique).unwrap();
            let (_, file, offset, len) = flying.swap_remove(at);
            if done.errno != 0 {
                assert_eq!(done.errno, EIO);
                failed += 1;
                client.session.release(done);
                continue;
            }
            let data = client.session.take(done).unwrap();
            let (path, expected) = &self.files[file];
            assert!(data == expected[offset..offset + len], "{path} at {offset}: wrong data");
        }
        client.unmount().unwrap();
        failed
    }

    /// Every file has the contents it should have.
    pub fn assert_all(&self, daemon: &Daemon, what: &str) {
        let mut client = connect(daemon);
        for (path, expected) in &self.files {
            let node = client.resolve(path.as_bytes()).unwrap().node;
            let mut at = 0;
            while at < expected.len() {
                let len = u32::try_from(expected.len() - at).unwrap().min(131_072);
                let data = client.read(node, 0, at as u64, len);
                let data = data.unwrap_or_else(|e| panic!("{what} {path}: {e}\n{}", tail(daemon)));
                assert!(data == expected[at..at + len as usize], "{what} {path} at {at}: wrong data");
                at += len as usize;
            }
        }
        client.unmount().unwrap();
    }

    /// Id of the blob.
    #[must_use]
    pub fn blob(&self) -> String {
        let mut names = std::fs::read_dir(&self.image.blobs).unwrap();
        names.next().unwrap().unwrap().file_name().into_string().unwrap()
    }
}

/// A front-end of a daemon.
pub fn connect(daemon: &Daemon) -> Client {
    let options = Options { memory_mib: 64, timeout: Duration::from_secs(60), ..Options::default() };
    Client::connect(&daemon.socket, &options).unwrap()
}

/// The last lines of its log that matter.
pub fn tail(daemon: &Daemon) -> String {
    let log = daemon.process.output();
    let lines: Vec<&str> = log.lines().filter(|l| !l.contains("DEBUG") && !l.contains("TRACE")).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Bytes that a blob's data takes on the disk.
pub fn cached_bytes(cache: &Path) -> u64 {
    let entries = std::fs::read_dir(cache).unwrap().flatten();
    let data = entries.filter(|e| e.file_name().to_string_lossy().ends_with(".blob.data"));
    data.map(|e| e.metadata().unwrap().blocks() * 512).sum()
}
