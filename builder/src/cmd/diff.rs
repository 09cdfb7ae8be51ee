//! `rafs-image diff`.
//!
//! Owns: its flags, the form of its output, its exit status. Does not own: comparing.

use crate::blobs::BlobPlace;
use crate::diff::{self, Change, ChunkSum, DiffOptions, DiffSummary};
use crate::error::BuildError;
use crate::human::bytes;
use crate::output::Output;
use anyhow::Context as _;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What standard output is called in errors.
pub(super) const STDOUT: &str = "<stdout>";
/// Collected before it is written.
const BUFFER: usize = 64 << 10;

/// Show what changed between two images, or an image and a directory.
///
/// Lists every path that was added (+), removed (-) or changed (~, with the attributes: type, mode, owner, mtime, size,
/// content, target, rdev, xattr, hardlink), then how many chunks of B are in A too and what a host that has A fetches to
/// run B. Images may be v5 or v6, also one of each. Contents are compared by chunk digests; only where two images cut or
/// digest files in different ways they are read, which needs --blob-dir.
///
/// Exit status: 0 no difference, 1 differences, 2 trouble.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  What a new version of an image changes, and what it costs a host that runs the old one:
    rafs-image diff old.boot new.boot
  Whether an image holds what a directory does, whatever the times:
    rafs-image diff --ignore mtime image.boot rootfs/
  For programs; paths that are no UTF-8 come as text and in hexadecimal (path_hex):
    rafs-image diff --json old.boot new.boot | jq '.changes[] | select(.change == \"added\") | .path'")]
pub(super) struct DiffArgs {
    /// Bootstrap, blob with an inlined bootstrap, or directory: the old state
    a: PathBuf,

    /// The same: the new state. One of the two must be an image
    b: PathBuf,

    /// Directory that holds the blobs of both, for contents that digests cannot compare
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,

    /// Directory that holds the blobs of B, when they are elsewhere
    #[arg(long, value_name = "DIR")]
    blob_dir_b: Option<PathBuf>,

    /// Attributes that do not count
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = [
        "mode", "owner", "mtime", "size", "content", "target", "rdev", "xattr", "hardlink",
    ])]
    ignore: Vec<String>,

    /// Leave out the list of paths
    #[arg(short, long)]
    summary: bool,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,

    /// Write JSON to FILE too
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Runs the command. `true`: there are differences.
pub(super) fn run(args: &DiffArgs) -> anyhow::Result<bool> {
    let in_dir = |dir: &Option<PathBuf>| dir.clone().map(BlobPlace::Directory);
    let options = DiffOptions {
        sides: [args.a.clone(), args.b.clone()],
        blobs: [in_dir(&args.blob_dir), in_dir(&args.blob_dir_b).or_else(|| in_dir(&args.blob_dir))],
        ignore: args.ignore.clone(),
    };
    let mut stdout = Sink::new(Target::Stdout(std::io::stdout().lock()));
    let mut file = match &args.output_json {
        Some(path) => Some(Sink::new(Target::File(Output::create(path)?))),
        None => None,
    };
    let mut json_files: Vec<&mut Sink<'_>> = file.iter_mut().collect();
    let mut text = None;
    if args.json {
        json_files.push(&mut stdout);
    } else {
        text = Some(&mut stdout);
    }
    for sink in &mut json_files {
        sink.put(&head(args)?)?;
    }
    let mut first = true;
    let found = &mut |change: &Change| -> Result<(), BuildError> {
        if args.summary {
            return Ok(());
        }
        if let Some(text) = &mut text {
            text.put(&format!("{change}\n"))?;
        }
        if !json_files.is_empty() {
            let line = format!("{}\n    {}", if first { "" } else { "," }, change.json());
            first = false;
            for sink in &mut json_files {
                sink.put(&line)?;
            }
        }
        Ok(())
    };
    let compared = diff::diff(&options, found);
    let failed = || format!("failed to compare {:?} and {:?}", args.a, args.b);
    let summary = compared.with_context(failed)?;
    if let Some(text) = text {
        text.put(&in_words(&summary)?)?;
    }
    let tail = format!("{}],\n  \"summary\": {}\n}}\n", if first { "" } else { "\n  " }, in_json(&summary)?);
    for sink in json_files {
        sink.put(&tail)?;
    }
    stdout.finish()?;
    if let Some(file) = file {
        file.finish()?;
    }
    Ok(!summary.is_same())
}

