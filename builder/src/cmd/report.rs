//! `rafs-image report`.
//!
//! Owns: its flags, where the forms of the report go. Does not own: figures, text and page.

use crate::output::Output;
use crate::report;
use crate::study::ChunkFacts;
use anyhow::Context as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Show where the bytes of an image are.
///
/// Sizes by directory, file and type before and after compression, layers and what of them is used, chunks that several
/// files share. With --html as one page that needs no network: a map of all directories to click through, and tables.
/// Only the bootstrap is read. Stored bytes are charged to the first file that uses a chunk.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  A page to look at in a browser:
    rafs-image report image.boot --html image.html
  The same figures as text, and for programs:
    rafs-image report image.boot
    rafs-image report --json image.boot | jq '.largest[0]'")]
pub(super) struct ReportArgs {
    /// Bootstrap, or a blob with an inlined one
    #[arg(required_unless_present = "bootstrap_flag", conflicts_with = "bootstrap_flag")]
    bootstrap: Option<PathBuf>,

    /// The same as the positional argument
    #[arg(short = 'B', long = "bootstrap", value_name = "FILE", id = "bootstrap_flag")]
    bootstrap_flag: Option<PathBuf>,

    /// Write a page to FILE instead of printing text
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,

    /// Write JSON to FILE too
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let path = args.bootstrap.as_ref().or(args.bootstrap_flag.as_ref());
    let path = path.context("say which bootstrap to report on")?;
    let failed = || format!("failed to report on {path:?}");
    let image = crate::layer::open(path).with_context(failed)?;
    image.check().with_context(failed)?;
    let facts = ChunkFacts::new(&image);
    let found = report::collect(&facts, path).with_context(failed)?;
    let write = |path: &PathBuf, text: &str| -> anyhow::Result<()> {
        let mut output = Output::create(path)?;
        output.write(text.as_bytes())?;
        output.commit()?;
        Ok(())
    };
    if let Some(html) = &args.html {
        write(html, &report::page(&found))?;
    }
    if let Some(json) = &args.output_json {
        write(json, &serde_json::to_string_pretty(&found.json())?)?;
    }
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&found.json())?)?;
    } else if args.html.is_none() {
        stdout.write_all(report::text(&found).as_bytes())?;
    }
    Ok(())
}
