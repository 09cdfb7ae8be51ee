//! The `rafsd` daemon: see the library `rafsd`.

use clap::Parser;
use rafsd::cli::{Cli, argv, run};
use rafsd::daemon::Version;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if argv::called_nydusd(words.first()) && argv::asks_version(&words) {
        let _ = write!(std::io::stdout(), "{}", argv::nydusd_version(&Version::of_build()));
        return ExitCode::SUCCESS;
    }
    let argv = argv::normalised(words);
    match run::run(Cli::parse_from(argv.words), &argv.ignored) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "rafsd: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line; a cause that the text before it names already is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().lines().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}
