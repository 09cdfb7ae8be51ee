//! The API's connections: what HTTP allows and what it does not, sizes, numbers, and that none of it delays the others.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::support::api::{ApiDaemon, Connection};
use guest_tests::support::image::Case;
use guest_tests::support::random::Random;
use serde_json::json;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest body that is taken.
const BODY_MAX: usize = 2 << 20;

/// All that comes back until the daemon hangs up; with `half` we hang up first.
fn raw(socket: &Path, bytes: &[u8], half: bool) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may have answered and hung up before it has heard all.
    let _ = stream.write_all(bytes);
    if half {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn versions_closes_and_pipelines() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let socket = daemon.path("api.sock");
    // Who has said all, as `nc -N` does, hears the answer.
    let answer = raw(&socket, b"GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n", true);
    assert!(
        answer.starts_with("HTTP/1.1 200 \r\n") && answer.contains("\r\nConnection: keep-alive\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nServer: Nydus API\r\n") && answer.contains("\"state\":\"RUNNING\""),
        "{answer}"
    );
    // Three at once, and the answers in order.
    let three = b"GET /api/v2/daemon HTTP/1.1\r\nHost: x\r\n\r\nGET /none HTTP/1.1\r\nHost: x\r\n\r\n\
        GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = raw(&socket, three, false);
    let codes: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(codes, ["200", "404", "200"], "{answer}");
    let (_, last) = answer.rsplit_once("HTTP/1.1 ").unwrap();
    assert!(
        last.to_ascii_lowercase().contains("connection: close\r\n") && !last.contains("keep-alive"),
        "{last}"
    );
    // The old version closes, unless it is asked not to.
    let answer = raw(&socket, b"GET /api/v1/daemon HTTP/1.0\r\n\r\n", false);
    assert!(answer.starts_with("HTTP/1.0 200 ") && !answer.contains("keep-alive"), "{answer}");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let mut bytes = [0; 1024];
        let n = stream.read(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..n]);
        assert!(text.starts_with("HTTP/1.0 200 ") && text.contains("keep-alive"), "{text}");
    }
    // HEAD is a wrong method, and has no body in any case.
    let answer = raw(&socket, b"HEAD /api/v1/daemon HTTP/1.1\r\nConnection: close\r\n\r\n", false);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn what_is_no_http_ends_its_own_connection_only() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let socket = daemon.path("api.sock");
    let mut stays = Connection::open(&socket).unwrap();
    let long = format!("GET /api/v1/mount?mountpoint=/{} HTTP/1.1\r\n\r\n", "a".repeat(70_000));
    let lines = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(5000));
    for (bytes, status) in [
        (&b"\0\x01\x02\r\n\r\n"[..], "400"),
        (b"GET\r\n\r\n", "400"),
        (b"GET /api/v1/daemon HTTP/2.0\r\n\r\n", "400"),
        (b"GET /a b HTTP/1.1\r\n\r\n", "400"),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400"),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc", "400"),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", "400"),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"),
        (long.as_bytes(), "414"),
        (lines.as_bytes(), "431"),
    ] {
        let answer = raw(&socket, bytes, true);
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(answer.get(9..12), Some(status), "{what:?}: {answer}");
    }
    // A body that ends too soon is no request.
    let answer = raw(&socket, b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: 30\r\n\r\n{}", true);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(stays.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
}

