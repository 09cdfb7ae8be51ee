//! Which request means what.
//!
//! Owns: routes, their queries and bodies, and which of them are quick. Does not own: connections ([`super::server`]).

use super::answer::Answer;
use super::{info, metrics, prometheus};
use crate::daemon::{
    Daemon, DaemonError, Devices, Event, FsKind, MountConfig, MountRequest, Mounted, SocketSpec, ViewSpec,
};
use crate::log_level::{LogControl, LogLevel};
use crate::mounts::MountPath;
use rafs_net::Secret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Values of the run-time configuration that are kept for mounts to come.
const RUNTIME_KEYS_MAX: usize = 4096;
/// Request queues of a socket that does not say.
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
    /// `registry_auth` by instance id, for mounts that come later.
    runtime: Mutex<BTreeMap<String, Secret>>,
}

/// A request, read whole.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Method in capitals.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query as it came, percent-encoded.
    pub query: String,
    /// Body, empty for none.
    pub body: Vec<u8>,
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

#[derive(Deserialize)]
struct MountBody {
    #[serde(default = "rafs")]
    fs_type: String,
    source: String,
    config: String,
    #[serde(default)]
    prefetch_files: Option<Vec<PathBuf>>,
}

fn rafs() -> String {
    "rafs".to_owned()
}

#[derive(Deserialize)]
struct DaemonBody {
    log_level: Option<String>,
}

#[derive(Deserialize)]
struct SocketBody {
    socket: PathBuf,
    queues: Option<u16>,
    root: Option<String>,
    #[serde(default)]
    mounts: Vec<String>,
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
        Self { daemon, devices, default_queues, log, connections, runtime: Mutex::default() }
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
    pub fn handle(self: &Arc<Self>, request: Request) -> Work {
        let path = request.path.clone();
        match path.as_str() {
            "/metrics" => {
                self.get(&request, |app| Answer::text(200, prometheus::CONTENT_TYPE, prometheus::page(app)))
            }
            "/healthz" => self.get(&request, App::health),
            "/api/v1/daemon" | "/api/v2/daemon" => self.daemon_route(&request, path.starts_with("/api/v2")),
            "/api/v1/daemon/events" => self.get(&request, |_| {
                Answer::json(
                    &json!({"max_errors": 500, "total_errors": 0, "max_size": 51200, "total_size": 0,
                    "errors": []}),
                )
            }),
            "/api/v1/daemon/backend" => Work::Now(self.superblock(&request)),
            "/api/v1/daemon/start" => self.event(&request, "Configure", |daemon| daemon.event(Event::Start)),
            "/api/v1/daemon/exit" => self.exit(&request),
            "/api/v1/daemon/fuse/sendfd" => self.event(&request, "Upgrade", |daemon| {
                daemon.transport().ok_or(DaemonError::NotReady)?.send_fd()
            }),
            "/api/v1/daemon/fuse/takeover" => {
                self.event(&request, "Upgrade", |daemon| daemon.event(Event::Takeover))
            }
            "/api/v1/mount" => self.mount(request),
            "/api/v1/sockets" => self.sockets(request),
            "/api/v1/metrics" => Work::Now(self.metrics(&request, "GlobalMetrics", by_path, metrics::fs)),
            "/api/v1/metrics/files" => {
                Work::Now(self.metrics(&request, "FsFilesMetrics", by_path, |mounted| {
                    metrics::files(mounted, query(&request, "latest").is_some_and(|value| value == "true"))
                }))
            }
            "/api/v1/metrics/pattern" => {
                Work::Now(self.metrics(&request, "Pattern", by_path, metrics::pattern))
            }
            "/api/v1/metrics/backend" => {
                let engine = self.daemon.storage().engine().metrics();
                Work::Now(self.metrics(&request, "BackendMetrics", by_id, |m| metrics::backend(m, &engine)))
            }
            "/api/v1/metrics/blobcache" => {
                let engine = self.daemon.storage().engine().metrics();
                Work::Now(
                    self.metrics(&request, "BlobcacheMetrics", by_id, |m| metrics::blobcache(m, &engine)),
                )
            }
            "/api/v1/metrics/inflight" => Work::Now(self.inflight(&request)),
            "/api/v1/config" => Work::Now(self.runtime_config(&request)),
            "/api/v2/blobs" => Work::Now(match request.method.as_str() {
                "PUT" => Answer::failed("CreateBlobObject", "DaemonAbnormal", &DaemonError::Unsupported),
                "DELETE" => Answer::failed("DeleteBlobObject", "DaemonAbnormal", &DaemonError::Unsupported),
                "GET" => Answer::failed("GetBlobObjects", "DaemonAbnormal", &DaemonError::Unsupported),
                _ => Answer::bad_request(),
            }),
            _ => Work::Now(Answer::error(404, "NoRoute")),
        }
    }

