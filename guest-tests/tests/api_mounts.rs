//! Mounts by API: while guests use others, exchanged and removed under a reader, at any depth, many at once and many in a row;
//! views.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::fuse::{ATTR_OUT, getattr_in, op};
use guest_tests::frontend::{Client, FrontendError};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::image::Case;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ENOENT: i32 = 2;
const ESTALE: i32 = 116;

fn errno<T>(result: Result<T, FrontendError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error}")),
    }
}

/// Names in a directory, sorted, without the dots.
fn names(guest: &mut Client, node: u64) -> Vec<String> {
    let entries = guest.list(node, 4096, true).unwrap();
    let mut names: Vec<_> = entries.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

#[test]
fn mounts_at_any_depth_and_inside_each_other() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    let mut guest = daemon.guest("fs.sock").unwrap();
    assert_eq!(daemon.mount("POST", "/a/b/c", &case).unwrap(), 204);
    guest.resolve(b"/a/b/c/sizes/f4097").unwrap();
    let dir = guest.resolve(b"/a/b").unwrap().node;
    assert_eq!(names(&mut guest, dir), ["c"]);
    // The same place, however it is written.
    for path in ["/a/b/c", "/a/b/c/", "//a//b/./c", "%2Fa%2fb/c"] {
        assert_eq!(daemon.mount("POST", path, &case).unwrap(), 500, "{path}");
    }
    // One above hides it, and shows it again.
    assert_eq!(daemon.mount("POST", "/a", &case).unwrap(), 204);
    guest.resolve(b"/a/b").unwrap_err();
    guest.resolve(b"/a/sizes/f4097").unwrap();
    assert_eq!(daemon.umount("/a").unwrap(), 204);
    guest.resolve(b"/a/b/c/sizes/f4097").unwrap();
    // So does the root.
    assert_eq!(daemon.mount("POST", "/", &case).unwrap(), 204);
    assert_eq!(daemon.mount("POST", "//", &case).unwrap(), 500);
    guest.resolve(b"/sizes/f4097").unwrap();
    guest.resolve(b"/a").unwrap_err();
    // What is hidden can be exchanged, and others mounted, unseen.
    assert_eq!(daemon.mount("PUT", "/a/b/c", &Case::named("v6-none-sha256").unwrap()).unwrap(), 204);
    assert_eq!(daemon.mount("POST", "/x%20y/%C3%A9", &case).unwrap(), 204);
    assert_eq!(daemon.umount("/").unwrap(), 204);
    assert_eq!(names(&mut guest, ROOT), ["a", "x y"]);
    guest.resolve("/x y/\u{e9}/sizes/f4097".as_bytes()).unwrap();
    let deep = format!("/{}", ["d"; 64].join("/"));
    assert_eq!(daemon.mount("POST", &deep, &case).unwrap(), 204);
    guest.resolve(format!("{deep}/names").as_bytes()).unwrap();
    assert_eq!(daemon.mount("POST", &format!("{deep}/e"), &case).unwrap(), 500, "64 names are all");
    for path in ["/a/b/c", "/x%20y/%C3%A9", &deep] {
        assert_eq!(daemon.umount(path).unwrap(), 204);
        assert_eq!(daemon.umount(path).unwrap(), 500);
    }
    assert_eq!(names(&mut guest, ROOT), [""; 0]);
}

