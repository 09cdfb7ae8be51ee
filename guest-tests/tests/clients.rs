//! What each client of nydusd calls, in its order, with answers read as strictly as it does (nydusd-cli-api.md section 5).
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk_from};
use guest_tests::support::api::{ApiDaemon, Connection, encoded};
use guest_tests::support::binaries::ours;
use guest_tests::support::image::Case;
use guest_tests::support::wait::until;
use guest_tests::tree::{Ignore, compare};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The version as runtime-rs wants it: all five, all strings.
#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "that they parse is the test")]
struct Version {
    package_ver: String,
    git_commit: String,
    build_time: String,
    profile: String,
    rustc: String,
}

#[derive(Debug, Deserialize)]
struct DaemonInfo {
    id: Option<String>,
    #[allow(dead_code, reason = "that it parses is the test")]
    version: Version,
    state: String,
    supervisor: Option<String>,
    backend_collection: HashMap<String, Value>,
}

#[test]
fn kata_go() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("shared")).unwrap();
    std::fs::write(dir.path().join("shared/hello"), "from the host").unwrap();
    let mut command = Command::new(ours("rafsd").unwrap());
    let (api, sock) = (dir.path().join("api.sock"), dir.path().join("vhost-fs.sock"));
    command.args(["virtiofs", "--log-level", "info", "--apisock"]).arg(&api).arg("--sock").arg(&sock);
    // What Kata ships, and what its how-to adds.
    command.args(["--thread-pool-size=1", "--announce-submounts", "--log-level", "debug", "--threads", "4"]);
    let begun = Instant::now();
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "each miss would double the next pause");
    let info: DaemonInfo =
        serde_json::from_str(&daemon.call("GET", "/api/v1/daemon", None).unwrap().body).unwrap();
    assert_eq!(info.state, "RUNNING");

    // Before the machine boots: the shared directory.
    let shared = daemon.path("shared");
    let body = json!({"fs_type": "passthrough_fs", "source": shared, "config": ""}).to_string();
    let answer = daemon.call("POST", "/api/v1/mount?mountpoint=/containers", Some(&body)).unwrap();
    assert_eq!(answer.status, 204, "{}", answer.body);

    let mut guest = daemon.guest("vhost-fs.sock").unwrap();
    // Then a container for each of two images, while the guest runs.
    for (cid, name) in [("c1", "v6-zstd-blake3"), ("c2", "v5-zstd-blake3")] {
        let case = Case::named(name).unwrap();
        let target = format!("/api/v1/mount?mountpoint=/rafs/{cid}/lowerdir");
        let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, cid);
        let answer = daemon.call("POST", &target, Some(&body)).unwrap();
        assert_eq!(answer.status, 204, "{}", answer.body);
        let root = guest.resolve(format!("/rafs/{cid}/lowerdir").as_bytes()).unwrap().node;
        let got = walk_from(&mut guest, root, WalkOptions::default()).unwrap();
        assert_eq!(compare(&case.expected, &got, Ignore::default()), Vec::<String>::new(), "{name}");
        let twice = daemon.call("POST", &target, Some(&body)).unwrap();
        assert_eq!(twice.status, 500);
        assert_eq!(
            twice.message().unwrap(),
            r#"Mount(MountFilesystem(Other("object or filesystem already exists")))"#
        );
    }
    let hello = guest.resolve(b"/containers/hello").unwrap();
    assert_eq!(hello.attr.size, 13);
    for cid in ["c1", "c2"] {
        let target = format!("/api/v1/mount?mountpoint=/rafs/{cid}/lowerdir");
        assert_eq!(daemon.call("DELETE", &target, None).unwrap().status, 204);
        let twice = daemon.call("DELETE", &target, None).unwrap();
        assert_eq!(
            (twice.status, twice.message().unwrap().as_str()),
            (500, r#"Mount(MountFilesystem(Other("object or filesystem doesn't exist")))"#)
        );
        guest.resolve(format!("/rafs/{cid}").as_bytes()).unwrap_err();
    }
    assert_eq!(guest.resolve(b"/containers/hello").unwrap().node, hello.node, "others stay");
    // Kata waits five seconds before it kills.
    daemon.process.terminate().unwrap();
    assert!(daemon.process.wait(Duration::from_secs(5)).unwrap().success(), "{}", daemon.process.output());
    assert!(!api.exists() && !sock.exists(), "sockets are left behind");
}

