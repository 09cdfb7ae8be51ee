//! A client of the daemon's HTTP API that takes nothing on trust: what is not exactly as the contract says is an error.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::binaries;
use super::image::Case;
use super::process::Process;
use crate::frontend::{Client, Options};

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body, empty for none.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }

    /// The message of an error body, whose two keys must be strings.
    ///
    /// # Errors
    /// When the body is no error body.
    pub fn message(&self) -> Result<String> {
        let body = self.json()?;
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        text("code").with_context(|| format!("no code: {body}"))?;
        text("message").with_context(|| format!("no message: {body}"))
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the daemon hung up.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// Sends a request as Go's and Rust's clients do.
    ///
    /// # Errors
    /// When the answer breaks the rules of the contract.
    pub fn call(&mut self, method: &str, target: &str, body: Option<&str>) -> Result<Answer> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: unix\r\nAccept-Encoding: gzip\r\n");
        match body {
            Some(body) => request.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )),
            // Go sends this with a PUT that has no body.
            None if method == "PUT" => request.push_str("Content-Length: 0\r\n\r\n"),
            None => request.push_str("\r\n"),
        }
        self.send(request.as_bytes())?;
        self.answer()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When it breaks the rules of the contract.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let mut parts = line.trim_end_matches("\r\n").splitn(3, ' ');
        if parts.next() != Some("HTTP/1.1") {
            bail!("status line {line:?}");
        }
        let status: u16 = parts.next().context("no status")?.parse()?;
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                bail!("the answer ends in its head");
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map(|v| v.parse::<usize>()).transpose()?;
        if status == 204 && length.is_some() {
            bail!("204 with a Content-Length");
        }
        if status == 100 {
            return self.answer();
        }
        if status != 204 && length.is_none() {
            bail!("{status} without Content-Length");
        }
        if headers.get("server").map(String::as_str) != Some("Nydus API")
            || headers.contains_key("content-encoding")
        {
            bail!("headers {headers:?}");
        }
        let mut body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut body)?;
        Ok(Answer { status, headers, body: String::from_utf8(body)? })
    }
}

/// Text as Go's and runtime-rs's query encoders write it.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A `rafsd` with an API and nothing mounted, in a folder of its own.
#[derive(Debug)]
pub struct ApiDaemon {
    /// The process.
    pub process: Process,
    /// Its folder: `api.sock`, `fs.sock`, `log`, and room for the test.
    pub dir: TempDir,
}

impl ApiDaemon {
    /// Starts `rafsd virtiofs` on `fs.sock` and `api.sock` with further arguments.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(more: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(binaries::ours("rafsd")?);
        command.current_dir(dir.path()).args(["virtiofs", "--sock", "fs.sock", "--apisock", "api.sock"]);
        command.args(["--rlimit-nofile", "0"]).args(more);
        Self::spawn(command, dir)
    }

    /// Starts a command whose API socket is `api.sock` in `dir`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn spawn(mut command: Command, dir: TempDir) -> Result<Self> {
        let mut process = Process::spawn(&mut command, &dir.path().join("log"))?;
        let until = Instant::now() + Duration::from_secs(30);
        while Connection::open(&dir.path().join("api.sock")).is_err() {
            if process.ended()?.is_some() || Instant::now() > until {
                bail!("no API: {}", process.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { process, dir })
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    /// When the answer breaks the rules of the contract.
    pub fn call(&self, method: &str, target: &str, body: Option<&str>) -> Result<Answer> {
        Connection::open(&self.path("api.sock"))?.call(method, target, body)
    }

    /// Mounts (`POST`) or exchanges (`PUT`) an image at a path, and returns the status.
    ///
    /// # Errors
    /// As [`ApiDaemon::call`].
    pub fn mount(&self, method: &str, path: &str, case: &Case) -> Result<u16> {
        let body = self.mount_body(&case.image.bootstrap, &case.image.blobs, path);
        Ok(self.call(method, &format!("/api/v1/mount?mountpoint={path}"), Some(&body))?.status)
    }

    /// Unmounts what is at a path, and returns the status.
    ///
    /// # Errors
    /// As [`ApiDaemon::call`].
    pub fn umount(&self, path: &str) -> Result<u16> {
        Ok(self.call("DELETE", &format!("/api/v1/mount?mountpoint={path}"), None)?.status)
    }

    /// A front-end on one of its sockets.
    ///
    /// # Errors
    /// When the daemon does not take it.
    pub fn guest(&self, socket: &str) -> Result<Client> {
        let options = Options { memory_mib: 64, ..Options::default() };
        Ok(Client::connect(&self.path(socket), &options)?)
    }

    /// Body of a mount request for an image with local blobs, V1 as Kata passes it on.
    #[must_use]
    pub fn mount_body(&self, bootstrap: &Path, blobs: &Path, id: &str) -> String {
        let config = serde_json::json!({
            "device": {
                "id": id,
                "backend": {"type": "localfs", "config": {"dir": blobs, "readahead": false}},
                "cache": {"type": "blobcache", "config": {"work_dir": self.path("cache"), "disable_indexed_map": false}},
            },
            "mode": "direct",
            "digest_validate": false,
            "enable_xattr": true,
        });
        serde_json::json!({"fs_type": "rafs", "source": bootstrap, "config": config.to_string()}).to_string()
    }
}

/// One request on a connection of its own; an empty `body` is none. Status and body of the answer.
///
/// # Errors
/// When nobody listens on `socket`, or the answer breaks the rules of the contract.
pub fn call(socket: &Path, method: &str, target: &str, body: &str) -> Result<(u16, String)> {
    let answer = Connection::open(socket)?.call(method, target, (!body.is_empty()).then_some(body))?;
    Ok((answer.status, answer.body))
}

/// Waits until the daemon reports `state`.
///
/// # Errors
/// When it does not within half a minute.
pub fn wait_for_state(socket: &Path, state: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut last = String::new();
    while Instant::now() < deadline {
        match call(socket, "GET", "/api/v1/daemon", "") {
            Ok((200, body)) if body.contains(&format!("\"state\":\"{state}\"")) => return Ok(()),
            Ok((status, body)) => last = format!("{status} {body}"),
            Err(error) => last = format!("{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("the daemon on {} does not become {state}: {last}", socket.display())
}
