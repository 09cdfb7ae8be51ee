//! `bench-guests`: many guests on one daemon beside one guest with as many requests in flight in all.
//!
//! One thread drives all guests and polls, in both columns; each guest has a socket, memory and a ring of its own, on
//! the same image. CPU time is the daemon's for one operation: what counts on a machine that others use too. Then one guest
//! beside an API that is kept busy: what of its rate is left when many connections idle, and when a client asks without end.
//! That client gives way to all others, so that what is seen is what the daemon does for it; a thread that asks for nothing
//! and gives way in the same manner is the peer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use guest_tests::frontend::fuse::{ATTR_OUT, getattr_in, op, read_in};
use guest_tests::frontend::{Client, Options};
use guest_tests::support::api::Connection;
use guest_tests::support::binaries;
use guest_tests::support::image::Image;
use guest_tests::support::process::Process;
use guest_tests::support::random::Random;
use serde_json::json;

/// Compares many guests on one daemon with one.
#[derive(Debug, Parser)]
struct Args {
    /// Guests.
    #[arg(long, default_value_t = 50)]
    guests: usize,
    /// Requests that each of them has in flight.
    #[arg(long, value_delimiter = ',', default_values_t = [16, 1])]
    depths: Vec<usize>,
    /// Rounds for each load; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections to the API that say nothing.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Milliseconds of each round.
    #[arg(long, default_value_t = 500)]
    millis: u64,
}

#[derive(Clone, Copy)]
enum Load {
    Getattr,
    Read4K,
}

struct Guest {
    client: Client,
    node: u64,
    size: u64,
    started: HashMap<u64, Instant>,
}

#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p99: Duration,
    cpu_us: f64,
}

impl Guest {
    fn connect(socket: &Path) -> Result<Self> {
        let options = Options { memory_mib: 32, busy: true, ..Options::default() };
        let mut client = Client::connect(socket, &options)?;
        let entry = client.resolve(b"/data")?;
        for offset in (0..entry.attr.size).step_by(1 << 20) {
            client.read(entry.node, 0, offset, 1 << 20)?;
        }
        Ok(Self { client, node: entry.node, size: entry.attr.size, started: HashMap::new() })
    }

    fn submit(&mut self, load: Load, random: &mut Random) -> Result<()> {
        let ring = self.client.ring();
        let session = &mut self.client.session;
        let unique = match load {
            Load::Getattr => session.submit(ring, op::GETATTR, self.node, &getattr_in(), Some(ATTR_OUT))?,
            Load::Read4K => {
                let offset = random.below(self.size / 4096) * 4096;
                session.submit(ring, op::READ, self.node, &read_in(0, offset, 4096), Some(4096))?
            }
        };
        self.started.insert(unique, Instant::now());
        Ok(())
    }

    fn reap(&mut self, latencies: &mut Vec<Duration>) -> Result<bool> {
        let mut any = false;
        while let Some(done) = self.client.session.try_next_done()? {
            if done.errno != 0 {
                bail!("a request failed with errno {}", done.errno);
            }
            if let Some(start) = self.started.remove(&done.unique) {
                latencies.push(start.elapsed());
            }
            self.client.session.release(done);
            any = true;
        }
        Ok(any)
    }
}

