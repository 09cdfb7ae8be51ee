//! Tests of the crew: shares, rests, workers that hang.

use super::*;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// A ring that has so much work; it can be made to hang.
#[derive(Default)]
struct Busy {
    left: AtomicUsize,
    visits: AtomicUsize,
    inside: AtomicBool,
    hang: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Busy {
    fn with(left: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(left), ..Self::default() })
    }

    /// The next visit tells, and ends when it is told to.
    fn hang(&self) -> (Receiver<()>, Sender<()>) {
        let ((told, tell), (go, gate)) = (channel(), channel());
        *self.hang.lock().unwrap() = Some((told, gate));
        (tell, go)
    }

    fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

impl Served for Busy {
    fn visit(&self, _hand: &mut Hand) -> Visit {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "two workers at one ring");
        self.visits.fetch_add(1, Ordering::SeqCst);
        let hang = self.hang.lock().unwrap().take();
        if let Some((told, gate)) = hang {
            told.send(()).unwrap();
            let _ = gate.recv();
        }
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        self.inside.store(false, Ordering::SeqCst);
        match left {
            0 => Visit::Nothing,
            1 => Visit::Drained,
            _ => Visit::More,
        }
    }

    fn rest(&self) -> bool {
        self.left.load(Ordering::SeqCst) > 0
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn all_work_is_done_once_and_then_nobody_looks() {
    let crew = Crew::of(3).unwrap();
    let rings: Vec<_> = (0..40).map(|_| Busy::with(50)).collect();
    let seats: Vec<_> =
        rings.iter().map(|ring| crew.enter(Arc::clone(ring) as Arc<dyn Served>).unwrap()).collect();
    for seat in &seats {
        seat.wake();
    }
    until("all work", || rings.iter().all(|ring| ring.left.load(Ordering::SeqCst) == 0));
    until("sleep", || crew.0.lock().awake == 0);
    let visits: usize = rings.iter().map(|ring| ring.visits()).sum();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(rings.iter().map(|ring| ring.visits()).sum::<usize>(), visits, "an idle crew looks at rings");
    assert!(!crew.0.lock().watching, "an idle crew is watched");
}

#[test]
fn workers_that_hang_are_replaced_and_dismissed_later() {
    let crew = Crew::of(2).unwrap();
    let hanging: Vec<_> = (0..5).map(|_| Busy::with(1)).collect();
    let gates: Vec<_> = hanging.iter().map(|ring| ring.hang()).collect();
    let seats: Vec<_> =
        hanging.iter().map(|ring| crew.enter(Arc::clone(ring) as Arc<dyn Served>).unwrap()).collect();
    for (seat, (told, _)) in seats.iter().zip(&gates) {
        seat.wake();
        told.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    let honest = Busy::with(1000);
    let seat = crew.enter(Arc::clone(&honest) as Arc<dyn Served>).unwrap();
    seat.wake();
    until("an honest ring", || honest.left.load(Ordering::SeqCst) == 0);
    let workers = crew.0.lock().workers.len();
    assert!((6..=8).contains(&workers), "{workers} workers for five that hang");
    for (_, go) in &gates {
        go.send(()).unwrap();
    }
    until("the dismissed", || crew.0.lock().workers.len() <= 2);
    honest.left.store(10, Ordering::SeqCst);
    seat.wake();
    until("the ring", || honest.left.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_crew_that_is_limited_serves_all_rings_with_fewer_workers() {
    let crew = Crew::of(3).unwrap();
    let rings: Vec<_> = (0..4).map(|_| Busy::with(usize::MAX)).collect();
    let seats: Vec<_> =
        rings.iter().map(|ring| crew.enter(Arc::clone(ring) as Arc<dyn Served>).unwrap()).collect();
    for seat in &seats {
        seat.wake();
    }
    until("all workers", || crew.0.lock().awake > 1);
    crew.0.lock().crowd = Crowd::held_at(1);
    until("one worker", || crew.0.lock().awake == 1);
    let before: Vec<_> = rings.iter().map(|ring| ring.visits()).collect();
    until("each ring", || rings.iter().zip(&before).all(|(ring, before)| ring.visits() > before + 1000));
    // Who was put off for a tick was taken for one that hangs, and had help for a moment.
    until("one worker again", || crew.0.lock().awake == 1);
    crew.0.lock().crowd = Crowd::default();
    until("more workers", || crew.0.lock().awake > 1);
}

#[test]
fn a_limit_leaves_nobody_behind_one_that_hangs() {
    let crew = Crew::of(2).unwrap();
    let hanging: Vec<_> = (0..3).map(|_| Busy::with(1)).collect();
    let gates: Vec<_> = hanging.iter().map(|ring| ring.hang()).collect();
    let honest = Busy::with(usize::MAX);
    let beside = crew.enter(Arc::clone(&honest) as Arc<dyn Served>).unwrap();
    beside.wake();
    crew.0.lock().crowd = Crowd::held_at(1);
    let mut seats = Vec::new();
    for (ring, (told, _)) in hanging.iter().zip(&gates) {
        let seat = crew.enter(Arc::clone(ring) as Arc<dyn Served>).unwrap();
        seat.wake();
        told.recv_timeout(Duration::from_secs(30)).unwrap();
        seats.push(seat);
        let visits = honest.visits();
        until("the honest ring", || honest.visits() > visits + 1000);
    }
    for (_, go) in &gates {
        go.send(()).unwrap();
    }
    until("those that hung", || hanging.iter().all(|ring| ring.left.load(Ordering::SeqCst) == 0));
}

#[test]
fn who_leaves_is_waited_for_and_never_visited_again() {
    let crew = Crew::of(2).unwrap();
    for _ in 0..50 {
        let ring = Busy::with(usize::MAX);
        let seat = crew.enter(Arc::clone(&ring) as Arc<dyn Served>).unwrap();
        seat.wake();
        until("a visit", || ring.visits() > 0);
        seat.leave();
        assert!(!ring.inside.load(Ordering::SeqCst));
        let visits = ring.visits();
        seat.wake();
        thread::yield_now();
        assert_eq!((ring.visits(), Arc::strong_count(&ring)), (visits, 1));
    }
}

#[test]
fn a_worker_that_tells_a_front_end_that_does_not_listen_is_freed_when_the_ring_leaves() {
    use crate::virtio::call::Call;
    struct Deaf(Call);
    impl Served for Deaf {
        fn visit(&self, hand: &mut Hand) -> Visit {
            hand.signal(&self.0);
            Visit::Drained
        }
        fn rest(&self) -> bool {
            false
        }
    }
    let crew = Crew::of(2).unwrap();
    let file = File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let other = file.try_clone().unwrap();
    let seat = crew.enter(Arc::new(Deaf(Call::new(file)))).unwrap();
    // It looked as if it would not block, but that flag is the front-end's.
    rustix::fs::fcntl_setfl(&other, rustix::fs::OFlags::empty()).unwrap();
    rustix::io::write(&other, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    seat.wake();
    until("the call", || crew.0.lock().workers.iter().any(|w| w.progress.is_calling(seat.key())));
    let honest = Busy::with(100);
    let beside = crew.enter(Arc::clone(&honest) as Arc<dyn Served>).unwrap();
    beside.wake();
    until("an honest ring", || honest.left.load(Ordering::SeqCst) == 0);
    seat.leave();
    assert_eq!(crew.0.lock().queue.members(), 1);
}
