//! The threads that network stores share.

use crate::link::Link;
use crate::store::Shared;
use crate::{HttpOptions, NetError};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Threads for all network traffic of one program: they wait, check lengths and copy; decoding and verifying is done
/// by the reader's threads.
const WORKERS: usize = 2;

/// A runtime that stores share, with one pool of connections for all that reach servers in the same way, and one state
/// for stores with the same options. Make one for a program. Ends when the last of its stores does.
pub struct NetRuntime {
    runtime: Option<tokio::runtime::Runtime>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    links: Vec<(HttpOptions, Option<PathBuf>, Weak<Link>)>,
    stores: HashMap<String, Weak<Shared>>,
}

impl fmt::Debug for NetRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetRuntime").finish_non_exhaustive()
    }
}

impl NetRuntime {
    /// Starts the threads.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn start() -> Result<Arc<Self>, NetError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(16)
            .thread_name("rafs-net")
            .enable_all()
            .build()
            .map_err(NetError::Runtime)?;
        Ok(Arc::new(Self { runtime: Some(runtime), known: Mutex::default() }))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(task));
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to servers as `http` says, or to a unix socket.
    pub(crate) fn link(&self, http: &HttpOptions, socket: Option<PathBuf>) -> Result<Arc<Link>, NetError> {
        // Options that are not the link's business.
        let own = HttpOptions::default();
        let key = HttpOptions {
            retry_limit: own.retry_limit,
            deadline: own.deadline,
            rate_limit: own.rate_limit,
            mirrors: own.mirrors,
            ..http.clone()
        };
        let mut known = self.known();
        known.links.retain(|(.., link)| link.strong_count() > 0);
        let same = known.links.iter().find(|(k, s, _)| *k == key && *s == socket);
        if let Some(link) = same.and_then(|(.., link)| link.upgrade()) {
            return Ok(link);
        }
        let _guard = self.runtime.as_ref().map(tokio::runtime::Runtime::enter);
        let link = Arc::new(match &socket {
            Some(socket) => Link::on_socket(http, socket)?,
            None => Link::new(http)?,
        });
        if let Some(proxied) = link.proxied() {
            proxied.watch(self);
        }
        known.links.push((key, socket, Arc::downgrade(&link)));
        Ok(link)
    }

    /// The store with this identity: one that is in use, or what `make` makes.
    pub(crate) fn store(
        &self,
        identity: &str,
        make: impl FnOnce() -> Result<Shared, NetError>,
    ) -> Result<Arc<Shared>, NetError> {
        let mut known = self.known();
        known.stores.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = known.stores.get(identity).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let store = Arc::new(make()?);
        known.stores.insert(identity.to_owned(), Arc::downgrade(&store));
        Ok(store)
    }
}

impl Drop for NetRuntime {
    fn drop(&mut self) {
        // The last store may go away in a completion, on one of these threads: it cannot wait for itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HttpProxyOptions, NetStore};
    use std::time::Duration;

    #[test]
    fn stores_share_connections_and_equal_ones_their_state() {
        let runtime = NetRuntime::start().unwrap();
        let options = |path: &str| HttpProxyOptions { addr: "http://h".into(), path: path.into() };
        let http = HttpOptions::default();
        let open =
            |path: &str, http: &HttpOptions| NetStore::http_proxy(&runtime, &options(path), http).unwrap();
        let counts = || {
            let known = runtime.known();
            (known.links.len(), known.stores.len())
        };
        let stores = [open("a", &http), open("a", &http), open("b", &http)];
        assert_eq!(counts(), (1, 2));
        let patient = HttpOptions { deadline: Duration::from_secs(60), ..http.clone() };
        let trusting = HttpOptions { skip_verify: true, ..http };
        let more = [open("a", &patient), open("a", &trusting)];
        assert_eq!(counts(), (2, 4));
        drop((stores, more));
        let _again = open("a", &HttpOptions::default());
        assert_eq!(counts(), (1, 1), "what nobody uses is forgotten");
    }
}
