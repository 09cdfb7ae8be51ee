//! `bench-store`: images whose blobs are 20 ms and 100 Mbit/s away, read through virtqueues.
//!
//! Two loads. *Order*: every file in image order, beside a plain download of the same blobs. *Boot*: the files that a list
//! names, opened one after another and read with 4 blocks of 128 KiB ahead, first cold, then with the trace that the first
//! boot recorded. `guest-tests/guest/boot-files.sh` makes a root file system and such a list. Bytes are compared with those
//! of a run that fetches nothing but what is asked for.

use std::collections::HashMap;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::fuse::{Entry, read_in};
use guest_tests::frontend::{Client, Options};
use guest_tests::servers::BlobServer;
use guest_tests::support::binaries::ours;
use guest_tests::support::image::Image;
use guest_tests::support::process::{Process, usage};

const BLOCK: u32 = 128 << 10;
const AHEAD: usize = 5;
const READ: u32 = 15;

/// Figures for blobs from afar.
#[derive(Debug, Parser)]
struct Args {
    /// Root file system to pack.
    #[arg(long)]
    root: PathBuf,
    /// File with one absolute path a line: what a boot opens.
    #[arg(long)]
    opens: Option<PathBuf>,
    /// Leave out reading every file.
    #[arg(long)]
    no_order: bool,
    /// Most bytes that are read of a file of the list.
    #[arg(long, default_value_t = 3 << 20)]
    file_max: u64,
    /// Latency, milliseconds.
    #[arg(long, default_value_t = 20)]
    latency: u64,
    /// Bytes a second.
    #[arg(long, default_value_t = 12_500_000)]
    bandwidth: u64,
    /// Arguments for `rafs-image create`.
    #[arg(long, default_value = "--compressor zstd")]
    create: String,
    /// Files that are read without widening too, which takes a round trip for each.
    #[arg(long, default_value_t = 1500)]
    first: usize,
}

/// Head of the tables.
const HEAD: &str = "| | time | of plain transfer | bytes | requests | files waited | CPU | hot, CPU |\n| --- | --- | --- | --- | --- | --- | --- | --- |";

struct Run {
    took: Duration,
    read: u64,
    requests: usize,
    bytes: u64,
    cpu: f64,
    /// Files that took longer than half the latency.
    waits: usize,
    /// The same once more, without the store: what the reading itself takes, and CPU seconds of it.
    again: (Duration, f64),
}

struct Bench {
    args: Args,
    image: Image,
    server: BlobServer,
}

