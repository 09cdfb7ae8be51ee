//! The HTTP API: every route with what it refuses, connections, mounts while guests use others, views, and many of each.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::fuse::{ATTR_OUT, getattr_in, op};
use guest_tests::frontend::{Client, FrontendError, Options};
use guest_tests::support::api::{ApiDaemon, Connection};
use guest_tests::support::image::{Case, corpus};
use guest_tests::support::random::Random;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const ENOENT: i32 = 2;
const ESTALE: i32 = 116;

fn case(name: &str) -> Case {
    corpus().unwrap().into_iter().find(|c| c.name == name).unwrap()
}

fn client(socket: &Path) -> Client {
    Client::connect(socket, &Options { memory_mib: 64, ..Options::default() }).unwrap()
}

fn mount(daemon: &ApiDaemon, method: &str, path: &str, case: &Case) -> u16 {
    let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, path);
    let answer = daemon.call(method, &format!("/api/v1/mount?mountpoint={path}"), Some(&body)).unwrap();
    answer.status
}

fn umount(daemon: &ApiDaemon, path: &str) -> u16 {
    daemon.call("DELETE", &format!("/api/v1/mount?mountpoint={path}"), None).unwrap().status
}

fn errno(result: Result<Vec<u8>, FrontendError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error}")),
    }
}

