//! `hostile`: attacks a daemon from a seed, and checks after each batch that it is still a good one.
//!
//! A failing run prints its seed and the attack; the same seed makes the same run.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use guest_tests::frontend::Options;
use guest_tests::hostile::health::Health;
use guest_tests::hostile::{Target, run};

/// Attacks the rafsd process that listens on a vhost-user socket.
#[derive(Debug, Parser)]
struct Args {
    /// The daemon's vhost-user socket.
    #[arg(long)]
    socket: PathBuf,
    /// The daemon's process id, for CPU time, memory and descriptors.
    #[arg(long)]
    pid: u32,
    /// First seed; each batch takes the next one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Attacks of each kind in a batch.
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// Batches.
    #[arg(long, default_value_t = 10)]
    batches: u64,
    /// Request queues to use; the daemon must have as many.
    #[arg(long, default_value_t = 2)]
    queues: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let options = Options { queues: args.queues, memory_mib: 64, ..Options::default() };
    let (health, nodes) = Health::first(args.pid, &args.socket, &options)?;
    let target = Target { socket: &args.socket, options: options.clone(), nodes };
    for seed in (args.seed..).take(usize::try_from(args.batches)?) {
        let made = run(&target, seed, args.count)?;
        let usage = health.check(&args.socket, &options).with_context(|| format!("after seed {seed}"))?;
        println!("seed {seed}: {made} attacks; {} KiB, {} descriptors", usage.anon_kib, usage.descriptors);
    }
    Ok(())
}
