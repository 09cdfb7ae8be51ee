//! `--image`: from the name of a Nydus image to a bootstrap file and a configuration.
//!
//! Owns: finding manifest and bootstrap layer, checking them against their digests, and unpacking. Does not own: HTTP
//! (`rafs_net`), serving.

mod bootstrap;
mod layout;
mod manifest;
mod reference;

pub use reference::{Reference, ReferenceError};

use crate::config::{Backend, Config, Environment};
use crate::mounts::Storage;
use anyhow::{Context, bail};
use layout::{Chosen, Layout};
use manifest::{Descriptor, Found};
use rafs::store::{FetchRequest, Priority, Store};
use rafs_net::{HttpOptions, NetStore, RegistryOptions, fetch_manifest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

/// Largest bootstrap layer, compressed, bytes.
const LAYER_MAX: u64 = 512 << 20;
/// Largest manifest or index in a layout, bytes; as large as one that a registry may send.
const MANIFEST_MAX: u64 = 4 << 20;
/// Manifests that are looked at for one image.
const MANIFESTS_MAX: usize = 64;
/// Indexes inside each other.
const DEPTH_MAX: u32 = 4;

/// An image that is ready to be mounted.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its bootstrap, unpacked.
    pub bootstrap: PathBuf,
    /// Text of its configuration, V1 or V2 JSON.
    pub config: String,
}

/// Finds an image: in a directory with an OCI layout (`DIR`, `DIR:TAG`, `DIR@sha256:HEX`), or by a reference to a registry.
/// `config`: the text of a configuration file for it, which may say everything but host and repository.
///
/// # Errors
///
/// What was asked for, where, and what came back.
pub fn resolve(image: &str, config: Option<&str>, storage: &Storage) -> anyhow::Result<ResolvedImage> {
    if let Some(layout) = Layout::of(image) {
        return from_layout(&layout, config).with_context(|| format!("--image {image}"));
    }
    if layout::is_path(image) {
        bail!("--image {image}: there is no OCI layout: no file {image}/index.json");
    }
    let reference: Reference = image.parse().with_context(|| format!("--image {image}"))?;
    from_registry(&reference, config, storage).with_context(|| format!("--image {image}"))
}

fn from_layout(layout: &Layout<'_>, config: Option<&str>) -> anyhow::Result<ResolvedImage> {
    let manifest = |descriptor: &Descriptor| layout.read(descriptor, MANIFEST_MAX);
    let layer = match layout.chosen()? {
        Chosen::Document(text) => find_layer(&text, manifest)?,
        Chosen::Manifest(descriptor) => find_layer(&checked(manifest(&descriptor)?, &descriptor)?, manifest)?,
    };
    let bytes = checked(layout.read(&layer, LAYER_MAX)?, &layer)?;
    let config = match config {
        Some(text) => text.to_owned(),
        None => config_json(&json!({"type": "localfs", "localfs": {"dir": layout.blobs()}}), &cache_dir()?),
    };
    let bootstrap = bootstrap::unpacked(&bytes, &bootstrap_dir(&config)?)?;
    Ok(ResolvedImage { bootstrap, config })
}

fn from_registry(
    reference: &Reference,
    config: Option<&str>,
    storage: &Storage,
) -> anyhow::Result<ResolvedImage> {
    let config = match config {
        Some(text) => with_repository(text, reference)?,
        None => {
            let section =
                json!({"scheme": reference.scheme(), "host": reference.host, "repo": reference.repo});
            config_json(&json!({"type": "registry", "registry": section}), &cache_dir()?)
        }
    };
    let mut parsed = Config::parse(&config)?;
    parsed.apply(&Environment::of_process());
    let Backend::Registry(options, http) = &parsed.backend else {
        bail!(
            "the configuration's backend is {}; an image of a registry needs \"registry\"",
            parsed.backend.kind()
        );
    };
    let runtime = storage.net()?;
    let manifest = |name: &str| fetch_manifest(&runtime, options, http, name);
    let text = manifest(&reference.version).with_context(|| {
        let Reference { host, repo, version } = reference;
        format!(
            "no manifest {version:?} of {repo:?} from {host}; is the reference right, and the registry up?"
        )
    })?;
    if let Some(hex) = reference.version.strip_prefix("sha256:") {
        check_digest(&text, hex, "the manifest")?;
    }
    let layer = find_layer(&text, |descriptor| Ok(manifest(&descriptor.digest)?))?;
    let store = NetStore::registry(&runtime, options, http)?;
    let bytes = fetch_blob(&store, options, http, &layer)?;
    let bootstrap = bootstrap::unpacked(&bytes, &bootstrap_dir(&config)?)?;
    Ok(ResolvedImage { bootstrap, config })
}