    fn get(&self, request: &Request, answer: impl FnOnce(&Self) -> Answer) -> Work {
        let fits = request.method == "GET" && request.body.is_empty();
        Work::Now(if fits { answer(self) } else { Answer::bad_request() })
    }

    fn health(&self) -> Answer {
        let state = self.daemon.state();
        let status = if state == crate::daemon::State::Running { 200 } else { 503 };
        Answer::text(status, "text/plain; charset=utf-8", format!("{state}\n"))
    }

    fn daemon_route(&self, request: &Request, short: bool) -> Work {
        Work::Now(match (request.method.as_str(), request.body.is_empty()) {
            ("GET", true) => Answer::json(&info::daemon(&self.daemon, short)),
            ("PUT", false) => match body::<DaemonBody>(request) {
                Err(answer) => answer,
                Ok(wanted) => match wanted.log_level.as_deref().map(LogLevel::parse) {
                    None => Answer::done(),
                    Some(Some(level)) if self.log.set(level) => {
                        tracing::info!("log level is {level:?} now");
                        Answer::done()
                    }
                    Some(_) => Answer::error(500, "Configure(ResponsePayloadType)"),
                },
            },
            _ => Answer::bad_request(),
        })
    }

    fn superblock(&self, request: &Request) -> Answer {
        if request.method != "GET" || !request.body.is_empty() {
            return Answer::bad_request();
        }
        let path = match mountpoint(request) {
            Ok(path) => path,
            Err(answer) => return answer,
        };
        let fail = |error| Answer::failed("FsBackendInfo", "MountFilesystem", &error);
        match path.map(|path| self.daemon.mounted_at(&path)) {
            Err(error) => fail(error),
            Ok(None) => fail(DaemonError::NotMounted),
            Ok(Some(mounted)) => match mounted.backend.as_rafs() {
                Some(rafs) => Answer::json(&info::superblock(rafs.reader().image())),
                None => fail(DaemonError::NotRafs),
            },
        }
    }

    /// A PUT without body that changes the daemon's state.
    fn event(
        &self,
        request: &Request,
        outer: &'static str,
        act: impl FnOnce(&Daemon) -> Result<(), DaemonError> + Send + 'static,
    ) -> Work {
        if request.method != "PUT" || !request.body.is_empty() {
            return Work::Now(Answer::bad_request());
        }
        let daemon = Arc::clone(&self.daemon);
        Work::Slow(Box::new(move || match act(&daemon) {
            Ok(()) => Answer::done(),
            Err(error) => Answer::failed(outer, "DaemonAbnormal", &error),
        }))
    }

    fn exit(&self, request: &Request) -> Work {
        if request.method != "PUT" || !request.body.is_empty() {
            return Work::Now(Answer::bad_request());
        }
        Work::Exit(Answer::done())
    }

