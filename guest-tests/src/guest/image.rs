//! What a guest boots from: a cached kernel with modules and busybox, and `treewalk` built for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::support::binaries;

/// A kernel and the files of an initial file system without a job.
#[derive(Debug, Clone)]
pub struct GuestImage {
    dir: PathBuf,
    treewalk: PathBuf,
}

impl GuestImage {
    /// The guest in `.guest` of the workspace (GUEST_DIR names another place), made now if it is not there: this
    /// downloads about 30 MB once.
    ///
    /// # Errors
    /// When packages are missing or cannot be downloaded; the text says which.
    pub fn get() -> Result<Self> {
        static ONCE: OnceLock<std::result::Result<GuestImage, String>> = OnceLock::new();
        ONCE.get_or_init(|| Self::make().map_err(|e| format!("{e:#}"))).clone().map_err(anyhow::Error::msg)
    }

    fn make() -> Result<Self> {
        let dir = match std::env::var_os("GUEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => binaries::workspace().join(".guest"),
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        // Test programs may run side by side; only one may fill the cache.
        let lock = std::fs::File::create(dir.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/prepare.sh");
        let out = Command::new(script).arg(&dir).output().context("running prepare.sh")?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        }
        let treewalk = static_treewalk(&dir)?;
        Ok(Self { dir, treewalk })
    }

    /// The kernel's file.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// `treewalk` as it runs in the guest; it runs on the host too.
    #[must_use]
    pub fn treewalk(&self) -> &Path {
        &self.treewalk
    }

    /// The initial file system with a job: `mount` is a line of shell that mounts, or empty, `script` what runs
    /// then, `files` further programs by name, found in /bin.
    ///
    /// # Errors
    /// When a file of the cache cannot be read.
    pub fn initramfs(&self, mount: &str, script: &str, files: &[(&str, &Path)]) -> Result<Vec<u8>> {
        let read = |p: &Path| std::fs::read(p).with_context(|| format!("reading {}", p.display()));
        let mut archive = Archive::new();
        for dir in ["bin", "dev", "proc", "sys", "tmp", "job", "modules"] {
            archive.dir(dir);
        }
        archive.file("init", 0o755, include_bytes!("../../guest/init"));
        archive.file("bin/busybox", 0o755, &read(&self.dir.join("busybox"))?);
        archive.file("bin/treewalk", 0o755, &read(&self.treewalk)?);
        for (name, path) in files {
            archive.file(&format!("bin/{name}"), 0o755, &read(path)?);
        }
        let modules = std::fs::read_dir(self.dir.join("modules"))?;
        let mut modules = modules.collect::<std::io::Result<Vec<_>>>()?;
        modules.sort_by_key(std::fs::DirEntry::file_name);
        for module in modules {
            let name = module.file_name().to_string_lossy().into_owned();
            archive.file(&format!("modules/{name}"), 0o644, &read(&module.path())?);
        }
        archive.file("job/mount", 0o644, mount.as_bytes());
        archive.file("job/script", 0o644, script.as_bytes());
        Ok(archive.finish())
    }
}

/// Builds `treewalk` without shared libraries and copies it into the cache. Only the program itself is compiled
/// with the flag, so the libraries of the ordinary build serve.
fn static_treewalk(dir: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(binaries::workspace());
    command.args(["rustc", "--quiet", "-p", "guest-tests", "--bin", "treewalk"]);
    let target = binaries::target_dir()?;
    if target.ends_with("release") {
        command.arg("--release");
    }
    command.args(["--", "-C", "target-feature=+crt-static"]);
    let out = command.output().context("running cargo rustc")?;
    if !out.status.success() {
        bail!("building treewalk: {}", String::from_utf8_lossy(&out.stderr));
    }
    let copy = dir.join("treewalk");
    // Through a new file: the old one may be running.
    std::fs::copy(target.join("treewalk"), dir.join("treewalk.new")).context("copying treewalk")?;
    std::fs::rename(dir.join("treewalk.new"), &copy)?;
    Ok(copy)
}
