//! Manifests and indexes (oci.md sections 1 and 2): where the bootstrap layer is.

use anyhow::{Context, bail};
use serde::Deserialize;
use std::collections::HashMap;

/// Annotation of the bootstrap layer.
const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
/// Artifact type of a Nydus manifest in an index.
const ARTIFACT: &str = "application/vnd.nydus.image.manifest.v1+json";
/// How images before v2.3.5 said the same.
const FEATURE: &str = "nydus.remoteimage.v1";
/// Annotations of an index in a layout that name an image: a tag, and a whole reference.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// What is pointed at.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, rename = "os.features")]
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// What a document says.
#[derive(Debug)]
pub(super) enum Found {
    /// A manifest with this bootstrap layer.
    Bootstrap(Descriptor),
    /// An index: all that it lists.
    Manifests(Vec<Descriptor>),
}

impl Descriptor {
    /// The digest's hex digits.
    pub fn hex(&self) -> anyhow::Result<&str> {
        let hex = self.digest.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        hex.with_context(|| {
            format!("digest {:?} is no sha256", self.digest.chars().take(100).collect::<String>())
        })
    }

    fn is_bootstrap(&self) -> bool {
        self.annotations.as_ref().is_some_and(|a| a.get(BOOTSTRAP).is_some_and(|v| v == "true"))
    }

    /// The names that a layout gives it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        NAMES.iter().filter_map(|key| self.annotations.as_ref()?.get(*key)).map(String::as_str)
    }

    /// Whether a layout calls it by this tag.
    pub fn is_called(&self, tag: &str) -> bool {
        self.names().any(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, t)| t == tag))
    }

    /// The platform that it is for, as `os/architecture`.
    pub fn platform(&self) -> Option<String> {
        self.platform.as_ref().map(|p| {
            let word =
                |text: &str| text.chars().take(32).filter(|c| c.is_ascii_graphic()).collect::<String>();
            format!("{}/{}", word(&p.os), word(&p.architecture))
        })
    }

    /// 0 for a Nydus manifest of this machine's platform, more for what is less likely; `None` for another platform.
    fn rank(&self) -> Option<u32> {
        let nydus = self.artifact_type.as_deref() == Some(ARTIFACT)
            || self.platform.as_ref().is_some_and(|p| p.features.iter().any(|f| f == FEATURE));
        let ours = |p: &Platform| {
            (p.os.is_empty() || p.os == "linux")
                && (p.architecture.is_empty() || p.architecture == architecture())
        };
        match &self.platform {
            Some(platform) if !ours(platform) => None,
            _ => Some(u32::from(!nydus)),
        }
    }
}

/// This machine's architecture, as images name it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads an index or a manifest.
pub(super) fn parse(text: &[u8]) -> anyhow::Result<Found> {
    let document: Document = serde_json::from_slice(text).context("no image manifest")?;
    match (document.manifests, document.layers) {
        (Some(manifests), _) => Ok(Found::Manifests(manifests)),
        (None, Some(layers)) => match layers.into_iter().next_back() {
            Some(last) if last.is_bootstrap() => Ok(Found::Bootstrap(last)),
            _ => bail!(
                "not a Nydus image: its last layer has no annotation {BOOTSTRAP}; convert it with nydusify first"
            ),
        },
        (None, None) => bail!("neither an image manifest nor an index"),
    }
}

/// The manifests of an index that are worth looking at, the likeliest first.
pub(super) fn ranked(manifests: &[Descriptor]) -> Vec<&Descriptor> {
    let mut ranked: Vec<_> = manifests.iter().filter_map(|d| Some((d.rank()?, d))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, d)| d).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nydus_manifest_of_this_platform_comes_first() {
        let hex = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let index = serde_json::json!({"manifests": [
            {"digest": hex('a'), "platform": {"os": "linux", "architecture": architecture()}},
            {"digest": hex('b'), "platform": {"os": "linux", "architecture": "s390x"}, "artifactType": ARTIFACT},
            {"digest": hex('c'), "platform": {"os": "linux", "architecture": architecture()}, "artifactType": ARTIFACT},
            {"digest": hex('d'), "platform": {"os": "linux", "architecture": architecture(), "os.features": [FEATURE]}},
        ]});
        let Found::Manifests(list) = parse(index.to_string().as_bytes()).unwrap() else { panic!() };
        let order: Vec<_> = ranked(&list).iter().map(|d| d.digest.clone()).collect();
        assert_eq!(order, [hex('c'), hex('d'), hex('a')]);
        let manifest = serde_json::json!({"layers": [{"digest": hex('a'), "size": 3},
            {"digest": hex('b'), "size": 4, "annotations": {BOOTSTRAP: "true"}}]});
        let Found::Bootstrap(layer) = parse(manifest.to_string().as_bytes()).unwrap() else { panic!() };
        assert_eq!((layer.digest.clone(), layer.size), (hex('b'), 4));
        for bad in ["", "[]", "{}", r#"{"layers": []}"#, r#"{"layers": [{"digest": "x"}]}"#] {
            parse(bad.as_bytes()).unwrap_err();
        }
        let odd = Descriptor { digest: "sha256:../../etc".into(), ..layer };
        odd.hex().unwrap_err();
    }
}