#[test]
fn kata_runtime_rs() {
    // Rootless: sockets are bare file names.
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(ours("rafsd").unwrap());
    command.current_dir(dir.path());
    command.args(["virtiofs", "--hybrid-mode", "--log-level", "info", "--apisock", "api.sock"]);
    command.args(["--sock", "virtiofsd.sock"]);
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    // hyper's client sends a type with a GET, and absolute targets occur.
    let mut connection = Connection::open(&daemon.path("api.sock")).unwrap();
    connection
        .send(b"GET http://unix/api/v1/daemon HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    let answer = connection.answer().unwrap();
    let info: DaemonInfo = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, info.state.as_str(), info.id, info.supervisor), (200, "RUNNING", None, None));

    let case = Case::named("v6-zstd-blake3").unwrap();
    let path = "/rafs/0123456789abcdef/lowerdir";
    let target = format!("http://unix/api/v1/mount?mountpoint={}", encoded(path));
    let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "x");
    assert_eq!(connection.call("POST", &target, Some(&body)).unwrap().status, 204);
    let info: DaemonInfo =
        serde_json::from_str(&connection.call("GET", "/api/v1/daemon", None).unwrap().body).unwrap();
    assert_eq!(info.backend_collection[path]["backend_type"], "Rafs");
    assert_eq!(info.backend_collection[path]["config"]["rafs"]["enable_xattr"], true);
    let mut guest = daemon.guest("virtiofsd.sock").unwrap();
    guest.resolve(format!("{path}/names").as_bytes()).unwrap();
    assert_eq!(connection.call("DELETE", &target, None).unwrap().status, 204);
    daemon.process.terminate().unwrap();
    daemon.process.wait(Duration::from_secs(5)).unwrap();
}

