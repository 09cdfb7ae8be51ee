//! The vhost-user sockets of a daemon: one virtio-fs device each, with a view of its own.
//!
//! Owns: sockets and the threads that serve them, from the start or added while running. Does not own: what is said on
//! them ([`crate::virtio`]).

use super::{Daemon, DaemonError, Transport, ViewSpec};
use crate::mounts::Namespace;
use crate::virtio::{Crew, Service, ServiceOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A socket and what is served on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Request queues, 1 ..= 64.
    pub request_queues: u16,
    /// What its guests see.
    pub view: ViewSpec,
}

/// All sockets.
#[derive(Debug, Default)]
pub struct Devices {
    running: Mutex<Vec<Running>>,
    /// Serves the guests of all sockets; there from the first one on.
    crew: Mutex<Option<Arc<Crew>>>,
}

#[derive(Debug)]
struct Running {
    spec: SocketSpec,
    service: Arc<Service>,
    namespace: Arc<Namespace>,
    thread: Option<JoinHandle<()>>,
}

impl Devices {
    /// Listens on a socket and serves front-ends on it, one after the other.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Socket`]; [`DaemonError::Invalid`] for a socket that is served already.
    pub fn add(&self, daemon: &Daemon, spec: SocketSpec) -> Result<(), DaemonError> {
        if spec.socket.as_os_str().is_empty() {
            // The kernel would think of a name.
            return Err(DaemonError::Invalid("the path of the socket is empty".to_owned()));
        }
        let mut running = self.lock();
        if running.iter().any(|r| r.spec.socket == spec.socket) {
            return Err(DaemonError::Invalid(format!("{} is served already", spec.socket.display())));
        }
        let options = ServiceOptions { socket: spec.socket.clone(), request_queues: spec.request_queues };
        let crew = self.crew()?;
        let service = Arc::new(Service::listen(options)?);
        let namespace = match daemon.open_view(spec.view.clone()) {
            Ok(namespace) => namespace,
            Err(error) => {
                service.stop();
                return Err(error);
            }
        };
        let thread = {
            let (service, namespace) = (Arc::clone(&service), Arc::clone(&namespace));
            let name = "vhost-user".to_owned();
            std::thread::Builder::new().name(name).spawn(move || service.run(&namespace, &crew))
        };
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => {
                service.stop();
                daemon.close_view(&namespace);
                return Err(DaemonError::Thread(error));
            }
        };
        tracing::info!(
            "serving on {} with {} request queue(s){}",
            spec.socket.display(),
            spec.request_queues,
            if spec.view == ViewSpec::default() {
                String::new()
            } else {
                format!(", what is at {}", spec.view.root)
            }
        );
        running.push(Running { spec, service, namespace, thread: Some(thread) });
        Ok(())
    }

    /// Ends a socket and its connection.
    ///
    /// # Errors
    ///
    /// [`DaemonError::NotMounted`] when it is not served.
    pub fn remove(&self, daemon: &Daemon, socket: &Path) -> Result<(), DaemonError> {
        let mut gone = {
            let mut running = self.lock();
            let at = running.iter().position(|r| r.spec.socket == socket).ok_or(DaemonError::NotMounted)?;
            running.remove(at)
        };
        gone.end();
        daemon.close_view(&gone.namespace);
        Ok(())
    }

    /// All sockets, in the order in which they were added.
    #[must_use]
    pub fn list(&self) -> Vec<SocketSpec> {
        self.lock().iter().map(|r| r.spec.clone()).collect()
    }

    /// Ends all of them.
    pub fn end(&self) {
        let mut running = std::mem::take(&mut *self.lock());
        for device in &running {
            device.service.stop();
        }
        for device in &mut running {
            device.end();
        }
    }

    fn crew(&self) -> Result<Arc<Crew>, DaemonError> {
        let mut crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(crew) = crew.as_ref() {
            return Ok(Arc::clone(crew));
        }
        let new = Arc::new(Crew::new().map_err(DaemonError::Thread)?);
        *crew = Some(Arc::clone(&new));
        Ok(new)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn end(&mut self) {
        self.service.stop();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of {} ended by a panic", self.spec.socket.display());
        }
    }
}

impl Transport for Devices {
    /// Nothing to stop before the end: guests are served to the last moment.
    fn stop(&self) -> Result<(), DaemonError> {
        Ok(())
    }
}