impl Bench {
    /// Reads `files` with a fresh cache, of each `most` bytes.
    fn run(&self, files: &[String], most: u64, amplify: u64, more: &[&str]) -> Result<Run> {
        let dir = tempfile::tempdir()?;
        let (config, socket) = (dir.path().join("config"), dir.path().join("s"));
        let text = format!(
            "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\nscheme = \
             \"http\"\n[cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = \"{}\"\n[rafs]\nbatch_size = {amplify}\n",
            self.server.host(),
            dir.path().join("cache").display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(ours("rafsd")?);
        command.args(["virtiofs", "--queues", "1", "--log-level", "warn"]).arg("--sock").arg(&socket);
        command.arg("--bootstrap").arg(&self.image.bootstrap).arg("--config").arg(&config).args(more);
        let mut process = Process::spawn(&mut command, &dir.path().join("log"))?;
        for _ in 0..2000 {
            if socket.exists() {
                break;
            }
            if let Some(status) = process.ended()? {
                anyhow::bail!("rafsd ended with {status}: {}", process.output());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let options = Options { memory_mib: 256, timeout: Duration::from_secs(120), ..Options::default() };
        let mut client = Client::connect(&socket, &options)?;
        self.server.forget_records();
        let before = usage(process.id())?.cpu;
        let begun = Instant::now();
        let (mut read, mut waits) = (0, 0);
        let mut known = Known::default();
        for path in files {
            let opened = Instant::now();
            let node = known.find(&mut client, path).with_context(|| path.clone())?;
            read += read_ahead(&mut client, node.node, node.attr.size.min(most))
                .with_context(|| format!("{path}\n{}", process.output()))?;
            if opened.elapsed() > Duration::from_millis(self.args.latency / 2) {
                waits += 1;
            }
        }
        let took = begun.elapsed();
        let used = usage(process.id())?.cpu;
        let cpu = (used - before).as_secs_f64();
        let records: Vec<_> = self.server.records().into_iter().filter(|r| r.method == "GET").collect();
        let range = |r: &guest_tests::servers::Record| {
            let (a, b) = r.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
            Some(b.parse::<u64>().ok()? + 1 - a.parse::<u64>().ok()?)
        };
        let bytes = records.iter().filter_map(range).sum();
        let begun = Instant::now();
        let mut known = Known::default();
        for path in files {
            let node = known.find(&mut client, path)?;
            read_ahead(&mut client, node.node, node.attr.size.min(most))?;
        }
        let again = (begun.elapsed(), (usage(process.id())?.cpu - used).as_secs_f64());
        client.unmount()?;
        process.terminate()?;
        process.wait(Duration::from_secs(30))?;
        Ok(Run { took, read, requests: records.len(), bytes, cpu, waits, again })
    }

    /// Prints a row; `base` is what the bytes are compared with.
    fn show(&self, what: &str, run: &Run, base: u64, plain: Duration) {
        println!(
            "| {what} | {:.2} s | {:.2}x | {:.1} MB, {:.2}x | {} | {} | {:.2} s | {:.2} s, {:.2} s |",
            run.took.as_secs_f64(),
            run.took.as_secs_f64() / plain.as_secs_f64(),
            run.bytes as f64 / 1e6,
            run.bytes as f64 / base.max(1) as f64,
            run.requests,
            run.waits,
            run.cpu,
            run.again.0.as_secs_f64(),
            run.again.1,
        );
    }

    fn transfer(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.args.bandwidth as f64)
    }
}

/// Directories that were looked up: a guest's kernel remembers them.
#[derive(Default)]
struct Known(HashMap<String, u64>);

impl Known {
    fn find(&mut self, client: &mut Client, path: &str) -> Result<Entry> {
        let (parent, name) = path.rsplit_once('/').context("not an absolute path")?;
        let at = match self.0.get(parent) {
            Some(&node) => node,
            None if parent.is_empty() => ROOT,
            None => self.find(client, parent)?.node,
        };
        self.0.insert(parent.to_owned(), at);
        let entry = client.lookup(at, name.as_bytes())?;
        anyhow::ensure!(entry.node != 0, "there is no such file");
        Ok(entry)
    }
}

/// Reads `size` bytes of a file from its start, with some blocks in flight.
fn read_ahead(client: &mut Client, node: u64, size: u64) -> Result<u64> {
    let (mut next, mut read, mut in_flight) = (0u64, 0u64, 0);
    while next < size || in_flight > 0 {
        while next < size && in_flight < AHEAD {
            let len = u32::try_from((size - next).min(BLOCK.into()))?;
            client.session.submit(1, READ, node, &read_in(0, next, len), Some(len))?;
            next += u64::from(len);
            in_flight += 1;
        }
        client.session.flush()?;
        let done = client.session.next_done()?;
        in_flight -= 1;
        anyhow::ensure!(done.errno == 0, "errno {}", done.errno);
        read += u64::from(done.len);
        client.session.release(done);
    }
    Ok(read)
}

/// The blobs over one connection, as a download does it.
fn download(server: &BlobServer, image: &Image) -> Result<(Duration, u64)> {
    let (begun, mut bytes) = (Instant::now(), 0);
    for blob in std::fs::read_dir(&image.blobs)? {
        let blob = blob?;
        let mut stream = TcpStream::connect(server.host())?;
        let request = format!(
            "GET /v2/a/b/blobs/sha256:{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            blob.file_name().to_string_lossy()
        );
        std::io::Write::write_all(&mut stream, request.as_bytes())?;
        let (len, mut buffer, mut got) = (blob.metadata()?.len(), vec![0; 1 << 16], 0);
        while got < len {
            match stream.read(&mut buffer)? {
                0 => break,
                n => got += n as u64,
            }
        }
        bytes += len;
    }
    Ok((begun.elapsed(), bytes))
}

/// Regular files below `root` with data, in the order of their chunks: those of a directory before its directories.
fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) -> Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| is_dir(entry));
    for entry in files {
        let kind = entry.file_type()?;
        if kind.is_file()
            && entry.metadata()?.len() > 0
            && let Some(path) = entry.path().strip_prefix(root)?.to_str()
        {
            out.push(format!("/{path}"));
        }
    }
    dirs.into_iter().try_for_each(|dir| walk(root, &dir.path(), out))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let create: Vec<&str> = args.create.split_whitespace().collect();
    let image = Image::build(&args.root, 6, &create)?;
    let server = BlobServer::start(&image.blobs)?;
    server.set(|s| {
        s.latency = Duration::from_millis(args.latency);
        s.bandwidth = args.bandwidth;
    });
    let opens = args.opens.clone();
    let bench = Bench { args, image, server };
    if let Some(list) = opens {
        let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let files: Vec<String> = text.lines().map(str::to_owned).collect();
        let dir = tempfile::tempdir()?;
        let trace = dir.path().join("trace").display().to_string();
        let most = bench.args.file_max;
        let base = bench.run(&files, most, 0, &[])?;
        let plain = bench.transfer(base.bytes);
        println!(
            "\nBoot: {} files, {:.0} MB read, {:.1} MB of chunks, plain transfer {:.2} s\n{HEAD}",
            files.len(),
            base.read as f64 / 1e6,
            base.bytes as f64 / 1e6,
            plain.as_secs_f64()
        );
        bench.show("no widening", &base, base.bytes, plain);
        let first = bench.run(&files, most, 1 << 20, &["--record-trace", &trace])?;
        bench.show("first boot", &first, base.bytes, plain);
        let replay = bench.run(&files, most, 1 << 20, &["--prefetch-trace", &trace])?;
        bench.show("with its trace", &replay, base.bytes, plain);
    }
    if !bench.args.no_order {
        let mut files = Vec::new();
        walk(&bench.args.root, &bench.args.root, &mut files)?;
        let (plain, bytes) = download(&bench.server, &bench.image)?;
        let part = |run: &Run| plain.mul_f64(run.bytes as f64 / bytes.max(1) as f64);
        println!(
            "\nOrder: {} files; the blobs as a download: {:.1} MB in {:.2} s\n{HEAD}",
            files.len(),
            bytes as f64 / 1e6,
            plain.as_secs_f64()
        );
        let first = files.get(..bench.args.first).unwrap_or(&files);
        let base = bench.run(first, u64::MAX, 0, &[])?;
        bench.show(&format!("the first {}, no widening", first.len()), &base, base.bytes, part(&base));
        let run = bench.run(first, u64::MAX, 1 << 20, &[])?;
        bench.show(&format!("the first {}", first.len()), &run, base.bytes, part(&base));
        let run = bench.run(&files, u64::MAX, 1 << 20, &[])?;
        bench.show("all", &run, bytes, plain);
    }
    Ok(())
}
