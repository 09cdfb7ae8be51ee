//! HTTP itself: ranges, lies, times, retries, proxies, mirrors, sockets.

use crate::support::*;
use guest_tests::servers::{BlobServer, Fault, Record, Tinyproxy, installed};
use guest_tests::support::wait::until;
use rafs::store::{ErrorClass, FetchRequest, FetchSink, Priority, Store, StoreError};
use rafs_net::{HttpOptions, HttpProxyOptions, MirrorOptions, NetStore, ProxyOptions, Secret};
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn plain(server: &BlobServer, http: &HttpOptions) -> NetStore {
    let options = HttpProxyOptions { addr: server.url(), path: "some/path".into() };
    NetStore::http_proxy(&runtime(), &options, http).unwrap()
}

#[test]
fn ranges_and_sizes() {
    let blobs = blobs(300_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let http = HttpOptions { headers: vec![("X-Tenant".into(), "t".into())], ..quick() };
    let store = plain(&server, &http);
    for (start, end) in [(0, 1), (0, 300_000), (100, 200_000), (299_999, 300_000)] {
        assert!(fetch(&store, &blobs.id, start..end).unwrap() == blobs.data[start as usize..end as usize]);
    }
    assert_eq!(size(&store, &blobs.id).unwrap(), 300_000);
    let records = server.records();
    assert_eq!(records[0].target, format!("/some/path/{}", blobs.id));
    assert_eq!(records[0].header("range"), Some("bytes=0-0"));
    assert!(records.iter().all(|r| r.header("user-agent") == Some("nydusd/1.0.0")));
    let plain_bytes = |r: &Record| r.header("accept-encoding") == Some("identity");
    assert!(records.iter().all(|r| r.header("x-tenant") == Some("t") && plain_bytes(r)));
    assert_eq!(records.last().unwrap().method, "HEAD");

    let error = fetch(&store, "0123", 0..1).unwrap_err();
    assert_eq!(error.class, ErrorClass::Missing);
    assert!(error.to_string().contains("/some/path/0123, bytes 0 to 1: status 404"), "{error}");
    assert_eq!(size(&store, "0123").unwrap_err().class, ErrorClass::Missing);
    let error = fetch(&store, &blobs.id, 299_999..300_001).unwrap_err();
    assert_eq!(error.class, ErrorClass::Corrupt, "{error}");
    assert!(error.to_string().contains("only 300000 bytes"), "{error}");
    let error = fetch(&store, &blobs.id, 300_000..300_001).unwrap_err();
    assert_eq!(error.class, ErrorClass::Corrupt, "{error}");
    for name in ["../secret", "", "."] {
        assert_eq!(fetch(&store, name, 0..1).unwrap_err().class, ErrorClass::Denied);
    }
}

#[test]
fn every_fault_alone_is_survived() {
    let blobs = blobs(200_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let store = plain(&server, &quick());
    for fault in Fault::ALL {
        server.set(|s| {
            s.faults = vec![fault];
            s.fault_percent = 50;
            s.stall = Duration::from_millis(300);
        });
        for n in 0..6 {
            let (start, end) = (n * 1000, 100_000 + n * 10_000);
            let result = fetch(&store, &blobs.id, start..end);
            match fault {
                // Nobody but the reader can know.
                Fault::Corrupt | Fault::Endless => drop(result.unwrap()),
                Fault::Status(401 | 403 | 404)
                | Fault::OtherRange
                | Fault::ShortTotal
                | Fault::ShortLength => {
                    // Believed after a while: one in sixteen.
                    if let Ok(data) = result {
                        assert!(data == blobs.data[start as usize..end as usize], "{fault:?}");
                    }
                }
                _ => assert!(result.unwrap() == blobs.data[start as usize..end as usize], "{fault:?}"),
            }
        }
    }
    let counters = store.counters();
    assert_eq!(counters.fetches, 6 * u64::try_from(Fault::ALL.len()).unwrap());
    assert!(counters.failed_transient > 10 && counters.failed_denied > 0 && counters.failed_missing > 0);
    assert!(counters.failed_wrong > 0 && counters.tries > counters.fetches);
    assert_eq!(counters.latency.iter().sum::<u64>(), counters.fetched);
}

#[test]
fn a_lying_server_is_an_error_and_uses_no_memory() {
    let blobs = blobs(200_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let store = plain(&server, &HttpOptions { retry_limit: 1, ..quick() });
    for fault in [Fault::OtherRange, Fault::ShortTotal, Fault::ShortLength] {
        server.set(|s| {
            s.faults = vec![fault];
            s.fault_percent = 100;
        });
        assert_eq!(fetch(&store, &blobs.id, 5..50_000).unwrap_err().class, ErrorClass::Corrupt, "{fault:?}");
    }
    // An endless body is cut off where the range ends.
    server.set(|s| s.faults = vec![Fault::Endless]);
    assert_eq!(fetch(&store, &blobs.id, 5..50_000).unwrap(), vec![b'x'; 49_995]);
}

#[test]
fn a_broken_body_is_continued_not_repeated() {
    let blobs = blobs(1 << 20);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let store = plain(&server, &quick());
    server.set(|s| {
        s.faults = vec![Fault::Truncate];
        s.fault_percent = 100;
    });
    // Each try brings half of what is missing.
    assert!(fetch(&store, &blobs.id, 0..1 << 20).unwrap() == blobs.data);
    let bytes = store.counters().bytes;
    assert!(bytes < (1 << 20) + (64 << 10), "{bytes}");
}

#[test]
fn a_slow_line_gets_there_although_each_try_is_cut_off() {
    let blobs = blobs(1 << 20);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.bandwidth = 700_000);
    let store = plain(&server, &HttpOptions { timeout: Some(Duration::from_millis(400)), ..quick() });
    assert!(fetch(&store, &blobs.id, 0..1 << 20).unwrap() == blobs.data);
}

#[test]
fn a_store_that_is_gone_ends_at_the_deadline_and_comes_back() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let port = server.port();
    let store = plain(&server, &HttpOptions { deadline: Duration::from_secs(1), ..quick() });
    fetch(&store, &blobs.id, 0..10).unwrap();
    server.set(|s| s.down = true);
    for gone in ["resets", "refuses"] {
        let begun = Instant::now();
        let error = fetch(&store, &blobs.id, 0..10).unwrap_err();
        assert_eq!(error.class, ErrorClass::Transient, "{gone}: {error}");
        assert!(begun.elapsed() < Duration::from_millis(1500), "{gone}: {:?}", begun.elapsed());
        if gone == "resets" {
            server.set(|s| s.stall = Duration::ZERO);
        }
    }
    drop(server);
    let error = fetch(&store, &blobs.id, 0..10).unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    let waiting = begin(&store, &blobs.id, 0..10, 0);
    std::thread::sleep(Duration::from_millis(200));
    let _server = BlobServer::start_on(blobs.dir.path(), port).unwrap();
    let data = waiting.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(data.unwrap(), blobs.data[..10], "the request that was waiting is answered too");
    assert!(fetch(&store, &blobs.id, 0..10).unwrap() == blobs.data[..10]);
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let store = plain(&server, &quick());
    server.set(|s| s.always = Some((429, vec![("Retry-After".into(), "1".into())])));
    let waiting = begin(&store, &blobs.id, 0..10, 0);
    // Refused once: not before it has come.
    until("the request", || server.records().len() == 1);
    server.set(|s| s.always = None);
    assert_eq!(waiting.recv_timeout(Duration::from_secs(5)).unwrap().unwrap(), blobs.data[..10]);
    let records = server.records();
    assert_eq!(records.len(), 2);
    assert!(records[1].at - records[0].at >= Duration::from_millis(990));
}

struct Parts(mpsc::Sender<(Instant, usize)>);

impl FetchSink for Parts {
    fn arrived(&mut self, prefix: &[u8]) {
        self.0.send((Instant::now(), prefix.len())).unwrap();
    }
    fn finish(self: Box<Self>, result: Result<Vec<u8>, StoreError>) {
        self.0.send((Instant::now(), result.unwrap().len())).unwrap();
    }
}

#[test]
fn the_first_bytes_are_handed_on_before_the_last_arrive() {
    let blobs = blobs(400_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.bandwidth = 1_000_000);
    let store = plain(&server, &HttpOptions::default());
    let (tx, rx) = mpsc::channel();
    let request = FetchRequest {
        object: blobs.id.as_str().into(),
        range: 0..400_000,
        buffer: Vec::new(),
        attempt: 0,
        priority: Priority::Demand,
    };
    store.fetch_streamed(request, Box::new(Parts(tx)));
    let parts: Vec<_> = rx.iter().collect();
    assert!(parts.is_sorted_by_key(|(_, len)| *len) && parts.last().unwrap().1 == 400_000);
    assert!(parts.last().unwrap().0 - parts[0].0 > Duration::from_millis(200), "{}", parts.len());
}

#[test]
fn a_rate_limit_is_held() {
    let blobs = blobs(300_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let store = plain(&server, &HttpOptions { rate_limit: 400_000, ..quick() });
    let begun = Instant::now();
    assert!(fetch(&store, &blobs.id, 0..300_000).unwrap() == blobs.data);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_millis(2000), "{took:?}");
}

#[test]
fn connections_are_used_again() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let store = plain(&server, &quick());
    let before = guest_tests::support::process::usage(std::process::id()).unwrap().descriptors;
    for n in 0..200 {
        fetch(&store, &blobs.id, n..n + 10).unwrap();
    }
    let after = guest_tests::support::process::usage(std::process::id()).unwrap().descriptors;
    assert!(after < before + 100, "{before} {after}: other tests run at the same time");
}

