//! The command line of `rafsd`.
//!
//! Owns: flags and their help. Does not own: what a command does ([`run`]), what older clients write ([`argv`]).

pub mod argv;
mod cache;
mod check;
mod common;
pub mod ctl;
mod fuse;
mod logging;
pub mod run;
mod serve;
mod socket;
mod watchdog;

pub use cache::CacheCommand;
pub use common::CommonArgs;
pub use socket::SocketArg;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Clients of nydusd look for the commit in what `--version` prints.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nGit Commit: \t",
    env!("RAFSD_GIT_COMMIT"),
    "\nBuild Time: \t",
    env!("RAFSD_BUILD_TIME"),
    "\nRustc: \t\t",
    env!("RAFSD_RUSTC"),
);

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "rafsd",
    version,
    long_version = LONG_VERSION,
    propagate_version = true,
    about = "Serves RAFS (Nydus) images to virtual machines over virtio-fs",
    long_about = "Serves RAFS (Nydus) images to virtual machines over virtio-fs.\n\n\
        rafsd listens on a vhost-user socket; QEMU, Cloud Hypervisor and Kata Containers attach it as a \
        virtio-fs device, and the guest mounts it read-only. Chunks are fetched, verified and cached when \
        a guest reads them. Started as nydusd, or in its place, it takes nydusd's flags and API calls.",
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
    /// Offer images as virtio-fs devices on vhost-user sockets
    #[command(args_override_self = true)]
    Virtiofs(Box<VirtiofsArgs>),
    /// Mount an image on this host
    #[command(args_override_self = true)]
    Fuse(Box<FuseArgs>),
    /// Look at configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// See what a cache directory holds, and get rid of it
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Ask and tell a daemon that runs, over its API socket
    Ctl(ctl::CtlArgs),
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

/// What can be done with configuration files.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Explain a file: what each value means, what is by default, what is ignored; fails if it is not usable
    Check {
        /// V1 JSON, V2 TOML or V2 JSON
        file: PathBuf,
    },
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

/// What to do with requests in flight after a take-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailoverPolicy {
    /// Nothing.
    None,
    /// Have the kernel send them again.
    Resend,
    /// Have the kernel fail them.
    Flush,
}

/// Flags of `rafsd virtiofs`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    rafsd virtiofs --sock /run/a.sock --bootstrap app.boot --localfs-dir blobs\n  \
    rafsd virtiofs --sock /run/a.sock --image registry.example.com/library/app:nydus\n  \
    rafsd virtiofs --sock /run/t1.sock,root=/t1 --sock /run/t2.sock,root=/t2,queues=2 --apisock /run/api.sock\n\n\
    A socket may say what its guests see: `root=PATH` makes the mounts at PATH and below their whole world, `mounts=P1:P2` \
    leaves only these mounts, `queues=N` is --queues for this socket.")]
pub struct VirtiofsArgs {
    /// vhost-user socket to listen on, may be given several times; a stale one is replaced, ours is removed at the end
    #[arg(long, value_name = "PATH[,root=..][,mounts=..][,queues=N]", required = true, action = clap::ArgAction::Append)]
    pub sock: Vec<SocketArg>,

    /// Request queues to offer (1 to 64) [default: the host's CPUs, at most 8]
    ///
    /// A front-end that asks for more than are offered refuses to start; one that uses fewer is normal.
    /// Linux guests use more than one from 6.11 on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: Option<u16>,

    /// What every mode has.
    #[command(flatten)]
    pub common: CommonArgs,

    /// Images and passed-through directories side by side is what there always is
    #[arg(long, hide = true)]
    hybrid_mode: bool,
}

/// Flags of `rafsd fuse`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    rafsd fuse --mountpoint /mnt --bootstrap app.boot --localfs-dir blobs\n  \
    rafsd fuse --mountpoint /mnt --image registry.example.com/library/app:nydus\n  \
    rafsd fuse --mountpoint /mnt --apisock /run/api.sock\n  \
    rafsd fuse --mountpoint /mnt --writable --shared-dir /srv/data")]
pub struct FuseArgs {
    /// Directory to mount on
    #[arg(short = 'M', long, value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// What to do with requests in flight after a take-over
    #[arg(long, value_enum, default_value = "resend", value_name = "POLICY")]
    pub failover_policy: FailoverPolicy,

    /// Threads that serve requests
    #[arg(long, alias = "thread-num", default_value_t = 4, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub fuse_threads: u16,

    /// Mount read-write, for directories that are passed through
    #[arg(long)]
    pub writable: bool,

    /// What every mode has.
    #[command(flatten)]
    pub common: CommonArgs,
}
