//! `rafsd config check`.

use crate::config::{Config, explain};
use crate::mounts;
use anyhow::Context;
use std::io::Write;
use std::path::Path;

/// Explains a file on standard output.
///
/// # Errors
///
/// The file is not usable; the sentence says why.
pub(super) fn run(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file).with_context(|| file.display().to_string())?;
    // What a mount would refuse: credentials, URLs, certificates. Nothing is asked of the network.
    mounts::try_backend(&config.backend)
        .with_context(|| format!("{}: invalid configuration", file.display()))?;
    let text = explain(file)?;
    let mut out = std::io::stdout();
    write!(out, "{text}")?;
    for remark in &config.remarks {
        writeln!(out, "note: {remark}")?;
    }
    writeln!(out, "{}: usable", file.display())?;
    Ok(())
}
