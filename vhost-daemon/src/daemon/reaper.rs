//! What was unmounted, until its last request is answered.
//!
//! Owns: a thread that ends file systems when nothing uses them any more, so that an umount answers at once and no
//! request's own thread has to end what it runs in.

use crate::mounts::Backend;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often those that are busy are looked at.
const PERIOD: Duration = Duration::from_millis(20);
/// When one that is still busy is ended: after the longest deadline that reads have by default, and some.
const PATIENCE: Duration = Duration::from_secs(60);

/// The thread.
#[derive(Debug)]
pub(super) struct Reaper {
    inbox: Mutex<Option<mpsc::Sender<Arc<dyn Backend>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reaper {
    pub(super) fn start() -> io::Result<Self> {
        let (inbox, outbox) = mpsc::channel();
        let thread = std::thread::Builder::new().name("umount".to_owned()).spawn(move || run(&outbox))?;
        Ok(Self { inbox: Mutex::new(Some(inbox)), thread: Mutex::new(Some(thread)) })
    }

    /// Takes a file system that is shown nowhere any more.
    pub(super) fn take(&self, backend: Arc<dyn Backend>) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        match inbox.as_ref() {
            Some(inbox) => {
                let _ = inbox.send(backend);
            }
            None => backend.shutdown(),
        }
    }

    /// Ends all that is left at once.
    pub(super) fn stop(&self) {
        drop(self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn run(outbox: &mpsc::Receiver<Arc<dyn Backend>>) {
    let mut waiting: Vec<(Arc<dyn Backend>, Instant)> = Vec::new();
    loop {
        let next = if waiting.is_empty() {
            outbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            outbox.recv_timeout(PERIOD)
        };
        let over = matches!(next, Err(RecvTimeoutError::Disconnected));
        if let Ok(backend) = next {
            waiting.push((backend, Instant::now()));
        }
        waiting.retain(|(backend, since)| {
            let keep = !over && !backend.is_idle() && since.elapsed() < PATIENCE;
            if !keep {
                backend.shutdown();
            }
            keep
        });
        if over {
            return;
        }
    }
}