#[test]
fn bodies_up_to_the_limit_and_beyond() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let socket = daemon.path("api.sock");
    let case = Case::named("v6-zstd-blake3").unwrap();
    let mut body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "x");
    body.push_str(&" ".repeat(BODY_MAX - body.len()));
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/full", Some(&body)).unwrap().status, 204);
    body.push(' ');
    let request = format!(
        "POST /api/v1/mount?mountpoint=/more HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = raw(&socket, request.as_bytes(), false);
    let text = format!(
        "Request payload with size {} is larger than the limit of {BODY_MAX} allowed by server.",
        body.len()
    );
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(&text), "{answer}");
    // One that does not say how large it is.
    let mut chunked =
        b"POST /api/v1/mount?mountpoint=/more HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..3 {
        chunked.extend(format!("{:x}\r\n", 1 << 20).bytes());
        chunked.extend(vec![b' '; 1 << 20]);
        chunked.extend(b"\r\n");
    }
    let answer = raw(&socket, &chunked, false);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("larger than the limit"), "{answer}");
    // Many large ones that never end: the memory for them is bounded, small requests go on.
    let head = format!("POST /api/v1/mount?mountpoint=/more HTTP/1.1\r\nContent-Length: {BODY_MAX}\r\n\r\n ");
    let mut hanging: Vec<Connection> = (0..40).map(|_| Connection::open(&socket).unwrap()).collect();
    for connection in &mut hanging {
        connection.send(head.as_bytes()).unwrap();
    }
    let refused = hanging.last_mut().unwrap().answer().unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    assert_eq!(daemon.mount("POST", "/small", &case).unwrap(), 204);
    drop(hanging);
    let until = Instant::now() + Duration::from_secs(20);
    body.truncate(BODY_MAX);
    while daemon.call("POST", "/api/v1/mount?mountpoint=/again", Some(&body)).unwrap().status != 204 {
        assert!(Instant::now() < until, "room for large bodies does not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Connections that only wait for our end cost hardly anything.
#[test]
fn idle_connections_are_cheap() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let socket = daemon.path("api.sock");
    // The socket is there before all threads are.
    let mut before = daemon.process.usage().unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = daemon.process.usage().unwrap();
        if now.threads == before.threads && daemon.call("GET", "/api/v1/daemon", None).is_ok() {
            break;
        }
        before = now;
    }
    let mut idle: Vec<Connection> = (0..1000).map(|_| Connection::open(&socket).unwrap()).collect();
    let until = Instant::now() + Duration::from_secs(20);
    let there =
        || daemon.call("GET", "/metrics", None).unwrap().body.contains("rafsd_api_connections 1001\n");
    while !there() {
        assert!(Instant::now() < until, "{}", daemon.process.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    let after = daemon.process.usage().unwrap();
    assert!(after.anon_kib < before.anon_kib + 6144, "{before:?} {after:?}");
    assert_eq!(after.threads, before.threads);
    for connection in &mut idle {
        assert_eq!(connection.call("GET", "/api/v2/daemon", None).unwrap().status, 200);
    }
}

/// Clients that ask for what hangs, and hang up: their work goes on, but no more of it at a time than of clients that wait.
#[test]
fn who_hangs_up_gets_no_more_threads() {
    let daemon = ApiDaemon::start(&["--log-level", "error"]).unwrap();
    let socket = daemon.path("api.sock");
    let case = Case::named("v6-zstd-blake3").unwrap();
    let fifo = daemon.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let config = json!({"device": {"backend": {"type": "registry",
        "config": {"host": "localhost:1", "repo": "r", "ca_cert_files": [fifo]}}}, "mode": "direct"});
    let body = json!({"source": case.image.bootstrap, "config": config.to_string()}).to_string();
    let before = daemon.process.usage().unwrap().threads;
    for n in 0..120 {
        let head = format!(
            "POST /api/v1/mount?mountpoint=/slow{n} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: \
             {}\r\n\r\n",
            body.len()
        );
        let mut connection = UnixStream::connect(&socket).unwrap();
        connection.write_all(head.as_bytes()).unwrap();
        // Closing with something unread resets the connection, which ends the request at once.
        while rustix::io::ioctl_fionread(&connection).unwrap() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        connection.write_all(body.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        drop(connection);
        let threads = daemon.process.usage().unwrap().threads;
        assert!(threads <= before + 40, "{threads} threads after {n} requests, {before} before");
    }
    let busy = daemon.process.usage().unwrap().threads;
    assert!(
        busy >= before + 32,
        "nothing hangs, so this test shows nothing: {busy} threads, {before} before"
    );
    let nonblocking = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let until = Instant::now() + Duration::from_secs(60);
    while daemon.process.usage().unwrap().threads > before + 8 {
        assert!(Instant::now() < until, "threads stay");
        // Whoever waits for a writer finds an empty file.
        drop(rustix::fs::open(&fifo, nonblocking, rustix::fs::Mode::empty()));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(daemon.mount("POST", "/after", &case).unwrap(), 204);
}

/// A mount that hangs on a file.
#[test]
fn slow_mounts_delay_no_question_and_idle_connections_stay() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let socket = daemon.path("api.sock");
    let mut idle: Vec<Connection> = (0..1000).map(|_| Connection::open(&socket).unwrap()).collect();
    let slow = Case::named("v6-zstd-blake3").unwrap();
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
    assert_eq!(daemon.mount("POST", "/beside", &slow).unwrap(), 204);
    assert_eq!(daemon.call("DELETE", "/api/v1/mount?mountpoint=/beside", None).unwrap().status, 204);
    drop(writer);
    assert!([204, 500].contains(&mounting.answer().unwrap().status));
    assert_eq!(daemon.mount("POST", "/after", &slow).unwrap(), 204);
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
fn bodies_and_heads_out_of_nowhere() {
    let daemon = ApiDaemon::start(&["--log-level", "error"]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
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
            assert_eq!(daemon.umount(&format!("/f{n}")).unwrap(), 204);
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
