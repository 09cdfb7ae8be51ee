//! Where log lines go and how they look.
//!
//! Owns: the subscriber. Does not own: what is logged.

use super::LogLevel;
use anyhow::Context;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing_subscriber::filter::LevelFilter;

/// Sends log lines of `level` and above to `file`, or to standard error.
///
/// # Errors
///
/// When the file cannot be opened for appending.
pub(super) fn start(level: LogLevel, file: Option<&Path>) -> anyhow::Result<()> {
    let level = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false);
    match file {
        None => builder.with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init(),
        Some(file) => {
            let path = with_extension(file);
            let file = OpenOptions::new().append(true).create(true).open(&path);
            let file = file.with_context(|| format!("cannot open log file {}", path.display()))?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
    }
    Ok(())
}

/// A name without extension gets ".log".
fn with_extension(file: &Path) -> PathBuf {
    if file.extension().is_some() { file.to_owned() } else { file.with_extension("log") }
}
