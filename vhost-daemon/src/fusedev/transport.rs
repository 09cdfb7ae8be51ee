//! A FUSE mount as the daemon's way to its users: mounted, served, stopped, handed over, taken over.
//!
//! Owns: [`FuseMount`] and the order of these. Does not own: threads (`session`), the supervisor's socket (`handover`).

use super::channel::Channel;
use super::kernel_mount::{self, FuseError};
use super::saved::{Saved, SavedMount};
use super::session::{Serving, Session};
use super::{device, handover};
use crate::daemon::{Daemon, DaemonError, Inflight, Transport, ViewSpec};
use crate::fuse::abi::init_flag;
use crate::fuse::{InitLimits, Server};
use crate::mounts::{MountPath, Namespace, Place};
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long replies that wait for a store are waited for when a successor can answer them no more than we.
const LAST_REPLIES: Duration = Duration::from_secs(1);
/// The same when one can.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// What becomes of requests that a predecessor had read and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverPolicy {
    /// Nothing: whoever waits for them waits on.
    None,
    /// The kernel sends them again.
    Resend,
    /// The kernel fails them.
    Flush,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Threads that serve, 1 ..= 1024.
    pub threads: usize,
    /// Mounted read-write, for directories that are passed through.
    pub writable: bool,
    /// After a take-over.
    pub failover: FailoverPolicy,
    /// Where state and device are handed over.
    pub supervisor: Option<PathBuf>,
    /// The predecessor lives: what cannot be taken over from it stays with it.
    pub upgrade: bool,
}

/// A namespace mounted on this host.
pub struct FuseMount {
    options: FuseOptions,
    mountpoint: PathBuf,
    daemon: Weak<Daemon>,
    namespace: Arc<Namespace>,
    server: Arc<Server<Namespace>>,
    state: Mutex<MountState>,
    on_end: Arc<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct MountState {
    device: Option<Arc<OwnedFd>>,
    session: Option<Session>,
    connection: Option<u32>,
}

impl std::fmt::Debug for FuseMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseMount").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

impl FuseMount {
    /// A mount that is not there yet. `on_end` is called when it is gone, whoever unmounted it.
    ///
    /// # Errors
    ///
    /// The mountpoint is none, or the daemon's mounts do not fit in a namespace.
    pub fn new(
        daemon: &Arc<Daemon>,
        options: FuseOptions,
        on_end: impl Fn() + Send + Sync + 'static,
    ) -> Result<Arc<Self>, DaemonError> {
        let mountpoint = kernel_mount::resolve(&options.mountpoint)?;
        let namespace = daemon.open_view(ViewSpec::default())?;
        let limits = InitLimits { request_queues: 1, flags: init_flag::HAS_RESEND };
        let server = Arc::new(Server::new(Arc::clone(&namespace), limits).on_this_host());
        Ok(Arc::new(Self {
            options,
            mountpoint,
            daemon: Arc::downgrade(daemon),
            namespace,
            server,
            state: Mutex::default(),
            on_end: Arc::new(on_end),
        }))
    }

    fn state(&self) -> MutexGuard<'_, MountState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts, and serves from here on.
    ///
    /// # Errors
    ///
    /// See [`FuseError`].
    pub fn mount(&self) -> Result<(), FuseError> {
        let device = kernel_mount::open_device().map_err(|source| FuseError::Device { source })?;
        kernel_mount::mount(device.as_fd(), &self.mountpoint, self.options.writable)?;
        let mut state = self.state();
        state.connection = kernel_mount::connection(&self.mountpoint);
        let device = Arc::new(device);
        match self.serve(&device, false, false, state.connection) {
            Ok(session) => {
                state.session = Some(session);
                state.device = Some(device);
                tracing::info!("mounted on {}", self.mountpoint.display());
                Ok(())
            }
            Err(source) => {
                let _ = kernel_mount::unmount(&self.mountpoint);
                Err(FuseError::Serve { path: self.mountpoint.clone(), source })
            }
        }
    }