    /// What ends with a `PUT /daemon/exit` that was accepted: Stop, then Exit. May wait for requests.
    pub(super) fn stop_for_exit(&self) -> Result<(), DaemonError> {
        if self.daemon.state() == crate::daemon::State::Running {
            self.daemon.event(Event::Stop)?;
        }
        match self.daemon.event(Event::Exit) {
            // A second exit while the first is under way.
            Err(DaemonError::UnexpectedEvent(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn mount(self: &Arc<Self>, request: Request) -> Work {
        let path = match mountpoint(&request) {
            Ok(path) => path,
            Err(answer) => return Work::Now(answer),
        };
        let fail = |error: &DaemonError| Answer::failed("Mount", "MountFilesystem", error);
        let app = Arc::clone(self);
        match (request.method.as_str(), request.body.is_empty()) {
            (method @ ("POST" | "PUT"), false) => {
                let remount = method == "PUT";
                let wanted = match body::<MountBody>(&request) {
                    Ok(wanted) => wanted,
                    Err(answer) => return Work::Now(answer),
                };
                Work::Slow(Box::new(move || {
                    let done = path.and_then(|path| wanted.request(path)).and_then(|request| {
                        if remount { app.daemon.remount(&request) } else { app.daemon.mount(&request) }?;
                        if let Some(mounted) = app.daemon.mounted_at(&request.path) {
                            tracing::info!(
                                "mounted {} {} at {}",
                                mounted.kind.name(),
                                mounted.source,
                                mounted.path
                            );
                            app.apply_runtime(&mounted);
                        }
                        Ok(())
                    });
                    match done {
                        Ok(()) => Answer::done(),
                        Err(error) => {
                            tracing::warn!("a mount was refused: {error}");
                            fail(&error)
                        }
                    }
                }))
            }
            ("DELETE", true) => {
                Work::Slow(Box::new(move || match path.and_then(|path| app.daemon.umount(&path)) {
                    Ok(()) => Answer::done(),
                    Err(error) => fail(&error),
                }))
            }
            _ => Work::Now(Answer::bad_request()),
        }
    }

    fn sockets(self: &Arc<Self>, request: Request) -> Work {
        let Some(devices) = self.devices.clone() else {
            return Work::Now(Answer::failed("Sockets", "DaemonAbnormal", &DaemonError::Unsupported));
        };
        let daemon = Arc::clone(&self.daemon);
        let answer = |done: Result<(), DaemonError>| match done {
            Ok(()) => Answer::done(),
            Err(error) => Answer::failed("Sockets", "DaemonAbnormal", &error),
        };
        match (request.method.as_str(), request.body.is_empty()) {
            ("GET", true) => {
                let list: Vec<Value> = devices.list().iter().map(info::socket).collect();
                Work::Now(Answer::json(&Value::Array(list)))
            }
            ("POST", false) => {
                let wanted = match body::<SocketBody>(&request) {
                    Ok(wanted) => wanted,
                    Err(answer) => return Work::Now(answer),
                };
                let default = self.default_queues;
                Work::Slow(Box::new(move || {
                    answer(wanted.spec(default).and_then(|spec| devices.add(&daemon, spec)))
                }))
            }
            ("DELETE", true) => match query(&request, "socket") {
                None => Work::Now(missing("socket")),
                Some(socket) => Work::Slow(Box::new(move || {
                    answer(devices.remove(&daemon, PathBuf::from(socket).as_path()))
                })),
            },
            _ => Work::Now(Answer::bad_request()),
        }
    }

    /// Metrics of the mount that `id` names, or of the only one.
    fn metrics(
        &self,
        request: &Request,
        outer: &str,
        named: fn(&Mounted, &str) -> bool,
        show: impl FnOnce(&Mounted) -> Value,
    ) -> Answer {
        if request.method != "GET" || !request.body.is_empty() {
            return Answer::bad_request();
        }
        let mounts = self.daemon.mounted();
        let mut rafs = mounts.iter().filter(|m| m.kind == FsKind::Rafs);
        let found = match query(request, "id") {
            Some(id) => rafs.find(|mounted| named(mounted, &id)),
            None => rafs.next().filter(|_| rafs.next().is_none()),
        };
        match found {
            Some(mounted) => Answer::json(&show(mounted)),
            None => Answer::error(404, &format!("{outer}(Metrics(Stats(NoCounter)))")),
        }
    }

    fn inflight(&self, request: &Request) -> Answer {
        if request.method != "GET" || !request.body.is_empty() {
            return Answer::bad_request();
        }
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

    fn runtime_config(&self, request: &Request) -> Answer {
        let id = query(request, "id");
        match (request.method.as_str(), request.body.is_empty()) {
            ("GET", true) => {
                let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
                let shown = runtime.keys().filter(|key| id.as_ref().is_none_or(|id| *key == id)).map(|key| {
                    // Whoever may ask this need not know the secret.
                    let name = if id.is_some() {
                        "registry_auth".to_owned()
                    } else {
                        format!("{key}:registry_auth")
                    };
                    (name, Value::from("***"))
                });
                Answer::json(&Value::Object(shown.collect()))
            }
            ("PUT", false) => {
                let Some(id) = id else { return missing("id") };
                match body::<BTreeMap<String, String>>(request) {
                    Ok(values) => self.set_runtime(&id, &values),
                    Err(answer) => answer,
                }
            }
            _ => Answer::bad_request(),
        }
    }

    fn set_runtime(&self, id: &str, values: &BTreeMap<String, String>) -> Answer {
        let refuse =
            |text: String| Answer::failed("Configure", "DaemonAbnormal", &DaemonError::Invalid(text));
        if let Some(key) = values.keys().find(|key| key.as_str() != "registry_auth") {
            let key: String = key.chars().take(60).collect();
            return refuse(format!(
                "{key} cannot be changed while mounted; mount again with it in the configuration"
            ));
        }
        for value in values.values() {
            let Some(secret) = Secret::new(value) else { continue };
            {
                let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
                if runtime.len() >= RUNTIME_KEYS_MAX && !runtime.contains_key(id) {
                    return refuse("too many instances have run-time values".to_owned());
                }
                runtime.insert(id.to_owned(), secret);
            }
            for mounted in self.daemon.mounted() {
                if by_id(&mounted, id)
                    && let Err(error) = self.apply_runtime_checked(&mounted)
                {
                    return refuse(error);
                }
            }
        }
        Answer::done()
    }

    fn apply_runtime(&self, mounted: &Mounted) {
        if let Err(error) = self.apply_runtime_checked(mounted) {
            tracing::warn!("{}: {error}", mounted.path);
        }
    }

    /// Hands a mount's registry the credentials that were put for its id.
    fn apply_runtime_checked(&self, mounted: &Mounted) -> Result<(), String> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = runtime.iter().find(|(id, _)| by_id(mounted, id)).map(|(_, secret)| secret.clone());
        match (secret, &mounted.net) {
            (Some(secret), Some(net)) => net.set_registry_auth(Some(secret)).map_err(|e| e.to_string()),
            _ => Ok(()),
        }
    }
}

/// File-system metrics go by the mount's path.
fn by_path(mounted: &Mounted, id: &str) -> bool {
    mounted.path.as_str() == id
}

/// Backend metrics go by the configuration's id; the path is taken as well, which is what it mostly is.
fn by_id(mounted: &Mounted, id: &str) -> bool {
    mounted.config.as_ref().is_some_and(|config| config.id == id) || by_path(mounted, id)
}

impl MountBody {
    fn request(self, path: MountPath) -> Result<MountRequest, DaemonError> {
        Ok(MountRequest {
            path,
            kind: FsKind::parse(&self.fs_type)?,
            source: PathBuf::from(self.source),
            config: MountConfig::Text(self.config),
            prefetch_files: self.prefetch_files.unwrap_or_default(),
        })
    }
}

impl SocketBody {
    fn spec(self, default_queues: u16) -> Result<SocketSpec, DaemonError> {
        let request_queues = self.queues.unwrap_or(default_queues);
        if !(1..=QUEUES_MAX).contains(&request_queues) {
            return Err(DaemonError::Invalid(format!("queues are {request_queues}; use 1 to {QUEUES_MAX}")));
        }
        let root = self.root.as_deref().map_or_else(|| Ok(MountPath::root()), MountPath::parse)?;
        let mounts = self.mounts.iter().map(|text| MountPath::parse(text)).collect::<Result<_, _>>()?;
        Ok(SocketSpec { socket: self.socket, request_queues, view: ViewSpec { root, mounts } })
    }
}

/// The first value of a query key, decoded.
fn query(request: &Request, key: &str) -> Option<String> {
    form_urlencoded::parse(request.query.as_bytes()).find(|(k, _)| k == key).map(|(_, v)| v.into_owned())
}

fn missing(key: &str) -> Answer {
    Answer::error(400, &format!("QueryString(\"'{key}' should be specified in query string\")"))
}

/// The path that a mount request is about. Not there: an answer. No path: an error, later.
fn mountpoint(request: &Request) -> Result<Result<MountPath, DaemonError>, Answer> {
    let text = query(request, "mountpoint").ok_or_else(|| missing("mountpoint"))?;
    Ok(MountPath::parse(&text).map_err(DaemonError::from))
}

/// A JSON body.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Answer> {
    serde_json::from_slice(&request.body).map_err(|e| Answer::error(400, &format!("ParseBody({e:?})")))
}