#[test]
fn refusals_of_the_contract() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = case("v6-zstd-blake3");
    let good = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "x");
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} is not in {good}");
        good.replace(from, to)
    };
    let boot = case.image.bootstrap.to_str().unwrap();
    let rows: Vec<(&str, &str, Option<String>, u16, &str)> = vec![
        ("GET", "/api/v1/nothing", None, 404, "NoRoute"),
        ("GET", "/api/v1/daemon/", None, 404, "NoRoute"),
        ("POST", "/api/v1/daemon", Some("{}".into()), 400, "BadRequest"),
        ("PUT", "/api/v1/daemon", None, 400, "BadRequest"),
        ("PUT", "/api/v1/daemon", Some(r#"{"log_level":"loud"}"#.into()), 500, "Configure(ResponsePayloadType)"),
        ("GET", "/api/v1/daemon", Some("x".into()), 400, "BadRequest"),
        ("PUT", "/api/v1/daemon/start", None, 400, r#"Configure(DaemonAbnormal(UnexpectedEvent("Start")))"#),
        ("PUT", "/api/v1/daemon/fuse/takeover", None, 400, r#"Upgrade(DaemonAbnormal(UnexpectedEvent("Takeover")))"#),
        ("PUT", "/api/v1/daemon/fuse/sendfd", None, 501, "Upgrade(DaemonAbnormal(Unsupported))"),
        ("PUT", "/api/v2/blobs", Some("{}".into()), 501, "CreateBlobObject(DaemonAbnormal(Unsupported))"),
        ("DELETE", "/api/v2/blobs?blob_id=x", None, 501, "Unsupported"),
        ("GET", "/api/v2/blobs?domain_id=x", None, 501, "Unsupported"),
        ("GET", "/api/v1/metrics", None, 404, "GlobalMetrics(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/files?id=/none", None, 404, "NoCounter"),
        ("GET", "/api/v1/daemon/backend", None, 400, "QueryString(\"'mountpoint' should be specified in query string\")"),
        ("POST", "/api/v1/mount", Some(good.clone()), 400, "QueryString("),
        ("POST", "/api/v1/mount?mountpoint=/a", None, 400, "BadRequest"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(r#"{"source":"/x"}"#.into()), 400, "ParseBody(Error(\"missing field `config`\", line: 1, column: 15))"),
        ("POST", "/api/v1/mount?mountpoint=a", Some(good.clone()), 500, "VFS failed to handle request, PathWalk("),
        ("POST", "/api/v1/mount?mountpoint=/a/../b", Some(good.clone()), 500, "Invalid argument"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(with("\"rafs\"", "\"foo\"")), 500,
            "invalid argument `only 'rafs' and 'passthrough_fs' are supported, but foo was specified`"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(with(boot, "/nowhere")), 500,
            "RAFS failed to handle request, Failed to fill superBlock: No such file or directory (os error 2)`"),
        ("POST", "/api/v1/mount?mountpoint=/a", Some(json!({"source": boot, "config": "{"}).to_string()), 500,
            "Failed to load config: failed to parse configuration information`"),
        ("POST", "/api/v1/mount?mountpoint=/a",
            Some(json!({"source": boot, "config": "version = 2\nbackend = {type = \"localfs\", localfs = {dir = \"/\"}}"}).to_string()),
            500, "Failed to load config: no configuration information for rafs`"),
        ("POST", "/api/v1/mount?mountpoint=/a",
            Some(with(case.image.blobs.to_str().unwrap(), daemon.dir.path().to_str().unwrap())), 500,
            "RAFS failed to handle request, Failed to create device: Input/output error (os error 5)`"),
        ("POST", "/api/v1/mount?mountpoint=/a",
            Some(good.replacen('{', r#"{"prefetch_files":["rel"],"#, 1)), 500, "invalid prefetch file list"),
        ("PUT", "/api/v1/mount?mountpoint=/a", Some(good.clone()), 500, "object or filesystem doesn't exist"),
        ("DELETE", "/api/v1/mount?mountpoint=/a", None, 500, "object or filesystem doesn't exist"),
        ("PUT", "/api/v1/config?id=x", Some(r#"{"colour":"red"}"#.into()), 500, "colour"),
        ("POST", "/api/v1/sockets", Some(r#"{"socket":"s","queues":0}"#.into()), 500, "queues"),
        ("DELETE", "/api/v1/sockets?socket=none", None, 500, "doesn't exist"),
    ];
    let mut wrong = Vec::new();
    for (method, target, body, status, part) in rows {
        let answer = daemon.call(method, target, body.as_deref()).unwrap();
        let message = answer.message().unwrap();
        if answer.status != status || !message.contains(part) {
            wrong.push(format!("{method} {target}: {} {message}, not {status} {part}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let done = daemon.call("PUT", "/api/v2/daemon", Some(r#"{"log_level":"warn"}"#)).unwrap();
    assert_eq!(done.status, 204);
    let health = daemon.call("GET", "/healthz", None).unwrap();
    assert_eq!((health.status, health.body.as_str()), (200, "RUNNING\n"));
}

/// A mount that hangs on a file.
#[test]
fn slow_mounts_delay_no_question_and_idle_connections_stay() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let socket = daemon.path("api.sock");
    let mut idle: Vec<Connection> = (0..1000).map(|_| Connection::open(&socket).unwrap()).collect();
    let slow = case("v6-zstd-blake3");
    let mut mounting = Connection::open(&socket).unwrap();
    // A certificate file that is a FIFO: opening it waits for a writer.
    let fifo = daemon.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let config = json!({"device": {"backend": {"type": "registry",
        "config": {"host": "localhost:1", "repo": "r", "ca_cert_files": [fifo]}}}, "mode": "direct"});
    let body = json!({"source": slow.image.bootstrap, "config": config.to_string()}).to_string();
    let head = format!(
        "POST /api/v1/mount?mountpoint=/slow HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    mounting.send(head.as_bytes()).unwrap();
    for _ in 0..50 {
        assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    }
    // Now it ends, with an error or at once; the next mount goes on either way.
    let nonblocking = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let until = Instant::now() + Duration::from_secs(20);
    let writer = loop {
        match rustix::fs::open(&fifo, nonblocking, rustix::fs::Mode::empty()) {
            Ok(writer) => break writer,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("the mount does not wait, so this test shows nothing: {error}"),
        }
    };
    assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    // It waits for more to read now, and others do not wait for it.
    assert_eq!(mount(&daemon, "POST", "/beside", &slow), 204);
    assert_eq!(daemon.call("DELETE", "/api/v1/mount?mountpoint=/beside", None).unwrap().status, 204);
    drop(writer);
    assert!([204, 500].contains(&mounting.answer().unwrap().status));
    assert_eq!(mount(&daemon, "POST", "/after", &slow), 204);
    for connection in idle.iter_mut().step_by(100) {
        assert_eq!(connection.call("GET", "/api/v2/daemon", None).unwrap().status, 200);
    }
    drop(idle);
    // A body over the limit, and one in pieces.
    let mut large = Connection::open(&socket).unwrap();
    large.send(b"PUT /api/v1/daemon HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000\r\n\r\n").unwrap();
    let answer = large.answer().unwrap();
    assert!(
        answer.status == 400
            && answer.body.contains("Request payload with size 99000000 is larger than the limit")
    );
    let mut chunked = Connection::open(&socket).unwrap();
    chunked
        .send(b"PUT /api/v1/daemon HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"log\r\nf\r\n_level\":\"info\"}\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(chunked.answer().unwrap().status, 204);
}

#[test]
fn a_remount_never_confuses_a_guest() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let (one, other) = (case("v6-zstd-blake3"), case("v6-none-sha256"));
    assert_eq!(mount(&daemon, "POST", "/app", &one), 204);
    let mut guest = client(&daemon.path("fs.sock"));
    let before = guest.resolve(b"/app").unwrap();
    let file = guest.resolve(b"/app/sizes/f4097").unwrap();
    let attr = |guest: &mut Client, node| errno(guest.call(op::GETATTR, node, &getattr_in(), ATTR_OUT));
    assert_eq!((attr(&mut guest, file.node), attr(&mut guest, 0x77 << 56 | 9)), (0, ENOENT));
    assert!(before.entry_valid <= 1, "what leads to a mount is looked up again soon");

    assert_eq!(mount(&daemon, "PUT", "/app", &other), 204);
    let after = guest.resolve(b"/app").unwrap();
    assert_ne!((after.node, after.generation), (before.node, before.generation));
    assert_eq!(attr(&mut guest, file.node), ESTALE, "a node of the image that is gone");
    assert_ne!(guest.resolve(b"/app/sizes/f4097").unwrap().generation, file.generation);

    // The same image again is the same nodes.
    assert_eq!(mount(&daemon, "PUT", "/app", &one), 204);
    let again = guest.resolve(b"/app/sizes/f4097").unwrap();
    assert_eq!((again.node, again.generation), (file.node, file.generation));
    assert_eq!(umount(&daemon, "/app"), 204);
    guest.resolve(b"/app").unwrap_err();
    assert_eq!(guest.list(ROOT, 4096, true).unwrap().len(), 2, "only the dots");
    assert_eq!(mount(&daemon, "POST", "/app", &one), 204);
    assert_eq!(guest.resolve(b"/app/sizes/f4097").unwrap().node, file.node);
    // And after a restart.
    let restarted = ApiDaemon::start(&[]).unwrap();
    assert_eq!(mount(&restarted, "POST", "/app", &one), 204);
    assert_eq!(client(&restarted.path("fs.sock")).resolve(b"/app/sizes/f4097").unwrap().node, file.node);
}

#[test]
fn views_show_their_mounts_only() {
    let daemon = ApiDaemon::start(&["--sock", "t1.sock,root=/t1", "--sock", "pick.sock,mounts=/t2"]).unwrap();
    let case = case("v6-zstd-blake3");
    for path in ["/t1/app", "/t2", "/t3"] {
        assert_eq!(mount(&daemon, "POST", path, &case), 204);
    }
    let body = json!({"socket": "late.sock", "queues": 1, "root": "/t3"}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/sockets", Some(&body)).unwrap().status, 204);
    let list = daemon.call("GET", "/api/v1/sockets", None).unwrap().json().unwrap();
    assert_eq!(list.as_array().unwrap().len(), 4);
    let names = |socket: &str| -> Vec<String> {
        let mut guest = client(&daemon.path(socket));
        let entries = guest.list(ROOT, 4096, true).unwrap();
        let mut names: Vec<_> =
            entries.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    };
    assert_eq!(names("fs.sock"), ["t1", "t2", "t3"]);
    assert_eq!(names("t1.sock"), ["app"]);
    assert_eq!(names("pick.sock"), ["t2"]);
    assert!(names("late.sock").contains(&"sizes".to_owned()), "the image is the root");

    // Guessing gets nowhere: no index but the view's own answers.
    let mut tenant = client(&daemon.path("t1.sock"));
    let own = tenant.resolve(b"/app").unwrap().node;
    for index in 1..=255u64 {
        if index != own >> 56 {
            let node = index << 56 | (own & ((1 << 56) - 1));
            assert_eq!(errno(tenant.call(op::GETATTR, node, &getattr_in(), ATTR_OUT)), ENOENT, "{node:#x}");
        }
    }
    let gone = daemon.call("DELETE", "/api/v1/sockets?socket=late.sock", None).unwrap();
    assert_eq!(gone.status, 204);
    assert!(!daemon.path("late.sock").exists());
}

#[test]
fn a_thousand_mounts_leak_nothing() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let case = case("v6-zstd-blake3");
    assert_eq!(mount(&daemon, "POST", "/stays", &case), 204);
    let mut guest = client(&daemon.path("fs.sock"));
    let round = |n: usize, guest: &mut Client| {
        let path = format!("/m/{}", n % 300);
        assert_eq!(mount(&daemon, "POST", &path, &case), 204);
        if n.is_multiple_of(50) {
            guest.resolve(format!("{path}/names").as_bytes()).unwrap();
        }
        assert_eq!(umount(&daemon, &path), 204);
    };
    for n in 0..200 {
        round(n, &mut guest);
    }
    let settled = || {
        std::thread::sleep(Duration::from_millis(300));
        daemon.process.usage().unwrap()
    };
    let before = settled();
    for n in 200..1200 {
        round(n, &mut guest);
    }
    let after = settled();
    assert_eq!(after.descriptors, before.descriptors);
    assert!(after.threads <= before.threads, "{before:?} {after:?}");
    assert!(after.anon_kib < before.anon_kib + 2048, "{before:?} {after:?}");
    guest.resolve(b"/stays/names").unwrap();
}

#[test]
fn two_hundred_mounts_serve_at_once() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let cases = [case("v6-zstd-blake3"), case("v5-zstd-blake3")];
    for n in 0..200 {
        assert_eq!(mount(&daemon, "POST", &format!("/img/{n}"), &cases[n % 2]), 204);
    }
    let mut guest = client(&daemon.path("fs.sock"));
    let dir = guest.resolve(b"/img").unwrap().node;
    // In small pieces, so that the listing is continued often.
    let list = guest.list(dir, 600, true).unwrap();
    assert_eq!(list.len(), 202);
    let mut indexes: Vec<u64> = Vec::new();
    for n in 0..200 {
        let file = guest.resolve(format!("/img/{n}/sizes/f4097").as_bytes()).unwrap();
        assert_eq!(guest.read(file.node, 0, 0, 8192).unwrap().len(), 4097);
        indexes.push(file.node >> 56);
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 200);
    let metrics = daemon.call("GET", "/metrics", None).unwrap().body;
    assert!(metrics.contains("rafsd_mounts 200\n"));
    assert!(daemon.process.usage().unwrap().threads < 40);
    // All 255, and the one too many.
    for n in 200..255 {
        assert_eq!(mount(&daemon, "POST", &format!("/img/{n}"), &cases[0]), 204);
    }
    assert_eq!(mount(&daemon, "POST", "/img/255", &cases[0]), 500);
    assert_eq!(umount(&daemon, "/img/7"), 204);
    assert_eq!(mount(&daemon, "POST", "/img/255", &cases[0]), 204);
}

#[test]
fn bodies_and_heads_out_of_nowhere() {
    let daemon = ApiDaemon::start(&["--log-level", "error"]).unwrap();
    let case = case("v6-zstd-blake3");
    let good = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "x");
    let mut random = Random::new(7);
    let begun = Instant::now();
    for n in 0..400 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random.below(6) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            match random.below(3) {
                0 => bytes[at] = random.next().to_le_bytes()[0],
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, *random.pick(b"{}[]\",:\\0")),
            }
        }
        let head = format!(
            "POST /api/v1/mount?mountpoint=/f{n} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        let mut connection = Connection::open(&daemon.path("api.sock")).unwrap();
        connection.send(&[head.as_bytes(), &bytes].concat()).unwrap();
        let answer = connection.answer().unwrap();
        assert!([204, 400, 500].contains(&answer.status), "{answer:?}");
        if answer.status == 204 {
            assert_eq!(umount(&daemon, &format!("/f{n}")), 204);
        }
    }
    for _ in 0..200 {
        let mut bytes: Vec<u8> = b"GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n".to_vec();
        for _ in 0..=random.below(4) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] = random.next().to_le_bytes()[0];
        }
        let mut connection = Connection::open(&daemon.path("api.sock")).unwrap();
        connection.send(&bytes).unwrap();
    }
    assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(120));
    assert!(!daemon.process.output().contains("panic"), "{}", daemon.process.output());
}

#[test]
fn a_second_guest_costs_little_and_fetches_nothing_again() {
    let daemon = ApiDaemon::start(&["--sock", "second.sock"]).unwrap();
    let case = case("v6-large-files");
    assert_eq!(mount(&daemon, "POST", "/app", &case), 204);
    let read_all = |socket: &str| {
        let mut guest = client(&daemon.path(socket));
        for (path, entry) in case.expected.iter().filter(|(_, e)| e.size.is_some_and(|size| size > 0)) {
            let node = guest.resolve(&[b"/app".as_slice(), path].concat()).unwrap().node;
            let size = entry.size.unwrap();
            for offset in (0..size).step_by(1 << 20) {
                guest.read(node, 0, offset, 1 << 20).unwrap();
            }
        }
        guest
    };
    let metric = |name: &str| -> u64 {
        let page = daemon.call("GET", "/metrics", None).unwrap().body;
        let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        line.parse().unwrap()
    };
    let first = read_all("fs.sock");
    let (misses, before) = (metric("rafsd_cache_misses_total "), daemon.process.usage().unwrap());
    let second = read_all("second.sock");
    let after = daemon.process.usage().unwrap();
    assert_eq!(metric("rafsd_cache_misses_total "), misses, "a chunk is fetched once");
    assert!(after.anon_kib < before.anon_kib + 4096, "{before:?} {after:?}");
    drop((first, second));
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = case("v6-zstd-blake3");
    assert_eq!(mount(&daemon, "POST", "/app", &case), 204);
    let page = daemon.call("GET", "/metrics", None).unwrap().body;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite) && !name.is_empty(), "{line}");
    }
    let path = guest_tests::support::binaries::workspace().join("configs/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut asked = 0;
    for target in
        dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap())
    {
        let expr = target["expr"].as_str().unwrap();
        for word in expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("rafsd_") || word.starts_with("process_") {
                let family = word.trim_end_matches("_bucket");
                assert!(page.contains(&format!("# TYPE {family} ")), "{word}");
                asked += 1;
            }
        }
    }
    assert!(asked > 10);
}

/// Whether a value is what a schema of docs/openapi.json says; `$ref`s are not used there.
fn fits(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if value.is_null() && schema["nullable"] == json!(true) {
        return Ok(());
    }
    let kind = schema["type"].as_str().ok_or_else(|| format!("{at}: a schema without type"))?;
    let right = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        other => return Err(format!("{at}: type {other}")),
    };
    if !right {
        return Err(format!("{at}: {value} is no {kind}"));
    }
    if let Some(list) = schema["enum"].as_array()
        && !list.contains(value)
    {
        return Err(format!("{at}: {value} is none of {list:?}"));
    }
    for key in schema["required"].as_array().into_iter().flatten() {
        let key = key.as_str().unwrap_or_default();
        if value.get(key).is_none() {
            return Err(format!("{at}: {key} is missing"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(key).or_else(|| schema.get("additionalProperties")) {
            Some(schema) if schema.is_object() => fits(schema, value, &format!("{at}.{key}"))?,
            _ if schema["additionalProperties"] == json!(true) => {}
            _ => return Err(format!("{at}: {key} is not in the schema")),
        }
    }
    for (n, value) in value.as_array().into_iter().flatten().enumerate() {
        fits(&schema["items"], value, &format!("{at}[{n}]"))?;
    }
    Ok(())
}

#[test]
fn the_openapi_document_says_what_is_answered() {
    let path = guest_tests::support::binaries::workspace().join("docs/openapi.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = case("v6-zstd-blake3");
    let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "/app");
    let body: Value = serde_json::from_str(&body).unwrap();
    let mut config: Value = serde_json::from_str(body["config"].as_str().unwrap()).unwrap();
    config["iostats_files"] = json!(true);
    config["latest_read_files"] = json!(true);
    let body = json!({"fs_type": "rafs", "source": body["source"], "config": config.to_string()}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/app", Some(&body)).unwrap().status, 204);
    let mut guest = client(&daemon.path("fs.sock"));
    let file = guest.resolve(b"/app/sizes/f4097").unwrap().node;
    guest.read(file, 0, 0, 4096).unwrap();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            // An example of each request stands in the document.
            let Some(target) = operation["x-example"].as_str() else {
                panic!("{method} {path} has no x-example")
            };
            if path.ends_with("/exit") {
                continue;
            }
            let body = operation["requestBody"]["content"]["application/json"].get("example");
            let body = body.map(Value::to_string);
            let answer = daemon.call(&method.to_uppercase(), target, body.as_deref()).unwrap();
            let responses = &operation["responses"];
            let response = responses.get(answer.status.to_string());
            let response =
                response.unwrap_or_else(|| panic!("{method} {path}: {answer:?} is not in the document"));
            match response["content"]["application/json"].get("schema") {
                Some(schema) => fits(schema, &answer.json().unwrap(), path).unwrap(),
                None => {
                    assert!(answer.status == 204 || response["content"]["text/plain"].is_object(), "{path}")
                }
            }
            asked += 1;
        }
    }
    assert!(asked >= 20, "{asked}");
    // And no route is missing: what is not in the document is not there.
    for route in ["/api/v1/daemon", "/api/v1/mount", "/api/v1/sockets", "/metrics", "/healthz"] {
        assert!(document["paths"].get(route).is_some(), "{route}");
    }
}
