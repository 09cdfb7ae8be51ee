//! What a configuration file says, value by value, in words.
//!
//! Owns: the list of all keys with their meanings and defaults. Does not own: reading them for use.

use super::{Config, ConfigError};
use crate::wording;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

/// A key: where it stands (`*` for any backend), what it means, what it is when it is not there.
type Key = (&'static str, &'static str, &'static str);

/// Keys of both versions' backend sections.
const BACKEND: &[Key] = &[
    ("dir", "directory of blobs", ""),
    ("blob_file", "one file that every blob is read from", ""),
    ("alt_dirs", "directories to look in when `dir` does not have a blob", "none"),
    ("device_path", "disk or disk image that holds the blobs", ""),
    ("disable_gpt", "the disk as a whole is the blob", "false"),
    ("scheme", "http or https", "https"),
    ("host", "registry to ask", ""),
    ("repo", "repository in the registry", ""),
    ("auth", "base64 of user:password", "IMAGE_PULL_AUTH, Docker's logins, or nobody"),
    ("registry_token", "Bearer token to begin with", "none"),
    ("blob_url_scheme", "scheme of what the registry redirects to", "as the registry says"),
    ("blob_redirected_host", "host of what the registry redirects to", "as the registry says"),
    ("endpoint", "host of the object store", ""),
    ("bucket_name", "bucket", ""),
    ("region", "region the bucket is in", ""),
    ("object_prefix", "put before blob ids", "nothing"),
    ("access_key_id", "key to sign requests with", "unsigned"),
    ("access_key_secret", "its secret", "unsigned"),
    ("path_style", "bucket in the path, not in the host name", "true"),
    ("signature_version", "v1 or v4", "v1"),
    ("addr", "URL, or path of a unix socket", ""),
    ("path", "put before blob ids", "nothing"),
    ("skip_verify", "certificates are not checked", "false"),
    ("ca_cert_files", "authorities to trust beside the system's", "none"),
    ("timeout", "seconds for one exchange, 0 for no limit", "5"),
    ("connect_timeout", "seconds for one connection, 0 for no limit", "5"),
    ("retry_limit", "tries after the first, 0 for as many as fit into the deadline", "0"),
    ("deadline", "seconds after which a read fails", "30"),
    ("rate_limit", "bytes a second, 0 for no limit", "0"),
    ("proxy", "way to the server", "none"),
    ("proxy.url", "proxy to go through", "none"),
    ("proxy.ping_url", "asked now and then whether the proxy is well", "none"),
    ("proxy.fallback", "go past a proxy that fails", "true"),
    ("proxy.check_interval", "seconds between such questions", "5"),
    ("proxy.check_pause_elapsed", "seconds without requests after which nobody asks", "300"),
    ("proxy.use_http", "ask the proxy for http:// URLs", "false"),
    ("proxy.dragonfly_scheduler_endpoint", "has no effect: use proxy.url", "none"),
    ("mirrors", "hosts that are asked first", "none"),
    ("readahead", "obsolete, ignored", ""),
    ("readahead_sec", "obsolete, ignored", ""),
];

const V1: &[Key] = &[
    ("device.id", "instance id, names metrics and run-time credentials", "empty"),
    ("device.backend.type", "where blobs are", ""),
    ("device.external_backends", "has no effect", "none"),
    ("device.cache.type", "blobcache keeps cache files, empty keeps chunks in memory", "empty"),
    ("device.cache.compressed", "obsolete, ignored", "false"),
    ("device.cache.validate", "check inode digests of v5 images at mount", "false"),
    ("device.cache.config.work_dir", "directory of cache files", "."),
    ("device.cache.config.max_bytes", "bytes that cache files may have, 0 for no limit", "0"),
    ("device.cache.config.disable_indexed_map", "has no effect", "false"),
    ("device.cache.config.enable_encryption", "must be false", "false"),
    ("device.cache.config.enable_convergent_encryption", "must be false", "false"),
    ("device.cache.config.encryption_key", "has no effect", ""),
    ("mode", "direct; cached means the same", ""),
    (
        "digest_validate",
        "check inode digests of v5 images at mount; chunks are verified in any case",
        "false",
    ),
    ("verify", "off serves chunks unchecked", "on"),
    ("iostats_files", "count reads of each file", "false"),
    ("enable_xattr", "serve extended attributes", "false"),
    ("access_pattern", "note when each file was first read", "false"),
    ("latest_read_files", "note which files were read lately", "false"),
    ("amplify_io", "bytes that a read is widened to at most", "1048576"),
    ("id_mapping", "[internal, external, range]: owners are shown shifted", "none"),
    ("device.id_mapping", "[internal, external, range]: owners are shown shifted", "none"),
    ("fs_prefetch.enable", "fetch ahead", "false"),
    ("fs_prefetch.threads_count", "requests at a time for it", "8"),
    ("fs_prefetch.merging_size", "bytes that neighbours are merged to", "1048576"),
    ("fs_prefetch.bandwidth_rate", "bytes a second, 0 for no limit", "0"),
    ("fs_prefetch.prefetch_all", "whole blobs, not only what the image lists", "true"),
    ("fs_prefetch.stream_prefetch", "whole blobs by one request each", "false"),
];

const V2: &[Key] = &[
    ("version", "2", ""),
    ("id", "instance id, names metrics and run-time credentials", "empty"),
    ("backend.type", "where blobs are", ""),
    ("external_backends", "has no effect", "none"),
    ("cache.type", "blobcache or filecache keep cache files, empty keeps chunks in memory", "empty"),
    ("cache.compressed", "obsolete, ignored", "false"),
    ("cache.validate", "check inode digests of v5 images at mount", "false"),
    ("cache.filecache.work_dir", "directory of cache files", ""),
    ("cache.filecache.max_bytes", "bytes that cache files may have, 0 for no limit", "0"),
    ("cache.filecache.disable_indexed_map", "has no effect", "false"),
    ("cache.filecache.enable_encryption", "must be false", "false"),
    ("cache.filecache.enable_convergent_encryption", "must be false", "false"),
    ("cache.filecache.encryption_key", "has no effect", ""),
    ("rafs.mode", "direct; cached means the same", "direct"),
    ("rafs.batch_size", "bytes that a read is widened to at most", "1048576"),
    ("rafs.validate", "check inode digests of v5 images at mount; chunks are verified in any case", "false"),
    ("rafs.verify", "off serves chunks unchecked", "on"),
    ("rafs.enable_xattr", "serve extended attributes", "false"),
    ("rafs.iostats_files", "count reads of each file", "false"),
    ("rafs.access_pattern", "note when each file was first read", "false"),
    ("rafs.latest_read_files", "note which files were read lately", "false"),
    ("rafs.id_mapping", "[internal, external, range]: owners are shown shifted", "none"),
    ("cache.prefetch.enable", "fetch blobs ahead", "false"),
    ("cache.prefetch.threads", "requests at a time for it", "8"),
    ("cache.prefetch.batch_size", "bytes that neighbours are merged to", "1048576"),
    ("cache.prefetch.bandwidth_limit", "bytes a second, 0 for no limit", "0"),
    ("cache.prefetch.prefetch_all", "whole blobs, not only what the image lists", "false"),
    ("cache.prefetch.stream_prefetch", "whole blobs by one request each", "false"),
    ("rafs.prefetch.enable", "fetch files ahead", "false"),
    ("rafs.prefetch.threads", "requests at a time for it", "8"),
    ("rafs.prefetch.batch_size", "bytes that neighbours are merged to", "1048576"),
    ("rafs.prefetch.bandwidth_limit", "bytes a second, 0 for no limit", "0"),
    ("rafs.prefetch.prefetch_all", "whole blobs, not only what the image lists", "false"),
    ("rafs.prefetch.stream_prefetch", "whole blobs by one request each", "false"),
];

/// Keys whose values are not shown.
const SECRET: [&str; 5] = ["auth", "registry_token", "access_key_id", "access_key_secret", "encryption_key"];

/// Explains the file at `path`, which [`Config::load`] understands: a line for each value, and one for each default.
///
/// # Errors
///
/// The file cannot be read.
pub fn explain(path: &Path) -> Result<String, ConfigError> {
    Ok(explain_text(&Config::read(path)?))
}

/// The same for a text.
#[must_use]
pub fn explain_text(text: &str) -> String {
    let value: Value = serde_json::from_str(text).or_else(|_| toml::from_str(text)).unwrap_or(Value::Null);
    let v2 = value.get("version").is_some();
    let form = match (v2, text.trim_start().starts_with('{')) {
        (true, true) => "V2, JSON",
        (true, false) => "V2, TOML",
        _ => "V1, JSON",
    };
    let mut out = format!("form: {form}\n");
    let (backend_at, keys) = if v2 { ("backend", V2) } else { ("device.backend", V1) };
    let kind = value
        .pointer(if v2 { "/backend/type" } else { "/device/backend/type" })
        .and_then(Value::as_str)
        .unwrap_or_default();
    let section = if v2 { format!("backend.{kind}.") } else { "device.backend.config.".to_owned() };
    let meaning = |path: &str| -> Option<&Key> {
        match path.strip_prefix(&section) {
            Some(key) => BACKEND.iter().find(|(name, ..)| *name == key),
            None => keys.iter().find(|(name, ..)| *name == path),
        }
    };
    let mut seen = BTreeSet::new();
    let mut leaves = Vec::new();
    let mut unknown = 0;
    collect(&value, String::new(), &|path| meaning(path).is_some(), &mut leaves);
    for (path, value) in leaves {
        let last = path.rsplit('.').next().unwrap_or(&path);
        let shown = if SECRET.contains(&last) && value.as_str().is_none_or(|text| !text.is_empty()) {
            "(not shown)".to_owned()
        } else {
            let text = super::shown::masked(&value).to_string();
            text.chars().take(120).collect()
        };
        match meaning(&path) {
            Some((_, words, _)) => {
                let _ = writeln!(out, "{path} = {shown}: {words}");
            }
            None if path.starts_with(backend_at) && v2 && !path.starts_with(&section) => {
                let _ = writeln!(out, "{path} = {shown}: ignored, the backend is {kind}");
            }
            None => {
                unknown += 1;
                let known = keys.iter().map(|(name, ..)| (*name).to_owned());
                let mut known = known.chain(BACKEND.iter().map(|(name, ..)| format!("{section}{name}")));
                let meant = known.find(|name| unknown <= GUESSES_MAX && is_like(name, &path));
                let meant = meant.map(|name| format!("; is {name} meant?")).unwrap_or_default();
                let _ = writeln!(out, "{path} = {shown}: ignored, no such key{meant}");
            }
        }
        seen.insert(path);
    }
    for (path, words, default) in
        keys.iter().filter(|(path, _, default)| !default.is_empty() && !seen.contains(*path))
    {
        // Of two places for the same key one is enough.
        if *path != "device.id_mapping" {
            let _ = writeln!(out, "{path}, by default {default}: {words}");
        }
    }
    out
}

/// Unknown keys for which it is said what may be meant: whoever wrote more than this has another file in mind.
const GUESSES_MAX: usize = 100;

/// Whether a key is the other in another place, or misspelt.
fn is_like(key: &str, other: &str) -> bool {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    wording::is_like(&last(key), &last(other))
}

/// All values with their paths; an object is one value where `known` says so of its path, and a list always is.
fn collect(value: &Value, path: String, known: &dyn Fn(&str) -> bool, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(keys)
            if !keys.is_empty() && (path.is_empty() || path.ends_with("proxy") || !known(&path)) =>
        {
            for (key, value) in keys {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(value, below, known, out);
            }
        }
        _ => out.push((path, value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_countless_unknown_keys_few_are_thought_about() {
        let keys: String = (0..3000).map(|n| format!("work_dir{n} = 1\n")).collect();
        let said = explain_text(&format!("version = 2\n{keys}"));
        assert_eq!(said.matches("ignored, no such key").count(), 3000);
        let guesses = said.matches("meant?").count();
        assert!(guesses > 0 && guesses <= GUESSES_MAX, "{guesses}");
    }

    #[test]
    fn values_defaults_and_strangers() {
        let text = r#"{"device": {"id": "/1", "backend": {"type": "registry", "config": {"host": "h", "repo": "r",
            "auth": "dTpwYXNz", "proxy": {"url": "http://u:pass@p:1", "cache_dir": "/x"}}},
            "cache": {"type": "blobcache", "config": {"work_dri": "/c"}}, "digest_validate": true}, "mode": "direct",
            "warmup": 3, "digest_valdate": true}"#;
        let out = explain_text(text);
        for line in [
            "form: V1, JSON",
            "device.id = \"/1\": instance id",
            "device.backend.config.host = \"h\": registry to ask",
            "device.backend.config.auth = (not shown)",
            "device.backend.config.proxy.url = \"http://p:1\": proxy",
            "device.backend.config.proxy.cache_dir = \"/x\": ignored",
            "warmup = 3: ignored, no such key\n",
            "digest_valdate = true: ignored, no such key; is digest_validate meant?",
            "device.digest_validate = true: ignored, no such key; is digest_validate meant?",
            "device.cache.config.work_dri = \"/c\": ignored, no such key; is device.cache.config.work_dir meant?",
            "enable_xattr, by default false",
        ] {
            assert!(out.contains(line), "{line} is not in:\n{out}");
        }
        assert!(!out.contains("dTpw") && !out.contains("pass@"), "{out}");
    }

    #[test]
    fn every_key_of_the_samples_is_known() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        for file in std::fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".v1.json") || name.ends_with(".v2.toml") {
                let text = explain(&path).unwrap();
                assert!(!text.contains("no such key"), "{name}:\n{text}");
            }
        }
    }
}
