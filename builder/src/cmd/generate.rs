//! `completions` and `man`: what is generated from the command line's own definition.

use anyhow::Context as _;
use clap_complete::Shell;
use std::path::PathBuf;

/// `rafs-image completions`
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell to write a script for
    shell: Shell,
}

/// `rafs-image man`
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Directory, made if missing, to write `rafs-image*.1` to
    dir: PathBuf,
}

/// Prints a completion script.
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "rafs-image", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(())
}

/// Writes one page for the program and one for each subcommand.
pub(super) fn man(args: &ManArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {:?}", args.dir))?;
    clap_mangen::generate_to(super::command(), &args.dir)
        .with_context(|| format!("cannot write manual pages to {:?}", args.dir))
}
