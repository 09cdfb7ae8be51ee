//! The `rafs-image` command line.
//!
//! Owns: parsing, exit codes, where logs and results go. Does not own: any work; one file a subcommand, each
//! of which turns flags into options of the library and prints its report.
//!
//! Exit status: 0 success, 1 a failure at run time, 2 a usage error or images that do not go together; `diff` has
//! its own (0 the same, 1 different, 2 trouble). stdout carries results only.

mod backend;
mod check;
mod chunk_dict;
mod chunkdict;
mod compact;
mod create;
mod diff;
mod export;
mod generate;
mod inspect;
mod interrupt;
mod json;
mod logging;
mod merge;
mod optimize;
mod place;
mod prefetch;
mod progress;
mod report;
mod size;
mod stat;
mod unpack;
mod values;
mod version;

use crate::error::BuildError;
use crate::rebuild::RebuildError;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds, checks and converts RAFS (Nydus) images.
///
/// A RAFS image is a bootstrap (metadata) and blobs (chunks of file data). `rafsd` serves it to virtual
/// machines and fetches only the chunks that are read; a v6 bootstrap is also an EROFS file system.
#[derive(Debug, Parser)]
#[command(
    name = "rafs-image",
    disable_version_flag = true,
    max_term_width = 110,
    subcommand_required = false
)]
struct Cli {
    /// Append logs to FILE instead of standard error (`.log` is added when it has no extension)
    #[arg(short = 'L', long, value_name = "FILE", global = true)]
    log_file: Option<PathBuf>,

    /// Log messages of this level and above
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info", global = true)]
    log_level: logging::Level,

    /// Print version, commit, build time and compiler
    #[arg(short = 'V', long)]
    version: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an image from a directory or a tar archive
    Create(Box<create::CreateArgs>),
    /// Merge bootstraps of layers into one
    Merge(Box<merge::MergeArgs>),
    /// Check an image: all of its metadata, and its data when the blobs are given
    Check(check::CheckArgs),
    /// Show what changed between two images, or an image and a directory
    Diff(diff::DiffArgs),
    /// Show where the bytes of an image are, as text or as a page for a browser
    Report(report::ReportArgs),
    /// Make fewer and fuller blobs of an image
    Compact(compact::CompactArgs),
    /// Put what is wanted first into a blob of its own
    Optimize(optimize::OptimizeArgs),
    /// Make chunk dictionaries
    Chunkdict(chunkdict::ChunkdictArgs),
    /// Show numbers about images
    Stat(stat::StatArgs),
    /// Look around in an image
    Inspect(inspect::InspectArgs),
    /// Write a v6 image as one disk image
    Export(export::ExportArgs),
    /// Write an image as a tar archive
    Unpack(unpack::UnpackArgs),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Write manual pages into a directory
    Man(generate::ManArgs),
}

/// Runs the command line `arguments` (program name first) and says how the process should end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::command().try_get_matches_from(arguments).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout with status 0, everything else to stderr with status 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut stdout = std::io::stdout().lock();
    if cli.version {
        return finish(stdout.write_all(version::text().as_bytes()).map_err(Into::into));
    }
    let Some(command) = cli.command else {
        let help = Cli::command().render_help();
        return finish(write!(stdout, "{help}").map_err(Into::into));
    };
    drop(stdout);
    let bar = progress::Bar::default();
    if let Err(error) = logging::start(cli.log_level, cli.log_file.as_deref(), bar.clone()) {
        return finish(Err(error));
    }
    finish(match command {
        Command::Create(args) => create::run(&args, &bar),
        Command::Merge(args) => merge::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Diff(args) => return differences(diff::run(&args)),
        Command::Report(args) => report::run(&args),
        Command::Compact(args) => compact::run(&args),
        Command::Optimize(args) => optimize::run(&args),
        Command::Chunkdict(args) => chunkdict::run(&args),
        Command::Stat(args) => stat::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Unpack(args) => unpack::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    })
}

/// The whole command line, for what is generated from it.
fn command() -> clap::Command {
    Cli::command()
}

/// The exit status of `diff`: what diff(1) has.
fn differences(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(different) => ExitCode::from(u8::from(different)),
        // Whoever reads our output has enough.
        Err(error)
            if error.chain().any(|cause| {
                matches!(cause.downcast_ref(), Some(BuildError::Io { path, source, .. })
            if path.as_os_str() == diff::STDOUT && source.kind() == std::io::ErrorKind::BrokenPipe)
            }) =>
        {
            ExitCode::FAILURE
        }
        Err(error) => {
            let _ = finish(Err(error));
            ExitCode::from(2)
        }
    }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let broken_pipe =
        error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
    if broken_pipe {
        // The reader of our output has enough.
        return ExitCode::SUCCESS;
    }
    let mut text = format!("Error: {error}\n");
    let mut last = error.to_string();
    for (n, cause) in error.chain().skip(1).map(ToString::to_string).enumerate() {
        if n == 0 {
            text.push_str("\nCaused by:\n");
        }
        // Messages that end with their cause have said it.
        if !last.ends_with(&cause) {
            text.push_str(&format!("    {cause}\n"));
        }
        last = cause;
    }
    let inconsistent = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(BuildError::Inconsistent { .. }))
            || matches!(cause.downcast_ref(), Some(RebuildError::Build(BuildError::Inconsistent { .. })))
    });
    if inconsistent {
        // Clients know this failure by its status and by this word.
        text = text.replacen("Error: ", "message:", 1);
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    match error.downcast_ref::<BuildError>() {
        _ if inconsistent => ExitCode::from(2),
        // As a shell reports a process that a signal ended.
        Some(BuildError::Interrupted { signal, .. }) => {
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
        }
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn short_help_of_create_names_every_flag_and_type() {
        let mut command = Cli::command();
        command.build();
        let create = command.find_subcommand_mut("create").unwrap();
        let flags: Vec<String> = create
            .get_arguments()
            .filter(|arg| !arg.is_hide_set())
            .filter_map(|arg| arg.get_long().map(|long| format!("--{long}")))
            .collect();
        let help = create.render_help().to_string();
        for flag in &flags {
            assert!(help.contains(flag.as_str()), "{flag}");
        }
        assert!(flags.len() > 15);
        for kind in [
            "directory",
            "dir-rafs",
            "tar-rafs",
            "targz-rafs",
            "estargz-rafs",
            "targz-ref",
            "estargz-ref",
            "estargztoc-ref",
            "tar-tarfs",
        ] {
            assert!(help.contains(kind), "{kind}");
        }
    }
}
