//! From a backend section to the store that it speaks of.

use crate::{Backend, LocalFs, NetError, NetRuntime, NetStore};
use rafs::store::{LocalDisk, LocalFs as LocalStore, LocalFsOptions, Store};
use std::sync::Arc;

/// A store that is open.
#[derive(Clone, Debug)]
pub struct OpenedStore {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same store, if it is behind a network.
    pub net: Option<Arc<NetStore>>,
}

impl Backend {
    /// Opens the store that this speaks of. Network stores own their threads, which end with them.
    ///
    /// # Errors
    /// [`NetError`]: the options cannot be honoured, or a local place is not there.
    pub fn open(&self) -> Result<Arc<dyn Store>, NetError> {
        Ok(self.open_with(NetRuntime::start)?.store)
    }

    /// The same with threads that several stores share; `runtime` is asked for them only if there is a network.
    ///
    /// # Errors
    /// As [`Backend::open`].
    pub fn open_with(
        &self,
        runtime: impl FnOnce() -> Result<Arc<NetRuntime>, NetError>,
    ) -> Result<OpenedStore, NetError> {
        let local = |store: Arc<dyn Store>| OpenedStore { store, net: None };
        let net = match self {
            Self::LocalFs(LocalFs { dir, blob_file, alt_dirs }) => {
                let (dir, alt_dirs, blob_file) = (dir.clone(), alt_dirs.clone(), blob_file.clone());
                let options = LocalFsOptions { dir, alt_dirs, blob_file };
                return Ok(local(Arc::new(LocalStore::new(options).map_err(NetError::Local)?)));
            }
            Self::LocalDisk(disk) => {
                let disk = LocalDisk::new(&disk.device_path, disk.disable_gpt);
                return Ok(local(Arc::new(disk.map_err(NetError::Local)?)));
            }
            Self::Registry(options, http) => NetStore::registry(&runtime()?, options, http)?,
            Self::S3(options, http) => NetStore::s3(&runtime()?, options, http)?,
            Self::Oss(options, http) => NetStore::oss(&runtime()?, options, http)?,
            Self::HttpProxy(options, http) => NetStore::http_proxy(&runtime()?, options, http)?,
        };
        let net = Arc::new(net);
        Ok(OpenedStore { store: Arc::clone(&net) as Arc<dyn Store>, net: Some(net) })
    }
}
