//! Daemons that serve virtio-fs: ours, and the peer that serves a plain directory.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::binaries;
use super::process::Process;

/// A running daemon, its socket and its log, all gone when dropped.
#[derive(Debug)]
pub struct Daemon {
    /// The process.
    pub process: Process,
    /// Its vhost-user socket.
    pub socket: PathBuf,
    _dir: TempDir,
}

impl Daemon {
    fn start(mut command: Command, dir: TempDir, socket: PathBuf) -> Result<Self> {
        let mut process = Process::spawn(&mut command, &dir.path().join("log"))?;
        // The socket's existence is enough: connecting would be a front-end.
        for _ in 0..2000 {
            if socket.exists() {
                return Ok(Self { process, socket, _dir: dir });
            }
            if let Some(status) = process.ended()? {
                bail!("{:?} ended with {status}:\n{}", command.get_program(), process.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{:?} made no socket:\n{}", command.get_program(), process.output());
    }

    /// `rafsd` serving one image whose blobs lie in `blobs`, with `queues` request queues and further arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rafsd(bootstrap: &Path, blobs: &Path, queues: usize, more: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("fs.sock");
        let mut command = Command::new(binaries::ours("rafsd")?);
        command.arg("virtiofs").arg("--sock").arg(&socket);
        command.arg("--bootstrap").arg(bootstrap).arg("--localfs-dir").arg(blobs);
        command.args(["--queues", &queues.to_string()]).args(more);
        Self::start(command, dir, socket).context("starting rafsd")
    }

    /// `rafsd` serving one image as the configuration file says, with further environment variables.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rafsd_configured(bootstrap: &Path, config: &Path, vars: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("fs.sock");
        let mut command = Command::new(binaries::ours("rafsd")?);
        command.arg("virtiofs").arg("--sock").arg(&socket).arg("--bootstrap").arg(bootstrap);
        command.arg("--config").arg(config).args(["--queues", "1", "--log-level", "trace"]);
        // What the person who runs the test has logged in to is none of its business.
        command.env("DOCKER_CONFIG", dir.path()).env_remove("IMAGE_PULL_AUTH").envs(vars.iter().copied());
        Self::start(command, dir, socket).context("starting rafsd")
    }

    /// The same run by another command, such as `unshare -m sh -c '...; exec "$@"' sh`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rafsd_under(wrapper: &[String], bootstrap: &Path, config: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("fs.sock");
        let rafsd = binaries::ours("rafsd")?;
        let mut words = wrapper.iter().map(OsStr::new).chain([rafsd.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("virtiofs").arg("--sock").arg(&socket).arg("--bootstrap").arg(bootstrap);
        command.arg("--config").arg(config).args([
            "--queues",
            "1",
            "--log-level",
            "debug",
            "--rlimit-nofile",
            "0",
        ]);
        command.env("DOCKER_CONFIG", dir.path()).env_remove("IMAGE_PULL_AUTH");
        Self::start(command, dir, socket).context("starting rafsd")
    }

    /// `rafsd` serving one image as the configuration file says, with further arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rafsd_with(bootstrap: &Path, config: &Path, more: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("fs.sock");
        let mut command = Command::new(binaries::ours("rafsd")?);
        command.arg("virtiofs").arg("--sock").arg(&socket).arg("--bootstrap").arg(bootstrap);
        command.arg("--config").arg(config).args(["--queues", "1"]).args(more);
        Self::start(command, dir, socket).context("starting rafsd")
    }

    /// The peer serving `shared`, or None where it is not installed.
    ///
    /// # Errors
    /// When it is installed and does not start.
    pub fn virtiofsd(shared: &Path) -> Result<Option<Self>> {
        let Some(program) = binaries::virtiofsd() else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("fs.sock");
        let mut command = Command::new(program);
        command.arg("--socket-path").arg(&socket).arg("--shared-dir").arg(shared);
        command.args(["--sandbox", "none", "--xattr", "--cache", "always", "--modcaps=+sys_admin"]);
        Self::start(command, dir, socket).context("starting virtiofsd").map(Some)
    }
}
