//! Child processes that end with the test, and what the kernel says about them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running child with its output in a file. Killed by its own id, and waited for, when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

/// A sample of what a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all threads.
    pub cpu: Duration,
    /// Anonymous resident memory in KiB; guest memory and mapped files do not count.
    pub anon_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Process {
    /// Starts `command` with both outputs in the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let out = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let err = out.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child, log: log.to_owned(), name })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far, for error texts.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`; it is killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} did not end within {limit:?}:\n{}", self.name, self.output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("sending SIGTERM")
    }

    /// Sends SIGKILL and waits.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// What it uses now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.child.id()).with_context(|| format!("{} has ended:\n{}", self.name, self.output()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error here says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process `pid` uses now. CPU time comes from the scheduler's nanosecond counts.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: u32) -> Result<Usage> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut cpu = 0;
    let mut threads = 0;
    for task in std::fs::read_dir(proc.join("task")).context("reading threads")? {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        cpu += text.split(' ').next().unwrap_or_default().parse::<u64>().context("schedstat")?;
        threads += 1;
    }
    let status = std::fs::read_to_string(proc.join("status"))?;
    let anon = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).context("RssAnon")?;
    let anon_kib = anon.trim().trim_end_matches(" kB").parse().context("RssAnon")?;
    let descriptors = std::fs::read_dir(proc.join("fd"))?.count();
    Ok(Usage { cpu: Duration::from_nanos(cpu), anon_kib, descriptors, threads })
}
