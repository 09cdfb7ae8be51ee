//! How much is logged, and changing it while running.

use std::fmt;
use std::sync::Arc;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What developers need.
    Debug,
    /// What happens.
    Info,
    /// What is not as it should be.
    Warn,
    /// What failed.
    Error,
}

impl LogLevel {
    /// From the word that the API and the command line use.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "trace" => Some(Self::Trace),
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" | "warning" => Some(Self::Warn),
            "error" => Some(Self::Error),
            _ => None,
        }
    }
}

type Set = dyn Fn(LogLevel) -> bool + Send + Sync;

/// Changes the level of a log that runs.
#[derive(Clone)]
pub struct LogControl(Arc<Set>);

impl LogControl {
    /// A control that calls `set`, which says whether it worked.
    pub fn new(set: impl Fn(LogLevel) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }

    /// Changes the level; false when there is no log.
    #[must_use]
    pub fn set(&self, level: LogLevel) -> bool {
        (self.0)(level)
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogControl")
    }
}
