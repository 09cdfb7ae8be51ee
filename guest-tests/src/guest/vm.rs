//! Runs one guest under QEMU against a vhost-user socket.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::image::GuestImage;
use crate::support::process::Process;

/// Tag under which the file system is offered.
pub const TAG: &str = "rafs";

/// What kind of guest to run.
#[derive(Debug, Clone)]
pub struct VmOptions {
    /// Mount options such as `ro`; None leaves mounting to the script.
    pub mount: Option<String>,
    /// Entries of each virtqueue; QEMU's default is 128.
    pub queue_size: u16,
    /// Request queues.
    pub queues: usize,
    /// Processors.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: usize,
    /// Limit for all of it.
    pub timeout: Duration,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            mount: Some("ro".to_owned()),
            queue_size: 1024,
            queues: 1,
            cpus: 1,
            memory_mib: 256,
            timeout: Duration::from_secs(180),
        }
    }
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Exit status of the script.
    pub status: i32,
    /// All the script has written.
    pub output: Vec<u8>,
}

impl Ending {
    /// The output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// A running guest, ended when dropped.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    dir: TempDir,
    deadline: Instant,
}

impl Vm {
    /// Boots a guest that runs `script` with busybox's shell as root; the file system is at /mnt.
    ///
    /// # Errors
    /// When QEMU is not installed or the guest's parts cannot be had.
    pub fn boot(
        image: &GuestImage,
        socket: &Path,
        script: &str,
        files: &[(&str, &Path)],
        options: &VmOptions,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let mount = match &options.mount {
            Some(o) if o.is_empty() => format!("mount -t virtiofs {TAG} /mnt\n"),
            Some(o) => format!("mount -t virtiofs -o {o} {TAG} /mnt\n"),
            None => String::new(),
        };
        std::fs::write(at("initrd"), image.initramfs(&mount, script, files)?)?;
        let program = std::env::var_os("GUEST_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let accel = std::env::var("GUEST_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        let mut q = Command::new(program);
        // Only what a virtio guest needs, and qboot as the shortest firmware.
        q.args(["-nodefaults", "-no-user-config", "-display", "none", "-bios", "qboot.rom"]);
        q.args([
            "-machine",
            "q35,memory-backend=ram,sata=off,smbus=off,usb=off,vmport=off",
            "-accel",
            &accel,
        ]);
        q.args(["-smp", &options.cpus.to_string(), "-m", &options.memory_mib.to_string()]);
        // The daemon maps the guest's memory, so it must be shared.
        q.arg("-object").arg(format!("memory-backend-memfd,id=ram,size={}M,share=on", options.memory_mib));
        q.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(at("initrd"));
        // Self-tests, mitigations and randomisation cost seconds under emulation and protect nothing here.
        q.args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr cryptomgr.notests no_timer_check",
        ]);
        q.arg("-chardev").arg(format!("socket,id=fs,path={}", socket.display()));
        q.arg("-device").arg(format!(
            "vhost-user-fs-pci,chardev=fs,tag={TAG},queue-size={},num-request-queues={}",
            options.queue_size, options.queues
        ));
        q.arg("-serial").arg(format!("file:{}", at("console").display()));
        q.arg("-chardev").arg(format!("file,id=out,path={}", at("out").display()));
        q.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out,name=out"]);
        q.arg("-monitor").arg(format!("unix:{},server=on,wait=off", at("monitor").display()));
        let process = Process::spawn(&mut q, &at("qemu.log"))
            .context("is qemu-system-x86 installed? `make deps` does that")?;
        Ok(Self { process, dir, deadline: Instant::now() + options.timeout })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All the script has written so far.
    #[must_use]
    pub fn output(&self) -> Vec<u8> {
        std::fs::read(self.file("out")).unwrap_or_default()
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.file("console")).unwrap_or_default()).replace('\r', "")
    }

    fn report(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let output = self.output();
        let text = String::from_utf8_lossy(&output[output.len().saturating_sub(2000)..]).into_owned();
        format!("QEMU: {}\nconsole:\n{tail}\noutput ends:\n{text}", self.process.output())
    }

    /// Waits until `text` has been written `times` times.
    ///
    /// # Errors
    /// When time is up or QEMU has ended before.
    pub fn wait_for(&mut self, text: &str, times: usize) -> Result<()> {
        loop {
            let found = String::from_utf8_lossy(&self.output()).matches(text).count();
            if found >= times {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                bail!("{text:?} was written {found} times of {times} in time\n{}", self.report());
            }
            if let Some(status) = self.process.ended()? {
                bail!("QEMU ended ({status}) before {text:?} was written\n{}", self.report());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a line to QEMU's monitor, for example `system_reset`, which is the reset button.
    ///
    /// # Errors
    /// When the monitor does not listen.
    pub fn monitor(&self, line: &str) -> Result<()> {
        let mut socket = UnixStream::connect(self.file("monitor")).context("connecting to QEMU's monitor")?;
        writeln!(socket, "{line}")?;
        // QEMU reads what was sent even if the peer is gone, but not after it has shut down.
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    }

    /// Waits for the guest to power off.
    ///
    /// # Errors
    /// When there is no verdict: time is up, no boot, a failed mount; the text has the console's end.
    pub fn wait(mut self) -> Result<Ending> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if let Err(e) = self.process.wait(left) {
            bail!("{e:#}\n{}", self.report());
        }
        let console = self.console();
        let verdict = console.lines().rev().find_map(|l| l.strip_prefix("verdict: "));
        match verdict.and_then(|v| v.strip_prefix("exit ")).and_then(|n| n.parse().ok()) {
            Some(status) => Ok(Ending { status, output: self.output() }),
            None => bail!("the guest ended without a verdict ({verdict:?})\n{}", self.report()),
        }
    }

    /// Boots a guest and waits for its end.
    ///
    /// # Errors
    /// See [`Vm::boot`] and [`Vm::wait`].
    pub fn run(image: &GuestImage, socket: &Path, script: &str, options: &VmOptions) -> Result<Ending> {
        Self::boot(image, socket, script, &[], options)?.wait()
    }
}