fn round(
    guests: &mut [Guest],
    depth: usize,
    load: Load,
    time: Duration,
    random: &mut Random,
    daemon: &Process,
) -> Result<Round> {
    let cpu = daemon.usage()?.cpu;
    let begun = Instant::now();
    let mut latencies = Vec::new();
    loop {
        let over = begun.elapsed() >= time;
        let mut any = false;
        for guest in guests.iter_mut() {
            let before = guest.started.len();
            while !over && guest.started.len() < depth {
                guest.submit(load, random)?;
            }
            if guest.started.len() > before {
                guest.client.session.flush()?;
            }
            any |= guest.reap(&mut latencies)?;
        }
        if over && guests.iter().all(|guest| guest.started.is_empty()) {
            break;
        }
        if !any {
            std::thread::yield_now();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default();
    let done = u32::try_from(latencies.len()).map_or(f64::NAN, f64::from);
    let cpu = daemon.usage()?.cpu.saturating_sub(cpu);
    Ok(Round { per_second: done / seconds, p99, cpu_us: cpu.as_secs_f64() * 1e6 / done })
}

/// What keeps the API busy.
#[derive(Clone, Copy, Debug)]
enum Company {
    /// Connections that say nothing, and nobody else.
    Idle,
    /// A thread that keeps a processor busy and asks nobody.
    Peer,
    /// Something that is no HTTP, on a new connection each time.
    Nonsense,
    /// Bodies as large as they may be, which say nothing that is understood.
    Bodies,
    /// Metrics, mounts and umounts.
    Mounts,
}

/// Bytes of the largest body that the API reads.
const BODY: usize = 2 << 20;

impl Company {
    const ALL: [Self; 5] = [Self::Idle, Self::Peer, Self::Nonsense, Self::Bodies, Self::Mounts];

    /// Calls without a pause until it is over; how often.
    fn keep(self, api: &Path, body: &str, over: &AtomicBool) -> Result<usize> {
        // This thread alone.
        rustix::process::setpriority_process(None, 19)?;
        match self {
            Self::Peer => {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                Ok(0)
            }
            Self::Idle => {
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(0)
            }
            Self::Nonsense => {
                let mut calls = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut connection = Connection::open(api)?;
                    connection.send(b"\x16\x03\x01 /nonsense\r\n\r\n")?;
                    // An answer, or the end of the connection.
                    let _ = connection.answer();
                    calls += 1;
                }
                Ok(calls)
            }
            Self::Bodies => {
                let (mut connection, mut calls) = (Connection::open(api)?, 0);
                let large = format!("{{\"source\": \"{}", "x".repeat(BODY - 12));
                while !over.load(Ordering::Relaxed) {
                    let answer = connection.call("POST", "/api/v1/mount?mountpoint=/large", Some(&large))?;
                    if answer.status != 400 {
                        bail!("a body that is cut: {answer:?}");
                    }
                    calls += 1;
                }
                Ok(calls)
            }
            Self::Mounts => flood(api, body, over),
        }
    }
}

/// Asks for all metrics, mounts and unmounts, one after the other without a pause; how many calls it made.
fn flood(api: &Path, body: &str, over: &AtomicBool) -> Result<usize> {
    let mut connection = Connection::open(api)?;
    let mut calls = 0;
    while !over.load(Ordering::Relaxed) {
        for (method, target, body, status) in [
            ("GET", "/metrics", None, 200),
            ("POST", "/api/v1/mount?mountpoint=/flood", Some(body), 204),
            ("GET", "/api/v1/daemon", None, 200),
            ("DELETE", "/api/v1/mount?mountpoint=/flood", None, 204),
        ] {
            let answer = connection.call(method, target, body)?;
            if answer.status != status {
                bail!("{method} {target}: {answer:?}");
            }
            calls += 1;
        }
    }
    Ok(calls)
}

/// Rates of one guest in turn without and with each company, and calls of the API a second.
fn beside_the_api(
    args: &Args,
    guest: &mut [Guest],
    daemon: &Process,
    api: &Path,
    body: &str,
    random: &mut Random,
) -> Result<()> {
    let depth = args.depths.iter().copied().max().unwrap_or(1);
    let time = Duration::from_millis(args.millis);
    println!(
        "\none guest with {depth} in flight, beside an API with {} idle connections and a client without a pause",
        args.idle
    );
    println!(
        "{:<10} {:<10} {:>14} {:>8} {:>14} {:>8} {:>12} {:>7}",
        "load", "client", "quiet, op/s", "p99 us", "beside, op/s", "p99 us", "API calls/s", "ratio"
    );
    for (name, load) in [("GETATTR", Load::Getattr), ("READ 4K", Load::Read4K)] {
        for company in Company::ALL {
            let (mut quiet, mut beside, mut calls) = (Vec::new(), Vec::new(), 0.0);
            for _ in 0..args.rounds {
                quiet.push(round(guest, depth, load, time, random, daemon)?);
                let idle = (0..args.idle).map(|_| Connection::open(api)).collect::<Result<Vec<_>>>()?;
                let over = AtomicBool::new(false);
                let (sample, made) = std::thread::scope(|scope| {
                    let client = scope.spawn(|| company.keep(api, body, &over));
                    let sample = round(guest, depth, load, time, random, daemon);
                    over.store(true, Ordering::Relaxed);
                    (sample, client.join())
                });
                beside.push(sample?);
                let made = made.map_err(|_| anyhow::anyhow!("the client panicked"))??;
                calls += u32::try_from(made).map_or(0.0, f64::from);
                drop(idle);
            }
            let (Some(quiet), Some(beside)) = (median(quiet), median(beside)) else { continue };
            let seconds = time.as_secs_f64() * u32::try_from(args.rounds).map_or(1.0, f64::from);
            println!(
                "{name:<10} {:<10} {:>14.0} {:>8} {:>14.0} {:>8} {:>12.0} {:>6.2}x",
                format!("{company:?}").to_lowercase(),
                quiet.per_second,
                quiet.p99.as_micros(),
                beside.per_second,
                beside.p99.as_micros(),
                calls / seconds,
                beside.per_second / quiet.per_second
            );
        }
    }
    Ok(())
}

fn median(mut rounds: Vec<Round>) -> Option<Round> {
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    rounds.get(rounds.len() / 2).copied()
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("tree");
    std::fs::create_dir(&source)?;
    let mut random = Random::new(3);
    let bytes: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(1 << 20).flatten().collect();
    std::fs::write(source.join("data"), bytes)?;
    let image = Image::build(&source, 6, &[])?;
    let sockets: Vec<PathBuf> = (0..=args.guests).map(|n| scratch.path().join(format!("{n}.sock"))).collect();
    let mut command = Command::new(binaries::ours("rafsd")?);
    command.args(["virtiofs", "--queues", "1", "--log-level", "warn", "--rlimit-nofile", "0"]);
    command.arg("--bootstrap").arg(&image.bootstrap).arg("--localfs-dir").arg(&image.blobs);
    let api = scratch.path().join("api.sock");
    command.arg("--apisock").arg(&api);
    for socket in &sockets {
        command.arg("--sock").arg(socket);
    }
    let mut daemon = Process::spawn(&mut command, &scratch.path().join("log"))?;
    let last = sockets.last().context("a socket")?;
    while !last.exists() || !api.exists() {
        if daemon.ended()?.is_some() {
            bail!("rafsd ended: {}", daemon.output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut all = sockets.iter().map(|socket| Guest::connect(socket)).collect::<Result<Vec<_>>>()?;
    let (one, many) = all.split_at_mut(1);
    let time = Duration::from_millis(args.millis);
    println!("{} guests beside one with as many requests in flight in all", args.guests);
    println!(
        "{:<8} {:>6} {:>12} {:>8} {:>10} {:>12} {:>8} {:>10} {:>7}",
        "load", "each", "one, op/s", "p99 us", "CPU us/op", "many, op/s", "p99 us", "CPU us/op", "ratio"
    );
    for (name, load) in [("GETATTR", Load::Getattr), ("READ 4K", Load::Read4K)] {
        for depth in &args.depths {
            let (mut alone, mut together) = (Vec::new(), Vec::new());
            for _ in 0..args.rounds {
                alone.push(round(one, args.guests * depth, load, time, &mut random, &daemon)?);
                together.push(round(many, *depth, load, time, &mut random, &daemon)?);
            }
            let (Some(alone), Some(together)) = (median(alone), median(together)) else { continue };
            println!(
                "{name:<8} {depth:>6} {:>12.0} {:>8} {:>10.2} {:>12.0} {:>8} {:>10.2} {:>6.2}x",
                alone.per_second,
                alone.p99.as_micros(),
                alone.cpu_us,
                together.per_second,
                together.p99.as_micros(),
                together.cpu_us,
                together.per_second / alone.per_second
            );
        }
    }
    let config = json!({"device": {"backend": {"type": "localfs", "config": {"dir": image.blobs}},
        "cache": {"type": "blobcache", "config": {"work_dir": image.blobs}}}, "mode": "direct"});
    let body = json!({"source": image.bootstrap, "config": config.to_string()}).to_string();
    beside_the_api(&args, one, &daemon, &api, &body, &mut random)?;
    let usage = daemon.usage()?;
    println!("daemon: {} KiB of anonymous memory, {} threads", usage.anon_kib, usage.threads);
    Ok(())
}
