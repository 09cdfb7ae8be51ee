//! Log lines: level, place, form.
//!
//! Owns: the line form `[YYYY-MM-DD hh:mm:ss.ffffff +00:00] LEVEL [file:line] message` (no place for INFO), and
//! that logs never reach stdout. Does not own: what is logged.

use super::progress::Bar;
use anyhow::Context as _;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// How much is logged.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Makes `level` and above go to `file`, or to stderr around the progress bar.
pub(super) fn start(level: Level, file: Option<&Path>, bar: Bar) -> anyhow::Result<()> {
    let level = match level {
        Level::Trace => tracing::Level::TRACE,
        Level::Debug => tracing::Level::DEBUG,
        Level::Info => tracing::Level::INFO,
        Level::Warn => tracing::Level::WARN,
        Level::Error => tracing::Level::ERROR,
    };
    let file = match file {
        None => None,
        Some(path) => {
            let path =
                if path.extension().is_some() { path.to_path_buf() } else { path.with_extension("log") };
            let file = File::options().create(true).append(true).open(&path);
            Some(file.with_context(|| format!("cannot open the log file {path:?}"))?)
        }
    };
    let subscriber = tracing_subscriber::fmt()
        // A line that cannot be written is lost; to say so on standard error would panic when that is what is full.
        .log_internal_errors(false)
        .with_max_level(level)
        .event_format(Lines)
        .with_writer(Logs { file, bar })
        .finish();
    // A second start in one process (tests of the command line) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

struct Logs {
    file: Option<File>,
    bar: Bar,
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = LogWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LogWriter(self)
    }
}

struct LogWriter<'a>(&'a Logs);

impl Write for LogWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0.file {
            Some(file) => (&*file).write_all(bytes)?,
            None => self.0.bar.around(|| io::stderr().write_all(bytes))?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        write!(writer, "[{}] {} ", Timestamp::now(), meta.level())?;
        if *meta.level() != tracing::Level::INFO
            && let (Some(file), Some(line)) = (meta.file(), meta.line())
        {
            write!(writer, "[{file}:{line}] ")?;
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// A moment in UTC, split into calendar fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timestamp {
    year: i64,
    month: u64,
    day: u64,
    second_of_day: u64,
    micros: u32,
}

impl Timestamp {
    fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self::from_epoch(since.as_secs(), since.subsec_micros())
    }

    /// `seconds` after the epoch. Days are counted from 1 March of year 0, so that a leap day ends a year.
    pub(super) fn from_epoch(seconds: u64, micros: u32) -> Self {
        let days = seconds / 86400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = i64::try_from(year_of_era + era * 400).unwrap_or(i64::MAX - 1) + i64::from(month <= 2);
        Self { year, month, day, second_of_day: seconds % 86400, micros }
    }

    fn clock(&self) -> (u64, u64, u64) {
        (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60)
    }

    /// `YYYY-MM-DDThh:mm:ssZ`.
    pub(super) fn rfc3339(&self) -> String {
        let (h, m, s) = self.clock();
        format!("{:04}-{:02}-{:02}T{h:02}:{m:02}:{s:02}Z", self.year, self.month, self.day)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (h, m, s) = self.clock();
        let Self { year, month, day, micros, .. } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}.{micros:06} +00:00")
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn dates_of_known_seconds() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp::from_epoch(seconds, 0).rfc3339(), date);
        }
        assert_eq!(Timestamp::from_epoch(1, 5).to_string(), "1970-01-01 00:00:01.000005 +00:00");
    }
}