fn head(args: &DiffArgs) -> anyhow::Result<String> {
    let name = |path: &Path| serde_json::to_string(&path.to_string_lossy());
    Ok(format!("{{\n  \"a\": {},\n  \"b\": {},\n  \"changes\": [", name(&args.a)?, name(&args.b)?))
}

fn in_json(summary: &DiffSummary) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(summary)?;
    if let Some(chunks) = value.get_mut("chunks").and_then(|chunks| chunks.as_object_mut()) {
        let fetch = serde_json::json!({
            "with_chunks_found_by_digest": summary.chunks.fetch_by_digest(),
            "with_caches_kept_by_blob": summary.chunks.fetch_by_blob(),
        });
        chunks.insert("bytes_to_fetch".to_owned(), fetch);
    }
    Ok(serde_json::to_string(&value)?)
}

/// The summary for people.
fn in_words(summary: &DiffSummary) -> anyhow::Result<String> {
    let mut text = String::new();
    if summary.is_same() {
        writeln!(text, "No differences in {} paths.", summary.unchanged)?;
    } else {
        let DiffSummary { added, removed, changed, unchanged, .. } = summary;
        writeln!(text, "\n{added} added, {removed} removed, {changed} changed, {unchanged} unchanged")?;
        let attributes: Vec<String> =
            summary.by_attribute.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if !attributes.is_empty() {
            writeln!(text, "changed attributes: {}", attributes.join(", "))?;
        }
    }
    let [from, to] = summary.file_bytes.map(bytes);
    writeln!(text, "bytes of files: {from} -> {to}")?;
    let chunks = &summary.chunks;
    let about = if chunks.exact { "" } else { "about " };
    let shared = ChunkSum {
        chunks: chunks.same_blob.chunks + chunks.other_blob.chunks,
        plain_bytes: chunks.same_blob.plain_bytes + chunks.other_blob.plain_bytes,
        stored_bytes: chunks.same_blob.stored_bytes.saturating_add(chunks.other_blob.stored_bytes),
    };
    for (name, sum) in [("chunks of B", &chunks.total), ("  shared with A", &shared), ("  new", &chunks.new)]
    {
        writeln!(
            text,
            "{name}: {}, {} plain, {about}{} stored",
            sum.chunks,
            bytes(sum.plain_bytes),
            bytes(sum.stored_bytes)
        )?;
    }
    write!(text, "a host that has A fetches {about}{}", bytes(chunks.fetch_by_digest()))?;
    if chunks.other_blob.chunks > 0 {
        write!(
            text,
            " to run B if its cache finds chunks by digest, {about}{} if it is kept by blob ({} shared chunks lie in \
             other blobs than A's)",
            bytes(chunks.fetch_by_blob()),
            chunks.other_blob.chunks
        )?;
    } else {
        text.push_str(" to run B");
    }
    text.push('\n');
    Ok(text)
}

enum Target<'a> {
    Stdout(std::io::StdoutLock<'a>),
    File(Output),
}

/// Collects small writes.
struct Sink<'a> {
    target: Target<'a>,
    buffer: Vec<u8>,
}

impl<'a> Sink<'a> {
    fn new(target: Target<'a>) -> Self {
        Self { target, buffer: Vec::new() }
    }

    fn put(&mut self, text: &str) -> Result<(), BuildError> {
        self.buffer.extend_from_slice(text.as_bytes());
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        match &mut self.target {
            Target::Stdout(stdout) => {
                stdout
                    .write_all(&self.buffer)
                    .and_then(|()| stdout.flush())
                    .map_err(BuildError::io("write", STDOUT))?;
            }
            Target::File(output) => output.write(&self.buffer)?,
        }
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<(), BuildError> {
        self.flush()?;
        match self.target {
            Target::Stdout(_) => Ok(()),
            Target::File(output) => output.commit().map(drop),
        }
    }
}
