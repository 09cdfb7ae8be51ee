//! The daemon as a whole: what is mounted, who sees it, what state it is in.
//!
//! Owns: [`Daemon`], which command line, API, signals and transports work on; the order of mounts and umounts. Does not
//! own: how requests come and go ([`Transport`]), what a mount is ([`crate::mounts`]), the API's texts.

mod devices;
mod error;
mod identity;
mod mount;
mod reaper;
mod state;
mod transport;
mod turns;
mod view;

pub use devices::{Devices, SocketSpec};
pub use error::DaemonError;
pub use identity::{Identity, Version};
pub use mount::{FsKind, MountConfig, MountRequest, Mounted, StartupConfig};
pub use state::{Event, State};
pub use transport::{Inflight, Transport};
pub use view::ViewSpec;

use crate::mounts::{MountPath, Namespace, NamespaceError, OpenError, Storage};
use reaper::Reaper;
use state::StateMachine;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use turns::Turns;
use view::View;

/// How long the end waits for mounts and umounts that are under way.
const TURN_PATIENCE: Duration = Duration::from_millis(500);

/// Everything a running daemon knows. Share it in an `Arc`.
#[derive(Debug)]
pub struct Daemon {
    identity: Identity,
    state: StateMachine,
    /// Held over a whole mount or umount at one path, slow as its storage may be.
    turns: Turns,
    /// Held while what is mounted and what views show change together; whether all that is over. Never while storage is
    /// waited for.
    changes: Mutex<bool>,
    /// Held for moments.
    mounts: Mutex<BTreeMap<MountPath, Arc<Mounted>>>,
    views: Mutex<Vec<Arc<View>>>,
    transport: OnceLock<Arc<dyn Transport>>,
    reaper: Reaper,
    storage: Storage,
}

