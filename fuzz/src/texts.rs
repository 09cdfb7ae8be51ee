//! What the targets of the daemon's texts do: requests of its API, and configuration files.
//!
//! Invariants: no panic, no work out of proportion to the input; a refusal has the contract's form; a path that was accepted
//! is clean; a configuration that was accepted can be shown, and what is shown says the same; explanations are bounded.

use rafsd::api::{Answer, Call, Request, SocketBody};
use rafsd::config::{Config, explain_text};
use rafsd::mounts::MountPath;

/// Longest explanation of an empty file, bytes; every key with its default.
const EXPLANATION: usize = 32 << 10;

/// Any bytes as a request: a line with method and target, header lines, an empty line, the body.
pub fn api_request(data: &[u8]) {
    let end = data.windows(4).position(|w| w == b"\r\n\r\n");
    let (head, body) = match end {
        Some(at) => (&data[..at], &data[at + 4..]),
        None => (data, &[][..]),
    };
    let line = String::from_utf8_lossy(head.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.splitn(3, ' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request =
        Request { method: method.into(), path: path.into(), query: query.into(), body: body.to_vec() };
    match Call::of(&request) {
        Ok(call) => accepted(call),
        Err(answer) => refused(&answer),
    }
}

fn refused(answer: &Answer) {
    assert!([400, 404].contains(&answer.status));
    let body: serde_json::Value =
        serde_json::from_str(answer.body.as_deref().expect("an error has a body")).expect("JSON");
    assert!(body["code"].is_string() && body["message"].is_string());
}

fn accepted(call: Call) {
    match call {
        Call::Mount { at, what, .. } => {
            at.ok().as_ref().map(clean);
            config(&what.config);
        }
        Call::Umount(at) | Call::Superblock(at) => {
            at.ok().as_ref().map(clean);
        }
        Call::AddSocket(SocketBody { root, mounts, .. }) => {
            for text in root.iter().chain(&mounts) {
                MountPath::parse(text).ok().as_ref().map(clean);
            }
        }
        _ => {}
    }
}

fn clean(path: &MountPath) {
    assert!(path.as_str().starts_with('/') && !path.as_str().contains('\0'));
    assert!(path.names().all(|name| !name.is_empty() && name != "." && name != ".." && name.len() <= 255));
    assert_eq!(MountPath::parse(path.as_str()).as_ref(), Ok(path), "cleaning twice is cleaning once");
}

/// Any text as a configuration file.
pub fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    config(text);
}

fn config(text: &str) {
    match Config::parse(text) {
        Ok(config) => {
            let shown = config.shown();
            let again = Config::parse(&shown.to_string()).expect("what is shown can be read");
            assert_eq!(again.shown(), shown);
            // A line for each value, the path and 120 characters of it.
            assert!(explain_text(text).len() <= EXPLANATION + text.len().saturating_mul(600));
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}
