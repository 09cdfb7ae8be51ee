//! From a configuration to the store it speaks of.

use crate::config::{Backend, LocalFs};
use anyhow::Context;
use rafs::reader::ReaderOptions;
use rafs::store::{LocalDisk, LocalFs as LocalStore, LocalFsOptions, Store};
use rafs_net::{HttpOptions, NetError, NetRuntime, NetStore};
use std::sync::Arc;
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

/// Opens the store of a configuration. Network stores own their threads, which end with them.
pub(super) fn open(backend: &Backend) -> anyhow::Result<Opened> {
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
        Backend::Registry(options, http) => net("registry", http, |r| NetStore::registry(r, options, http))?,
        Backend::S3(options, http) => net("s3", http, |r| NetStore::s3(r, options, http))?,
        Backend::Oss(options, http) => net("oss", http, |r| NetStore::oss(r, options, http))?,
        Backend::HttpProxy(options, http) => {
            net("http-proxy", http, |r| NetStore::http_proxy(r, options, http))?
        }
    })
}

fn net(
    kind: &str,
    http: &HttpOptions,
    open: impl FnOnce(&Arc<NetRuntime>) -> Result<NetStore, NetError>,
) -> anyhow::Result<Opened> {
    if http.skip_verify {
        tracing::warn!("skip_verify: certificates of the {kind} backend's servers are not checked");
    }
    let store = open(&NetRuntime::start()?).with_context(|| format!("backend {kind}"))?;
    let store = Arc::new(store);
    Ok(Opened {
        store: Arc::clone(&store) as Arc<dyn Store>,
        net: Some(store),
        local: false,
        deadline: http.deadline,
    })
}
