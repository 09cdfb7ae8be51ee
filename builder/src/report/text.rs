//! A report as text for a terminal.
//!
//! Owns: the form. Does not own: figures.

use super::{Report, percent};
use crate::human::{bytes, count};
use crate::study::Shown;
use std::fmt::Write as _;

/// Rows of each list.
const ROWS: usize = 15;

/// The text.
pub(crate) fn render(report: &Report<'_>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

fn ratio(stored: u64, plain: u64) -> String {
    percent(stored, plain).map_or_else(String::new, |percent| format!("{percent}%"))
}

fn write(report: &Report<'_>, out: &mut String) -> std::fmt::Result {
    let totals = &report.totals;
    let about = if totals.estimated { "about " } else { "" };
    writeln!(
        out,
        "{}: RAFS v{}, {}, {}, chunks of {}, {} of metadata",
        report.name,
        report.version,
        report.compressor,
        report.digester,
        bytes(u64::from(report.chunk_size)),
        bytes(report.bootstrap_size)
    )?;
    writeln!(
        out,
        "{} files ({} further names), {} directories, {} symlinks, {} devices and the like",
        count(totals.files),
        count(totals.hardlinks),
        count(totals.directories),
        count(totals.symlinks),
        count(totals.specials)
    )?;
    writeln!(
        out,
        "{} of file data, {about}{} stored ({}); {} chunks, {} saved by chunks in common",
        bytes(totals.file_bytes),
        bytes(totals.stored_bytes),
        ratio(totals.stored_bytes, totals.file_bytes),
        count(totals.chunks),
        bytes(totals.deduplicated_bytes)
    )?;
    if totals.stored_twice_bytes > 0 {
        writeln!(
            out,
            "{about}{} are stored more than once, in several blobs",
            bytes(totals.stored_twice_bytes)
        )?;
    }
    let row = |out: &mut String, plain: u64, stored: u64, what: std::fmt::Arguments<'_>| {
        writeln!(out, "  {:>10}  {:>10}  {:>5}  {what}", bytes(plain), bytes(stored), ratio(stored, plain))
    };
    if !report.layers.is_empty() {
        writeln!(out, "\nLayers        files      stored         what")?;
    }
    for (n, layer) in report.layers.iter().enumerate() {
        let unused =
            if layer.unused() > 0 { format!(", {} unused", bytes(layer.unused())) } else { String::new() };
        row(
            out,
            layer.used_plain_bytes,
            layer.used_stored_bytes,
            format_args!("{n}: {}, {} files{unused}", Shown(layer.id.as_bytes()), count(layer.files)),
        )?;
    }
    writeln!(out, "\nDirectories   files      stored         what")?;
    for (path, plain, stored, files) in report.tree.top_directories().iter().take(ROWS) {
        row(out, *plain, *stored, format_args!("{}, {} files", Shown(path), count(*files)))?;
    }
    writeln!(out, "\nTypes         files      stored         what")?;
    for kind in report.kinds.iter().take(ROWS) {
        row(
            out,
            kind.file_bytes,
            kind.stored_bytes,
            format_args!("{}, {} files", kind.name, count(kind.files)),
        )?;
    }
    writeln!(out, "\nLargest files files      stored         what")?;
    for file in report.largest.iter().take(ROWS) {
        row(out, file.file_bytes, file.stored_bytes, format_args!("{}", Shown(&file.path)))?;
    }
    if !report.duplicates.is_empty() {
        writeln!(out, "\nShared chunks (saved, of so many bytes, used so often in so many files)")?;
    }
    for one in report.duplicates.iter().take(ROWS) {
        let users: Vec<String> = one.users.iter().take(3).map(|user| Shown(user).to_string()).collect();
        writeln!(
            out,
            "  {:>10}  {:>10}  {:>5}x {:>5}  {}{}{}",
            bytes(one.saved()),
            bytes(u64::from(one.len)),
            one.references,
            one.files,
            if one.zeros { "zeros: " } else { "" },
            users.join(", "),
            if one.files > 3 { ", ..." } else { "" }
        )?;
    }
    Ok(())
}
