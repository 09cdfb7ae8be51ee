//! A small HTTP/1.1 client over a unix socket.
//!
//! Owns: one connection, one request after the other. Does not own: what is asked.

use anyhow::{Context, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest answer that is read, bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// Longest head.
const HEAD_MAX: u64 = 64 << 10;
/// How long an answer may take: a mount waits for its storage.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| {
            format!("no daemon answers on {}; is it the --apisock of one that runs?", path.display())
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request; the answer's body if it is a success.
    pub(super) fn call(
        &mut self,
        method: &str,
        target: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        if !body.is_empty() {
            request
                .push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        self.stream.get_mut().write_all(request.as_bytes()).context("the daemon hung up")?;
        let (status, body) = self.answer().context("the daemon's answer makes no sense")?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let message = serde_json::from_str::<Value>(&body).ok();
        let message =
            message.as_ref().and_then(|m| m.get("message")).and_then(Value::as_str).unwrap_or(&body);
        bail!("the daemon refused {method} {target} ({status}): {message}");
    }

    /// The same for an answer in JSON.
    pub(super) fn json(&mut self, method: &str, target: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let text = self.call(method, target, body)?;
        serde_json::from_str(&text).with_context(|| format!("the daemon's answer to {target} is no JSON"))
    }

    fn answer(&mut self) -> anyhow::Result<(u16, String)> {
        let mut head = (&mut self.stream).take(HEAD_MAX);
        let mut line = String::new();
        head.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.trim().parse().ok()).context("no status")?;
        let mut length = 0u64;
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                bail!("it ends in its head");
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().context("Content-Length")?;
            }
        }
        let length = usize::try_from(length.min(ANSWER_MAX))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body)?))
    }
}

/// A text as a query value.
pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