#[test]
fn mirrors_are_asked_in_order_left_out_and_taken_back() {
    let blobs = blobs(1000);
    let (first, second, origin) = (
        BlobServer::start(blobs.dir.path()).unwrap(),
        BlobServer::start(blobs.dir.path()).unwrap(),
        BlobServer::start(blobs.dir.path()).unwrap(),
    );
    let mirror = |server: &BlobServer, ping: bool| MirrorOptions {
        ping_url: ping.then(|| format!("{}/ping", server.url())),
        headers: vec![("X-Mirror".into(), "1".into())],
        health_check_interval: Duration::from_millis(100),
        failure_limit: 2,
        ..MirrorOptions::at(&server.url())
    };
    let http = HttpOptions { mirrors: vec![mirror(&first, true), mirror(&second, false)], ..quick() };
    let store = plain(&origin, &http);
    let reads = |server: &BlobServer| {
        let n = server.records().iter().filter(|r| r.target != "/ping").count();
        server.forget_records();
        n
    };
    fetch(&store, &blobs.id, 0..10).unwrap();
    assert_eq!(first.records().iter().find(|r| r.target != "/ping").unwrap().header("x-mirror"), Some("1"));
    assert_eq!((reads(&first), reads(&second), reads(&origin)), (1, 0, 0));
    // One that is damaged is not asked again for the same bytes.
    begin(&store, &blobs.id, 0..10, 1).recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
    assert_eq!((reads(&first), reads(&second), reads(&origin)), (0, 1, 0));
    first.set(|s| {
        s.ping_status = 500;
        s.always = Some((503, Vec::new()));
    });
    for _ in 0..10 {
        fetch(&store, &blobs.id, 0..10).unwrap();
    }
    assert!(reads(&first) <= 2);
    assert_eq!(reads(&origin), 0);
    first.set(|s| s.ping_status = 200);
    first.set(|s| s.always = None);
    std::thread::sleep(Duration::from_millis(400));
    reads(&second);
    fetch(&store, &blobs.id, 0..10).unwrap();
    assert_eq!((reads(&first), reads(&second)), (1, 0), "back after its health check");
    drop((first, second));
    assert!(fetch(&store, &blobs.id, 0..10).unwrap() == blobs.data[..10]);
    assert_eq!(reads(&origin), 1);
    assert_eq!(fetch(&store, "00", 0..1).unwrap_err().class, ErrorClass::Missing);
}

