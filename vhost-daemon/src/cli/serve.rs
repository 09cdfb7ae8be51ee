//! What every serving mode does before it serves: log, identity, the mount of the command line; and how it ends.
//!
//! Owns: the order of things at start and stop. Does not own: any of the parts.

use super::common::CommonArgs;
use super::{OnOff, logging, watchdog};
use crate::api::{ApiServer, App};
use crate::config::{Config, Environment};
use crate::daemon::{Daemon, Devices, FsKind, Identity, MountConfig, MountRequest, StartupConfig, Version};
use crate::image_ref;
use crate::log_level::LogControl;
use crate::mounts::{MountPath, Traces};
use crate::notify;
use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::sync::Arc;

/// Queues offered by default at most.
const QUEUES_DEFAULT_MAX: usize = 8;

/// A daemon between its command line and its guests.
pub(super) struct Start {
    pub daemon: Arc<Daemon>,
    pub log: LogControl,
    pub signals: Signals,
}

/// Everything up to a daemon with nothing mounted: log, signals, limits.
pub(super) fn begin(common: &CommonArgs, ignored: &[String]) -> anyhow::Result<Start> {
    if let Some(sentence) = common.refused() {
        bail!(sentence);
    }
    let traces = Traces::open(common.record_trace.as_deref(), common.prefetch_trace.as_deref())?;
    let log = logging::start(
        common.log_level,
        common.log_format,
        common.log_file.as_deref(),
        common.log_rotation_size,
    )?;
    for flag in ignored {
        tracing::warn!("{flag} has no effect here and is ignored");
    }
    raise_file_limit(common.rlimit_nofile);
    give_up_reserves();
    // A file that may not grow (`ulimit -f`) is an error of its write, as a full disk is, and not the end.
    signal_hook::flag::register(libc::SIGXFSZ, Arc::default()).context("cannot handle SIGXFSZ")?;
    // What a front-end or an image loses is its own loss.
    rafs::guard::catch().context("cannot handle SIGBUS")?;
    // Signals wait from here on, so that one that comes early ends the daemon in order too.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot wait for signals")?;
    let identity = Identity {
        version: Version::of_build(),
        id: common.id.clone(),
        supervisor: common.supervisor.clone(),
    };
    let daemon = Arc::new(Daemon::new(identity)?);
    daemon.storage().set_traces(traces);
    Ok(Start { daemon, log, signals })
}

/// The mount that the command line asks for, if it does. What it names is checked, not opened.
pub(super) fn first_mount(common: &CommonArgs) -> anyhow::Result<Option<MountRequest>> {
    let path = MountPath::parse(&common.virtual_mountpoint).context("--virtual-mountpoint")?;
    if common.prefetch_files.is_some() && common.bootstrap.is_none() && common.image.is_none() {
        bail!("--prefetch-files needs an image: say --bootstrap FILE or --image REF");
    }
    if let Some(dir) = &common.shared_dir {
        return Ok(Some(MountRequest {
            path,
            kind: FsKind::Passthrough,
            source: dir.clone(),
            config: MountConfig::Text(String::new()),
            prefetch_files: Vec::new(),
        }));
    }
    if common.image.is_some() {
        // Found when there is somebody to ask with: `image_mount`.
        return Ok(None);
    }
    let Some(bootstrap) = &common.bootstrap else {
        if common.localfs_dir.is_some() {
            bail!("--localfs-dir says where blobs are, but there is no image: say --bootstrap FILE");
        }
        return Ok(None);
    };
    if common.config.is_none() && common.localfs_dir.is_none() {
        bail!("--bootstrap needs --localfs-dir DIR or --config FILE: where are the blobs?");
    }
    let text = match &common.config {
        Some(file) => Some(Config::read(file).with_context(|| format!("--config {}", file.display()))?),
        None => None,
    };
    let startup = StartupConfig {
        text,
        localfs_dir: common.localfs_dir.clone(),
        verify: common.verify.map(|verify| verify == OnOff::On),
    };
    // What is wrong with it is better said now than after the start.
    startup.config().with_context(|| match &common.config {
        Some(file) => format!("--config {}", file.display()),
        None => "--localfs-dir".to_owned(),
    })?;
    Ok(Some(MountRequest {
        path,
        kind: FsKind::Rafs,
        source: bootstrap.clone(),
        config: MountConfig::Startup(startup),
        prefetch_files: prefetch_files(common)?,
    }))
}

