//! From a command line to a running daemon, and to its end.
//!
//! Owns: the order of things at start and stop. Does not own: any of the parts.

use super::{Cli, Command, OnOff, VirtiofsArgs, logging};
use crate::config::{Config, Environment};
use crate::daemon::{
    Daemon, Devices, FsKind, Identity, MountConfig, MountRequest, SocketSpec, Version, ViewSpec,
};
use crate::mounts::MountPath;
use anyhow::{Context, bail};
use clap::CommandFactory;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;

/// Queues offered by default at most.
const QUEUES_DEFAULT_MAX: usize = 8;

/// Runs a command to its end.
///
/// # Errors
///
/// One line that names what was attempted, on what, and what to do.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Virtiofs(args) => virtiofs(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rafsd", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            clap_mangen::generate_to(Cli::command(), &dir)
                .with_context(|| format!("cannot write man pages to {}", dir.display()))
        }
        Command::Fuse(_) => bail!("fuse: mounting on this host is not built yet; use `rafsd virtiofs`"),
        Command::Singleton(_) => {
            bail!("singleton: EROFS over fscache is not supported; use `rafsd virtiofs`")
        }
        Command::Nbd(_) => bail!("nbd: the network block device is not supported; use `rafsd virtiofs`"),
        Command::Uffd(_) => bail!("uffd: the page-fault service is not supported; use `rafsd virtiofs`"),
    }
}

fn virtiofs(args: &VirtiofsArgs) -> anyhow::Result<()> {
    if let Some(sentence) = args.refused() {
        bail!(sentence);
    }
    let bootstrap = args.bootstrap.as_deref().context("no image: say --bootstrap FILE")?;
    let config = configuration(args)?;
    logging::start(args.log_level, args.log_file.as_deref())?;
    for flag in args.without_effect() {
        tracing::warn!("{flag} has no effect here and is ignored");
    }
    for remark in &config.remarks {
        tracing::warn!("{remark}");
    }
    // Signals wait from here on, so that one that comes early ends the daemon in order too.
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;

    raise_file_limit(args.rlimit_nofile);
    let identity = Identity { version: Version::of_build(), id: None, supervisor: None };
    let daemon = Arc::new(Daemon::new(identity)?);
    daemon.mount(&MountRequest {
        path: MountPath::root(),
        kind: FsKind::Rafs,
        source: bootstrap.to_owned(),
        config: MountConfig::Ready(Box::new(config)),
        prefetch_files: Vec::new(),
    })?;
    let devices = Arc::new(Devices::default());
    for socket in &args.sock {
        let request_queues = args.queues.unwrap_or_else(default_queues);
        let spec = SocketSpec { socket: socket.clone(), request_queues, view: ViewSpec::default() };
        devices.add(&daemon, spec)?;
    }
    daemon.set_transport(Arc::clone(&devices) as _);
    daemon.running();
    if let Some(signal) = signals.forever().next() {
        tracing::info!("signal {signal}: stopping");
    }
    devices.end();
    daemon.shutdown();
    Ok(())
}

/// What is served from where: a configuration file, or `--localfs-dir`.
fn configuration(args: &VirtiofsArgs) -> anyhow::Result<Config> {
    let mut config = match (&args.config, &args.localfs_dir) {
        (Some(file), _) => Config::load(file).with_context(|| format!("--config {}", file.display()))?,
        (None, Some(dir)) => Config::localfs(dir),
        (None, None) => bail!("--bootstrap needs --localfs-dir DIR or --config FILE: where are the blobs?"),
    };
    config.apply(&Environment::of_process());
    match args.verify {
        Some(OnOff::Off) => config.verify = false,
        Some(OnOff::On) => config.verify = true,
        None => {}
    }
    Ok(config)
}

fn default_queues() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cpus.clamp(1, QUEUES_DEFAULT_MAX)).unwrap_or(1)
}

/// Raises the limit of open files as far as it may be raised.
fn raise_file_limit(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if wanted == 0 {
        return;
    }
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|n| n >= wanted) {
        return;
    }
    let maximum = now.maximum.map_or(Some(wanted), |m| Some(m.max(wanted)));
    if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
        return;
    }
    let allowed = Rlimit { current: now.maximum, maximum: now.maximum };
    if setrlimit(Resource::Nofile, allowed).is_err() || now.maximum.is_some_and(|m| m < wanted) {
        let limit = now.maximum.map_or_else(|| "what there is".to_owned(), |n| n.to_string());
        tracing::warn!("may not raise the limit of open files to {wanted}; going on with {limit}");
    }
}
