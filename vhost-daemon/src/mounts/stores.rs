//! From a configuration to the store it speaks of.

use super::Traces;
use crate::config::{Backend, LocalFs};
use anyhow::Context;
use rafs::reader::{Engine, EngineOptions, ReaderError, ReaderOptions};
use rafs::store::{LocalDisk, LocalFs as LocalStore, LocalFsOptions, Store};
use rafs_net::{HttpOptions, NetError, NetRuntime, NetStore};
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

/// Opens the store of a configuration.
pub(super) fn open(backend: &Backend, storage: &Storage) -> anyhow::Result<Opened> {
    let local = |store: Arc<dyn Store>| Opened {
        store,
        net: None,
        local: true,
        deadline: ReaderOptions::default().deadline,
    };
    Ok(match backend {
        Backend::LocalFs(LocalFs { dir, blob_file, alt_dirs }) => {
            let (dir, alt_dirs, blob_file) = (dir.clone(), alt_dirs.clone(), blob_file.clone());
            local(Arc::new(LocalStore::new(LocalFsOptions { dir, alt_dirs, blob_file })?))
        }
        Backend::LocalDisk(disk) => local(Arc::new(LocalDisk::new(&disk.device_path, disk.disable_gpt)?)),
        Backend::Registry(options, http) => {
            net(storage, "registry", http, |r| NetStore::registry(r, options, http))?
        }
        Backend::S3(options, http) => net(storage, "s3", http, |r| NetStore::s3(r, options, http))?,
        Backend::Oss(options, http) => net(storage, "oss", http, |r| NetStore::oss(r, options, http))?,
        Backend::HttpProxy(options, http) => {
            net(storage, "http-proxy", http, |r| NetStore::http_proxy(r, options, http))?
        }
    })
}

fn net(
    storage: &Storage,
    kind: &str,
    http: &HttpOptions,
    open: impl FnOnce(&Arc<NetRuntime>) -> Result<NetStore, NetError>,
) -> anyhow::Result<Opened> {
    if http.skip_verify {
        tracing::warn!("skip_verify: certificates of the {kind} backend's servers are not checked");
    }
    let store = open(&storage.net()?).with_context(|| format!("backend {kind}"))?;
    let store = Arc::new(store);
    Ok(Opened {
        store: Arc::clone(&store) as Arc<dyn Store>,
        net: Some(store),
        local: false,
        deadline: http.deadline,
    })
}
