//! The `--output-json` file (clients read `blobs`, `version`, `fs_version` and `compressor`).
//!
//! Owns: its fields. Does not own: which commands write it.

use crate::output::Output;
use anyhow::Context as _;
use rafs::image::FsVersion;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The report of a command that makes or reads an image.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    /// Version and commit of this program.
    version: String,
    /// Path of the bootstrap; empty when it is inlined.
    pub bootstrap: String,
    /// Ids in the blob table, in table order.
    pub blobs: &'a [String],
    /// Path of the bootstrap of external files; empty without such.
    pub external_bootstrap: String,
    /// Ids of the blobs that hold them.
    pub external_blobs: &'a [String],
    /// For people; no fixed set of keys.
    pub trace: Trace<'a>,
    /// `5` or `6`.
    pub fs_version: String,
    /// Name of the superblock's compressor.
    pub compressor: &'static str,
}

/// Times and counters.
#[derive(Debug, Default, Serialize)]
pub(super) struct Trace<'a> {
    /// Seconds by step.
    pub consumed_time: BTreeMap<&'a str, f64>,
    /// Counters and strings.
    pub registered_events: BTreeMap<&'a str, serde_json::Value>,
}

impl<'a> Report<'a> {
    /// A report with empty trace.
    pub(super) fn new(
        bootstrap: &Path,
        blobs: &'a [String],
        version: FsVersion,
        compressor: &'static str,
    ) -> Self {
        Self {
            version: super::version::version_and_commit(),
            bootstrap: bootstrap.to_string_lossy().into_owned(),
            blobs,
            external_bootstrap: String::new(),
            external_blobs: &[],
            trace: Trace::default(),
            fs_version: version.to_string(),
            compressor,
        }
    }

    /// Writes it to `path`, over several lines.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        Self::put(serde_json::to_string_pretty(self), path)
    }

    /// Writes it to `path`, in one line.
    pub(super) fn write_compact(&self, path: &Path) -> anyhow::Result<()> {
        Self::put(serde_json::to_string(self), path)
    }

    fn put(text: serde_json::Result<String>, path: &Path) -> anyhow::Result<()> {
        let text = text.context("cannot encode the JSON report")?;
        let mut output = Output::create(path).context("cannot write the JSON report")?;
        output.write(text.as_bytes()).context("cannot write the JSON report")?;
        output.commit().context("cannot write the JSON report")?;
        Ok(())
    }
}
