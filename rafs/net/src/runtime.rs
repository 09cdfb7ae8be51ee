//! The threads that network stores share.

use crate::NetError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

/// Threads for all network traffic of one program: they wait, check lengths and copy; decoding and verifying is done
/// by the reader's threads.
const WORKERS: usize = 2;

/// A runtime that stores share. Ends when the last of them does.
pub struct NetRuntime {
    runtime: Option<tokio::runtime::Runtime>,
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
        Ok(Arc::new(Self { runtime: Some(runtime) }))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(task));
        }
    }

    /// Runs `setup` where clients can be made.
    pub(crate) fn enter<T>(&self, setup: impl FnOnce() -> T) -> T {
        let _guard = self.runtime.as_ref().map(tokio::runtime::Runtime::enter);
        setup()
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