/// The snapshotter's calls to a shared daemon, as far as they do not depend on how guests are reached.
#[test]
fn snapshotter_api() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    // A connection that says nothing; its end would mean that the daemon died.
    let mut liveness = Connection::open(&daemon.path("api.sock")).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "/12");
    let mount = format!("/api/v1/mount?mountpoint={}", encoded("/12"));
    assert_eq!(daemon.call("POST", &mount, Some(&body)).unwrap().status, 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let (path, entry) = case.expected.iter().max_by_key(|(_, e)| e.size).unwrap();
    let node = guest.resolve(&[b"/12".as_slice(), path].concat()).unwrap().node;
    let size = u32::try_from(entry.size.unwrap()).unwrap();
    assert_eq!(guest.read(node, 0, 0, size).unwrap().len(), size as usize);
    // The guest has what it reads before all of it is kept: half a second in which nothing more is.
    let kept = || {
        let cache = daemon.call("GET", "/api/v1/metrics/blobcache?id=/12", None).unwrap().json().unwrap();
        cache["entries_count"].as_u64().unwrap()
    };
    let (mut last, mut same) = (kept(), 0);
    while last == 0 || same < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = kept();
        (last, same) = (now, if now == last { same + 1 } else { 0 });
        assert!(same < 300, "nothing is kept");
    }
    assert_eq!(guest.read(node, 0, 0, size).unwrap().len(), size as usize);

    #[derive(Deserialize)]
    struct FsMetrics {
        id: String,
        data_read: u64,
        block_count_read: [u64; 8],
        fop_hits: [u64; 15],
        fop_errors: [u64; 15],
        fop_cumulative_latency_total: [u64; 15],
        read_latency_dist: [u64; 8],
        nr_opens: u64,
    }
    let answer = daemon.call("GET", &format!("/api/v1/metrics?id={}", encoded("/12")), None).unwrap();
    let metrics: FsMetrics = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((metrics.id.as_str(), metrics.data_read), ("/12", 2 * u64::from(size)));
    assert_eq!(metrics.fop_hits[4], 2);
    assert_eq!(metrics.block_count_read.iter().sum::<u64>(), 2);
    assert_eq!(metrics.read_latency_dist.iter().sum::<u64>(), 2);
    assert_eq!((metrics.fop_errors[4], metrics.nr_opens), (0, 0));
    assert!(metrics.fop_cumulative_latency_total[4] > 0);

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "that they parse is the test")]
    struct CacheMetrics {
        underlying_files: Vec<String>,
        store_path: String,
        partial_hits: u64,
        whole_hits: u64,
        total: u64,
        entries_count: u64,
        prefetch_data_amount: u64,
        prefetch_workers: u64,
        data_all_ready: bool,
    }
    let answer = daemon.call("GET", "/api/v1/metrics/blobcache?id=/12", None).unwrap();
    let cache: CacheMetrics = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(cache.underlying_files.len(), 1);
    // Of two reads the first had to be fetched.
    assert_eq!((cache.whole_hits, cache.total, cache.data_all_ready), (1, 2, false));
    assert!(cache.entries_count > 0 && cache.prefetch_data_amount == 0);
    assert_eq!(Path::new(&cache.store_path), daemon.path("cache"));
    let backend = daemon.call("GET", "/api/v1/metrics/backend?id=/12", None).unwrap().json().unwrap();
    assert_eq!(backend["backend_type"], "localfs");
    assert!(
        backend["read_count"].as_u64().unwrap() > 0 && backend["read_amount_total"].as_u64().unwrap() > 0
    );
    // Each read of the store is counted once in each of the three, by its size.
    let sum = |list: &Value| list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    let rows: Vec<u64> = backend["read_latency_sizes_dist"].as_array().unwrap().iter().map(sum).collect();
    assert_eq!(sum(&backend["read_count_block_size_dist"]), backend["read_count"].as_u64().unwrap());
    assert_eq!(Value::from(rows), backend["read_count_block_size_dist"]);
    assert_eq!(backend["read_cumulative_latency_millis_dist"].as_array().unwrap().len(), 8);
    // A prefetch of everything: all of it is here, and the metrics say when.
    let all =
        body.replace(r#"\"mode\""#, r#"\"fs_prefetch\":{\"enable\":true,\"prefetch_all\":true},\"mode\""#);
    let all = all.replace(r#"\"id\":\"/12\""#, r#"\"id\":\"/13\""#);
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/13", Some(&all)).unwrap().status, 204);
    let until = Instant::now() + Duration::from_secs(30);
    let cache = loop {
        let cache = daemon.call("GET", "/api/v1/metrics/blobcache?id=/13", None).unwrap().json().unwrap();
        if cache["data_all_ready"] == true && cache["prefetch_end_time_secs"] != 0 {
            break cache;
        }
        assert!(Instant::now() < until, "{cache}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(cache["prefetch_begin_time_secs"].as_u64().unwrap() > 1_600_000_000, "{cache}");
    assert!(cache["prefetch_requests_count"].as_u64().unwrap() > 0 && cache["total"] == 0, "{cache}");
    assert_eq!(daemon.umount("/13").unwrap(), 204);
    let inflight = daemon.call("GET", "/api/v1/metrics/inflight", None).unwrap();
    assert_eq!(
        (inflight.status, inflight.message().unwrap().as_str()),
        (500, "InflightMetrics(Metrics(Daemon(Unsupported)))")
    );
    let put = daemon.call("PUT", "/api/v1/config?id=%2F12", Some(r#"{"registry_auth":"dTpw"}"#)).unwrap();
    assert_eq!(put.status, 204, "{}", put.body);
    let shown = daemon.call("GET", "/api/v1/config?id=%2F12", None).unwrap();
    assert!(shown.status == 200 && !shown.body.contains("dTpw"), "{}", shown.body);
    assert_eq!(daemon.call("PUT", "/api/v1/daemon/fuse/sendfd", None).unwrap().status, 501);
    assert_eq!(daemon.call("DELETE", &mount, None).unwrap().status, 204);
    assert_eq!(liveness.call("GET", "/api/v1/daemon", None).unwrap().status, 200, "still there");
}

/// Mounts of one configuration share its cache and its store, and the metrics of both are those of all of them.
#[test]
fn metrics_of_mounts_that_share_a_configuration_add_up() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    let shared = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "shared");
    for path in ["/a", "/b"] {
        let target = format!("/api/v1/mount?mountpoint={path}");
        assert_eq!(daemon.call("POST", &target, Some(&shared)).unwrap().status, 204);
    }
    let metrics = |what: &str| daemon.call("GET", &format!("/api/v1/metrics/{what}"), None).unwrap();
    let (path, entry) = case.expected.iter().max_by_key(|(_, e)| e.size).unwrap();
    let size = u32::try_from(entry.size.unwrap()).unwrap();
    let mut guest = daemon.guest("fs.sock").unwrap();
    let mut reads = |mount: &[u8], times: usize| {
        let node = guest.resolve(&[mount, path].concat()).unwrap().node;
        (0..times).for_each(|_| assert_eq!(guest.read(node, 0, 0, size).unwrap().len(), size as usize));
    };
    reads(b"/a", 1);
    reads(b"/b", 2);
    let cache = metrics("blobcache?id=shared").json().unwrap();
    assert_eq!((&cache["total"], cache["underlying_files"].as_array().unwrap().len()), (&json!(3), 1));
    // The path names one of them.
    let alone = || metrics("blobcache?id=/b").json().unwrap();
    assert_eq!(alone()["total"], 2);
    // A blob that both have is counted once. What was read is kept a moment later than the guest has it.
    let deadline = Instant::now() + Duration::from_secs(30);
    let kept = |metrics: &Value| metrics["entries_count"].as_u64().unwrap();
    while kept(&alone()) == 0 || kept(&alone()) != kept(&metrics("blobcache?id=shared").json().unwrap()) {
        assert!(Instant::now() < deadline, "{}", alone());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Without an id there is one instance.
    let nameless = metrics("blobcache").json().unwrap();
    assert_eq!(nameless["total"], 3);
    let backend = |query: &str| metrics(&format!("backend{query}")).json().unwrap();
    let read = &backend("?id=shared")["read_amount_total"];
    assert!(read.as_u64().unwrap() > 0 && *read == backend("")["read_amount_total"], "{read}");
    // The counters of a mount are its own.
    let of_b = daemon.call("GET", "/api/v1/metrics?id=/b", None).unwrap().json().unwrap();
    assert_eq!(of_b["data_read"], 2 * u64::from(size));
    // With another configuration there are two instances.
    let other = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "other");
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/c", Some(&other)).unwrap().status, 204);
    assert_eq!((metrics("blobcache").status, metrics("backend").status), (404, 404));
    let other = metrics("blobcache?id=other").json().unwrap();
    assert_eq!(other["total"], 0);
}

#[test]
fn exit_by_api_is_prompt_and_clean() {
    let mut daemon = ApiDaemon::start(&[]).unwrap();
    assert_eq!(daemon.call("PUT", "/api/v1/daemon/exit", None).unwrap().status, 204);
    assert!(daemon.process.wait(Duration::from_secs(5)).unwrap().success(), "{}", daemon.process.output());
    assert!(!daemon.path("api.sock").exists() && !daemon.path("fs.sock").exists());
}

#[test]
fn called_nydusd_it_speaks_like_it() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("nydusd");
    std::os::unix::fs::symlink(ours("rafsd").unwrap(), &link).unwrap();
    let out = Command::new(&link).arg("--version").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.starts_with("nydusd \rVersion: \t"), "{text:?}");
    // The snapshotter greps for this.
    let commit = text.lines().find_map(|line| line.strip_prefix("Git Commit:")).unwrap();
    assert!(!commit.trim().is_empty());
    // Flags before the command, one of them twice, and no command at all.
    for args in [
        &[
            "--log-level",
            "warn",
            "virtiofs",
            "--log-level",
            "debug",
            "--sock",
            "fs.sock",
            "--apisock",
            "api.sock",
        ][..],
        &["--sock", "fs.sock", "--apisock", "api.sock"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(&link);
        command.current_dir(dir.path()).args(args);
        let daemon = ApiDaemon::spawn(command, dir).unwrap();
        assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    }
}

/// Whether this machine lets us mount.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        println!("not run: mounting needs root and /dev/fuse");
    }
    can
}

