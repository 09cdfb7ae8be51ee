//! What becomes of requests that a killed daemon had read and not answered: `--failover-policy`.
//!
//! They wait for a store that does not answer, so they are on their way for sure when the daemon is killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guest_tests::servers::{BlobServer, Fault};
use guest_tests::support::api::wait_for_state;
use guest_tests::support::fuse_mode::{FuseHost, possible};
use guest_tests::support::image::Image;
use guest_tests::support::process::Process;
use guest_tests::support::random::Random;
use guest_tests::support::wait::until;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: usize = 200_000;

/// An image of two files behind a server, and a place to mount it.
struct Setting {
    source: TempDir,
    cache: TempDir,
    server: BlobServer,
    image: Image,
    host: FuseHost,
}

impl Setting {
    fn new() -> Self {
        let source = tempfile::tempdir().unwrap();
        let mut random = Random::new(11);
        for name in ["one", "other"] {
            let data: Vec<u8> = (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            fs::write(source.path().join(name), data).unwrap();
        }
        let image = Image::build(source.path(), 6, &["--chunk-size", "0x40000"]).unwrap();
        let server = BlobServer::start(&image.blobs).unwrap();
        Self { source, cache: tempfile::tempdir().unwrap(), server, image, host: FuseHost::new().unwrap() }
    }

    fn config(&self) -> PathBuf {
        let path = self.cache.path().join("config");
        let text = format!(
            "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\n\
             scheme = \"http\"\ntimeout = 30\ndeadline = 60\n[cache]\ntype = \"filecache\"\n[cache.filecache]\n\
             work_dir = \"{}\"\n[rafs]\nenable_xattr = true\n",
            self.server.host(),
            self.cache.path().display()
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// A process that reads `name`, and says what it got.
    fn reader(&self, name: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "reader_process", "--ignored", "--nocapture"]);
        command.env("READ", self.host.mountpoint().join(name)).env("TRUTH", self.source.path().join(name));
        Process::spawn(&mut command, &self.host.path(&format!("{name}.log"))).unwrap()
    }
}

#[test]
#[ignore = "the process behind a reader"]
fn reader_process() {
    let Some((read, truth)) = std::env::var_os("READ").zip(std::env::var_os("TRUTH")) else { return };
    // Past the page cache: after a read-ahead that failed the kernel asks anew, unseen.
    let flags = OFlags::RDONLY | OFlags::DIRECT;
    let file = fs::File::from(rustix::fs::open(Path::new(&read), flags, Mode::empty()).unwrap());
    let mut got = vec![0; 4096];
    match file.read_at(&mut got, 0) {
        Ok(n) if got[..n] == fs::read(truth).unwrap()[..n] => println!("the right {n} bytes"),
        Ok(n) => println!("{n} wrong bytes"),
        Err(error) => println!("error {:?}", error.raw_os_error()),
    }
}

/// A daemon is killed with a READ on its way, and its successor serves under `policy`; what became of the reader after
/// somebody else has read something through the successor.
fn killed_under(policy: &str) -> Option<String> {
    let setting = Setting::new();
    let host = &setting.host;
    let config = setting.config();
    let (bootstrap, config) = (setting.image.bootstrap.to_str().unwrap(), config.to_str().unwrap());
    let flags =
        ["--bootstrap", bootstrap, "--config", config, "--failover-policy", policy, "--fuse-threads", "2"];
    let mut daemon = host.start_supervised("api", &flags).unwrap();
    wait_for_state(&host.path("api"), "RUNNING").unwrap();
    fs::metadata(host.mountpoint().join("one")).unwrap();
    let kept = host.save("api").unwrap();
    setting.server.set(|s| {
        (s.faults, s.fault_percent, s.stall) = (vec![Fault::Stall], 100, Duration::from_secs(30));
    });
    let asked = setting.server.records().len();
    let mut reader = setting.reader("one");
    until("the server to be asked", || setting.server.records().len() > asked);
    daemon.kill().unwrap();
    setting.server.set(|s| s.fault_percent = 0);
    let mut daemon = host.start_successor("api", &flags).unwrap();
    host.take_over("api", &kept).unwrap();
    drop(kept);
    host.serve("api").unwrap();
    let other = setting.reader("other").wait(LIMIT).unwrap();
    assert!(other.success(), "{}", daemon.output());
    let answer = if policy == "none" {
        let ended = reader.ended().unwrap().is_some();
        host.abort();
        reader.wait(LIMIT).unwrap();
        (!ended).then(|| "waits".to_owned())
    } else {
        reader.wait(LIMIT).unwrap();
        Some(reader.output())
    };
    if policy != "none" {
        daemon.terminate().unwrap();
    }
    daemon.wait(LIMIT).unwrap();
    answer
}

#[test]
fn requests_on_their_way_are_sent_again() {
    if possible() {
        let answer = killed_under("resend").unwrap();
        assert!(answer.contains("the right 4096 bytes"), "{answer}");
    }
}

#[test]
fn requests_on_their_way_are_failed() {
    if possible() {
        let answer = killed_under("flush").unwrap();
        assert!(answer.contains(&format!("error Some({})", Errno::CONNABORTED.raw_os_error())), "{answer}");
    }
}

#[test]
fn requests_on_their_way_are_left_alone() {
    if possible() {
        assert_eq!(killed_under("none").as_deref(), Some("waits"));
    }
}