    fn serve(
        &self,
        device: &Arc<OwnedFd>,
        initialized: bool,
        fail_resent: bool,
        connection: Option<u32>,
    ) -> std::io::Result<Session> {
        let on_init = move || {
            if let Some(connection) = connection {
                kernel_mount::read_ahead(connection);
            }
        };
        Session::start(&Serving {
            device: device.as_fd(),
            server: &self.server,
            threads: self.options.threads,
            shared: self.options.supervisor.is_some(),
            initialized,
            fail_resent,
            on_init: Arc::new(on_init),
            on_end: Arc::clone(&self.on_end),
        })
    }

    /// Unmounts, while requests are still answered, and ends the threads. Requests that wait for a store have a second
    /// left; whoever uses the mount after that gets errors.
    pub fn unmount(&self) {
        let (connection, session) = {
            let mut state = self.state();
            (state.connection.take(), state.session.take())
        };
        let is_on_top = || connection.is_some_and(|connection| self.is_on_top(connection));
        let is_in_use = is_on_top() && !kernel_mount::unmount(&self.mountpoint);
        // Before `start` it is the predecessor that serves.
        let served = session.is_some();
        let left = session.map_or(0, |session| session.stop(LAST_REPLIES));
        if left > 0 {
            tracing::warn!("{left} requests still wait for their store; they fail");
        }
        // Meanwhile something else may have been mounted.
        if is_in_use && is_on_top() {
            kernel_mount::detach(&self.mountpoint, served);
        }
        self.state().device = None;
    }

    /// Whether what this daemon mounted is what would be unmounted.
    fn is_on_top(&self, connection: u32) -> bool {
        let path = self.mountpoint.display();
        if let Some(kind) = kernel_mount::cover(&self.mountpoint, connection) {
            tracing::warn!(
                "{path} is covered by another mount ({kind}), which stays: what was mounted below it is dead from now on; \
                 when that is unmounted, unmount {path} once more"
            );
            return false;
        }
        kernel_mount::connection(&self.mountpoint) == Some(connection)
    }

    /// The directory it is mounted on.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    fn supervisor(&self) -> Result<&Path, DaemonError> {
        let none = || DaemonError::Upgrade(NO_SUPERVISOR.to_owned());
        self.options.supervisor.as_deref().ok_or_else(none)
    }

    fn save(&self, connection: Option<u32>) -> Result<Vec<u8>, DaemonError> {
        let daemon = self.daemon.upgrade().ok_or(DaemonError::NotReady)?;
        let places = self.namespace.places();
        let mut mounts = Vec::new();
        for mounted in daemon.mounted() {
            let Some((_, place)) = places.iter().find(|(path, _)| *path == mounted.path) else { continue };
            let source = PathBuf::from(&mounted.source);
            let saved = SavedMount::new(
                &mounted.path,
                mounted.kind,
                source,
                &mounted.origin,
                &mounted.prefetch_files,
                *place,
            );
            mounts.push(saved.map_err(|e| DaemonError::Upgrade(e.to_string()))?);
        }
        let saved = Saved::new(connection, self.server.agreed(), mounts, self.namespace.rested());
        saved.encode().map_err(|e| DaemonError::Upgrade(e.to_string()))
    }

