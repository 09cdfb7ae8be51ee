//! `rafs-image unpack`.
//!
//! Owns: its flags. Does not own: unpacking.

use crate::blobs::BlobPlace;
use crate::unpack::{self, UnpackOptions};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Write an image as a tar archive.
///
/// The archive gives back the tree exactly: hardlinks, devices, extended attributes (in pax records), times to the
/// nanosecond. Sockets are left out, as is the entry of the root.
#[derive(Debug, clap::Args)]
pub(super) struct UnpackArgs {
    /// Bootstrap to unpack, or a blob with an inlined one
    #[arg(required_unless_present = "bootstrap_flag", conflicts_with = "bootstrap_flag")]
    bootstrap: Option<PathBuf>,

    /// Older form of the positional argument
    #[arg(short = 'B', long = "bootstrap", value_name = "FILE", id = "bootstrap_flag")]
    bootstrap_flag: Option<PathBuf>,

    /// File or FIFO to write the archive to
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// File that is the data blob
    #[arg(short = 'b', long, value_name = "FILE", group = "data")]
    blob: Option<PathBuf>,

    /// Directory that holds the blobs
    #[arg(short = 'D', long, value_name = "DIR", group = "data")]
    blob_dir: Option<PathBuf>,

    /// Where else the blobs are
    #[arg(long, value_name = "TYPE", group = "data")]
    backend_type: Option<BackendArg>,

    /// JSON configuration of the backend; http-proxy: {"addr": "SOCKET", "path": "PREFIX"}
    #[arg(long, value_name = "JSON", requires = "backend_type", conflicts_with = "backend_config_file")]
    backend_config: Option<String>,

    /// File with the configuration of the backend
    #[arg(long, value_name = "FILE", requires = "backend_type")]
    backend_config_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum BackendArg {
    /// An HTTP server on a unix socket
    HttpProxy,
}

#[derive(Debug, Deserialize)]
struct ProxyConfig {
    addr: String,
    #[serde(default)]
    path: String,
}

/// Runs the command.
pub(super) fn run(args: &UnpackArgs) -> anyhow::Result<()> {
    let Some(bootstrap) = args.bootstrap.as_ref().or(args.bootstrap_flag.as_ref()) else {
        bail!("say which bootstrap to unpack");
    };
    if args.output.as_os_str().is_empty() {
        bail!("--output is empty: say where the archive goes");
    }
    let blobs = match (&args.blob, &args.blob_dir, args.backend_type) {
        (Some(file), ..) => Some(BlobPlace::File(file.clone())),
        (_, Some(dir), _) => Some(BlobPlace::Directory(dir.clone())),
        (.., Some(BackendArg::HttpProxy)) => Some(args.proxy()?),
        _ => None,
    };
    let options = UnpackOptions { bootstrap: bootstrap.clone(), blobs, output: args.output.clone() };
    unpack::unpack(&options).with_context(|| format!("failed to unpack {bootstrap:?}"))
}

impl UnpackArgs {
    fn proxy(&self) -> anyhow::Result<BlobPlace> {
        let text = match (&self.backend_config, &self.backend_config_file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => bail!("--backend-type needs --backend-config or --backend-config-file"),
        };
        let config: ProxyConfig =
            serde_json::from_str(&text).context("the backend configuration is not as expected")?;
        if config.addr.starts_with("http://") || config.addr.starts_with("https://") {
            bail!("http-proxy at {:?}: only unix sockets are supported here", config.addr);
        }
        let path = if config.path.starts_with('/') { config.path } else { format!("/{}", config.path) };
        Ok(BlobPlace::HttpProxy { socket: config.addr.into(), path })
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {file:?}"))
}
