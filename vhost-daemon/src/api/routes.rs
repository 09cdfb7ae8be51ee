//! What each call does.
//!
//! Owns: which part of the daemon answers, and which calls are quick. Does not own: the form of requests
//! ([`super::call`]), connections ([`super::server`]).

use super::answer::Answer;
use super::call::{Call, Metrics, MountBody, Request, SocketBody};
use super::runtime::{RuntimeConfig, Values};
use super::{info, metrics, prometheus};
use crate::daemon::{
    Daemon, DaemonError, Devices, Event, FsKind, MountConfig, MountRequest, Mounted, SocketSpec, State,
    ViewSpec,
};
use crate::log_level::{LogControl, LogLevel};
use crate::mounts::{MountPath, PathError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most request queues of a socket.
const QUEUES_MAX: u16 = 64;

/// What the API speaks for.
#[derive(Debug)]
pub struct App {
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// Its vhost-user sockets, in the mode that has them.
    pub devices: Option<Arc<Devices>>,
    /// Request queues of a socket that does not say.
    pub default_queues: u16,
    log: LogControl,
    connections: AtomicUsize,
    runtime: RuntimeConfig,
}

/// How a request is answered.
pub enum Work {
    /// At once.
    Now(Answer),
    /// By something that may wait for storage: on another thread.
    Slow(Box<dyn FnOnce() -> Answer + Send>),
    /// At once, and then the daemon ends.
    Exit(Answer),
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now(answer) => f.debug_tuple("Now").field(answer).finish(),
            Self::Slow(_) => f.write_str("Slow"),
            Self::Exit(answer) => f.debug_tuple("Exit").field(answer).finish(),
        }
    }
}

