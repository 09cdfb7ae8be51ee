//! A configuration as the API shows it: V2 JSON, secrets taken out.

use super::Config;
use serde_json::{Map, Value, json};

/// Backend types, each a key of the backend object.
const TYPES: [&str; 6] = ["localdisk", "localfs", "oss", "s3", "registry", "http-proxy"];

/// A backend section with its type around it, without what nobody may see.
pub(super) fn backend(kind: &str, section: &Value) -> Value {
    let mut section = section.clone();
    mask(&mut section);
    if kind == "localfs"
        && let Value::Object(keys) = &mut section
    {
        for (key, default) in [("blob_file", json!("")), ("dir", json!("")), ("alt_dirs", json!([]))] {
            keys.entry(key).or_insert(default);
        }
    }
    let mut out = Map::from_iter([("type".to_owned(), json!(kind))]);
    for name in TYPES {
        out.insert(name.to_owned(), if name == kind { section.clone() } else { Value::Null });
    }
    Value::Object(out)
}

/// A value without secrets.
pub(crate) fn masked(value: &Value) -> Value {
    let mut value = value.clone();
    mask(&mut value);
    value
}

/// Takes out passwords, tokens and keys, also those inside URLs.
fn mask(value: &mut Value) {
    match value {
        Value::Object(keys) => {
            for (key, value) in keys.iter_mut() {
                match key.as_str() {
                    "auth" | "registry_token" | "encryption_key" => *value = Value::Null,
                    "access_key_id" | "access_key_secret" => *value = json!(""),
                    "headers" => *value = json!({}),
                    _ => mask(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::String(text) => {
            if let Some(masked) = without_password(text) {
                *text = masked;
            }
        }
        _ => {}
    }
}

/// A URL without the part before its `@`; `None` when there is none.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let host_end = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(host_end);
    let (_, host) = host.rsplit_once('@')?;
    Some(format!("{scheme}://{host}{path}"))
}

/// What is said about external backends.
pub(super) fn remark_external(list: &[Value], remarks: &mut Vec<String>) {
    if !list.is_empty() {
        remarks.push(
            "external_backends has no effect: images with external blobs are not served and their mount is refused"
                .to_owned(),
        );
    }
}

impl Config {
    /// As V2 JSON, without secrets: what `GET /api/v1/daemon` shows.
    #[must_use]
    pub fn shown(&self) -> Value {
        let cache_kind = match self.cache.kind.as_str() {
            "filecache" => "blobcache",
            other => other,
        };
        let filecache = self.cache.dir.as_ref().map(|dir| {
            json!({
                "work_dir": dir,
                "disable_indexed_map": false,
                "enable_encryption": false,
                "enable_convergent_encryption": false,
                "encryption_key": "",
                "max_bytes": self.cache.max_bytes,
            })
        });
        let rafs = &self.rafs;
        json!({
            "version": 2,
            "id": self.id,
            "backend": self.backend_shown,
            "external_backends": [],
            "cache": {
                "type": cache_kind,
                "compressed": self.cache.compressed,
                "validate": self.cache.validate,
                "prefetch": self.cache_prefetch.shown(),
                "filecache": filecache,
                "fscache": null,
            },
            "rafs": {
                "mode": rafs.mode,
                "batch_size": rafs.amplify_io,
                "validate": rafs.validate,
                "verify": if self.verify { "on" } else { "off" },
                "enable_xattr": rafs.xattr,
                "iostats_files": rafs.iostats_files,
                "access_pattern": rafs.access_pattern,
                "latest_read_files": rafs.latest_read_files,
                "prefetch": rafs.prefetch.shown(),
            },
            "overlay": null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let text = r#"{"device": {"id": "/1", "backend": {"type": "registry", "config": {"host": "h", "repo": "r",
            "auth": "dTpTRUNSRVQ=", "registry_token": "SECRET", "scheme": "http",
            "proxy": {"url": "http://u:SECRET@proxy:1/x"},
            "mirrors": [{"host": "http://m", "headers": {"Authorization": "SECRET"}}]}}}, "mode": "direct"}"#;
        let shown = Config::parse(text).unwrap().shown();
        let text = shown.to_string();
        assert!(!text.contains("SECRET") && !text.contains("dTp"), "{text}");
        assert_eq!(shown["backend"]["registry"]["auth"], Value::Null);
        assert_eq!(shown["backend"]["registry"]["proxy"]["url"], "http://proxy:1/x");
        assert_eq!(shown["backend"]["localfs"], Value::Null);
        assert_eq!(shown["id"], "/1");
        let s3 = "version = 2\n[backend]\ntype = \"s3\"\n[backend.s3]\nregion = \"r\"\nbucket_name = \"b\"\n\
            access_key_id = \"SECRET\"\naccess_key_secret = \"SECRET\"\n";
        assert!(!Config::parse(s3).unwrap().shown().to_string().contains("SECRET"));
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let text = r#"{"device": {"id": "x", "backend": {"type": "localfs", "config": {"dir": "/b"}},
            "cache": {"type": "blobcache", "config": {"work_dir": "/c"}}}, "mode": "direct", "enable_xattr": true,
            "fs_prefetch": {"enable": true, "threads_count": 2}}"#;
        let config = Config::parse(text).unwrap();
        let again = Config::parse(&config.shown().to_string()).unwrap();
        assert_eq!(again.shown(), config.shown());
        assert_eq!((again.rafs, again.backend), (config.rafs, config.backend));
    }
}