impl Daemon {
    /// A daemon in state INIT with nothing mounted.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub fn new(identity: Identity) -> Result<Self, DaemonError> {
        Ok(Self {
            identity,
            state: StateMachine::default(),
            turns: Turns::default(),
            changes: Mutex::default(),
            mounts: Mutex::default(),
            views: Mutex::default(),
            transport: OnceLock::new(),
            reaper: Reaper::start().map_err(DaemonError::Thread)?,
            storage: Storage::new().map_err(|e| DaemonError::Open(OpenError::Store(e.into())))?,
        })
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The reported state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.now()
    }

    /// Says how guests reach the daemon. The first one counts.
    pub fn set_transport(&self, transport: Arc<dyn Transport>) {
        let _ = self.transport.set(transport);
    }

    /// How guests reach the daemon, once that is known.
    #[must_use]
    pub fn transport(&self) -> Option<&Arc<dyn Transport>> {
        self.transport.get()
    }

    /// The start is complete: guests are served.
    pub fn running(&self) {
        self.state.set(State::Running);
    }

    /// Handles an event from outside: the transport does what it has to, and the state follows.
    ///
    /// # Errors
    ///
    /// [`DaemonError::UnexpectedEvent`] in a state that has no such event; what the transport says.
    pub fn event(&self, event: Event) -> Result<(), DaemonError> {
        let transport = self.transport.get();
        self.state.step(event, || match (event, transport) {
            (_, None) => Err(DaemonError::NotReady),
            (Event::Start, Some(transport)) => transport.start(),
            (Event::Takeover, Some(transport)) => transport.take_over(),
            (Event::Stop, Some(transport)) => transport.stop(),
            (Event::Exit, Some(_)) => Ok(()),
        })
    }

    /// Mounts a file system, and shows it in every view that it belongs to. Mounts and umounts at one path come one after
    /// the other; those at other paths do not wait for its storage.
    ///
    /// # Errors
    ///
    /// As opening ends, or [`DaemonError::Exists`].
    pub fn mount(&self, request: &MountRequest) -> Result<(), DaemonError> {
        let _turn = self.turns.take(&request.path);
        if self.mounts().contains_key(&request.path) {
            return Err(DaemonError::Exists);
        }
        let mounted = Arc::new(request.open(&self.storage)?);
        let _changing = self.change(&mounted)?;
        let mut done: Vec<(Arc<View>, MountPath)> = Vec::new();
        for view in self.views().iter() {
            let Some(path) = view.spec.shows(&request.path) else { continue };
            match view.namespace.mount(&path, mounted.backend.as_ref()) {
                Ok(()) => done.push((Arc::clone(view), path)),
                Err(error) => {
                    for (view, path) in done {
                        let _ = view.namespace.umount(&path);
                    }
                    self.reaper.take(Arc::clone(&mounted.backend));
                    return Err(error.into());
                }
            }
        }
        self.mounts().insert(request.path.clone(), Arc::clone(&mounted));
        self.tell_of_root(&request.path);
        Ok(())
    }

    /// Puts another image in the place of a mounted one.
    ///
    /// # Errors
    ///
    /// As opening ends; [`DaemonError::NotMounted`]; [`DaemonError::NotRafs`] for a passed-through directory.
    pub fn remount(&self, request: &MountRequest) -> Result<(), DaemonError> {
        let _turn = self.turns.take(&request.path);
        let old = self.mounts().get(&request.path).cloned().ok_or(DaemonError::NotMounted)?;
        if old.kind != FsKind::Rafs || request.kind != FsKind::Rafs {
            return Err(DaemonError::NotRafs);
        }
        let mounted = Arc::new(request.open(&self.storage)?);
        let _changing = self.change(&mounted)?;
        for view in self.views().iter() {
            let Some(path) = view.spec.shows(&request.path) else { continue };
            if let Err(error) = view.namespace.remount(&path, mounted.backend.as_ref()) {
                // Only when all indexes are taken, which leaves this view with the old image.
                tracing::warn!("a view of {} keeps the image it had: {error}", request.path);
            }
        }
        self.mounts().insert(request.path.clone(), Arc::clone(&mounted));
        // The same image has the same node ids: what is known of it holds.
        let is_same = mounted.backend.identity().is_some_and(|it| old.backend.identity() == Some(it));
        if !is_same && let Some(transport) = self.transport.get() {
            transport.unmounted(&request.path);
        }
        self.tell_of_root(&request.path);
        self.reaper.take(Arc::clone(&old.backend));
        tracing::info!("mounted {} at {} in place of {}", mounted.source, request.path, old.source);
        Ok(())
    }

    /// Unmounts. Requests on their way end as if it were still there.
    ///
    /// # Errors
    ///
    /// [`DaemonError::NotMounted`].
    pub fn umount(&self, path: &MountPath) -> Result<(), DaemonError> {
        let _turn = self.turns.take(path);
        let _changing = self.changes();
        let old = self.mounts().remove(path).ok_or(DaemonError::NotMounted)?;
        for view in self.views().iter() {
            if let Some(path) = view.spec.shows(path) {
                let _ = view.namespace.umount(&path);
            }
        }
        if let Some(transport) = self.transport.get() {
            transport.unmounted(path);
        }
        self.tell_of_root(path);
        self.reaper.take(Arc::clone(&old.backend));
        tracing::info!("unmounted {path}");
        Ok(())
    }

    /// A change at `path` may be one of the root directory.
    fn tell_of_root(&self, path: &MountPath) {
        if *path == MountPath::root()
            && let Some(transport) = self.transport.get()
        {
            transport.root_changed();
        }
    }

    /// What is mounted, by path.
    #[must_use]
    pub fn mounted(&self) -> Vec<Arc<Mounted>> {
        self.mounts().values().cloned().collect()
    }

    /// The mount at a path.
    #[must_use]
    pub fn mounted_at(&self, path: &MountPath) -> Option<Arc<Mounted>> {
        self.mounts().get(path).cloned()
    }

    /// A namespace for one socket's guests. It follows all mounts and umounts that `spec` shows.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Namespace`] when more is mounted than it has room for.
    pub fn open_view(&self, spec: ViewSpec) -> Result<Arc<Namespace>, DaemonError> {
        let _changing = self.changes();
        let view = Arc::new(View { spec, namespace: Arc::new(Namespace::new()) });
        for (path, mounted) in self.mounts().iter() {
            if let Some(path) = view.spec.shows(path) {
                view.namespace.mount(&path, mounted.backend.as_ref())?;
            }
        }
        let namespace = Arc::clone(&view.namespace);
        self.views().push(view);
        Ok(namespace)
    }

    /// Forgets a namespace: it follows no more.
    pub fn close_view(&self, namespace: &Arc<Namespace>) {
        let _changing = self.changes();
        self.views().retain(|view| !Arc::ptr_eq(&view.namespace, namespace));
    }

    /// Ends all mounts: requests on their way fail, threads end. A mount that hangs on its storage is not waited for.
    pub fn shutdown(&self) {
        if !self.turns.wait_for_all(TURN_PATIENCE) {
            tracing::warn!("a mount hangs on its storage; ending without it");
        }
        *self.changes() = true;
        for mounted in std::mem::take(&mut *self.mounts()).into_values() {
            mounted.backend.shutdown();
        }
        self.reaper.stop();
        self.storage.engine().shutdown();
    }

    /// What all mounts share.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    fn changes(&self) -> MutexGuard<'_, bool> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to show what was opened, unless the daemon has ended meanwhile.
    fn change(&self, opened: &Mounted) -> Result<MutexGuard<'_, bool>, DaemonError> {
        let ended = self.changes();
        if *ended {
            opened.backend.shutdown();
            return Err(DaemonError::NotReady);
        }
        Ok(ended)
    }

    fn mounts(&self) -> MutexGuard<'_, BTreeMap<MountPath, Arc<Mounted>>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn views(&self) -> MutexGuard<'_, Vec<Arc<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<NamespaceError> for DaemonError {
    fn from(error: NamespaceError) -> Self {
        match error {
            NamespaceError::Exists => Self::Exists,
            NamespaceError::NotMounted => Self::NotMounted,
            other => Self::Namespace(other),
        }
    }
}