/// A reader gets right data or ESTALE, whatever happens to the mount; a reader of another mount gets right data.
#[test]
fn mounts_change_under_readers() {
    let daemon = ApiDaemon::start(&["--sock", "second.sock", "--log-level", "warn"]).unwrap();
    let (one, other) = (Case::named("v6-zstd-blake3").unwrap(), Case::named("v6-none-sha256").unwrap());
    for path in ["/app", "/stays"] {
        assert_eq!(daemon.mount("POST", path, &one).unwrap(), 204);
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stays = scope.spawn(|| {
            let mut guest = daemon.guest("second.sock").unwrap();
            let file = guest.resolve(b"/stays/sizes/f4097").unwrap().node;
            let want = guest.read(file, 0, 0, 8192).unwrap();
            let mut reads = 0;
            while !over.load(Ordering::Relaxed) {
                assert!(guest.read(file, 0, 0, 8192).unwrap() == want);
                reads += 1;
            }
            reads
        });
        let app = scope.spawn(|| {
            let mut guest = daemon.guest("fs.sock").unwrap();
            let (mut reads, mut stale) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                // As a guest whose file stays open: the node is looked up again only when it is gone.
                let Ok(file) = guest.resolve(b"/app/sizes/f4097") else { continue };
                loop {
                    match guest.read(file.node, 0, 0, 8192) {
                        Ok(data) => assert_eq!(data.len(), 4097),
                        Err(error) => {
                            assert!([Some(ESTALE), Some(ENOENT)].contains(&error.errno()), "{error}");
                            stale += 1;
                            break;
                        }
                    }
                    reads += 1;
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
            (reads, stale)
        });
        for round in 0..60 {
            let next = if round % 2 == 0 { &other } else { &one };
            match round % 3 {
                0 => {
                    assert_eq!(daemon.umount("/app").unwrap(), 204);
                    assert_eq!(daemon.mount("POST", "/app", next).unwrap(), 204);
                }
                _ => assert_eq!(daemon.mount("PUT", "/app", next).unwrap(), 204),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
        let (reads, stale) = app.join().unwrap();
        assert!(reads > 0 && stale > 0, "{reads} {stale}");
        assert!(stays.join().unwrap() > 0);
    });
    assert!(!daemon.process.output().contains("panic"), "{}", daemon.process.output());
}

#[test]
fn a_remount_never_confuses_a_guest() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let (one, other) = (Case::named("v6-zstd-blake3").unwrap(), Case::named("v6-none-sha256").unwrap());
    assert_eq!(daemon.mount("POST", "/app", &one).unwrap(), 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let before = guest.resolve(b"/app").unwrap();
    let file = guest.resolve(b"/app/sizes/f4097").unwrap();
    let attr = |guest: &mut Client, node| errno(guest.call(op::GETATTR, node, &getattr_in(), ATTR_OUT));
    assert_eq!((attr(&mut guest, file.node), attr(&mut guest, 0x77 << 56 | 9)), (0, ENOENT));
    assert!(before.entry_valid <= 1, "what leads to a mount is looked up again soon");

    assert_eq!(daemon.mount("PUT", "/app", &other).unwrap(), 204);
    let after = guest.resolve(b"/app").unwrap();
    assert_ne!((after.node, after.generation), (before.node, before.generation));
    assert_eq!(attr(&mut guest, file.node), ESTALE, "a node of the image that is gone");
    assert_ne!(guest.resolve(b"/app/sizes/f4097").unwrap().generation, file.generation);

    // The same image again is the same nodes.
    assert_eq!(daemon.mount("PUT", "/app", &one).unwrap(), 204);
    let again = guest.resolve(b"/app/sizes/f4097").unwrap();
    assert_eq!((again.node, again.generation), (file.node, file.generation));
    assert_eq!(daemon.umount("/app").unwrap(), 204);
    guest.resolve(b"/app").unwrap_err();
    assert_eq!(guest.list(ROOT, 4096, true).unwrap().len(), 2, "only the dots");
    assert_eq!(daemon.mount("POST", "/app", &one).unwrap(), 204);
    assert_eq!(guest.resolve(b"/app/sizes/f4097").unwrap().node, file.node);
    // And after a restart.
    let restarted = ApiDaemon::start(&[]).unwrap();
    assert_eq!(restarted.mount("POST", "/app", &one).unwrap(), 204);
    assert_eq!(restarted.guest("fs.sock").unwrap().resolve(b"/app/sizes/f4097").unwrap().node, file.node);
}

#[test]
fn views_show_their_mounts_only() {
    let daemon = ApiDaemon::start(&["--sock", "t1.sock,root=/t1", "--sock", "pick.sock,mounts=/t2"]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    for path in ["/t1/app", "/t2", "/t3"] {
        assert_eq!(daemon.mount("POST", path, &case).unwrap(), 204);
    }
    let body = json!({"socket": "late.sock", "queues": 1, "root": "/t3"}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/sockets", Some(&body)).unwrap().status, 204);
    let list = daemon.call("GET", "/api/v1/sockets", None).unwrap().json().unwrap();
    assert_eq!(list.as_array().unwrap().len(), 4);
    let names = |socket: &str| names(&mut daemon.guest(socket).unwrap(), ROOT);
    assert_eq!(names("fs.sock"), ["t1", "t2", "t3"]);
    assert_eq!(names("t1.sock"), ["app"]);
    assert_eq!(names("pick.sock"), ["t2"]);
    assert!(names("late.sock").contains(&"sizes".to_owned()), "the image is the root");

    // Guessing gets nowhere: no index but the view's own answers.
    let mut tenant = daemon.guest("t1.sock").unwrap();
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
    // Those that stay keep their order.
    assert_eq!(daemon.call("DELETE", "/api/v1/sockets?socket=fs.sock", None).unwrap().status, 204);
    let list = daemon.call("GET", "/api/v1/sockets", None).unwrap().json().unwrap();
    let sockets: Vec<_> = list.as_array().unwrap().iter().map(|s| s["socket"].as_str().unwrap()).collect();
    assert_eq!(sockets, ["t1.sock", "pick.sock"]);
}

#[test]
fn a_thousand_mounts_leak_nothing() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    assert_eq!(daemon.mount("POST", "/stays", &case).unwrap(), 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let round = |n: usize, guest: &mut Client| {
        let path = format!("/m/{}", n % 300);
        assert_eq!(daemon.mount("POST", &path, &case).unwrap(), 204);
        if n.is_multiple_of(50) {
            guest.resolve(format!("{path}/names").as_bytes()).unwrap();
        }
        assert_eq!(daemon.umount(&path).unwrap(), 204);
    };
    for n in 0..200 {
        round(n, &mut guest);
    }
    let settled = || {
        // Threads that mounted wait a second for more to do.
        std::thread::sleep(Duration::from_millis(1500));
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
    let cases = [Case::named("v6-zstd-blake3").unwrap(), Case::named("v5-zstd-blake3").unwrap()];
    for n in 0..200 {
        assert_eq!(daemon.mount("POST", &format!("/img/{n}"), &cases[n % 2]).unwrap(), 204);
    }
    let mut guest = daemon.guest("fs.sock").unwrap();
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
        assert_eq!(daemon.mount("POST", &format!("/img/{n}"), &cases[0]).unwrap(), 204);
    }
    assert_eq!(daemon.mount("POST", "/img/255", &cases[0]).unwrap(), 500);
    assert_eq!(daemon.umount("/img/7").unwrap(), 204);
    assert_eq!(daemon.mount("POST", "/img/255", &cases[0]).unwrap(), 204);
}

#[test]
fn a_second_guest_costs_little_and_fetches_nothing_again() {
    let daemon = ApiDaemon::start(&["--sock", "second.sock"]).unwrap();
    let case = Case::named("v6-large-files").unwrap();
    assert_eq!(daemon.mount("POST", "/app", &case).unwrap(), 204);
    let read_all = |socket: &str| {
        let mut guest = daemon.guest(socket).unwrap();
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