/// From an index or manifest to the bootstrap layer; `read` fetches a manifest, which is checked here.
fn find_layer(
    text: &[u8],
    read: impl Fn(&Descriptor) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Descriptor> {
    Search { read, left: MANIFESTS_MAX }.layer(text, 0)
}

/// A way through indexes.
struct Search<F> {
    read: F,
    /// Manifests that may still be looked at.
    left: usize,
}

impl<F: Fn(&Descriptor) -> anyhow::Result<Vec<u8>>> Search<F> {
    fn layer(&mut self, text: &[u8], depth: u32) -> anyhow::Result<Descriptor> {
        let manifests = match manifest::parse(text)? {
            Found::Bootstrap(layer) => return Ok(layer),
            Found::Manifests(_) if depth >= DEPTH_MAX => {
                bail!("indexes inside indexes, more than {DEPTH_MAX}")
            }
            Found::Manifests(list) => list,
        };
        let mut last = None;
        for descriptor in manifest::ranked(&manifests) {
            self.left = self
                .left
                .checked_sub(1)
                .with_context(|| format!("none of the first {MANIFESTS_MAX} manifests is a Nydus image's"))?;
            let bytes = (self.read)(descriptor).with_context(|| format!("manifest {}", descriptor.digest))?;
            match self.layer(&checked(bytes, descriptor)?, depth + 1) {
                Ok(layer) => return Ok(layer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            let mut others: Vec<_> = manifests.iter().filter_map(Descriptor::platform).take(20).collect();
            others.dedup();
            let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
            anyhow::anyhow!("there is no image for linux/{}, only for {others}", manifest::architecture())
        }))
    }
}

fn checked(bytes: Vec<u8>, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
    check_digest(&bytes, descriptor.hex()?, &descriptor.digest)?;
    Ok(bytes)
}

fn check_digest(bytes: &[u8], hex: &str, what: &str) -> anyhow::Result<()> {
    let actual: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if actual != hex {
        bail!(
            "{what} has digest {actual}, not what it was asked for by; the registry or what is before it is damaged"
        );
    }
    Ok(())
}

fn fetch_blob(
    store: &NetStore,
    options: &RegistryOptions,
    http: &HttpOptions,
    layer: &Descriptor,
) -> anyhow::Result<Vec<u8>> {
    if layer.size == 0 || layer.size > LAYER_MAX {
        bail!("the bootstrap layer {} has {} bytes", layer.digest, layer.size);
    }
    let (tx, rx) = mpsc::channel();
    let request = FetchRequest {
        object: Arc::from(layer.hex()?),
        range: 0..layer.size,
        buffer: Vec::new(),
        attempt: 0,
        priority: Priority::Demand,
    };
    store.fetch(request, Box::new(move |result| drop(tx.send(result))));
    let patience = http.deadline.saturating_mul(2);
    let bytes = rx.recv_timeout(patience).ok().with_context(|| {
        format!("{} did not deliver the bootstrap layer {} within {patience:?}", options.host, layer.digest)
    })??;
    checked(bytes, layer)
}

/// A configuration with the reference's host and repository in its registry section.
fn with_repository(text: &str, reference: &Reference) -> anyhow::Result<String> {
    let mut config: Value = serde_json::from_str(text)
        .or_else(|_| toml::from_str(text))
        .map_err(|_| anyhow::anyhow!("the configuration is neither JSON nor TOML"))?;
    let at = if config.get("version").is_some() { "/backend/registry" } else { "/device/backend/config" };
    let Some(Value::Object(section)) = config.pointer_mut(at) else {
        bail!("the configuration has no registry section");
    };
    section.insert("host".to_owned(), json!(reference.host));
    section.insert("repo".to_owned(), json!(reference.repo));
    section.entry("scheme").or_insert_with(|| json!(reference.scheme()));
    Ok(config.to_string())
}

fn config_json(backend: &Value, cache: &Path) -> String {
    json!({
        "version": 2,
        "backend": backend,
        "cache": {"type": "blobcache", "filecache": {"work_dir": cache}},
        "rafs": {"mode": "direct", "enable_xattr": true},
    })
    .to_string()
}

/// Where cache files go if nobody says.
fn cache_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("RAFSD_CACHE_DIR") {
        return Ok(dir.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/rafsd"));
    }
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let base = home("XDG_CACHE_HOME").or_else(|| home("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("rafsd")).context("no cache directory: set RAFSD_CACHE_DIR, or say --config")
}

/// Bootstraps lie beside the cache files.
fn bootstrap_dir(config: &str) -> anyhow::Result<PathBuf> {
    match Config::parse(config)?.cache.dir {
        Some(dir) => Ok(dir.join("bootstraps")),
        None => Ok(cache_dir()?.join("bootstraps")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_gets_host_and_repository() {
        let reference: Reference = "reg.example:5000/a/b:v1".parse().unwrap();
        let v1 = r#"{"device": {"backend": {"type": "registry", "config": {"host": "", "repo": "", "auth": "dTpw"}}}, "mode": "direct"}"#;
        let v2 = "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nscheme = \"http\"\n";
        for text in [v1, v2] {
            let config = Config::parse(&with_repository(text, &reference).unwrap()).unwrap();
            let Backend::Registry(options, _) = config.backend else { panic!() };
            assert_eq!((options.host.as_str(), options.repo.as_str()), ("reg.example:5000", "a/b"));
        }
        with_repository("version = 2\n", &reference).unwrap_err();
    }
}
