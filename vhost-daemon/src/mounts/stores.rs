//! From a configuration to the store it speaks of.

use super::Traces;
use crate::config::Backend;
use anyhow::Context;
use rafs::reader::{Engine, EngineOptions, ReaderError, ReaderOptions};
use rafs::store::Store;
use rafs_net::{NetError, NetRuntime, NetStore};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A store, and how to use it.
pub(super) struct Opened {
    pub store: Arc<dyn Store>,
    /// The same store, if it is behind a network.
    pub net: Option<Arc<NetStore>>,
    /// Everything is here: an incomplete image is better noticed at the start than by a guest. A store behind a network
    /// may be away for a while, and a warm cache serves without it.
    pub local: bool,
    /// When a guest's read fails.
    pub deadline: Duration,
}

/// What all mounts of a daemon share: fetch threads, memory, open cache files, connections.
#[derive(Debug)]
pub struct Storage {
    engine: Arc<Engine>,
    /// Threads for network traffic, once there is any.
    net: Mutex<Option<Arc<NetRuntime>>>,
    traces: Mutex<Traces>,
}

impl Storage {
    /// Starts the fetch threads.
    ///
    /// # Errors
    ///
    /// Threads cannot be started.
    pub fn new() -> Result<Self, ReaderError> {
        let engine = Engine::new(EngineOptions::default())?;
        Ok(Self { engine, net: Mutex::default(), traces: Mutex::default() })
    }

    /// The engine that all readers are opened from.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Has mounts from now on take part in these traces.
    pub fn set_traces(&self, traces: Traces) {
        *self.traces.lock().unwrap_or_else(PoisonError::into_inner) = traces;
    }

    /// The traces of new mounts.
    pub(super) fn traces(&self) -> Traces {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The runtime that all network stores are opened from.
    ///
    /// # Errors
    ///
    /// Its threads cannot be started.
    pub fn net(&self) -> Result<Arc<NetRuntime>, NetError> {
        let mut net = self.net.lock().unwrap_or_else(PoisonError::into_inner);
        match &*net {
            Some(runtime) => Ok(Arc::clone(runtime)),
            None => Ok(Arc::clone(net.insert(NetRuntime::start()?))),
        }
    }
}

/// Finds out whether a store behind a network can be made of its section, without asking it for anything. What is local is
/// looked for at the mount: a configuration may be looked at before its blobs are there.
///
/// # Errors
///
/// What the mount would say.
pub fn try_backend(backend: &Backend) -> anyhow::Result<()> {
    if backend.http().is_some() {
        open(backend, &Storage::new()?)?;
    }
    Ok(())
}

/// Opens the store of a configuration.
pub(super) fn open(backend: &Backend, storage: &Storage) -> anyhow::Result<Opened> {
    let kind = backend.kind();
    if backend.http().is_some_and(|http| http.skip_verify) {
        tracing::warn!("skip_verify: certificates of the {kind} backend's servers are not checked");
    }
    let opened = backend.open_with(|| storage.net()).with_context(|| format!("backend {kind}"))?;
    Ok(Opened {
        local: opened.net.is_none(),
        deadline: backend.http().map_or_else(|| ReaderOptions::default().deadline, |http| http.deadline),
        store: opened.store,
        net: opened.net,
    })
}
