//! `rafs-image stat`.
//!
//! Owns: its flags, its tables. Does not own: counting.

use super::values::DigesterArg;
use crate::stat::{self, ImageStat, StatBase};
use anyhow::{Context as _, bail};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Show numbers about images: files, sizes, chunks, and what they share.
#[derive(Debug, clap::Args)]
pub(super) struct StatArgs {
    /// Bootstrap of an image
    #[arg(
        short = 'B',
        long,
        value_name = "FILE",
        required_unless_present = "blob_dir",
        conflicts_with = "blob_dir"
    )]
    bootstrap: Option<PathBuf>,

    /// Directory of bootstraps, which are counted together; files with an extension are passed over
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,

    /// Bootstrap of an image to compare with them
    #[arg(short = 'T', long, value_name = "FILE")]
    target: Option<PathBuf>,

    /// Accepted for compatibility: no data is read
    #[arg(short = 'C', long, value_name = "FILE", hide = true)]
    config: Option<PathBuf>,

    /// Accepted for compatibility: images say how their digests were made
    #[arg(long, value_name = "NAME", hide = true)]
    digester: Option<DigesterArg>,

    /// Write the numbers to FILE, as JSON, in place of tables
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &StatArgs) -> anyhow::Result<()> {
    let base = match (&args.bootstrap, &args.blob_dir) {
        (Some(file), _) => StatBase::Bootstrap(file.clone()),
        (None, Some(dir)) => StatBase::Directory(dir.clone()),
        (None, None) => bail!("say which image: --bootstrap or --blob-dir"),
    };
    let stat = stat::stat(&base, args.target.as_deref()).context("failed to count")?;
    if let Some(path) = &args.output_json {
        let text = serde_json::to_string(&stat).context("cannot encode the numbers")?;
        return std::fs::write(path, text).with_context(|| format!("cannot write the JSON report {path:?}"));
    }
    let mut text = String::new();
    let title = if stat.dedup_enabled { "Images" } else { "Image" };
    table(title, &stat.base_image, stat.dedup_enabled, &mut text)?;
    if stat.target_enabled {
        text.push('\n');
        table("Target image", &stat.target_image, true, &mut text)?;
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn table(title: &str, image: &ImageStat, compared: bool, text: &mut String) -> std::fmt::Result {
    writeln!(text, "{title}")?;
    for (name, number) in [
        ("directories", image.dirs),
        ("files", image.files),
        ("symlinks", image.symlinks),
        ("bytes of files", image.file_size),
        ("chunks", image.chunks),
        ("  stored bytes", image.comp_size),
        ("  plain bytes", image.uncomp_size),
        ("  bytes of padding", image.padding_size),
        ("repeated chunks", image.dedup_chunks),
        ("  stored bytes", image.dedup_comp_size),
        ("  plain bytes", image.dedup_uncomp_size),
    ] {
        writeln!(text, "  {name:<24}{number:>20}")?;
    }
    if compared {
        for (name, number) in [
            ("distinct own chunks", image.own_chunks),
            ("  stored bytes", image.own_comp_size),
            ("  plain bytes", image.own_uncomp_size),
            ("chunks of earlier images", image.ref_chunks),
            ("  stored bytes", image.ref_comp_size),
            ("  plain bytes", image.ref_uncomp_size),
        ] {
            writeln!(text, "  {name:<24}{number:>20}")?;
        }
    }
    writeln!(text, "\n  {:<24}{:>20}", "chunks of up to", "number")?;
    for (n, count) in image.chunk_sizes.iter().enumerate().filter(|(_, count)| **count > 0) {
        writeln!(text, "  {:<24}{count:>20}", bytes(4096 << n))?;
    }
    writeln!(text, "\n  {:<24}{:>20}", "files of less than", "number")?;
    for (n, count) in image.file_sizes.iter().enumerate().filter(|(_, count)| **count > 0) {
        writeln!(text, "  {:<24}{count:>20}", bytes(1 << n))?;
    }
    Ok(())
}

/// A power of two in words.
fn bytes(n: u64) -> String {
    match n {
        0..0x400 => format!("{n} B"),
        0x400..0x10_0000 => format!("{} KiB", n >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", n >> 20),
        _ => format!("{} GiB", n >> 30),
    }
}
