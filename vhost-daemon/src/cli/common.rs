//! Flags that every serving mode has.

use super::OnOff;
use crate::log_level::LogLevel;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags that every serving mode has.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Metadata file of the image; a blob with inlined metadata is understood too
    #[arg(short = 'B', long, value_name = "FILE", conflicts_with_all = ["shared_dir", "image"])]
    pub bootstrap: Option<PathBuf>,

    /// Nydus image to serve: a registry reference (HOST/REPO:TAG or HOST/REPO@DIGEST), or an OCI layout (DIR, DIR:TAG or
    /// DIR@DIGEST)
    #[arg(long, value_name = "REF", conflicts_with = "shared_dir")]
    pub image: Option<String>,

    /// Directory of this host to pass through, in place of an image
    #[arg(short = 's', long, value_name = "DIR")]
    pub shared_dir: Option<PathBuf>,

    /// Directory with the image's blobs; cache files are kept there too
    #[arg(short = 'D', long, value_name = "DIR", conflicts_with = "config")]
    pub localfs_dir: Option<PathBuf>,

    /// Configuration file: V1 JSON, V2 TOML or V2 JSON, as nydusd reads them; `rafsd config check` explains one
    #[arg(short = 'C', long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where inside the namespace the image appears
    #[arg(short = 'm', long, value_name = "PATH", default_value = "/")]
    pub virtual_mountpoint: String,

    /// File with one absolute path a line: what to fetch ahead of the image of --bootstrap or --image
    #[arg(long, value_name = "FILE")]
    pub prefetch_files: Option<PathBuf>,

    /// Whether chunks are verified against their digests before use
    #[arg(long, value_enum, value_name = "on|off")]
    pub verify: Option<OnOff>,

    /// Unix socket of the HTTP API; one that is there is replaced, ours is removed at the end
    #[arg(short = 'A', long, value_name = "PATH")]
    pub apisock: Option<PathBuf>,

    /// Instance id, for the supervisor
    #[arg(long, value_name = "ID", requires = "supervisor")]
    pub id: Option<String>,

    /// Socket of the supervisor that keeps state for a take-over
    #[arg(long, value_name = "PATH", requires = "id")]
    pub supervisor: Option<PathBuf>,

    /// Start without mounting, to take over from a daemon that runs
    #[arg(long)]
    pub upgrade: bool,

    /// How much to log
    #[arg(short = 'l', long, value_enum, default_value = "info", value_name = "LEVEL", ignore_case = true)]
    pub log_level: LogLevel,

    /// Append the log to a file (".log" is added to a name without extension) instead of standard error
    #[arg(short = 'L', long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Begin a new log file when the old one has so many MB, and keep 10 old ones; 0 for never
    #[arg(long, value_name = "MB", default_value_t = 0)]
    pub log_rotation_size: u64,

    /// How log lines look
    #[arg(long, value_enum, default_value = "text", value_name = "text|json")]
    pub log_format: LogFormat,

    /// Limit of open files to ask for; 0 leaves it alone
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub rlimit_nofile: u64,

    /// Write down which chunks are read, in the order in which they are read first
    #[arg(long, value_name = "FILE")]
    pub record_trace: Option<PathBuf>,

    /// Fetch the chunks of such a file in its order, before and while they are asked for
    ///
    /// Record a trace on one host while a guest starts, and give it to the daemons of other hosts with the same image: no
    /// rebuild is needed.
    #[arg(long, value_name = "FILE")]
    pub prefetch_trace: Option<PathBuf>,

    #[arg(long, hide = true, value_name = "PATH")]
    dedup_db: Option<PathBuf>,
}

impl CommonArgs {
    /// A sentence for the first flag whose feature is not there yet.
    pub(super) fn refused(&self) -> Option<String> {
        let flags = [(self.dedup_db.is_some(), "--dedup-db", "local chunk deduplication")];
        flags
            .into_iter()
            .find(|(given, ..)| *given)
            .map(|(_, flag, feature)| format!("{flag}: {feature} is not built yet; leave the flag out"))
    }
}
