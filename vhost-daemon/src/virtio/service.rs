//! The socket: one front-end after the other, the same device for each.
//!
//! Owns: the listening socket and its file, connections, a prompt end. Does not own: what a connection says, who serves
//! its rings.

use super::crew::Crew;
use super::device::Device;
use super::peers::{Departed, Peer};
use super::pool::Pool;
use super::ring_state::SharedRing;
use super::worker::Worker;
use crate::fuse::{GuestFs, InitLimits, Server};
use crate::log_limit::LogLimit;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

/// Threads for requests that wait for a disk. More would only queue up in front of the same disk.
const WAITING_THREADS: usize = 8;

/// What a device is made with.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Path of the vhost-user socket.
    pub socket: PathBuf,
    /// Request queues, 1 ..= 64; the device has one more.
    pub request_queues: u16,
}

/// Why a device cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The path is taken by something that is no socket.
    #[error("{path} exists and is no socket; choose another --sock or remove it")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody listens there.
    #[error("another process listens on {path}; stop it or choose another --sock")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error(
        "cannot listen on {path}: {source}; the directory must exist and be writable, and the path at most 107 bytes long"
    )]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A device that listens. Dropping it does not end it: call [`Service::stop`].
#[derive(Debug)]
pub struct Service {
    options: ServiceOptions,
    listener: UnixListener,
    /// Identity of our socket file, so that only our own is removed.
    file: Option<(u64, u64)>,
    stopping: AtomicBool,
    connection: Mutex<Option<UnixStream>>,
    /// For requests that wait for a disk.
    pool: Arc<Pool>,
    log: LogLimit,
}

impl Service {
    /// Binds the socket and listens. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    ///
    /// See [`ServiceError`].
    pub fn listen(options: ServiceOptions) -> Result<Self, ServiceError> {
        let path = &options.socket;
        clear_path(path)?;
        let listener =
            UnixListener::bind(path).map_err(|source| ServiceError::Listen { path: path.clone(), source })?;
        let file = identity(path);
        Ok(Self {
            options,
            listener,
            file,
            stopping: AtomicBool::new(false),
            connection: Mutex::new(None),
            pool: Pool::new(WAITING_THREADS),
            log: LogLimit::default(),
        })
    }

    /// Serves front-ends one after the other until [`Service::stop`], with `crew` at their rings. What was agreed with a guest outlives
    /// a connection: a front-end may come back with the same guest, any number of times.
    pub fn run<F: GuestFs + 'static>(&self, fs: &Arc<F>, crew: &Crew) {
        let limits = InitLimits { request_queues: self.options.request_queues, flags: 0 };
        let server = Arc::new(Server::new(Arc::clone(fs), limits));
        let mut departed = Departed::default();
        while !self.stopping.load(Ordering::Acquire) {
            if departed.end_before(&self.listener) {
                fs.drop_all_locks();
            }
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !self.stopping.load(Ordering::Acquire) {
                        tracing::warn!(
                            "cannot accept a connection on {}: {error}",
                            self.options.socket.display()
                        );
                        // Running out of descriptors passes; spinning on it would not help.
                        thread::sleep(std::time::Duration::from_millis(100));
                    }
                    continue;
                }
            };
            match stream.try_clone() {
                Ok(clone) => *self.current() = Some(clone),
                Err(error) => {
                    tracing::warn!("cannot keep a connection: {error}");
                    continue;
                }
            }
            if self.stopping.load(Ordering::Acquire) {
                break;
            }
            let peer = Peer::of(&stream);
            let socket = self.options.socket.display();
            self.log.info(|| format!("front-end connected to {socket}"));
            match catch_unwind(AssertUnwindSafe(|| self.connection(stream, &server, crew))) {
                Ok(Ok(())) => self.log.info(|| format!("front-end left {socket}")),
                Ok(Err(error)) => self.log.warn(|| format!("connection on {socket} ended: {error}")),
                Err(_) => tracing::error!("connection on {socket} ended by a panic; the next one is served"),
            }
            *self.current() = None;
            departed.add(peer, server.inits());
        }
    }

    /// Ends [`Service::run`] and removes the socket file. May be called from any thread, more than once.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.pool.end();
        if identity(&self.options.socket).is_some_and(|id| self.file == Some(id)) {
            let _ = std::fs::remove_file(&self.options.socket);
        }
        if let Some(stream) = self.current().as_ref() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Accepting ends when the listening socket is shut down.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection from its first message to its end.
    fn connection<F: GuestFs + 'static>(
        &self,
        stream: UnixStream,
        server: &Arc<Server<F>>,
        crew: &Crew,
    ) -> Result<(), VhostUserError> {
        let mut rings = QuitOnDrop(Vec::new());
        let lot = Arc::default();
        for index in 0..=usize::from(self.options.request_queues) {
            let ring = Arc::new(SharedRing::new(index, Arc::clone(&lot)));
            let worker = Worker::new(Arc::clone(&ring), Arc::clone(server), Arc::clone(&self.pool));
            ring.sit(crew.enter(Arc::new(worker)).map_err(VhostUserError::ReqHandlerError)?);
            rings.0.push(ring);
        }
        let device = Arc::new(Device::new(Arc::clone(server), rings.0.clone()));
        let mut handler = BackendReqHandler::from_stream(stream, device);
        loop {
            match handler.handle_request() {
                Ok(()) => {}
                Err(VhostUserError::Disconnected | VhostUserError::SocketBroken(_)) => return Ok(()),
                Err(_) if self.stopping.load(Ordering::Acquire) => return Ok(()),
                Err(error) if recoverable(&error) => {
                    self.log.warn(|| format!("front-end message refused: {error}"))
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A message that our device refused: the front-end was told if it asked, and the stream is in step, so the
/// connection goes on. Anything else may leave a front-end waiting for a reply that never comes; closing tells it.
fn recoverable(error: &VhostUserError) -> bool {
    matches!(error, VhostUserError::InvalidOperation(_))
}

/// Ends the rings whichever way a connection ends.
struct QuitOnDrop(Vec<Arc<SharedRing>>);

impl Drop for QuitOnDrop {
    fn drop(&mut self) {
        for ring in &self.0 {
            ring.quit();
        }
    }
}

/// Makes room for our socket: removes a stale one, refuses anything else.
fn clear_path(path: &Path) -> Result<(), ServiceError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(ServiceError::NotASocket { path: path.to_owned() });
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ServiceError::InUse { path: path.to_owned() });
    }
    std::fs::remove_file(path).map_err(|source| ServiceError::Listen { path: path.to_owned(), source })
}

/// Device and inode number of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}
