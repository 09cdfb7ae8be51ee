//! `rafsd ctl`: asks and tells a daemon that runs.
//!
//! Owns: its commands and what they print. Does not own: HTTP ([`client`]).

mod client;
mod live;

use crate::log_level::LogLevel;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use client::{Client, encoded};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Flags of `rafsd ctl`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    rafsd ctl -S /run/rafsd-api.sock status\n  \
    rafsd ctl -S /run/rafsd-api.sock mount /app --source app.boot --config app.json\n  \
    rafsd ctl -S /run/rafsd-api.sock live")]
pub struct CtlArgs {
    /// API socket of the daemon (its --apisock)
    #[arg(short = 'S', long = "sock", alias = "apisock", value_name = "PATH", env = "RAFSD_API")]
    sock: PathBuf,

    /// Print the daemon's JSON as it is
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Who the daemon is and what state it is in
    #[command(alias = "info")]
    Status,
    /// What is mounted
    Mounts,
    /// Everything that is counted, in Prometheus' text form
    Metrics,
    /// What guests read now, a line a second for each mount
    Live {
        /// Seconds between lines
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
        every: u64,
        /// Lines to print; 0 for no end
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Mount an image or a directory
    Mount {
        /// Where in the namespace
        path: String,
        /// Bootstrap of an image, or a directory
        #[arg(long, value_name = "PATH")]
        source: String,
        /// Configuration file of an image
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// rafs or passthrough_fs
        #[arg(long = "type", default_value = "rafs", value_name = "TYPE")]
        kind: String,
        /// Put it in the place of what is mounted there
        #[arg(long)]
        replace: bool,
    },
    /// Unmount what is at a path; reads that have begun end
    Umount {
        /// Where in the namespace
        path: String,
    },
    /// The cache behind each mount
    Cache,
    /// The vhost-user sockets and what their guests see
    Sockets,
    /// Change a setting
    Set {
        /// log-level
        key: String,
        /// trace, debug, info, warn or error
        value: String,
    },
}

/// Runs a command.
///
/// # Errors
///
/// The daemon cannot be reached, or what it says.
pub(super) fn run(args: &CtlArgs) -> anyhow::Result<()> {
    let mut client = Client::connect(&args.sock)?;
    let mut out = std::io::stdout();
    let text = match &args.command {
        CtlCommand::Status => {
            let info = client.json("GET", "/api/v1/daemon", None)?;
            if args.json { pretty(&info) } else { status(&info) }
        }
        CtlCommand::Mounts => {
            let info = client.json("GET", "/api/v1/daemon", None)?;
            let mounts = info.get("backend_collection").cloned().unwrap_or_default();
            if args.json { pretty(&mounts) } else { table(&mounts) }
        }
        CtlCommand::Metrics => client.call("GET", "/metrics", None)?,
        CtlCommand::Live { every, count } => return live::run(&mut client, &mut out, *every, *count),
        CtlCommand::Mount { path, source, config, kind, replace } => {
            let config = match config {
                Some(file) => std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?,
                None => String::new(),
            };
            if kind == "rafs" && config.is_empty() {
                bail!("an image needs --config FILE, which says where its blobs are");
            }
            let body = json!({"fs_type": kind, "source": absolute(source)?, "config": config});
            let target = format!("/api/v1/mount?mountpoint={}", encoded(path));
            client.call(if *replace { "PUT" } else { "POST" }, &target, Some(&body))?
        }
        CtlCommand::Umount { path } => {
            client.call("DELETE", &format!("/api/v1/mount?mountpoint={}", encoded(path)), None)?
        }
        CtlCommand::Cache => cache(&mut client)?,
        CtlCommand::Sockets => pretty(&client.json("GET", "/api/v1/sockets", None)?),
        CtlCommand::Set { key, value } => match key.as_str() {
            "log-level" if LogLevel::parse(value).is_none() => {
                bail!("there is no log level {value}; use trace, debug, info, warn or error")
            }
            "log-level" => client.call("PUT", "/api/v1/daemon", Some(&json!({"log_level": value})))?,
            other => bail!("there is no setting {other}; log-level is one"),
        },
    };
    write!(out, "{text}")?;
    Ok(())
}

/// Paths are the daemon's: it may have another working directory.
fn absolute(path: &str) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make {path} absolute"))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn status(info: &Value) -> String {
    let version = info.get("version").cloned().unwrap_or_default();
    let mounts = info.get("backend_collection").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    format!(
        "state    {}\nversion  {} ({})\nid       {}\nmounts   {mounts}\n",
        text(info, "state"),
        text(&version, "package_ver"),
        text(&version, "git_commit"),
        text(info, "id"),
    )
}

fn table(mounts: &Value) -> String {
    let mut out = String::new();
    for (path, mount) in mounts.as_object().into_iter().flatten() {
        let (kind, since, source) =
            (text(mount, "backend_type"), text(mount, "mounted_time"), text(mount, "source"));
        out.push_str(&format!("{path}\t{kind}\t{since}\t{source}\n"));
    }
    out
}

fn cache(client: &mut Client) -> anyhow::Result<String> {
    let info = client.json("GET", "/api/v1/daemon", None)?;
    let mut out = String::new();
    for (path, mount) in info.get("backend_collection").and_then(Value::as_object).into_iter().flatten() {
        if text(mount, "backend_type") != "Rafs" {
            continue;
        }
        let cache = client.json("GET", &format!("/api/v1/metrics/blobcache?id={}", encoded(path)), None)?;
        let files = cache.get("underlying_files").and_then(Value::as_array).map_or(0, Vec::len);
        out.push_str(&format!("{path}\t{}\t{files} blob(s)\n", text(&cache, "store_path")));
    }
    Ok(out)
}
