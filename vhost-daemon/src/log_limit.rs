//! Log lines that a guest can cause, kept to a rate that a log can bear.
//!
//! Owns: the counting. Does not own: the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines let through in each window.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Lets ten lines through every ten seconds and says how many it kept back.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    lines: u32,
}

impl LogLimit {
    /// Logs a warning unless there were too many lines lately; the text is made only when it is wanted.
    pub(crate) fn warn(&self, text: impl FnOnce() -> String) {
        if self.allows() {
            tracing::warn!("{}", text());
        }
    }

    /// The same for what is nothing to worry about.
    pub(crate) fn info(&self, text: impl FnOnce() -> String) {
        if self.allows() {
            tracing::info!("{}", text());
        }
    }

    fn allows(&self) -> bool {
        let Ok(mut window) = self.0.lock() else { return false };
        let now = Instant::now();
        if window.start.is_none_or(|start| now.duration_since(start) >= WINDOW) {
            if window.lines > LINES {
                tracing::warn!("{} more lines of this kind were kept back", window.lines - LINES);
            }
            *window = Window { start: Some(now), lines: 0 };
        }
        window.lines = window.lines.saturating_add(1);
        window.lines <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_window() {
        let limit = LogLimit::default();
        let allowed = (0..1000).filter(|_| limit.allows()).count();
        assert_eq!(allowed, 10);
        limit.0.lock().unwrap().start = Instant::now().checked_sub(WINDOW);
        assert!(limit.allows());
    }
}
