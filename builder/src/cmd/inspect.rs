//! `rafs-image inspect`.
//!
//! Owns: its flags, the prompt, and silence: a client reads stdout and stderr of a request together as one JSON
//! value. Does not own: the commands.

use super::backend::ConfigFile;
use crate::inspect::Inspector;
use anyhow::{anyhow, bail};
use rafs::image::Image;
use std::io::{BufRead, Write};
use std::path::PathBuf;

/// Look around in an image.
///
/// Without --request a prompt takes commands from standard input; `help` lists them. With --request one command
/// is run and its result printed as JSON.
#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// Bootstrap to look into, or a blob with an inlined one
    #[arg(required_unless_present = "bootstrap_flag", conflicts_with = "bootstrap_flag")]
    bootstrap: Option<PathBuf>,

    /// Older form of the positional argument
    #[arg(short = 'B', long = "bootstrap", value_name = "FILE", id = "bootstrap_flag")]
    bootstrap_flag: Option<PathBuf>,

    /// Accepted for compatibility; no data is read
    #[arg(short = 'D', long, value_name = "DIR", hide = true, conflicts_with = "config")]
    blob_dir: Option<PathBuf>,

    /// Configuration file that names a backend. It is checked; no data is read
    #[arg(short = 'C', long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Run this command, print JSON and exit: blobs, prefetch, stats, ...
    #[arg(short = 'R', long, value_name = "COMMAND")]
    request: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let Some(bootstrap) = args.bootstrap.as_ref().or(args.bootstrap_flag.as_ref()) else {
        bail!("say which bootstrap to inspect");
    };
    if let Some(file) = &args.config {
        ConfigFile::load(file)?;
    }
    let image = Image::open(bootstrap)?;
    let mut inspector = Inspector::new(&image);
    let mut stdout = std::io::stdout().lock();
    if let Some(request) = &args.request {
        if request.trim() == "help" {
            bail!("help is for the prompt, not for requests");
        }
        let answer = inspector.run(request).map_err(|reason| anyhow!(reason))?;
        if answer.json.is_null() {
            stdout.write_all(answer.text.as_bytes())?;
        }
        write!(stdout, "{}", answer.json)?;
        return Ok(());
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        write!(stdout, "Inspecting RAFS :> ")?;
        stdout.flush()?;
        let Some(line) = lines.next().transpose()? else { break };
        match line.trim() {
            "" => {}
            "exit" | "q" => break,
            command => match inspector.run(command) {
                Ok(answer) => stdout.write_all(answer.text.as_bytes())?,
                Err(reason) => writeln!(stdout, "{reason}")?,
            },
        }
    }
    Ok(())
}
