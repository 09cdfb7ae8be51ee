//! Finds the programs that tests run: our own, built on demand, and peers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The folder of this workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The folder in which cargo puts this build's binaries: `deps` and `examples` are below it.
///
/// # Errors
/// When the running program's path is unknown.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding the running program")?;
    let dir = exe.parent().context("a program without a folder")?;
    match dir.file_name() {
        Some(name) if name == "deps" => Ok(dir.parent().unwrap_or(dir).to_owned()),
        _ => Ok(dir.to_owned()),
    }
}

fn build() -> std::result::Result<(), String> {
    static BUILT: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut command = Command::new(cargo);
            command.current_dir(workspace()).args(["build", "--quiet", "-p", "rafsd", "-p", "rafs-builder"]);
            if target_dir().is_ok_and(|d| d.ends_with("release")) {
                command.arg("--release");
            }
            let out = command.output().map_err(|e| format!("running cargo build: {e}"))?;
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        })
        .clone()
}

/// One of our own programs, `rafsd` or `rafs-image`, brought up to date with `cargo build` once per test program.
/// RAFSD_TEST_BIN_DIR names another folder to take them from as they are.
///
/// # Errors
/// When it does not build.
pub fn ours(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("RAFSD_TEST_BIN_DIR") {
        return Ok(Path::new(&dir).join(name));
    }
    build().map_err(anyhow::Error::msg).context("building the programs under test")?;
    let path = target_dir()?.join(name);
    if !path.exists() {
        bail!("{} is missing after `cargo build -p rafsd -p rafs-builder`", path.display());
    }
    Ok(path)
}

/// A peer that is not part of this project, if it is installed: from VIRTIOFSD, `target/peer/bin` or PATH.
#[must_use]
pub fn virtiofsd() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("VIRTIOFSD") {
        return Some(path.into());
    }
    let own = workspace().join("target/peer/bin/virtiofsd");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|d| d.join("virtiofsd"));
    if own.exists() { Some(own) } else { all.find(|p| p.exists()) }
}
