//! `bench-cold`: what cold reads cost, and what they cost others.
//!
//! *Beside cold reads*: as many as wanted are on their way to a store far away, all the time, and on the same ring one
//! GETATTR and one hot READ after the other. *Verification*: processor time of the daemon for cold and hot reads of an image
//! with `--verify on` and `off`, by digest and compressor, with blobs in a local directory and behind HTTP. Ratios count, of
//! the best of some rounds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use guest_tests::frontend::fuse::read_in;
use guest_tests::frontend::{Client, Options};
use guest_tests::servers::BlobServer;
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use guest_tests::support::random::Random;

const GETATTR: u32 = 3;
const READ: u32 = 15;
const BLOCK: u32 = 128 << 10;
/// Bytes of one file that the data has.
const FILE_MAX: usize = 4 << 20;
/// Chunks that the hot file has at the end of the data.
const HOT_BYTES: u64 = 64 << 10;

/// Figures for cold reads.
#[derive(Debug, Parser)]
struct Args {
    /// Latency of the store, milliseconds.
    #[arg(long, default_value_t = 200)]
    latency: u64,
    /// Cold reads on their way.
    #[arg(long, default_value_t = 8)]
    cold: usize,
    /// Seconds of the first part; 0 leaves it out.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// MiB of data.
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Directory whose files the data is made of, in order of their names, up to 4 MiB of each.
    #[arg(long, default_value = "/usr")]
    source: PathBuf,
    /// Rounds of the second part; 0 leaves it out.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

fn config(dir: &Path, backend: &str, amplify: u64) -> Result<PathBuf> {
    let path = dir.join("config");
    let text = format!(
        "version = 2\n{backend}\n[cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = \"{}\"\n[rafs]\nbatch_size = \
         {amplify}\n",
        dir.join("cache").display()
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

fn connect(daemon: &Daemon) -> Result<Client> {
    let options = Options { memory_mib: 256, timeout: Duration::from_secs(120), ..Options::default() };
    Ok(Client::connect(&daemon.socket, &options)?)
}

fn percentile(times: &mut [Duration], per_mille: usize) -> Duration {
    times.sort_unstable();
    let at = times.len() * per_mille / 1000;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// GETATTR and hot READs beside cold ones.
fn beside(args: &Args, image: &Image) -> Result<()> {
    let server = BlobServer::start(&image.blobs)?;
    let dir = tempfile::tempdir()?;
    let daemon = Daemon::rafsd_with(
        &image.bootstrap,
        &config(dir.path(), &registry(&server), 0)?,
        &["--log-level", "warn"],
    )?;
    let mut client = connect(&daemon)?;
    let (data, hot) = (client.resolve(b"data")?, client.resolve(b"hot")?.node);
    let hot_size = u32::try_from(HOT_BYTES)?;
    for _ in 0..5 {
        client.read(hot, 0, 0, hot_size)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    server.set(|s| s.latency = Duration::from_millis(args.latency));
    let chunks = data.attr.size / HOT_BYTES;
    let mut random = Random::new(1);
    let mut flying: HashMap<u64, (u32, Instant)> = HashMap::new();
    let (mut attrs, mut hots, mut colds) = (Vec::new(), Vec::new(), 0);
    let begun = Instant::now();
    let mut next = GETATTR;
    while begun.elapsed() < Duration::from_secs(args.seconds) {
        while flying.values().filter(|(kind, _)| *kind == 0).count() < args.cold {
            let body = read_in(0, random.below(chunks) * HOT_BYTES, 4096);
            let unique = client.session.submit(1, READ, data.node, &body, Some(4096))?;
            flying.insert(unique, (0, Instant::now()));
        }
        if !flying.values().any(|(kind, _)| *kind != 0) {
            let unique = if next == GETATTR {
                client.session.submit(1, GETATTR, data.node, &[0; 16], Some(104))?
            } else {
                client.session.submit(1, READ, hot, &read_in(0, 0, 4096), Some(4096))?
            };
            flying.insert(unique, (next, Instant::now()));
            next = if next == GETATTR { READ } else { GETATTR };
        }
        client.session.flush()?;
        let done = client.session.next_done()?;
        let (kind, at) = flying.remove(&done.unique).context("an answer to nothing")?;
        anyhow::ensure!(done.errno == 0, "errno {}", done.errno);
        client.session.release(done);
        match kind {
            GETATTR => attrs.push(at.elapsed()),
            READ => hots.push(at.elapsed()),
            _ => colds += 1,
        }
    }
    println!(
        "beside {} cold reads from {} ms away ({colds} answered, {:.0} a second):",
        args.cold,
        args.latency,
        f64::from(colds) / begun.elapsed().as_secs_f64()
    );
    for (name, times) in [("GETATTR", &mut attrs), ("hot READ", &mut hots)] {
        let [p50, p99, p999] = [500, 990, 999].map(|p| percentile(times, p));
        println!("  {name:9} {:7} answers, p50 {p50:?}, p99 {p99:?}, p99.9 {p999:?}", times.len());
    }
    Ok(())
}

fn registry(server: &BlobServer) -> String {
    format!(
        "[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\nscheme = \"http\"\n",
        server.host()
    )
}

/// Processor time of a daemon for all of `data`, cold and then hot.
fn cost(image: &Image, backend: &str, verify: &str) -> Result<[f64; 2]> {
    let dir = tempfile::tempdir()?;
    let flags = ["--log-level", "error", "--verify", verify];
    let daemon = Daemon::rafsd_with(&image.bootstrap, &config(dir.path(), backend, 0)?, &flags)?;
    let mut client = connect(&daemon)?;
    let data = client.resolve(b"data")?;
    let mut costs = [0.0; 2];
    for (pass, cost) in costs.iter_mut().enumerate() {
        // What is answered is not yet hot: its chunk is being kept.
        std::thread::sleep(Duration::from_millis(if pass == 0 { 0 } else { 300 }));
        let before = daemon.process.usage()?.cpu;
        for _ in 0..if pass == 0 { 1 } else { 8 } {
            let (mut at, mut flying) = (0, 0);
            while at < data.attr.size || flying > 0 {
                while at < data.attr.size && flying < 8 {
                    let len = u32::try_from((data.attr.size - at).min(BLOCK.into()))?;
                    client.session.submit(1, READ, data.node, &read_in(0, at, len), Some(len))?;
                    at += u64::from(len);
                    flying += 1;
                }
                client.session.flush()?;
                let done = client.session.next_done()?;
                anyhow::ensure!(done.errno == 0, "errno {}", done.errno);
                client.session.release(done);
                flying -= 1;
            }
        }
        *cost = (daemon.process.usage()?.cpu - before).as_secs_f64();
    }
    Ok(costs)
}

/// The best round: what else the machine does only adds to processor time.
fn best(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

fn verification(args: &Args, source: &Path) -> Result<()> {
    println!("verification, processor time of the daemon for {} MiB:", args.mib);
    for digester in ["blake3", "sha256"] {
        for compressor in ["zstd", "lz4_block"] {
            let image = Image::build(source, 6, &["--digester", digester, "--compressor", compressor])?;
            let server = BlobServer::start(&image.blobs)?;
            let local = format!(
                "[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = \"{}\"\n",
                image.blobs.display()
            );
            for (place, backend) in [("local", local), ("HTTP", registry(&server))] {
                let mut costs = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
                for _ in 0..args.rounds {
                    for (verify, costs) in ["on", "off"].iter().zip(&mut costs) {
                        let [cold, hot] = cost(&image, &backend, verify)?;
                        costs[0].push(cold);
                        costs[1].push(hot);
                    }
                }
                let [on, off] = costs.map(|costs| costs.map(best));
                println!(
                    "  {place:5} {digester:6} {compressor:9} cold: {:.0} ms, {:.0} ms without: {:+.1} %   hot, 8 times: {:.0} ms, {:.0} ms \
                     without: {:+.1} %",
                    on[0] * 1e3,
                    off[0] * 1e3,
                    (on[0] - off[0]) / on[0] * 100.0,
                    on[1] * 1e3,
                    off[1] * 1e3,
                    (on[1] - off[1]) / on[1] * 100.0
                );
            }
        }
    }
    Ok(())
}

/// What images are made of: contents of real files, which cost what they cost to unpack.
fn gather(dir: &Path, limit: usize, bytes: &mut Vec<u8>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if bytes.len() >= limit {
            return;
        }
        if meta.is_dir() {
            gather(&path, limit, bytes);
        } else if meta.is_file()
            && let Ok(content) = std::fs::read(&path)
        {
            let room = (limit - bytes.len()).min(FILE_MAX);
            bytes.extend(content.iter().take(room));
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let source = tempfile::tempdir()?;
    let mut bytes = Vec::with_capacity(args.mib << 20);
    gather(&args.source, args.mib << 20, &mut bytes);
    anyhow::ensure!(bytes.len() as u64 >= 16 * HOT_BYTES, "{} has hardly any files", args.source.display());
    std::fs::write(source.path().join("data"), &bytes)?;
    bytes.reverse();
    bytes.truncate(usize::try_from(HOT_BYTES)?);
    std::fs::write(source.path().join("hot"), &bytes)?;
    if args.seconds > 0 {
        let image = Image::build(source.path(), 6, &["--chunk-size", "0x10000"])?;
        beside(&args, &image)?;
    }
    if args.rounds > 0 {
        verification(&args, source.path())?;
    }
    Ok(())
}