    /// Makes the mounts of a predecessor again, each in its place: node ids that the kernel holds stay good.
    fn restore(&self, saved: &Saved) -> Result<(), DaemonError> {
        let daemon = self.daemon.upgrade().ok_or(DaemonError::NotReady)?;
        // The kernel holds node ids of the predecessor's mounts, and they say nothing but the index.
        for (path, place) in self.namespace.places() {
            let mut theirs = saved.mounts.iter().filter(|mount| mount.meets(&path, place.index));
            let in_the_way = match theirs.next() {
                Some(mount) => mount.path().to_owned(),
                None if saved.rested.iter().any(|rested| rested.meets(place)) => {
                    "one that is gone".to_owned()
                }
                None => continue,
            };
            return Err(DaemonError::Upgrade(format!(
                "what was mounted at {path} before the take-over is in the place of a mount of the predecessor ({in_the_way}); \
                 unmount it, take over, and mount it again"
            )));
        }
        self.namespace.rest(&saved.rested);
        let mut done: Vec<MountPath> = Vec::new();
        for mount in &saved.mounts {
            let restored = mount.request().map_err(|e| DaemonError::Upgrade(e.to_string())).and_then(
                |(request, index, generation)| {
                    let at_root = request.path == MountPath::root();
                    let place = Place { index, generation, at_root };
                    self.namespace.expect(&request.path, place);
                    daemon.mount(&request).map_err(|error| {
                        let path = &request.path;
                        DaemonError::Upgrade(format!("what was mounted at {path} cannot be mounted again: {error}"))
                    })?;
                    if !self.namespace.places().contains(&(request.path.clone(), place)) {
                        tracing::warn!(
                            "{} is another image than it was at {}: files of the former that are in use get ESTALE",
                            request.source.display(),
                            request.path
                        );
                    }
                    Ok(request.path)
                },
            );
            match restored {
                Ok(path) => done.push(path),
                Err(error) => {
                    for path in done {
                        let _ = daemon.umount(&path);
                    }
                    return Err(error);
                }
            }
        }
        self.server.adopt(saved.agreed());
        Ok(())
    }

    /// The device, if there is one, once no mapped file is kept.
    fn without_files(&self) -> Option<Arc<OwnedFd>> {
        let state = self.state();
        if let Some(session) = &state.session {
            session.forget_files();
        }
        state.device.clone()
    }

    /// Does with requests on their way what was asked for. True: they come again, and are to fail.
    fn fail_over(&self, device: &OwnedFd, connection: Option<u32>) -> bool {
        let control = |file| {
            let connection = connection.ok_or(std::io::ErrorKind::NotFound)?;
            kernel_mount::control(connection, file)
        };
        let resend = || Channel::resend(device.as_fd()).or_else(|_| control("resend"));
        let done = match self.options.failover {
            FailoverPolicy::None => Ok(false),
            FailoverPolicy::Resend => resend().map(|()| false),
            // Only some kernels fail them for us.
            FailoverPolicy::Flush => control("flush").map(|()| false).or_else(|_| resend().map(|()| true)),
        };
        done.unwrap_or_else(|error| {
            tracing::warn!(
                "the kernel cannot {:?} the requests that were on their way ({error}); whoever made them waits",
                self.options.failover
            );
            false
        })
    }
}

impl Transport for FuseMount {
    fn start(&self) -> Result<(), DaemonError> {
        let mut state = self.state();
        if state.session.is_some() {
            return Ok(());
        }
        let device = state.device.clone().ok_or(DaemonError::NotReady)?;
        // First: what these threads read must not be sent a second time.
        let fail_resent = self.fail_over(&device, state.connection);
        let session = self.serve(&device, true, fail_resent, state.connection);
        state.session = Some(session.map_err(DaemonError::Thread)?);
        tracing::info!("serving {}", self.mountpoint.display());
        Ok(())
    }

    fn stop(&self) -> Result<(), DaemonError> {
        let session = self.state().session.take();
        let left = session.map_or(0, |session| session.stop(DRAIN_TIME));
        if left > 0 {
            tracing::warn!("{left} requests still wait for their store; they are left to a successor");
        }
        Ok(())
    }

    fn send_fd(&self) -> Result<(), DaemonError> {
        let supervisor = self.supervisor()?;
        let (device, connection) = {
            let state = self.state();
            if !state.session.as_ref().is_some_and(Session::is_initialized) {
                return Err(DaemonError::NotReady);
            }
            (state.device.clone().ok_or(DaemonError::NotReady)?, state.connection)
        };
        let saved = self.save(connection)?;
        handover::send(supervisor, &saved, device.as_fd()).map_err(|e| supervisor_error(supervisor, &e))
    }

