//! Images read through a [`Reader`](rafs::reader::Reader) over the stores: right data, in time, in few round trips.

use crate::support::*;
use guest_tests::servers::{BlobServer, DockerRegistry, Fault, installed};
use guest_tests::support::random::Random;
use rafs::reader::ReaderOptions;
use rafs::store::Store;
use rafs_net::{HttpOptions, HttpProxyOptions, NetStore};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn registry(host: &str, http: &HttpOptions) -> Arc<NetStore> {
    Arc::new(NetStore::registry(&runtime(), &at(host), http).unwrap())
}

fn plain(server: &BlobServer, http: &HttpOptions) -> Arc<NetStore> {
    let options = HttpProxyOptions { addr: server.url(), path: String::new() };
    Arc::new(NetStore::http_proxy(&runtime(), &options, http).unwrap())
}

const CASES: [&str; 8] = [
    "v5-zstd-sha256-4k",
    "v5-lz4-blake3",
    "v6-zstd-blake3",
    "v6-batch",
    "v6-encrypt",
    "v6-targz-ref",
    "v6-blob-toc",
    "v6-layered-oci",
];

#[test]
fn images_from_a_registry() {
    let docker = installed("docker-registry");
    for name in CASES {
        let case = case(name);
        let server = BlobServer::start(&case.blobs).unwrap();
        let store = registry(&server.host(), &quick());
        case.assert_reads(&case.reader(store, Duration::from_secs(30)), "from our server");
        if docker {
            let server = DockerRegistry::start(&case.blobs, None).unwrap();
            let store = registry(&server.host, &quick());
            let reader = case.reader(store, Duration::from_secs(30));
            reader.check_blobs().unwrap();
            case.assert_reads(&reader, "from docker-registry");
        }
    }
}

#[test]
fn ten_thousand_reads_from_a_server_that_fails_every_fifth_time() {
    let case = case("v6-zstd-blake3");
    let server = BlobServer::start(&case.blobs).unwrap();
    let whole: Vec<(String, Vec<u8>)> = {
        let reader = case.reader(plain(&server, &quick()), Duration::from_secs(30));
        case.files.iter().map(|(path, _)| (path.clone(), read_all(&reader, path).unwrap())).collect()
    };
    server.set(|s| {
        s.faults = Fault::ALL.to_vec();
        s.fault_percent = 20;
        s.stall = Duration::from_millis(200);
    });
    let before = guest_tests::support::process::usage(std::process::id()).unwrap();
    let begun = Instant::now();
    let http = HttpOptions { timeout: Some(Duration::from_millis(500)), ..quick() };
    let store = plain(&server, &http);
    let mut reads = 0;
    let mut wrong = Vec::new();
    while reads < 10_000 {
        // A reader without cache files, begun anew: every round asks the server again.
        let reader = Arc::new(case.reader(Arc::clone(&store) as Arc<dyn Store>, Duration::from_secs(20)));
        let mut threads = Vec::new();
        for seed in 0..8 {
            let (reader, whole) = (Arc::clone(&reader), whole.clone());
            threads.push(std::thread::spawn(move || {
                let mut random = Random::new(seed + reads);
                let mut wrong = Vec::new();
                for _ in 0..125 {
                    let (path, expected) = random.pick(&whole).clone();
                    let offset = random.below(expected.len() as u64 + 1);
                    let mut data = vec![0; random.below(200_000) as usize];
                    let inode = find(reader.image(), &path);
                    match reader.read_at(&inode, offset, &mut data) {
                        Ok(n) => {
                            let from = offset as usize;
                            assert_eq!(
                                data[..n],
                                expected[from..(from + data.len()).min(expected.len())],
                                "{path}"
                            );
                        }
                        Err(error) => wrong.push(format!("{path}: {error}")),
                    }
                }
                wrong
            }));
        }
        for thread in threads {
            wrong.extend(thread.join().unwrap());
        }
        reads += 1000;
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(120), "{took:?}");
    let counters = store.counters();
    println!("{took:?}, {} errors, {counters:?}", wrong.len());
    // The same damage twice is as likely as one in 85 * 85: an error, never wrong data.
    assert!(wrong.len() <= 50, "{wrong:#?}");
    let after = guest_tests::support::process::usage(std::process::id()).unwrap();
    assert!(after.descriptors < before.descriptors + 200, "{before:?} {after:?}");
}

#[test]
fn a_store_that_is_gone_is_an_error_in_time_and_recovers() {
    let case = case("v6-zstd-blake3");
    let server = BlobServer::start(&case.blobs).unwrap();
    let http = HttpOptions { deadline: Duration::from_millis(800), ..quick() };
    let reader = case.reader(plain(&server, &http), Duration::from_secs(1));
    let (path, _) = &case.files[0];
    server.set(|s| s.down = true);
    for _ in 0..2 {
        let begun = Instant::now();
        let error = read_all(&reader, path).unwrap_err();
        assert_eq!(error.errno(), rustix::io::Errno::IO.raw_os_error());
        assert!(begun.elapsed() < Duration::from_millis(1600), "{:?}", begun.elapsed());
    }
    server.set(|s| s.down = false);
    let recovered = Instant::now();
    while read_all(&reader, path).is_err() {
        assert!(recovered.elapsed() < Duration::from_secs(4));
    }
    case.assert_reads(&reader, "after the store came back");
}

#[test]
fn eight_cold_reads_take_two_round_trips() {
    eight_cold_reads(0);
    eight_cold_reads(ReaderOptions::default().amplify);
}

fn eight_cold_reads(amplify: u32) {
    const LATENCY: Duration = Duration::from_millis(400);
    let case = case("v6-large-files");
    let server = BlobServer::start(&case.blobs).unwrap();
    let store = registry(&server.host(), &HttpOptions::default());
    let options = ReaderOptions { amplify, workers: 2, ..ReaderOptions::default() };
    let reader = Arc::new(case.reader_with(store, options));
    let sized = |path: &str| (path.to_owned(), find(reader.image(), path).size);
    let (path, size) = case.files.iter().map(|(path, _)| sized(path)).max_by_key(|(_, size)| *size).unwrap();
    let inode = find(reader.image(), &path);
    let step = size / 8;
    assert!(step > 256 << 10, "{path} has {size} bytes");
    // The chunk info is here already.
    reader.read_at(&inode, 0, &mut [0; 10]).unwrap();
    server.forget_records();
    server.set(|s| s.latency = LATENCY);
    let begun = Instant::now();
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let reader = Arc::clone(&reader);
            std::thread::spawn(move || {
                let mut data = vec![0; 4096];
                let offset = n * step + step / 2;
                assert_eq!(reader.read_at(&inode, offset, &mut data).unwrap(), 4096);
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let took = begun.elapsed();
    let arrivals: Vec<_> = server.records().iter().map(|r| r.at - begun).collect();
    // What is asked for before the first answer can have come belongs to the first round trip; what is guessed, and nobody
    // waits for, may come later.
    let first = arrivals.iter().filter(|at| **at < LATENCY).count();
    assert!(first <= 8 && (amplify > 0 || first == arrivals.len()), "{arrivals:?}");
    assert!(took < LATENCY * 2, "{took:?}");
}
