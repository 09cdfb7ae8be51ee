//! Docker's `config.json` and credential helpers: what this user would pull with.

use crate::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Largest file or answer that is read, bytes.
const SIZE_MAX: u64 = 1 << 20;
/// How long a helper may take.
const HELPER_TIME: Duration = Duration::from_secs(10);
/// Docker Hub goes by several names.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Who we are to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// base64 of `user:password`.
    Basic(Secret),
    /// A refresh token to be changed for Bearer tokens.
    Identity(Secret),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    auths: HashMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// What `dir/config.json` has for `host`. May run a helper: blocks.
pub(super) fn lookup(dir: &Path, host: &str) -> Option<Credentials> {
    let path = dir.join("config.json");
    let mut text = Vec::new();
    std::fs::File::open(&path).ok()?.take(SIZE_MAX).read_to_end(&mut text).ok()?;
    let file: File = serde_json::from_slice(&text)
        .inspect_err(
            |e| tracing::warn!(path = %path.display(), line = e.line(), "not a Docker configuration"),
        )
        .ok()?;
    let key = |keys: Vec<&String>| keys.into_iter().find(|key| same_host(key, host)).cloned();
    let listed = key(file.auths.keys().collect());
    let helper = match key(file.helpers.keys().collect()) {
        Some(key) => file.helpers.get(&key).map(|helper| (helper.as_str(), key.clone())),
        None if !file.store.is_empty() => {
            let name = if is_docker_hub(host) { "https://index.docker.io/v1/" } else { host };
            Some((file.store.as_str(), listed.clone().unwrap_or_else(|| name.to_owned())))
        }
        None => None,
    };
    if let Some((helper, name)) = helper
        && let Some(found) = ask_helper(helper, &name)
    {
        return Some(found);
    }
    file.auths.get(&listed?).and_then(Entry::credentials)
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        if let Some(token) = Secret::new(&self.identitytoken) {
            return Some(Credentials::Identity(token));
        }
        if let Some(auth) = Secret::new(&self.auth) {
            return Some(Credentials::Basic(auth));
        }
        if self.username.is_empty() {
            return None;
        }
        basic(&self.username, &self.password)
    }
}

fn basic(user: &str, password: &str) -> Option<Credentials> {
    Secret::new(&STANDARD.encode(format!("{user}:{password}"))).map(Credentials::Basic)
}

/// Keys of the file are hosts, or URLs of hosts.
fn same_host(key: &str, host: &str) -> bool {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let key = key.split('/').next().unwrap_or_default();
    key.eq_ignore_ascii_case(host) || (is_docker_hub(key) && is_docker_hub(host))
}

fn is_docker_hub(host: &str) -> bool {
    DOCKER_HUB.iter().any(|name| host.eq_ignore_ascii_case(name))
}

/// Runs `docker-credential-HELPER get`, which reads the server's name and answers with JSON.
fn ask_helper(helper: &str, server: &str) -> Option<Credentials> {
    let named =
        !helper.is_empty() && helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !named {
        tracing::warn!(helper, "not the name of a credential helper");
        return None;
    }
    run_helper(&format!("docker-credential-{helper}"), server, HELPER_TIME)
}

fn run_helper(program: &str, server: &str, time: Duration) -> Option<Credentials> {
    let failed =
        |reason: &dyn std::fmt::Display| tracing::warn!(program, %reason, "credential helper failed");
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|e| failed(e))
        .ok()?;
    // The name fits into the pipe; the helper may end without reading it.
    drop(child.stdin.take().map(|mut stdin| stdin.write_all(server.as_bytes())));
    let stdout = child.stdout.take()?;
    // Not joined: whatever the helper has started may keep the pipe open for ever.
    let (answered, answer) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        drop(answered.send(stdout.take(SIZE_MAX).read_to_end(&mut bytes).map(|_| bytes)));
    };
    let thread = std::thread::Builder::new().name("credential-helper".into());
    let reading = thread.spawn(read).map(drop).inspect_err(|e| failed(e));
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if reading.is_ok() && began.elapsed() < time => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => {
                failed(&"no answer in time");
                drop(child.kill());
                drop(child.wait());
                return None;
            }
        }
    };
    if !status.success() {
        tracing::debug!(program, %status, "credential helper has nothing");
        return None;
    }
    let left = time.saturating_sub(began.elapsed()).max(Duration::from_millis(100));
    let answer = answer
        .recv_timeout(left)
        .inspect_err(|_| failed(&"it ended without ending its answer"))
        .ok()?
        .inspect_err(|e| failed(e))
        .ok()?;
    let found: Helped = serde_json::from_slice(&answer)
        .inspect_err(|_| failed(&"its answer is not the JSON it should be"))
        .ok()?;
    match found.username.as_str() {
        "<token>" => Secret::new(&found.secret).map(Credentials::Identity),
        user => basic(user, &found.secret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(config: &str, host: &str) -> Option<Credentials> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        lookup(dir.path(), host)
    }

    fn is_basic(found: Option<Credentials>, plain: &str) -> bool {
        found == Secret::new(&STANDARD.encode(plain)).map(Credentials::Basic)
    }

    #[test]
    fn entries_of_the_file() {
        let config = r#"{"auths": {"reg:5000": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"username": "a", "password": "b"},
            "tok": {"identitytoken": "it"}, "empty": {}}}"#;
        assert!(is_basic(with(config, "reg:5000"), "u:p"));
        assert!(is_basic(with(config, "registry-1.docker.io"), "a:b"));
        assert_eq!(with(config, "tok"), Secret::new("it").map(Credentials::Identity));
        for host in ["empty", "reg", "other"] {
            assert_eq!(with(config, host), None, "{host}");
        }
        assert_eq!(with("{", "reg"), None);
        assert_eq!(lookup(Path::new("/nonexistent"), "reg"), None);
    }

    /// What a helper gets out that is a shell script of the test's.
    fn helped(script: &str) -> Option<Credentials> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        run_helper(path.to_str().unwrap(), "reg:5000", Duration::from_millis(1500))
    }

    #[test]
    fn helpers_answer_or_not() {
        let good = r#"read -r s; printf '{"ServerURL":"%s","Username":"u","Secret":"%s"}' "$s" "$s-$1""#;
        assert!(is_basic(helped(good), "u:reg:5000-get"));
        let token = r#"echo '{"Username":"<token>","Secret":"it"}'"#;
        assert_eq!(helped(token), Secret::new("it").map(Credentials::Identity));
        for nothing in [
            "echo credentials not found in native keychain; exit 1",
            "exit 0",
            "echo '{\"Username\":7}'",
            "kill -9 $$",
            "exec sleep 60",
            "exec yes",
            "head -c 3000000 /dev/zero",
            // It ends, and what it has started does not.
            "sleep 5 & exit 0",
        ] {
            let begun = Instant::now();
            assert_eq!(helped(nothing), None, "{nothing}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{nothing}");
        }
        // An answer is an answer, whatever the exit leaves behind or says on the other channel.
        assert!(is_basic(helped(r#"echo oops >&2; echo '{"Username":"u","Secret":"p"}'"#), "u:p"));
    }

    #[test]
    fn helpers_are_named_not_pathed() {
        let config = r#"{"credHelpers": {"reg": "../../bin/sh"}, "auths": {"reg": {"auth": "dTpw"}}}"#;
        assert!(is_basic(with(config, "reg"), "u:p"), "falls back to the file");
        let config = r#"{"credsStore": "surely-not-installed", "auths": {"reg": {"auth": "dTpw"}}}"#;
        assert!(is_basic(with(config, "reg"), "u:p"));
    }
}