    fn take_over(&self) -> Result<(), DaemonError> {
        let supervisor = self.supervisor()?;
        let (saved, device) = handover::receive(supervisor).map_err(|e| supervisor_error(supervisor, &e))?;
        let saved = Saved::decode(&saved).map_err(|e| DaemonError::Upgrade(e.to_string()))?;
        let connection = device::check(device.as_fd(), &self.mountpoint, saved.connection)
            .map_err(|e| DaemonError::Upgrade(e.to_string()))?;
        if let Some(path) = saved.passed_through().next() {
            if self.options.upgrade {
                return Err(DaemonError::Upgrade(format!(
                    "the directory passed through at {path} cannot be taken over from a daemon that lives: files that \
                     are open there would be lost. Let that daemon serve on, or unmount the directory and save its \
                     state again first"
                )));
            }
            tracing::warn!("files that were open below {path}, a directory passed through, get ESTALE");
        }
        self.restore(&saved)?;
        let mut state = self.state();
        state.device = Some(Arc::new(device));
        state.connection = Some(connection);
        tracing::info!("took over {} with {} mount(s)", self.mountpoint.display(), saved.mounts.len());
        Ok(())
    }

    fn inflight(&self) -> Result<Vec<Inflight>, DaemonError> {
        Ok(self.state().session.as_ref().map(Session::inflight).unwrap_or_default())
    }

    /// Lets the kernel drop all names, and what it kept of the root directory.
    fn root_changed(&self) {
        let Some(device) = self.without_files() else { return };
        Channel::forget_node(device.as_fd(), crate::fuse::abi::ROOT_NODE);
        if let Err(error) = Channel::forget_names(device.as_fd()) {
            tracing::warn!(
                "another image is at / now, and the kernel cannot be told to look its names up again ({error}; Linux 6.16 \
                 can): what is known of the former may show until `echo 3 > /proc/sys/vm/drop_caches`"
            );
        }
    }

    /// Lets the kernel drop what it kept of names and files below `path`.
    fn unmounted(&self, path: &MountPath) {
        let Some(device) = self.without_files() else { return };
        let ctx = Context { uid: 0, gid: 0, pid: 0 };
        let mut node = crate::fuse::abi::ROOT_NODE;
        let mut steps = Vec::new();
        for name in path.names() {
            let Ok(c_name) = CString::new(name) else { return };
            let found = self.namespace.lookup(&ctx, node, &c_name).map_or(0, |entry| entry.inode);
            steps.push((node, name, found == 0));
            node = if found == 0 { crate::mounts::directory_number(node, name) } else { found };
        }
        // The mount's own name, and those of directories that led to nothing else. From below: a directory that comes back
        // later brings what was in use of it along, names included.
        let last = steps.len().saturating_sub(1);
        for (at, (dir, name, gone)) in steps.into_iter().enumerate().rev() {
            if gone || at == last {
                Channel::forget_entry(device.as_fd(), dir, name.as_bytes());
            }
        }
    }
}

const NO_SUPERVISOR: &str = "no --supervisor was given: start the daemon with --supervisor SOCKET and --id ID, and have \
                             something listen on SOCKET that keeps its state";

fn supervisor_error(supervisor: &Path, error: &std::io::Error) -> DaemonError {
    let (kind, advice) = match error.kind() {
        std::io::ErrorKind::NotFound => {
            ("NotFound", "; a supervisor has to listen there before it asks for a transfer")
        }
        std::io::ErrorKind::ConnectionRefused => {
            ("ConnectionRefused", "; nobody listens there, or it is no socket")
        }
        _ => ("Io", ""),
    };
    DaemonError::Upgrade(format!(
        "StorageBackendError(CreateUnixStream({kind}: {}: {error}{advice}))",
        supervisor.display()
    ))
}