/// The mount of `--image`, found in its registry or layout.
pub(super) fn image_mount(common: &CommonArgs, start: &Start) -> anyhow::Result<Option<MountRequest>> {
    let Some(image) = &common.image else { return Ok(None) };
    let text = match &common.config {
        Some(file) => Some(Config::read(file).with_context(|| format!("--config {}", file.display()))?),
        None => None,
    };
    if common.localfs_dir.is_some() {
        bail!(
            "--localfs-dir does not go with --image, which knows where its blobs are; say --config for a cache directory"
        );
    }
    let found = image_ref::resolve(image, text.as_deref(), start.daemon.storage())?;
    tracing::info!("image {image}: bootstrap {}", found.bootstrap.display());
    let verify = common.verify.map(|verify| verify == OnOff::On);
    let startup = StartupConfig { text: Some(found.config), localfs_dir: None, verify };
    Ok(Some(MountRequest {
        path: MountPath::parse(&common.virtual_mountpoint).context("--virtual-mountpoint")?,
        kind: FsKind::Rafs,
        source: found.bootstrap,
        config: MountConfig::Startup(startup),
        prefetch_files: prefetch_files(common)?,
    }))
}

/// The list of `--prefetch-files`: one absolute path a line.
fn prefetch_files(common: &CommonArgs) -> anyhow::Result<Vec<PathBuf>> {
    let Some(file) = &common.prefetch_files else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read --prefetch-files {}", file.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(PathBuf::from).collect())
}

/// Starts the API if the command line asks for it.
pub(super) fn api(
    common: &CommonArgs,
    start: &Start,
    devices: Option<Arc<Devices>>,
    default_queues: u16,
) -> anyhow::Result<Option<ApiServer>> {
    let Some(path) = &common.apisock else { return Ok(None) };
    if path.as_os_str().is_empty() {
        bail!("--apisock: the path is empty");
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        // It is replaced all the same, as clients of nydusd expect.
        tracing::warn!(
            "another process answers on {} and loses it: nobody reaches its API any more",
            path.display()
        );
    }
    let app = Arc::new(App::new(Arc::clone(&start.daemon), devices, default_queues, start.log.clone()));
    ApiServer::start(path, app).map(Some)
}

/// Waits for the end: SIGTERM or SIGINT. SIGHUP reads credentials, proxy and log level again.
pub(super) fn wait(start: &mut Start, common: &CommonArgs) -> anyhow::Result<()> {
    let _watchdog = watchdog::start(&start.daemon, common.apisock.as_deref())?;
    notify::ready();
    for signal in start.signals.forever() {
        if signal != SIGHUP {
            tracing::info!("signal {signal}: stopping");
            break;
        }
        notify::reloading();
        reload(&start.daemon, &start.log, common);
        notify::ready();
    }
    notify::stopping();
    Ok(())
}

/// SIGHUP: the log level goes back to that of the command line, and the mount of the command line gets the registry
/// credentials and the proxy that its configuration file has now.
fn reload(daemon: &Daemon, log: &LogControl, common: &CommonArgs) {
    let _ = log.set(common.log_level);
    tracing::info!("SIGHUP: log level is {:?}", common.log_level);
    let Some(file) = &common.config else { return };
    let mut config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!("SIGHUP: {} is not used: {error}", file.display());
            return;
        }
    };
    config.apply(&Environment::of_process());
    let Ok(path) = MountPath::parse(&common.virtual_mountpoint) else { return };
    let Some(net) = daemon.mounted_at(&path).and_then(|mounted| mounted.net.clone()) else { return };
    let told = |what: &str, done: Result<(), rafs_net::NetError>| match done {
        Ok(()) => tracing::info!("SIGHUP: {what} of {} used from now on", file.display()),
        Err(error) => tracing::warn!("SIGHUP: {what} of {} not used: {error}", file.display()),
    };
    if let crate::config::Backend::Registry(registry, _) = &config.backend {
        told("credentials", net.set_registry_auth(registry.auth.clone()));
    }
    if let Some(http) = config.backend.http() {
        told("proxy", net.set_proxy_url(http.proxy.as_ref().map(|proxy| proxy.url.clone())));
    }
}

/// As many queues as there are processors, at most 8.
pub(super) fn default_queues() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cpus.clamp(1, QUEUES_DEFAULT_MAX)).unwrap_or(1)
}

/// Gives up the right to the blocks that file systems keep in reserve and to go beyond quotas, which neither guests' files
/// nor the cache may have. Threads that are started later have it no more either.
fn give_up_reserves() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let Ok(mut sets) = capabilities(None) else { return };
    if sets.permitted.contains(CapabilitySet::SYS_RESOURCE) {
        sets.effective -= CapabilitySet::SYS_RESOURCE;
        sets.permitted -= CapabilitySet::SYS_RESOURCE;
        sets.inheritable -= CapabilitySet::SYS_RESOURCE;
        if let Err(error) = set_capabilities(None, sets) {
            tracing::debug!("cannot give up CAP_SYS_RESOURCE: {error}");
        }
    }
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
