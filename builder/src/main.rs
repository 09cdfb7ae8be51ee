//! The `rafs-image` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    rafs_builder::cmd::run(std::env::args_os())
}
