//! SIGTERM and SIGINT during a build.
//!
//! Owns: asking the build to stop, and ending the process when it cannot hear. Does not own: what stopping means.

use crate::progress::Progress;
use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// How long a build has to stop by itself; one that waits for a FIFO never does.
const GRACE: Duration = Duration::from_millis(500);

/// Watches for signals until the process ends.
pub(super) fn watch(progress: &Arc<Progress>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot watch for signals")?;
    let progress = progress.clone();
    let wait = move || {
        for signal in signals.forever() {
            progress.interrupt(signal);
            std::thread::sleep(GRACE);
            // What has no name yet goes away with the process.
            let at = progress.at();
            let text =
                format!("Error: interrupted by signal {signal} while reading {at:?}: nothing was written\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}
