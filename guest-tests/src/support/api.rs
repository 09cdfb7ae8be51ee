//! The daemon's HTTP API as a client that knows nothing about it calls it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Sends a request and returns status and body of the answer.
///
/// # Errors
/// When nobody listens on `socket`, or the answer is none.
pub fn call(socket: &Path, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = if body.is_empty() && method == "GET" {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: unix\r\nConnection: close\r\n{length}\r\n{body}")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("an answer that is text")?;
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("a whole answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.with_context(|| format!("a status line: {head:?}"))?, body.to_owned()))
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