impl App {
    /// The API of a daemon.
    #[must_use]
    pub fn new(
        daemon: Arc<Daemon>,
        devices: Option<Arc<Devices>>,
        default_queues: u16,
        log: LogControl,
    ) -> Self {
        let connections = AtomicUsize::new(0);
        Self { daemon, devices, default_queues, log, connections, runtime: RuntimeConfig::default() }
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn count_connection(&self, comes: bool) {
        if comes {
            self.connections.fetch_add(1, Ordering::Relaxed);
        } else {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Finds out what a request means.
    #[must_use]
    pub fn handle(self: &Arc<Self>, request: &Request) -> Work {
        let call = match Call::of(request) {
            Ok(call) => call,
            Err(answer) => return Work::Now(answer),
        };
        match call {
            Call::Prometheus => {
                Work::Now(Answer::text(200, prometheus::CONTENT_TYPE, prometheus::page(self)))
            }
            Call::Health => Work::Now(self.health()),
            Call::Info { short } => Work::Now(Answer::json(&info::daemon(&self.daemon, short))),
            Call::SetLogLevel(level) => Work::Now(self.set_log_level(&level)),
            Call::Events => Work::Now(Answer::json(
                &json!({"max_errors": 500, "total_errors": 0, "max_size": 51200, "total_size": 0, "errors": []}),
            )),
            Call::Superblock(path) => Work::Now(self.superblock(path)),
            Call::Start => self.slow("Configure", |app| app.daemon.event(Event::Start)),
            Call::SendFd => {
                self.slow("Upgrade", |app| app.daemon.transport().ok_or(DaemonError::NotReady)?.send_fd())
            }
            Call::TakeOver => self.slow("Upgrade", |app| app.daemon.event(Event::Takeover)),
            Call::Exit => Work::Exit(Answer::done()),
            Call::Mount { at, what, replace } => self.mount(at, what, replace),
            Call::Umount(at) => {
                let app = Arc::clone(self);
                Work::Slow(Box::new(move || {
                    mount_answer(at.map_err(DaemonError::from).and_then(|path| app.daemon.umount(&path)))
                }))
            }
            Call::Sockets => self.devices(|devices| {
                let list: Vec<Value> = devices.list().iter().map(info::socket).collect();
                Work::Now(Answer::json(&Value::Array(list)))
            }),
            Call::AddSocket(body) => {
                let default = self.default_queues;
                self.change_devices(move |devices, daemon| devices.add(daemon, spec(body, default)?))
            }
            Call::RemoveSocket(socket) => {
                self.change_devices(move |devices, daemon| devices.remove(daemon, &socket))
            }
            // Reads the maps of what is cached.
            Call::Metrics(kind @ Metrics::BlobCache, id) => {
                let app = Arc::clone(self);
                Work::Slow(Box::new(move || app.metrics(kind, id.as_deref())))
            }
            Call::Metrics(kind, id) => Work::Now(self.metrics(kind, id.as_deref())),
            Call::Inflight => Work::Now(self.inflight()),
            Call::RuntimeConfig(id) => Work::Now(Answer::json(&self.runtime.shown(id.as_deref()))),
            Call::SetRuntimeConfig { id, values } => {
                self.slow("Configure", move |app| app.set_runtime(&id, &values))
            }
            Call::Blobs(outer) => {
                Work::Now(Answer::failed(outer, "DaemonAbnormal", &DaemonError::Unsupported))
            }
        }
    }

    fn health(&self) -> Answer {
        let state = self.daemon.state();
        let status = if state == State::Running { 200 } else { 503 };
        Answer::text(status, "text/plain; charset=utf-8", format!("{state}\n"))
    }

    fn set_log_level(&self, level: &str) -> Answer {
        match LogLevel::parse(level) {
            Some(level) if self.log.set(level) => {
                tracing::info!("log level is {level:?} now");
                Answer::done()
            }
            _ => Answer::error(500, "Configure(ResponsePayloadType)"),
        }
    }

    fn superblock(&self, path: Result<MountPath, PathError>) -> Answer {
        let fail = |error| Answer::failed("FsBackendInfo", "MountFilesystem", &error);
        match path.map(|path| self.daemon.mounted_at(&path)) {
            Err(error) => fail(error.into()),
            Ok(None) => fail(DaemonError::NotMounted),
            Ok(Some(mounted)) => match mounted.backend.as_rafs() {
                Some(rafs) => Answer::json(&info::superblock(rafs.reader().image())),
                None => fail(DaemonError::NotRafs),
            },
        }
    }

    /// What may wait, and answers nothing but that it is done.
    fn slow(
        self: &Arc<Self>,
        outer: &'static str,
        act: impl FnOnce(&Self) -> Result<(), DaemonError> + Send + 'static,
    ) -> Work {
        let app = Arc::clone(self);
        Work::Slow(Box::new(move || match act(&app) {
            Ok(()) => Answer::done(),
            Err(error) => Answer::failed(outer, "DaemonAbnormal", &error),
        }))
    }

    /// What ends with a `PUT /daemon/exit` that was accepted: Stop, then Exit. May wait for requests.
    pub(super) fn stop_for_exit(&self) -> Result<(), DaemonError> {
        if self.daemon.state() == State::Running {
            self.daemon.event(Event::Stop)?;
        }
        match self.daemon.event(Event::Exit) {
            // A second exit while the first is under way.
            Err(DaemonError::UnexpectedEvent(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn mount(self: &Arc<Self>, at: Result<MountPath, PathError>, what: MountBody, replace: bool) -> Work {
        let app = Arc::clone(self);
        Work::Slow(Box::new(move || {
            let done = at.map_err(DaemonError::from).and_then(|path| mount_request(path, what)).and_then(
                |request| {
                    if replace { app.daemon.remount(&request) } else { app.daemon.mount(&request) }?;
                    if let Some(mounted) = app.daemon.mounted_at(&request.path) {
                        tracing::info!(
                            "mounted {} {} at {}",
                            mounted.kind.name(),
                            mounted.source,
                            mounted.path
                        );
                        if let Some(values) = app.runtime.find(|id| by_id(&mounted, id))
                            && let Err(error) = values.apply(&mounted)
                        {
                            tracing::warn!("{}: {error}", mounted.path);
                        }
                    }
                    Ok(())
                },
            );
            if let Err(error) = &done {
                tracing::warn!("a mount was refused: {error}");
            }
            mount_answer(done)
        }))
    }

    fn devices(&self, act: impl FnOnce(&Arc<Devices>) -> Work) -> Work {
        match &self.devices {
            Some(devices) => act(devices),
            None => Work::Now(Answer::failed("Sockets", "DaemonAbnormal", &DaemonError::Unsupported)),
        }
    }

    fn change_devices(
        self: &Arc<Self>,
        act: impl FnOnce(&Devices, &Daemon) -> Result<(), DaemonError> + Send + 'static,
    ) -> Work {
        self.devices(|devices| {
            let devices = Arc::clone(devices);
            self.slow("Sockets", move |app| act(&devices, &app.daemon))
        })
    }

    /// Metrics of what `id` names, or of the only one there is: a mount, or all mounts of one configuration, which share
    /// its store and its cache.
    fn metrics(&self, kind: Metrics, id: Option<&str>) -> Answer {
        let (outer, shared) = match kind {
            Metrics::Fs => ("GlobalMetrics", false),
            Metrics::Files { .. } => ("FsFilesMetrics", false),
            Metrics::Pattern => ("Pattern", false),
            Metrics::Backend => ("BackendMetrics", true),
            Metrics::BlobCache => ("BlobcacheMetrics", true),
        };
        let all = self.daemon.mounted();
        let rafs: Vec<&Mounted> = all.iter().filter(|m| m.kind == FsKind::Rafs).map(|m| &**m).collect();
        let mounts = match id {
            Some(id) if shared => sharing(&rafs, id),
            Some(id) => rafs.into_iter().filter(|mounted| by_path(mounted, id)).collect(),
            None if shared => only(rafs, |a, b| !id_of(a).is_empty() && id_of(a) == id_of(b)),
            None => only(rafs, |_, _| false),
        };
        let Some(&mounted) = mounts.first() else {
            return Answer::error(404, &format!("{outer}(Metrics(Stats(NoCounter)))"));
        };
        Answer::json(&match kind {
            Metrics::Fs => metrics::fs(mounted),
            Metrics::Files { latest } => metrics::files(mounted, latest),
            Metrics::Pattern => metrics::pattern(mounted),
            Metrics::Backend => metrics::backend(&mounts, &self.daemon.storage().engine().metrics()),
            Metrics::BlobCache => metrics::blobcache(&mounts),
        })
    }

    fn inflight(&self) -> Answer {
        let transport = self.daemon.transport().ok_or(DaemonError::NotReady);
        match transport.and_then(|transport| transport.inflight()) {
            Ok(list) if list.is_empty() => Answer::done(),
            Ok(list) => Answer::json(&Value::Array(
                list.iter()
                    .map(|r| {
                        json!({"inode": r.inode, "opcode": r.opcode, "unique": r.unique,
                            "timestamp_secs": r.timestamp_secs})
                    })
                    .collect(),
            )),
            Err(DaemonError::Unsupported) => {
                Answer::error(500, "InflightMetrics(Metrics(Daemon(Unsupported)))")
            }
            Err(error) => Answer::failed("InflightMetrics", "Metrics", &error),
        }
    }

    /// Hands values to all mounts of an instance, and keeps them for those to come.
    fn set_runtime(&self, id: &str, values: &BTreeMap<String, String>) -> Result<(), DaemonError> {
        let values = Values::parse(values).map_err(DaemonError::Invalid)?;
        for mounted in self.daemon.mounted().iter().filter(|mounted| by_id(mounted, id)) {
            values.apply(mounted).map_err(DaemonError::Invalid)?;
        }
        self.runtime.keep(id, values).map_err(DaemonError::Invalid)
    }
}

/// The id of a mount's configuration; empty where it has none.
fn id_of(mounted: &Mounted) -> &str {
    mounted.config.as_ref().map_or("", |config| &config.id)
}

/// Mounts whose configuration has an id, or the one at a path of that name.
fn sharing<'a>(mounts: &[&'a Mounted], id: &str) -> Vec<&'a Mounted> {
    let named: Vec<_> = mounts.iter().copied().filter(|mounted| id_of(mounted) == id).collect();
    if named.is_empty() {
        mounts.iter().copied().filter(|mounted| by_path(mounted, id)).collect()
    } else {
        named
    }
}

/// All mounts if they are one to whoever asks.
fn only(mounts: Vec<&Mounted>, same: impl Fn(&Mounted, &Mounted) -> bool) -> Vec<&Mounted> {
    if mounts.windows(2).all(|pair| matches!(pair, [a, b] if same(a, b))) { mounts } else { Vec::new() }
}

/// File-system metrics go by the mount's path.
fn by_path(mounted: &Mounted, id: &str) -> bool {
    MountPath::parse(id).is_ok_and(|path| path == mounted.path)
}

/// Backend metrics go by the configuration's id; the path is taken as well, which is what it mostly is.
fn by_id(mounted: &Mounted, id: &str) -> bool {
    mounted.config.as_ref().is_some_and(|config| config.id == id) || by_path(mounted, id)
}

fn mount_answer(done: Result<(), DaemonError>) -> Answer {
    match done {
        Ok(()) => Answer::done(),
        Err(error) => Answer::failed("Mount", "MountFilesystem", &error),
    }
}

fn mount_request(path: MountPath, body: MountBody) -> Result<MountRequest, DaemonError> {
    Ok(MountRequest {
        path,
        kind: FsKind::parse(&body.fs_type)?,
        source: PathBuf::from(body.source),
        config: MountConfig::Text(body.config),
        prefetch_files: body.prefetch_files.unwrap_or_default(),
    })
}

fn spec(body: SocketBody, default_queues: u16) -> Result<SocketSpec, DaemonError> {
    let request_queues = body.queues.unwrap_or(default_queues);
    if !(1..=QUEUES_MAX).contains(&request_queues) {
        return Err(DaemonError::Invalid(format!("queues are {request_queues}; use 1 to {QUEUES_MAX}")));
    }
    let root = body.root.as_deref().map_or_else(|| Ok(MountPath::root()), MountPath::parse)?;
    let mounts = body.mounts.iter().map(|text| MountPath::parse(text)).collect::<Result<_, _>>()?;
    Ok(SocketSpec { socket: body.socket, request_queues, view: ViewSpec { root, mounts } })
}
