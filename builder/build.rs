//! Tells the program what it was built from: commit, time, profile and compiler, for `--version`.

use std::process::Command;

fn main() {
    // The log of HEAD grows with every commit; a source archive has none.
    if let Some(log) = said_by("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rerun-if-env-changed=RAFS_GIT_COMMIT");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let commit = std::env::var("RAFS_GIT_COMMIT").ok().or_else(|| said_by("git", &["rev-parse", "HEAD"]));
    let rustc = std::env::var("RUSTC").ok().and_then(|rustc| said_by(&rustc, &["--version"]));
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|epoch| epoch.parse().ok());
    let epoch = epoch.or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.ok().map(|since| since.as_secs())
    });
    set("RAFS_BUILD_COMMIT", commit.unwrap_or_else(|| "0".repeat(40)));
    set("RAFS_BUILD_RUSTC", rustc.unwrap_or_else(|| "unknown".to_owned()));
    set("RAFS_BUILD_EPOCH", epoch.unwrap_or(0).to_string());
    set("RAFS_BUILD_PROFILE", std::env::var("PROFILE").unwrap_or_else(|_| "unknown".to_owned()));
}

fn set(name: &str, value: String) {
    println!("cargo::rustc-env={name}={value}");
}

fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