/// What is mounted at a path, by the kernel's list.
fn mounted(path: &Path) -> bool {
    let list = std::fs::read_to_string("/proc/self/mounts").unwrap();
    list.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// Regular files of a case as the host sees them below `root`.
fn files_are_right(case: &Case, root: &Path) {
    use sha2::{Digest, Sha256};
    let mut read = 0;
    for (path, entry) in &case.expected {
        let Some(sha256) = &entry.sha256 else { continue };
        let Ok(path) = std::str::from_utf8(path) else { continue };
        let bytes = std::fs::read(root.join(path.trim_start_matches('/'))).unwrap();
        assert_eq!(hex::encode(Sha256::digest(bytes)), *sha256, "{path}");
        read += 1;
    }
    assert!(read > 5, "{read}");
}

/// A configuration for an image with local blobs: `device` and `prefetch` have what a client adds to its template.
fn template(case: &Case, cache: &Path, mut device: Value, prefetch: &Value) -> String {
    device["cache"] =
        json!({"type": "blobcache", "config": {"work_dir": cache, "disable_indexed_map": false}});
    device["backend"]["type"] = json!("localfs");
    device["backend"]["config"]["dir"] = json!(case.image.blobs);
    json!({"device": device, "mode": "direct", "digest_validate": false, "iostats_files": false,
        "enable_xattr": true, "fs_prefetch": prefetch})
    .to_string()
}

fn state(daemon: &ApiDaemon) -> String {
    let answer = daemon.call("GET", "/api/v1/daemon", None).unwrap();
    serde_json::from_str::<DaemonInfo>(&answer.body).unwrap().state
}

/// nydus-snapshotter, one daemon for one image: a FUSE mount made from a file of its template.
#[test]
fn snapshotter_dedicated() {
    if !can_mount() {
        return;
    }
    let case = Case::named("v6-zstd-blake3").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("mnt")).unwrap();
    let device = json!({"id": "/7", "backend": {"config": {"readahead": false,
        "proxy": {"fallback": false, "url": ""}}}});
    let prefetch =
        json!({"enable": true, "threads_count": 8, "merging_size": 1_048_576, "prefetch_all": true});
    std::fs::write(at("config.json"), template(&case, &at("cache"), device, &prefetch)).unwrap();
    let (mnt, log) = (at("mnt"), at("nydusd.log"));
    let mut command = Command::new(ours("rafsd").unwrap());
    command.args(["fuse", "--thread-num", "4", "--config"]).arg(at("config.json"));
    command.arg("--bootstrap").arg(&case.image.bootstrap).arg("--mountpoint").arg(&mnt);
    command.arg("--apisock").arg(at("api.sock")).args(["--log-level", "info", "--log-rotation-size", "100"]);
    command.arg("--log-file").arg(&log).args(["--failover-policy", "resend"]);
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    until("RUNNING", || state(&daemon) == "RUNNING");
    assert!(mounted(&mnt));
    files_are_right(&case, &mnt);
    let metrics = daemon.call("GET", "/api/v1/metrics?id=%2F", None).unwrap();
    assert!(metrics.json().unwrap()["data_read"].as_u64().unwrap() > 0);
    let inflight = daemon.call("GET", "/api/v1/metrics/inflight", None).unwrap();
    assert!([200, 204].contains(&inflight.status), "{inflight:?}");
    assert_eq!(daemon.call("GET", "/api/v1/metrics/blobcache?id=/7", None).unwrap().status, 200);
    let refused = daemon.call("PUT", "/api/v1/daemon/fuse/sendfd", None).unwrap();
    assert!(
        refused.status >= 400 && !refused.message().unwrap().is_empty(),
        "there is no supervisor: {refused:?}"
    );
    daemon.process.terminate().unwrap();
    assert!(daemon.process.wait(Duration::from_secs(5)).unwrap().success(), "{}", daemon.process.output());
    assert!(!mounted(&mnt) && log.exists());
}

