//! `bench-virtio`: rafsd on an image beside virtiofsd on the same tree, through the same front-end, in one run.
//!
//! Rounds of both are interleaved, and medians count. CPU time is that of the daemon alone.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use guest_tests::bench::load::{Bench, Load};
use guest_tests::bench::table::{Figures, head, row};
use guest_tests::frontend::device::Shape;
use guest_tests::frontend::{Client, Options};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use guest_tests::support::random::Random;
use guest_tests::tree::generate::{TreeOptions, generate};

/// Compares rafsd with virtiofsd, end to end through virtqueues.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds for each load and daemon.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Milliseconds of each round.
    #[arg(long, default_value_t = 300)]
    millis: u64,
    /// Requests in flight.
    #[arg(long, value_delimiter = ',', default_values_t = [16, 1])]
    depths: Vec<usize>,
    /// RAFS version of the image.
    #[arg(long, default_value_t = 6)]
    rafs: u32,
    /// Size in MiB of the file that is read.
    #[arg(long, default_value_t = 64)]
    file_mib: usize,
    /// The guest polls instead of sleeping until it is called; takes a processor of its own.
    #[arg(long)]
    busy: bool,
    /// One descriptor for each reply instead of pages as in Linux.
    #[arg(long)]
    whole: bool,
}

fn make_tree(root: &Path, file_mib: usize) -> Result<()> {
    generate(root, TreeOptions { privileged: false, ..TreeOptions::default() })?;
    let mut random = Random::new(42);
    let mut bytes = Vec::with_capacity(file_mib << 20);
    while bytes.len() < file_mib << 20 {
        bytes.extend_from_slice(&random.next().to_le_bytes());
        bytes.extend_from_slice(b"half of it");
    }
    bytes.truncate(file_mib << 20);
    Ok(std::fs::write(root.join("data"), bytes)?)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("tree");
    std::fs::create_dir(&source)?;
    make_tree(&source, args.file_mib)?;
    let image = Image::build(&source, args.rafs, &[])?;
    let ours = Daemon::rafsd(&image.bootstrap, &image.blobs, 1, &[])?;
    let peer = Daemon::virtiofsd(&source)?;
    if peer.is_none() {
        println!("virtiofsd is not installed: figures of rafsd alone (`make bench-peer` builds the peer)");
    }
    let options = Options {
        busy: args.busy,
        shape: if args.whole { Shape::Whole } else { Shape::Pages },
        memory_mib: 256,
        ..Options::default()
    };
    let open = |daemon: &Daemon| -> Result<Bench> {
        let client = Client::connect(&daemon.socket, &options)?;
        Bench::new(client, daemon.process.id(), "/big", "/data")
    };
    let mut benches = vec![open(&ours)?];
    if let Some(peer) = &peer {
        benches.push(open(peer)?);
    }
    let time = Duration::from_millis(args.millis);
    println!(
        "RAFS v{}, one request queue of 1024, EVENT_IDX, {}; median of {} rounds of {} ms",
        args.rafs,
        if args.busy { "polling guest" } else { "sleeping guest" },
        args.rounds,
        args.millis
    );
    println!("{}", head(peer.is_some()));
    for load in Load::ALL {
        for depth in &args.depths {
            let mut samples = vec![Vec::new(); benches.len()];
            for _ in 0..args.rounds {
                for (bench, samples) in benches.iter_mut().zip(&mut samples) {
                    samples.push(bench.round(load, *depth, time)?);
                }
            }
            let figures: Vec<Figures> = samples.iter().map(|s| Figures::of(s)).collect();
            if let Some(ours) = figures.first() {
                println!("{}", row(load, *depth, *ours, figures.get(1).copied()));
            }
        }
    }
    for bench in &mut benches {
        bench.alive()?;
    }
    Ok(())
}
