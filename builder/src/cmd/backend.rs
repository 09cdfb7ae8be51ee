//! `--backend-type`, `--backend-config`, `--backend-config-file` and `-C/--config`: where blobs are, if not in a directory.
//!
//! Owns: these flags, finding the backend in a configuration file. Does not own: the keys of a backend, which `rafs-net`
//! reads as it does for `rafsd`.

use crate::blobs::BlobPlace;
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, bytes.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// The flags of a backend.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct BackendArgs {
    /// Where else the blobs are: registry, oss, s3, http-proxy or localdisk
    #[arg(long, value_name = "TYPE")]
    backend_type: Option<String>,

    /// JSON configuration of the backend: its own section, for example {"host": "reg.example", "repo": "app"}
    #[arg(long, value_name = "JSON", requires = "backend_type", conflicts_with = "backend_config_file")]
    backend_config: Option<String>,

    /// File with the configuration of the backend
    #[arg(long, value_name = "FILE", requires = "backend_type")]
    backend_config_file: Option<PathBuf>,
}

/// A backend by its type and section.
#[derive(Clone, Debug)]
pub(super) struct Section {
    kind: String,
    value: Value,
}

impl BackendArgs {
    /// The backend that the flags name, if they name one.
    pub(super) fn section(&self) -> anyhow::Result<Option<Section>> {
        let Some(kind) = &self.backend_type else { return Ok(None) };
        let text = match (&self.backend_config, &self.backend_config_file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => bail!("--backend-type needs --backend-config or --backend-config-file"),
        };
        let value = serde_json::from_str(&text)
            .with_context(|| format!("the configuration of backend {kind} is no JSON"))?;
        Ok(Some(Section { kind: kind.clone(), value }))
    }

    /// Opens the backend that the flags name. Local directories have a flag of their own, `--blob-dir`.
    pub(super) fn place(&self) -> anyhow::Result<Option<BlobPlace>> {
        let Some(section) = self.section()? else { return Ok(None) };
        if section.kind == "localfs" {
            bail!("--backend-type localfs: give the directory with --blob-dir");
        }
        section.open().map(Some)
    }
}

impl Section {
    /// A `localfs` section's directory and file, or `None` for other types.
    pub(super) fn localfs(&self) -> Option<(Option<PathBuf>, Option<PathBuf>)> {
        let path = |key: &str| {
            let text = self.value.get(key)?.as_str()?;
            (!text.is_empty()).then(|| PathBuf::from(text))
        };
        (self.kind == "localfs").then(|| (path("dir"), path("blob_file")))
    }

    /// The name of the type.
    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// Opens the store.
    pub(super) fn open(&self) -> anyhow::Result<BlobPlace> {
        if let Some((dir, file)) = self.localfs() {
            return match (file, dir) {
                (Some(file), _) => Ok(BlobPlace::File(file)),
                (None, Some(dir)) => Ok(BlobPlace::Directory(dir)),
                (None, None) => bail!("backend localfs needs \"dir\" or \"blob_file\""),
            };
        }
        self.open_store()
    }

    #[cfg(feature = "net")]
    fn open_store(&self) -> anyhow::Result<BlobPlace> {
        let kind = &self.kind;
        let mut remarks = Vec::new();
        let mut backend = rafs_net::Backend::parse(kind, &self.value, &mut remarks)?;
        for remark in remarks {
            tracing::warn!("{remark}");
        }
        backend.apply(&rafs_net::Environment::of_process());
        let store = backend.open().with_context(|| format!("cannot use backend {kind}"))?;
        Ok(BlobPlace::Store(store))
    }

    #[cfg(not(feature = "net"))]
    fn open_store(&self) -> anyhow::Result<BlobPlace> {
        bail!("backend {}: this program was built without network stores; use --blob-dir", self.kind)
    }
}

/// What a configuration file says: nydusd's V1 JSON, V2 JSON or TOML, or a blob-cache entry.
#[derive(Clone, Debug)]
pub(super) struct ConfigFile {
    /// Its backend.
    pub backend: Section,
    /// Bootstrap of a blob-cache entry.
    pub metadata_path: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads `path`.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        Self::parse(&read(path)?).with_context(|| format!("configuration {path:?}"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let root: Value = match serde_json::from_str(text) {
            Ok(root) => root,
            Err(json) => toml::from_str(text).map_err(|toml| {
                anyhow::anyhow!("it is neither JSON ({json}) nor TOML ({})", toml.message())
            })?,
        };
        let entry = ["config_v2", "config"].iter().find_map(|key| root.get(key)).unwrap_or(&root);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let metadata_path = text(entry.get("metadata_path")).map(PathBuf::from);
        if let Some(kind) = text(entry.get("backend_type")) {
            let value = entry.get("backend_config").cloned().unwrap_or(Value::Null);
            return Ok(Self { backend: Section { kind, value }, metadata_path });
        }
        let v1 = entry.get("device").and_then(|device| device.get("backend"));
        let Some(backend) = v1.or_else(|| entry.get("backend")) else {
            bail!("it names no backend (\"backend\", or \"device\": {{\"backend\"}}): say where blobs are");
        };
        let Some(kind) = text(backend.get("type")) else { bail!("its backend has no \"type\"") };
        let section = backend.get("config").filter(|_| v1.is_some());
        let section = section.or_else(|| backend.get(&kind)).or_else(|| backend.get(kind.replace('-', "_")));
        let Some(value) = section.cloned() else { bail!("backend {kind:?} has no section of its own") };
        Ok(Self { backend: Section { kind, value }, metadata_path })
    }
}

/// Reads a small text file.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {path:?}"))?;
    file.take(FILE_SIZE_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {path:?}"))?;
    if text.len() as u64 > FILE_SIZE_MAX {
        bail!("{path:?} has more than {FILE_SIZE_MAX} bytes: it is no configuration");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_configuration_names_its_backend() {
        for text in [
            r#"{"device": {"backend": {"type": "localfs", "config": {"dir": "/b"}}}, "mode": "direct"}"#,
            "version = 2\n[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = \"/b\"\n",
            r#"{"version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/b"}}}"#,
            r#"{"type": "bootstrap", "id": "x", "config_v2": {"version": 2, "metadata_path": "/m",
                "backend": {"type": "localfs", "localfs": {"dir": "/b"}}}}"#,
            r#"{"id": "x", "config": {"backend_type": "localfs", "backend_config": {"dir": "/b"}, "metadata_path": "/m"}}"#,
        ] {
            let config = ConfigFile::parse(text).unwrap();
            assert_eq!(config.backend.localfs(), Some((Some("/b".into()), None)), "{text}");
            assert_eq!(config.metadata_path.is_some(), text.contains("metadata_path"), "{text}");
        }
        for (text, part) in [
            ("{", "neither JSON"),
            ("{}", "names no backend"),
            (r#"{"backend": {}}"#, "no \"type\""),
            (r#"{"backend": {"type": "oss"}}"#, "no section"),
        ] {
            let error = ConfigFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
