//! Where log lines go and how they look.
//!
//! Owns: the subscriber, log files and their rotation. Does not own: what is logged.

use super::common::LogFormat;
use crate::log_level::{LogControl, LogLevel};
use anyhow::Context;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Old log files that are kept.
const OLD_FILES: u32 = 10;

/// Sends log lines of `level` and above to `file`, or to standard error.
///
/// # Errors
///
/// When the file cannot be opened for appending.
pub(super) fn start(
    level: LogLevel,
    format: LogFormat,
    file: Option<&Path>,
    rotation_mb: u64,
) -> anyhow::Result<LogControl> {
    let (writer, colours) = match file {
        None => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
        Some(file) => {
            let log = LogFile::open(with_extension(file), rotation_mb.saturating_mul(1_000_000))?;
            (BoxMakeWriter::new(Mutex::new(log)), false)
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_target(false)
        .with_writer(writer)
        // A line that cannot be written is lost; to say so on standard error would panic when that is what is full.
        .log_internal_errors(false);
    Ok(match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(colours).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogControl::new(move |level| handle.reload(filter(level)).is_ok())
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogControl::new(move |level| handle.reload(filter(level)).is_ok())
        }
    })
}

/// What is said at a level; libraries below us say nothing under "info" that anybody who runs this could use.
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    let libraries = if matches!(level, "trace" | "debug") {
        ",hyper=info,hyper_util=info,tokio=info,mio=info"
    } else {
        ""
    };
    EnvFilter::new(format!("{level}{libraries}"))
}

/// A name without extension gets ".log".
fn with_extension(file: &Path) -> PathBuf {
    if file.extension().is_some() { file.to_owned() } else { file.with_extension("log") }
}

/// A log file that is put aside when it is full.
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// 0: never.
    limit: u64,
}

impl LogFile {
    fn open(path: PathBuf, limit: u64) -> anyhow::Result<Self> {
        let open = || -> io::Result<(File, u64)> {
            let file = OpenOptions::new().append(true).create(true).open(&path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        let (file, size) = open().with_context(|| format!("cannot open log file {}", path.display()))?;
        Ok(Self { path, file, size, limit })
    }

    fn old(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}.gz"));
        name.into()
    }

    /// Puts the full file aside as number 1, compressed, and moves the older ones on.
    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..OLD_FILES).rev() {
            if let Err(error) = std::fs::rename(self.old(n), self.old(n + 1))
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        let full = self.path.with_extension("full");
        std::fs::rename(&self.path, &full)?;
        // As the first was made: the thread that comes here may have the umask of a guest.
        let mode = std::fs::metadata(&full)?.permissions();
        self.file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        self.file.set_permissions(mode.clone())?;
        self.size = 0;
        // Compressing must not hold up whoever has something to say.
        let to = self.old(1);
        std::thread::Builder::new().name("log-rotation".to_owned()).spawn(move || {
            let pack = || -> io::Result<()> {
                let new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&to)?;
                new.set_permissions(mode)?;
                let mut packed = flate2::write::GzEncoder::new(new, flate2::Compression::fast());
                io::copy(&mut File::open(&full)?, &mut packed)?;
                packed.finish()?.sync_all()?;
                std::fs::remove_file(&full)
            };
            if let Err(error) = pack() {
                let _ = writeln!(io::stderr(), "rafsd: cannot compress an old log file: {error}");
            }
        })?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.limit > 0 && self.size >= self.limit {
            // The line counts more than the limit.
            if self.rotate().is_err() {
                self.size = 0;
            }
        }
        let n = self.file.write(line)?;
        self.size = self.size.saturating_add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.log");
        let mut log = LogFile::open(path.clone(), 1000).unwrap();
        log.file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
        let first = log.file.metadata().unwrap().permissions();
        for round in 0..30 {
            log.write_all(&[b'a' + round; 600]).unwrap();
            // The compressing thread of a rotation ends before the next one begins.
            for _ in 0..1000 {
                if !dir.path().join("d.full").exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 11, "the file and 10 old ones");
        assert!(std::fs::metadata(&path).unwrap().len() <= 1200);
        let old = File::open(dir.path().join("d.log.1.gz")).unwrap();
        let mode = |file: &File| file.metadata().unwrap().permissions();
        assert_eq!(mode(&old), first, "whatever the umask of the thread that rotates");
        assert_eq!(mode(&log.file), first);
        let mut text = Vec::new();
        io::copy(&mut flate2::read::GzDecoder::new(old), &mut text).unwrap();
        assert_eq!(text.len(), 1200);
    }
}
