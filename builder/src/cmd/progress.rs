//! The progress bar: on stderr, and only when that is a terminal.
//!
//! Owns: drawing. Does not own: the numbers, which the library counts.

use crate::progress::Progress;
use indicatif::{
    HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// How often it is drawn.
const INTERVAL: Duration = Duration::from_millis(200);

/// Draws nothing when stderr is no terminal.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    bars: MultiProgress,
}

impl Default for Bar {
    fn default() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()) }
    }
}

/// A bar on the screen; it goes away when this is dropped.
#[derive(Debug)]
pub(super) struct Shown(ProgressBar);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Bar {
    /// Shows `progress` until the result is dropped.
    pub(super) fn show(&self, progress: &Arc<Progress>) -> Shown {
        let bar = self.bars.add(ProgressBar::new_spinner());
        let counters = progress.clone();
        let line = move |state: &ProgressState, out: &mut dyn Write| {
            let (bytes_in, bytes_out) = (counters.bytes_in(), counters.bytes_out());
            let rate = u128::from(bytes_in) * 1000 / state.elapsed().as_millis().max(1);
            // Nothing can be done about a terminal that does not take the line.
            let _ = write!(
                out,
                "{} entries, {} files, {} at {}/s",
                HumanCount(counters.entries()),
                HumanCount(counters.files()),
                HumanBytes(bytes_in),
                HumanBytes(u64::try_from(rate).unwrap_or(u64::MAX)),
            );
            if let Some(percent) = (u128::from(bytes_out) * 100).checked_div(u128::from(bytes_in)) {
                let _ = write!(out, ", stored {} ({percent}%)", HumanBytes(bytes_out));
            }
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed_precise}] {line}") {
            bar.set_style(style.with_key("line", line));
        }
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(INTERVAL);
        }
        Shown(bar)
    }

    /// Runs `write` with the bar out of the way.
    pub(super) fn around<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bars.suspend(write)
    }
}
