//! A corpus image being served: daemon, cache and expectation in one, for tests.

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::daemon::Daemon;
use super::image::{Case, corpus};
use crate::frontend::{Client, FrontendError, Options};

/// One interop case behind a running `rafsd` with a copy of its blobs.
#[derive(Debug)]
pub struct Served {
    /// The daemon.
    pub daemon: Daemon,
    /// The image and its tree.
    pub case: Case,
    _blobs: TempDir,
}

impl Served {
    /// Serves the case `name` with `queues` request queues.
    ///
    /// # Errors
    /// When there is no such case, or rafsd does not start.
    pub fn case(name: &str, queues: usize) -> Result<Self> {
        let case = corpus()?.into_iter().find(|c| c.name == name);
        Self::serve(case.with_context(|| format!("no interop case {name}"))?, queues)
    }

    /// Serves `case` with `queues` request queues.
    ///
    /// # Errors
    /// When rafsd does not start.
    pub fn serve(case: Case, queues: usize) -> Result<Self> {
        // The daemon keeps its cache files beside the blobs, and the corpus must stay as it is.
        let blobs = tempfile::tempdir()?;
        // An image without data has no blobs.
        for blob in std::fs::read_dir(&case.image.blobs).into_iter().flatten() {
            let blob = blob?;
            std::fs::copy(blob.path(), blobs.path().join(blob.file_name()))?;
        }
        let daemon = Daemon::rafsd(&case.image.bootstrap, blobs.path(), queues, &[])?;
        Ok(Self { daemon, case, _blobs: blobs })
    }

    /// A mounted guest with little memory.
    ///
    /// # Errors
    /// When the daemon does not serve it.
    pub fn client(&self) -> Result<Client, FrontendError> {
        Client::connect(&self.daemon.socket, &Options { memory_mib: 64, ..Options::default() })
    }

    /// The end of the daemon's log, for messages.
    #[must_use]
    pub fn log(&self) -> String {
        let log = self.daemon.process.output();
        let start = log.char_indices().rev().nth(4000).map_or(0, |(i, _)| i);
        log[start..].to_owned()
    }
}
