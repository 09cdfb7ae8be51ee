//! Stores that answer late, twice, wrongly or never, and what a reader makes of it: right bytes or an error in time.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::reader::{ReadError, Reader, ReaderOptions};
use rafs::store::{ErrorClass, FetchDone, FetchRequest, SizeDone, Store};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use support::*;

/// What a store does with a request for data; tables come through.
type Hook = Box<dyn Fn(FetchRequest, FetchDone) -> Option<(FetchRequest, FetchDone)> + Send + Sync>;

/// A store with a fault.
struct Hooked {
    inner: Arc<Counted>,
    hook: Hook,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

impl Store for Hooked {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        if let Some((request, done)) = (self.hook)(request, done) {
            self.inner.fetch(request, done);
        }
    }
    fn size(&self, object: &str, done: SizeDone) {
        self.inner.size(object, done);
    }
}

fn hooked(
    case: &Case,
    options: ReaderOptions,
    hook: impl Fn(FetchRequest, FetchDone) -> Option<(FetchRequest, FetchDone)> + Send + Sync + 'static,
) -> Reader {
    let store = Hooked { inner: case.store(), hook: Box::new(hook) };
    Reader::new(case.image(), Arc::new(store), options).unwrap()
}

fn some_file(case: &Case) -> &Regular {
    case.files.iter().max_by_key(|f| f.size).unwrap()
}

#[test]
fn a_store_that_never_answers_costs_a_deadline_not_a_hang() {
    let case = case("v5-zstd-blake3");
    let mut options = options(None);
    options.deadline = Duration::from_millis(300);
    let held: Arc<Mutex<Vec<FetchDone>>> = Arc::default();
    let keep = Arc::clone(&held);
    let reader = hooked(&case, options, move |_, done| {
        keep.lock().unwrap().push(done);
        None
    });
    let start = Instant::now();
    let reads: Vec<_> = (0..3)
        .map(|_| {
            let inode = find(reader.image(), &some_file(&case).path);
            let (tx, rx) = mpsc::channel();
            reader.fetch(&inode, 0, 4096, Box::new(Collect { bytes: vec![0; 4096], done: tx }));
            rx
        })
        .collect();
    for rx in reads {
        let (_, result) = rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(matches!(result, Err(ReadError::Deadline(_))), "{result:?}");
        rx.recv().unwrap_err();
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    drop(reader);
    drop(held);
}

#[test]
fn a_store_that_forgets_or_panics_ends_the_read() {
    let case = case("v5-zstd-blake3");
    let reader = hooked(&case, options(None), |_, done| {
        drop(done);
        None
    });
    let error = read_all(&reader, &some_file(&case).path).unwrap_err();
    assert!(matches!(error, ReadError::Internal), "{error}");
    let reader = hooked(&case, options(None), |_, _| panic!("a fault in a store, on purpose"));
    for _ in 0..5 {
        let error = read_all(&reader, &some_file(&case).path).unwrap_err();
        assert!(matches!(error, ReadError::Internal), "{error}");
    }
}

#[test]
fn one_bad_answer_is_cured_by_asking_again() {
    for name in VARIED {
        let case = case(name);
        let bad_attempts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&bad_attempts);
        let reader = hooked(&case, options(None), move |request, done| {
            let attempt = request.attempt;
            seen.lock().unwrap().push(attempt);
            let damage: FetchDone = Box::new(move |result| {
                done(result.map(|mut bytes| {
                    if attempt == 0 {
                        let middle = bytes.len() / 2;
                        bytes[middle] ^= 0x20;
                        bytes.truncate(middle * 2 + 1);
                    }
                    bytes
                }));
            });
            Some((request, damage))
        });
        assert_all_files(&case, &reader, "second answer");
        assert!(bad_attempts.lock().unwrap().contains(&1));
    }
}

#[test]
fn answers_of_wrong_length_are_no_answers() {
    let case = case("v6-none-sha256");
    for extra in [-1isize, 1] {
        let reader = hooked(&case, options(None), move |request, done| {
            let wrong: FetchDone = Box::new(move |result| {
                done(result.map(|mut bytes: Vec<u8>| {
                    bytes.resize(bytes.len().checked_add_signed(extra).unwrap(), 0);
                    bytes
                }));
            });
            Some((request, wrong))
        });
        let error = read_all(&reader, &some_file(&case).path).unwrap_err();
        match &error {
            ReadError::Store(e) => assert_eq!(e.class, ErrorClass::Transient),
            ReadError::Blob(_) => {}
            other => panic!("{other}"),
        }
    }
}

#[test]
fn shutdown_ends_reads_in_progress_at_once() {
    let case = case("v6-zstd-blake3");
    let held: Arc<Mutex<Vec<(FetchRequest, FetchDone)>>> = Arc::default();
    let (keep, open) = (Arc::clone(&held), Arc::new(AtomicBool::new(false)));
    let pass = Arc::clone(&open);
    let reader = hooked(&case, options(None), move |request, done| {
        if pass.load(Ordering::SeqCst) {
            return Some((request, done));
        }
        keep.lock().unwrap().push((request, done));
        None
    });
    let inode = find(reader.image(), &some_file(&case).path);
    let reads: Vec<_> = (0..4u64)
        .map(|n| {
            let (tx, rx) = mpsc::channel();
            reader.fetch(&inode, n * 4096, 4096, Box::new(Collect { bytes: vec![0; 4096], done: tx }));
            rx
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    reader.shutdown();
    for rx in reads {
        let (_, result) = rx.recv_timeout(Duration::from_secs(1)).unwrap();
        assert!(matches!(result, Err(ReadError::Shutdown)), "{result:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    // Late answers, and later reads, do no harm.
    open.store(true, Ordering::SeqCst);
    for (_, done) in held.lock().unwrap().drain(..) {
        done(Ok(vec![0; 10]));
    }
    let error = read_all(&reader, &some_file(&case).path).unwrap_err();
    assert!(matches!(error, ReadError::Shutdown));
    reader.shutdown();
}
