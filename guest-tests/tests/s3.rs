//! Images from `s3s-fs`, an S3 server of other hands that checks every signature. `make test-s3` builds it and runs this.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::{Case, corpus};
use guest_tests::support::process::Process;
use guest_tests::tree::{Ignore, compare};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

const KEY: &str = "AKIAEXAMPLE";
const SECRET: &str = "s3cr3t-of-s3s";

/// The server with the blobs of a case in bucket `bu`, below `p/`.
struct Server {
    port: u16,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(case: &Case, domain: bool) -> Self {
        let program =
            std::env::var_os("S3S_FS").unwrap_or_else(|| panic!("S3S_FS is not set: use `make test-s3`"));
        let dir = tempfile::tempdir().unwrap();
        let bucket = dir.path().join("root/bu/p");
        std::fs::create_dir_all(&bucket).unwrap();
        for blob in std::fs::read_dir(&case.image.blobs).unwrap() {
            let blob = blob.unwrap();
            std::fs::copy(blob.path(), bucket.join(blob.file_name())).unwrap();
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", KEY, "--secret-key", SECRET]);
        if domain {
            // `bu.localhost` is this host, without anybody's help.
            command.args(["--domain", &format!("localhost:{port}")]);
        }
        let mut process =
            Process::spawn(command.arg(dir.path().join("root")), &dir.path().join("log")).unwrap();
        for _ in 0..1000 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Self { port, _process: process, _dir: dir };
            }
            assert!(process.ended().unwrap().is_none(), "{}", process.output());
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("s3s-fs does not listen: {}", process.output());
    }
}

/// The tree as the daemon shows it, or why not.
fn read(case: &Case, endpoint: &str, secret: &str, more: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let text = format!(
        "version = 2\n[backend]\ntype = \"s3\"\n[backend.s3]\nscheme = \"http\"\nendpoint = \"{endpoint}\"\nregion = \
         \"us-east-1\"\nbucket_name = \"bu\"\nobject_prefix = \"p/\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = \
         \"{secret}\"\ndeadline = 5\n{more}\n[cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = \"{}\"\n[rafs]\n\
         enable_xattr = true\n",
        dir.path().join("cache").display()
    );
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::rafsd_configured(&case.image.bootstrap, &config, &[]).unwrap();
    let mut client =
        Client::connect(&daemon.socket, &Options { memory_mib: 64, ..Options::default() }).unwrap();
    let got = walk(&mut client, WalkOptions::default());
    let log = daemon.process.output();
    assert!(!log.contains(secret), "the secret is in the log");
    let got = got.map_err(|error| format!("{error}\n{log}"))?;
    client.unmount().unwrap();
    let differences = compare(&case.expected, &got, Ignore::default());
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
}

#[test]
#[ignore = "needs s3s-fs: make test-s3"]
fn images_from_a_server_that_checks_signatures() {
    for name in ["v5-zstd-sha256-4k", "v6-batch", "v6-targz-ref"] {
        let case = corpus().unwrap().into_iter().find(|case| case.name == name).unwrap();
        let server = Server::start(&case, false);
        let endpoint = format!("127.0.0.1:{}", server.port);
        read(&case, &endpoint, SECRET, "").unwrap_or_else(|e| panic!("{name}, path style: {e}"));
        let refused = read(&case, &endpoint, "another-secret", "").unwrap_err();
        assert!(refused.contains("errno 5"), "{refused}");

        let server = Server::start(&case, true);
        let endpoint = format!("localhost:{}", server.port);
        read(&case, &endpoint, SECRET, "path_style = false")
            .unwrap_or_else(|e| panic!("{name}, virtual-host style: {e}"));
        read(&case, &endpoint, "another-secret", "path_style = false").unwrap_err();
    }
}
