//! The command line of `rafsd`.
//!
//! Owns: flags and their help, and what belongs to later versions and is refused by name. Does not own:
//! what a command does ([`run`]).

mod logging;
pub mod run;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "rafsd",
    version,
    about = "Serves RAFS (Nydus) images to virtual machines over virtio-fs",
    long_about = "Serves RAFS (Nydus) images to virtual machines over virtio-fs.\n\n\
        rafsd listens on a vhost-user socket; QEMU, Cloud Hypervisor and Kata Containers attach it as a \
        virtio-fs device, and the guest mounts it read-only. Chunks are fetched, verified and cached when \
        a guest reads them.",
    args_override_self = true,
    after_long_help = "Example:\n  \
        rafs-image create --bootstrap app.boot --blob-dir blobs ./rootfs\n  \
        rafsd virtiofs --sock /run/app.sock --bootstrap app.boot --localfs-dir blobs\n  \
        qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\\n    \
        -chardev socket,id=fs,path=/run/app.sock -device vhost-user-fs-pci,chardev=fs,tag=app,queue-size=1024\n  \
        (guest) mount -t virtiofs -o ro app /mnt"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Offer an image as a virtio-fs device on a vhost-user socket
    #[command(args_override_self = true)]
    Virtiofs(Box<VirtiofsArgs>),
    /// Print a shell completion script to standard output
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    Man {
        /// Directory, made if missing
        dir: PathBuf,
    },
    /// Mount an image on this host (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    Fuse(Later),
    /// EROFS over fscache (not built)
    #[command(hide = true, disable_help_flag = true)]
    Singleton(Later),
    /// Network block device (not built)
    #[command(hide = true, disable_help_flag = true)]
    Nbd(Later),
    /// Page-fault service (not built)
    #[command(hide = true, disable_help_flag = true)]
    Uffd(Later),
}

/// Whatever follows a command that is refused as a whole.
#[derive(Debug, Args)]
pub struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

/// A switch that is said in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Yes.
    On,
    /// No.
    Off,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What developers need.
    Debug,
    /// What happens.
    Info,
    /// What is not as it should be.
    Warn,
    /// What failed.
    Error,
}

/// Flags of `rafsd virtiofs`.
#[derive(Debug, Args)]
pub struct VirtiofsArgs {
    /// vhost-user socket to listen on; a stale one is replaced, ours is removed at the end
    #[arg(long, value_name = "PATH", required = true, action = clap::ArgAction::Append)]
    pub sock: Vec<PathBuf>,

    /// Metadata file of the image; a blob with inlined metadata is understood too
    #[arg(short = 'B', long, value_name = "FILE")]
    pub bootstrap: Option<PathBuf>,

    /// Directory with the image's blobs; cache files are kept there too
    #[arg(short = 'D', long, value_name = "DIR", conflicts_with = "config")]
    pub localfs_dir: Option<PathBuf>,

    /// Configuration file: V1 JSON, V2 TOML or V2 JSON, as nydusd reads them
    #[arg(short = 'C', long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Request queues to offer (1 to 64) [default: the host's CPUs, at most 8]
    ///
    /// A front-end that asks for more than are offered refuses to start; one that uses fewer is normal.
    /// Linux guests use more than one from 6.11 on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: Option<u16>,

    /// Whether chunks are verified against their digests before use
    #[arg(long, value_enum, value_name = "on|off")]
    pub verify: Option<OnOff>,

    /// How much to log
    #[arg(short = 'l', long, value_enum, default_value = "info", value_name = "LEVEL", ignore_case = true)]
    pub log_level: LogLevel,

    /// Append the log to a file (".log" is added to a name without extension) instead of standard error
    #[arg(short = 'L', long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Limit of open files to ask for; 0 leaves it alone
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub rlimit_nofile: u64,

    /// Where inside the guest's namespace the image appears
    #[arg(short = 'm', long, value_name = "PATH", default_value = "/", hide = true)]
    pub virtual_mountpoint: PathBuf,

    #[command(flatten)]
    later: LaterFlags,

    #[command(flatten)]
    tolerated: ToleratedFlags,
}

/// Flags of nydusd whose features come later: each is refused by name.
#[derive(Debug, Args)]
struct LaterFlags {
    #[arg(short = 'A', long, hide = true, value_name = "PATH")]
    apisock: Option<PathBuf>,
    #[arg(long, hide = true)]
    id: Option<String>,
    #[arg(long, hide = true)]
    supervisor: Option<PathBuf>,
    #[arg(long, hide = true)]
    upgrade: bool,
    #[arg(long, hide = true)]
    log_rotation_size: Option<u64>,
    #[arg(short = 's', long, hide = true)]
    shared_dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    prefetch_files: Option<PathBuf>,
    #[arg(long, hide = true)]
    dedup_db: Option<PathBuf>,
    #[arg(long, hide = true)]
    image: Option<String>,
    #[arg(long, hide = true)]
    record_trace: Option<PathBuf>,
    #[arg(long, hide = true)]
    prefetch_trace: Option<PathBuf>,
}

/// Flags that clients add out of habit and that need nothing from us: a warning each.
#[derive(Debug, Args)]
struct ToleratedFlags {
    #[arg(long, hide = true)]
    hybrid_mode: bool,
    #[arg(long, hide = true)]
    thread_pool_size: Option<u64>,
    #[arg(long, hide = true)]
    announce_submounts: bool,
    #[arg(long, hide = true)]
    threads: Option<u64>,
    #[arg(long, hide = true)]
    cache: Option<String>,
    #[arg(long, hide = true)]
    xattr: bool,
}

impl VirtiofsArgs {
    /// A sentence for the first flag whose feature is not there yet.
    fn refused(&self) -> Option<String> {
        let l = &self.later;
        let flags = [
            (l.apisock.is_some(), "--apisock", "the HTTP API"),
            (l.id.is_some(), "--id", "take-over by a supervisor"),
            (l.supervisor.is_some(), "--supervisor", "take-over by a supervisor"),
            (l.upgrade, "--upgrade", "live upgrade"),
            (l.log_rotation_size.is_some(), "--log-rotation-size", "log rotation"),
            (l.shared_dir.is_some(), "--shared-dir", "passing a host directory through"),
            (l.prefetch_files.is_some(), "--prefetch-files", "prefetch"),
            (l.dedup_db.is_some(), "--dedup-db", "local chunk deduplication"),
            (l.image.is_some(), "--image", "starting from a registry"),
            (l.record_trace.is_some(), "--record-trace", "prefetch traces"),
            (l.prefetch_trace.is_some(), "--prefetch-trace", "prefetch traces"),
            (
                self.virtual_mountpoint.as_os_str() != "/",
                "--virtual-mountpoint other than /",
                "several mounts in one namespace",
            ),
        ];
        flags
            .into_iter()
            .find(|(given, ..)| *given)
            .map(|(_, flag, feature)| format!("{flag}: {feature} is not built yet; leave the flag out"))
    }

    /// Flags that are accepted and change nothing.
    fn without_effect(&self) -> Vec<&'static str> {
        let t = &self.tolerated;
        [
            (t.hybrid_mode, "--hybrid-mode"),
            (t.thread_pool_size.is_some(), "--thread-pool-size"),
            (t.announce_submounts, "--announce-submounts"),
            (t.threads.is_some(), "--threads"),
            (t.cache.is_some(), "--cache"),
            (t.xattr, "--xattr"),
        ]
        .into_iter()
        .filter_map(|(given, flag)| given.then_some(flag))
        .collect()
    }
}