/// nydus-snapshotter, one daemon for all images: mounted by API below one FUSE mount.
#[test]
fn snapshotter_shared() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().join("mnt");
    std::fs::create_dir(&mnt).unwrap();
    let mut command = Command::new(ours("rafsd").unwrap());
    command.args(["fuse", "--thread-num", "2", "--mountpoint"]).arg(&mnt);
    command.arg("--apisock").arg(dir.path().join("api.sock")).args(["--log-level", "info"]);
    command.args(["--failover-policy", "none"]);
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    for (id, name) in [("21", "v6-zstd-blake3"), ("22", "v5-zstd-blake3")] {
        let case = Case::named(name).unwrap();
        let path = format!("/{id}");
        let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, &path);
        let target = format!("/api/v1/mount?mountpoint={}", encoded(&path));
        assert_eq!(daemon.call("POST", &target, Some(&body)).unwrap().status, 204);
        files_are_right(&case, &mnt.join(id));
    }
    let gone = daemon.call("DELETE", "/api/v1/mount?mountpoint=%2F21", None).unwrap();
    assert_eq!(gone.status, 204);
    until("the image to go", || !mnt.join("21").exists());
    assert!(mnt.join("22/names").is_dir(), "the other stays");
    daemon.process.terminate().unwrap();
    assert!(daemon.process.wait(Duration::from_secs(5)).unwrap().success());
    assert!(!mounted(&mnt));
}

/// nydusify check: no command, and the daemon leaves when somebody unmounts.
#[test]
fn nydusify() {
    if !can_mount() {
        return;
    }
    let case = Case::named("v6-zstd-blake3").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("mnt")).unwrap();
    let device = json!({"backend": {}, "external_backend": {"config_path": ""}});
    let prefetch = json!({"enable": true, "threads_count": 10, "merging_size": 131_072, "bandwidth_rate": 0});
    std::fs::write(at("config.json"), template(&case, &at("cache"), device, &prefetch)).unwrap();
    let mnt = at("mnt");
    let mut command = Command::new(ours("rafsd").unwrap());
    command.arg("--config").arg(at("config.json")).arg("--mountpoint").arg(&mnt);
    command.arg("--bootstrap").arg(&case.image.bootstrap).arg("--apisock").arg(at("api.sock"));
    command.args(["--log-level", "warn"]);
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    // Without a pause, as it does.
    let begun = Instant::now();
    while state(&daemon) != "RUNNING" {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    files_are_right(&case, &mnt);
    assert!(Command::new("umount").arg(&mnt).status().unwrap().success());
    assert!(daemon.process.wait(Duration::from_secs(10)).unwrap().success(), "{}", daemon.process.output());
}