fn through(proxy: &str, fallback: bool) -> HttpOptions {
    let proxy = ProxyOptions {
        fallback,
        check_interval: Duration::from_millis(100),
        ..ProxyOptions::at(Secret::new(proxy).unwrap())
    };
    HttpOptions { proxy: Some(proxy), deadline: Duration::from_secs(2), ..quick() }
}

#[test]
fn a_real_proxy() {
    if !installed("tinyproxy") {
        return;
    }
    let blobs = blobs(100_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let proxy = Tinyproxy::start().unwrap();
    let store = plain(&server, &through(&proxy.url, true));
    assert!(fetch(&store, &blobs.id, 10..90_000).unwrap() == blobs.data[10..90_000]);
    assert_eq!(proxy.requests(), 1);
    // A damaged answer is not asked for through the proxy again.
    begin(&store, &blobs.id, 0..10, 1).recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
    assert_eq!(proxy.requests(), 1);
    drop(proxy);
    assert!(fetch(&store, &blobs.id, 0..10).unwrap() == blobs.data[..10]);
}

#[test]
fn a_proxy_that_fails_is_gone_around_only_if_that_is_allowed() {
    let (blobs, empty) = (blobs(1000), tempfile::tempdir().unwrap());
    let origin = BlobServer::start(blobs.dir.path()).unwrap();
    // To a client a proxy is a server that is asked for whole URLs.
    let proxy = BlobServer::start(blobs.dir.path()).unwrap();
    let open = plain(&origin, &through(&proxy.url(), true));
    let closed = plain(&origin, &through(&proxy.url(), false));
    fetch(&open, &blobs.id, 0..10).unwrap();
    fetch(&closed, &blobs.id, 0..10).unwrap();
    assert_eq!((proxy.records().len(), origin.records().len()), (2, 0));

    proxy.set(|s| s.always = Some((502, Vec::new())));
    fetch(&open, &blobs.id, 0..10).unwrap();
    assert_eq!(origin.records().len(), 1);
    let error =
        begin(&closed, &blobs.id, 0..10, 1).recv_timeout(Duration::from_secs(5)).unwrap().unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    assert_eq!(origin.records().len(), 1, "nothing went past the proxy");

    // Dragonfly's own answers.
    let own = |status| Some((status, vec![("X-Dragonfly-Error-Type".to_owned(), "proxy".to_owned())]));
    proxy.set(|s| s.always = own(403));
    let asked = proxy.records().len();
    let begun = Instant::now();
    let error = fetch(&open, &blobs.id, 0..10).unwrap_err();
    assert_eq!(error.class, ErrorClass::Denied, "{error}");
    assert!(begun.elapsed() < Duration::from_millis(500) && origin.records().len() == 1);
    assert_eq!(proxy.records().len(), asked + 1, "a refusal is not asked for again");
    proxy.set(|s| s.always = own(429));
    fetch(&open, &blobs.id, 0..10).unwrap();
    assert_eq!(origin.records().len(), 2);

    drop(proxy);
    fetch(&open, &blobs.id, 0..10).unwrap();
    assert_eq!(origin.records().len(), 3);
    fetch(&closed, &blobs.id, 0..10).unwrap_err();
    assert_eq!(origin.records().len(), 3);
    drop(empty);
}

#[test]
fn a_proxy_that_does_not_answer_its_ping_is_not_used() {
    let blobs = blobs(1000);
    let origin = BlobServer::start(blobs.dir.path()).unwrap();
    let proxy = BlobServer::start(blobs.dir.path()).unwrap();
    proxy.set(|s| s.ping_status = 404);
    let mut http = through(&proxy.url(), true);
    http.proxy.as_mut().unwrap().ping_url = Some(format!("{}/ping", proxy.url()));
    let store = plain(&origin, &http);
    std::thread::sleep(Duration::from_millis(300));
    fetch(&store, &blobs.id, 0..10).unwrap();
    assert_eq!(origin.records().len(), 1);
    proxy.set(|s| s.ping_status = 302);
    std::thread::sleep(Duration::from_millis(300));
    fetch(&store, &blobs.id, 0..10).unwrap();
    assert_eq!(origin.records().len(), 1);
}

#[test]
fn a_unix_socket_that_answers_ranges_with_200() {
    use std::io::{Read as _, Write as _};
    let blobs = blobs(5000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let data = blobs.data.clone();
    let server = std::thread::spawn(move || {
        let mut heads = Vec::new();
        for range in [100..200, 0..5000] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            heads.push(String::from_utf8(head).unwrap());
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", range.len());
            stream.write_all(answer.as_bytes()).unwrap();
            if !heads.last().unwrap().starts_with("HEAD") {
                stream.write_all(&data[range]).unwrap();
            }
        }
        heads
    });
    let options = HttpProxyOptions { addr: path.to_str().unwrap().into(), path: "ignored".into() };
    let store = NetStore::http_proxy(&runtime(), &options, &quick()).unwrap();
    assert!(fetch(&store, &blobs.id, 100..200).unwrap() == blobs.data[100..200]);
    assert_eq!(size(&store, &blobs.id).unwrap(), 5000);
    let heads = server.join().unwrap();
    assert!(heads[0].starts_with(&format!("GET /{} HTTP/1.1\r\n", blobs.id)), "{}", heads[0]);
    assert!(heads[0].to_ascii_lowercase().contains("range: bytes=100-199"));
}

#[test]
fn a_store_that_is_dropped_answers_who_waits() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.latency = Duration::from_millis(400));
    let store = plain(&server, &quick());
    let waiting = begin(&store, &blobs.id, 0..10, 0);
    drop(store);
    // Either way, but once.
    drop(waiting.recv_timeout(Duration::from_secs(5)).unwrap());
}
