//! The `rafsd` daemon: see the library `rafsd`.

use clap::Parser;
use rafsd::cli::{Cli, argv, run};
use rafsd::daemon::Version;
use rafsd::wording;
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
            let _ = writeln!(std::io::stderr(), "rafsd: {}", wording::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
