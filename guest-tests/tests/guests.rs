//! Many guests on one daemon: they share a few threads, and none of them can keep those from the others.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::control::code;
use guest_tests::frontend::device::{Device, start_ring};
use guest_tests::frontend::fuse::{ATTR_OUT, getattr_in, op, read_in};
use guest_tests::frontend::{Client, Options, Session};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::image::{Case, corpus};
use guest_tests::support::process::Usage;
use guest_tests::support::served::Served;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use serde_json::json;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const EISDIR: i32 = 21;
/// What each of many guests may cost a daemon that serves their image already, on average (SPECIFICATION.md), KiB.
const GUEST_AMONG_MANY_KIB: u64 = 64;

fn case() -> Case {
    corpus().unwrap().into_iter().find(|c| c.name == "v6-zstd-blake3").unwrap()
}

fn options() -> Options {
    Options { queues: 2, memory_mib: 8, queue_size: 64, ..Options::default() }
}

fn guest(socket: &Path) -> Client {
    Client::connect(socket, &options()).unwrap()
}

/// A daemon with an image at its root.
fn daemon() -> ApiDaemon {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let case = case();
    let body = daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "id");
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/", Some(&body)).unwrap().status, 204);
    daemon
}

fn add(daemon: &ApiDaemon, name: &str) {
    let body = json!({"socket": name, "queues": 2}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/sockets", Some(&body)).unwrap().status, 204, "{name}");
}

fn remove(daemon: &ApiDaemon, name: &str) {
    let target = format!("/api/v1/sockets?socket={name}");
    assert_eq!(daemon.call("DELETE", &target, None).unwrap().status, 204, "{name}");
}

/// Sends GETATTR of the root `count` times at once on the first request ring and takes all answers.
fn burst(client: &mut Client, count: usize) {
    for _ in 0..count {
        client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
    }
    client.session.flush().unwrap();
    for _ in 0..count {
        let done = client.session.next_done().unwrap();
        assert_eq!(done.errno, 0);
        client.session.release(done);
    }
}

/// What the daemon has once half a second changes nothing: what a mount sets off goes on after its answer.
fn settled(daemon: &ApiDaemon) -> Usage {
    let (mut last, mut same) = (daemon.process.usage().unwrap(), 0);
    let mut looks = 0;
    while same < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = daemon.process.usage().unwrap();
        same = if (now.threads, now.descriptors) == (last.threads, last.descriptors) { same + 1 } else { 0 };
        last = now;
        looks += 1;
        assert!(looks < 300, "threads and descriptors come and go: {last:?}");
    }
    last
}

/// Guests and their daemon take ten descriptors each on both sides.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    let current = Some(most.map_or(8192, |most| most.min(8192)));
    setrlimit(Resource::Nofile, Rlimit { current, maximum: most }).unwrap();
}

#[test]
fn two_hundred_sockets_share_a_few_threads() {
    allow_descriptors();
    let daemon = daemon();
    let mut first = guest(&daemon.path("fs.sock"));
    burst(&mut first, 20);
    let before = settled(&daemon);
    for n in 0..200 {
        add(&daemon, &format!("{n}.sock"));
    }
    let mut guests: Vec<_> = (0..200).map(|n| guest(&daemon.path(&format!("{n}.sock")))).collect();
    for _ in 0..5 {
        // All have something in flight before the first is answered.
        for client in &mut guests {
            client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
            client.session.submit(2, op::READ, ROOT, &read_in(0, 0, 1), Some(1)).unwrap();
            client.session.flush().unwrap();
        }
        for client in &mut guests {
            for _ in 0..2 {
                let done = client.session.next_done().unwrap();
                assert_eq!(done.errno, if done.opcode == op::READ { EISDIR } else { 0 });
                client.session.release(done);
            }
        }
    }
    let after = daemon.process.usage().unwrap();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let more = after.threads - before.threads;
    assert!(more <= 200 + 2 * processors.max(2), "{more} more threads for 200 sockets of 3 rings");
    let each = after.anon_kib.saturating_sub(before.anon_kib) / 200;
    assert!(each <= GUEST_AMONG_MANY_KIB, "{each} KiB for each of 200 guests");

    // Every other one goes while its guest has requests on their way; nobody else notices.
    for (n, client) in guests.iter_mut().enumerate() {
        if n % 2 == 0 {
            for _ in 0..10 {
                client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
            }
            client.session.flush().unwrap();
            remove(&daemon, &format!("{n}.sock"));
        }
    }
    for client in guests.iter_mut().skip(1).step_by(2) {
        burst(client, 10);
    }
    burst(&mut first, 20);
    drop(guests);
    for n in (1..200).step_by(2) {
        remove(&daemon, &format!("{n}.sock"));
    }
    // The API's own connections are on their way out.
    let mut end = daemon.process.usage().unwrap();
    for _ in 0..500 {
        if end.threads <= before.threads + processors.max(2) && end.descriptors <= before.descriptors {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        end = daemon.process.usage().unwrap();
    }
    assert!(end.threads <= before.threads + processors.max(2), "{before:?} {end:?}");
    assert!(end.descriptors <= before.descriptors, "{before:?} {end:?}");
}

#[test]
fn a_guest_that_never_stops_asking_leaves_others_their_share() {
    let daemon = daemon();
    add(&daemon, "greedy.sock");
    let stop = AtomicBool::new(false);
    let (begun, begins) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (daemon, stop) = (&daemon, &stop);
        let greedy = scope.spawn(move || {
            let mut client = Client::connect(&daemon.path("greedy.sock"), &Options::default()).unwrap();
            let mut asked = 0_u64;
            // The ring is never empty: what comes back is asked again before the rest is answered.
            for _ in 0..200 {
                client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
            }
            client.session.flush().unwrap();
            while !stop.load(Ordering::Relaxed) {
                let done = client.session.next_done().unwrap();
                client.session.release(done);
                asked += 1;
                client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
                client.session.flush().unwrap();
                if asked == 200 {
                    begun.send(()).unwrap();
                }
            }
            asked
        });
        let mut honest = guest(&daemon.path("fs.sock"));
        begins.recv().unwrap();
        for _ in 0..300 {
            honest.getattr(ROOT).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(greedy.join().unwrap() >= 200);
    });
}

