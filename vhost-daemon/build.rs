//! What `--version` and `GET /daemon` say of the build: commit, compiler, time.

use std::process::Command;

/// First line of what a command prints.
fn line(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok().filter(|out| out.status.success())?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
}

fn main() {
    let unknown = || "unknown".to_owned();
    let commit = line("git", &["rev-parse", "HEAD"]).unwrap_or_else(unknown);
    // The time of the commit, not of the build: the same sources give the same program.
    let time = line("git", &["log", "-1", "--format=%cI"]).unwrap_or_else(unknown);
    let rustc = std::env::var("RUSTC").ok().and_then(|rustc| line(&rustc, &["--version"]));
    println!("cargo::rustc-env=RAFSD_GIT_COMMIT={commit}");
    println!("cargo::rustc-env=RAFSD_BUILD_TIME={time}");
    println!("cargo::rustc-env=RAFSD_RUSTC={}", rustc.unwrap_or_else(unknown));
    if let Some(head) = line("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
