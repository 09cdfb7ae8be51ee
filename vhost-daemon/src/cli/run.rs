//! From a command line to a running daemon, and to its end.
//!
//! Owns: the order of things at start and stop. Does not own: any of the parts.

use super::stores;
use super::{Cli, Command, OnOff, VirtiofsArgs, logging};
use crate::config::{Backend, Config, Environment, LocalFs};
use crate::mounts::{RafsMount, RafsMountOptions};
use crate::virtio::{Service, ServiceOptions};
use anyhow::{Context, bail};
use clap::CommandFactory;
use rafs::image::Image;
use rafs::reader::{Reader, ReaderOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Queues offered by default at most.
const QUEUES_DEFAULT_MAX: usize = 8;
/// How long guests keep names, attributes and misses: images are immutable.
const TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

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

    let mount = Arc::new(mount(bootstrap, &config)?);
    let socket = args.sock.first().cloned().context("no socket: say --sock PATH")?;
    let request_queues = args.queues.unwrap_or_else(default_queues);
    let service = Arc::new(Service::listen(ServiceOptions { socket: socket.clone(), request_queues })?);
    raise_file_limit(args.rlimit_nofile);
    tracing::info!(
        "serving {} on {} with {request_queues} request queue(s)",
        bootstrap.display(),
        socket.display()
    );

    let server = {
        let (service, mount) = (Arc::clone(&service), Arc::clone(&mount));
        std::thread::Builder::new().name("vhost-user".to_owned()).spawn(move || service.run(&mount))
    };
    let server = server.context("cannot start the device's thread")?;
    if let Some(signal) = signals.forever().next() {
        tracing::info!("signal {signal}: stopping");
    }
    service.stop();
    if server.join().is_err() {
        tracing::error!("the device's thread ended by a panic");
    }
    mount.reader().shutdown();
    Ok(())
}

/// What is served from where: a configuration file, or `--localfs-dir`.
fn configuration(args: &VirtiofsArgs) -> anyhow::Result<Config> {
    let mut config = match (&args.config, &args.localfs_dir) {
        (Some(file), _) => Config::load(file).with_context(|| format!("--config {}", file.display()))?,
        (None, Some(dir)) => Config {
            backend: Backend::LocalFs(LocalFs { dir: Some(dir.clone()), ..LocalFs::default() }),
            cache_dir: Some(dir.clone()),
            verify: true,
            xattr: true,
            remarks: Vec::new(),
        },
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

fn mount(bootstrap: &Path, config: &Config) -> anyhow::Result<RafsMount> {
    let image = Arc::new(Image::open(bootstrap)?);
    let opened = stores::open(&config.backend)?;
    if !config.verify {
        tracing::warn!("verification is off: {} is served without checking its chunks", bootstrap.display());
    }
    let options = ReaderOptions {
        verify: config.verify,
        cache_dir: config.cache_dir.clone(),
        deadline: opened.deadline,
        ..ReaderOptions::default()
    };
    let reader = Reader::new(image, opened.store, options)?;
    if opened.local {
        reader.check_blobs()?;
    } else {
        reader.warm();
    }
    let options = RafsMountOptions { index: 1, xattr: config.xattr, timeout: TIMEOUT };
    Ok(RafsMount::new(reader, options))
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