/// Descriptors that a front-end may send and that are no event descriptor.
fn odd_descriptors() -> Vec<(&'static str, OwnedFd)> {
    let (reader, writer) = std::io::pipe().unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    vec![
        ("a regular file", tempfile::tempfile().unwrap().into()),
        ("/dev/zero", File::open("/dev/zero").unwrap().into()),
        ("/dev/null", File::options().write(true).open("/dev/null").unwrap().into()),
        ("a pipe's reader", reader.into()),
        ("a pipe's writer", writer.into()),
        ("an epoll descriptor", epoll),
    ]
}

#[test]
fn odd_event_descriptors_hurt_nobody_else() {
    let served = Served::case("v6-zstd-blake3", 2).unwrap();
    let socket = &served.daemon.socket;
    for (what, fd) in odd_descriptors() {
        for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
            let mut client = guest(socket);
            let device = &mut client.session.device;
            // In the place of the good one, while the ring runs.
            device.control.set_vring_fd(request, 1, fd.as_fd()).unwrap();
            for _ in 0..3 {
                device.rings[1].kick_now().unwrap();
            }
            let base = device.control.get_vring_base(1).unwrap();
            // Stopped and started with what it had, it goes on.
            start_ring(&mut device.control, &device.rings[1], u16::try_from(base).unwrap()).unwrap();
            burst(&mut client, 20);
            client.unmount().unwrap();
            println!("{what} in message {request}: fine");
        }
    }
    // No descriptor at all (bit 8), also after there was one.
    for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
        let mut client = guest(socket);
        let device = &mut client.session.device;
        device.control.set(request, &0x101_u64.to_le_bytes(), &[]).unwrap();
        let base = device.control.get_vring_base(1).unwrap();
        start_ring(&mut device.control, &device.rings[1], u16::try_from(base).unwrap()).unwrap();
        burst(&mut client, 20);
    }
    guest(socket).getattr(ROOT).unwrap();
}

#[test]
fn a_kick_descriptor_is_replaced_while_requests_run() {
    let served = Served::case("v6-zstd-blake3", 2).unwrap();
    let mut client = guest(&served.daemon.socket);
    for _ in 0..50 {
        for _ in 0..20 {
            client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
        }
        client.session.flush().unwrap();
        let device = &mut client.session.device;
        device.rings[1].kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        device.control.set_vring_fd(code::SET_VRING_KICK, 1, device.rings[1].kick.as_fd()).unwrap();
        for _ in 0..20 {
            let done = client.session.next_done().unwrap();
            client.session.release(done);
        }
        burst(&mut client, 5);
    }
}

#[test]
fn a_call_descriptor_that_is_full_makes_nobody_wait() {
    let served = Served::case("v6-zstd-blake3", 2).unwrap();
    let flags = [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK];
    for flags in flags {
        let polling = Options { busy: true, ..options() };
        let mut session = Session::new(Device::connect(&served.daemon.socket, &polling).unwrap());
        for ring in &mut session.device.rings {
            ring.call = eventfd(0, flags).unwrap();
            rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            let index = u32::try_from(ring.index).unwrap();
            session.device.control.set_vring_fd(code::SET_VRING_CALL, index, ring.call.as_fd()).unwrap();
        }
        let mut client = Client::mount(session).unwrap();
        for _ in 0..20 {
            // Calls are wanted, and cannot be made.
            for _ in 0..30 {
                client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
            }
            let device = &client.session.device;
            device.rings[1].arm(&device.mem).unwrap();
            client.session.flush().unwrap();
            for _ in 0..30 {
                let done = client.session.next_done().unwrap();
                client.session.release(done);
            }
        }
        let kept = rustix::fs::fcntl_getfl(&client.session.device.rings[1].call).unwrap();
        assert_eq!(kept.contains(rustix::fs::OFlags::NONBLOCK), flags.contains(EventfdFlags::NONBLOCK));
        for index in 0..2 {
            client.session.device.control.get_vring_base(index).unwrap();
        }
    }
    guest(&served.daemon.socket).getattr(ROOT).unwrap();
}
