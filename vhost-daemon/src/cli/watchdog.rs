//! systemd's watchdog: it hears from us as long as the daemon answers.
//!
//! Owns: asking, and saying so. What is asked is what clients ask: the API, where there is one, else the daemon itself. Does
//! not own: the message ([`crate::notify`]).

use crate::daemon::Daemon;
use crate::notify;
use anyhow::Context;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A watchdog that runs; dropping it ends it.
pub(super) struct Watchdog {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts it if systemd wants to hear from us.
pub(super) fn start(daemon: &Arc<Daemon>, api: Option<&Path>) -> anyhow::Result<Option<Watchdog>> {
    let Some(period) = notify::watchdog_period() else { return Ok(None) };
    let (stop, stopped) = mpsc::channel();
    let (daemon, api): (_, Option<PathBuf>) = (Arc::clone(daemon), api.map(Path::to_owned));
    // Half as often would be once too rarely.
    let pause = period / 3;
    let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            // Waits for ever where somebody holds its lock for ever, and then nobody is told.
            drop(daemon.mounted());
            match api.as_deref().map(|path| answers(path, pause)) {
                None | Some(Ok(())) => notify::alive(),
                Some(Err(error)) => tracing::warn!("the API does not answer: {error}"),
            }
        }
    });
    let thread = thread.context("cannot start the watchdog's thread")?;
    Ok(Some(Watchdog { stop: Some(stop), thread: Some(thread) }))
}

/// Whether the API says anything at all.
fn answers(path: &Path, patience: Duration) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut start = [0; 5];
    stream.read_exact(&mut start)?;
    if start == *b"HTTP/" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
