//! From the flags of `create` to what the library builds.
//!
//! Owns: which flags go together, older spellings, defaults that depend on the type of source. Does not own: building.

use super::super::backend::{ConfigFile, Section};
use super::super::values::{FeatureArg, SourceType};
use super::super::{compact, prefetch};
use super::CreateArgs;
use crate::attributes::Attributes;
use crate::blobs::BlobPlace;
use crate::build::{BlobTarget, BootstrapTarget, CreateOptions, SourceKind, StargzLayer};
use crate::options::{ChunkSize, ImageOptions, PrefetchPolicy};
use crate::rebuild::CompactOptions;
use anyhow::{Context as _, anyhow, bail};
use rafs::codec::{Compressor, Digester};
use std::path::PathBuf;
use std::sync::Arc;

/// Chunk size of an eStargz layer, unless it was made with another one.
const STARGZ_CHUNK_SIZE: u64 = 0x40_0000;
const CHUNK_SIZE: u64 = 0x10_0000;

/// What the flags ask for.
pub(super) struct Wanted {
    /// The build.
    pub build: CreateOptions,
    /// A compaction of the parent before it.
    pub compact: Option<CompactOptions>,
}

/// Where things go, older spellings included.
struct Targets {
    blob: Option<PathBuf>,
    blob_dir: Option<PathBuf>,
    /// A backend that nothing is written to.
    backend: Option<Section>,
}

impl CreateArgs {
    /// Checks the flags.
    pub(super) fn wanted(&self) -> anyhow::Result<Wanted> {
        // Standard input comes before anything else: whoever feeds it may wait for it to be taken.
        let (prefetch_policy, prefetch_patterns) = prefetch::read(self.prefetch_policy)?;
        let kind = self.kind;
        if prefetch_policy == PrefetchPolicy::Blob && (kind.is_reference() || kind == SourceType::Tarfs) {
            bail!(
                "--prefetch-policy blob needs data that is stored anew: use fs with --type {}",
                self.kind_name()
            );
        }
        let targets = self.targets()?;
        let compact = self.compaction(&targets)?;
        let layer = match (&targets.backend, &self.config) {
            (Some(backend), _) if compact.is_none() && kind == SourceType::StargzIndex => {
                Some(backend.open()?)
            }
            (Some(backend), _) if compact.is_none() => bail!(
                "--backend-type {}: blobs are written to files; give --blob-dir or --blob, and upload the blob",
                backend.kind()
            ),
            (None, Some(file)) if compact.is_none() && kind == SourceType::StargzIndex => {
                Some(ConfigFile::load(file)?.backend.open()?)
            }
            _ => targets.blob_dir.clone().map(BlobPlace::Directory),
        };
        let image = ImageOptions {
            version: self.fs_version.into(),
            chunk_size: ChunkSize::new(self.chunk_size.unwrap_or(match kind {
                SourceType::StargzIndex => STARGZ_CHUNK_SIZE,
                _ => CHUNK_SIZE,
            }))?,
            aligned_chunk: self.aligned_chunk,
            batch_size: match self.batch_size {
                0 => None,
                bytes => Some(ChunkSize::new(bytes).context("--batch-size")?),
            },
            encrypt: self.encrypt,
            repeatable: self.repeatable,
            whiteout_spec: self.whiteout_spec.into(),
            prefetch_policy,
            prefetch_patterns,
            attributes: self.attributes()?,
            ..self.codecs()
        };
        let image = match self.threads {
            Some(threads) => ImageOptions { threads, ..image },
            None => image,
        };
        let blob_id = self.blob_id.clone().map(checked_id).transpose()?;
        let build = CreateOptions {
            image,
            source: self.source_kind(layer)?,
            blob: self.blob_target(&targets)?,
            bootstrap: match (&self.bootstrap, &targets.blob_dir) {
                _ if self.blob_inline_meta => BootstrapTarget::Inline,
                (Some(file), _) => BootstrapTarget::File(file.clone()),
                (None, Some(dir)) => BootstrapTarget::Directory(dir.clone()),
                (None, None) => {
                    bail!("both --bootstrap and --blob-dir are missing: say where the metadata goes")
                }
            },
            blob_id,
            parent: self.parent_bootstrap.clone().filter(|path| !path.as_os_str().is_empty()),
            chunk_dict: self.chunk_dict.clone(),
            toc: self.features.contains(&FeatureArg::BlobToc),
            data_offset: self.blob_offset,
            external_blob: self.external_blob.clone(),
        };
        Ok(Wanted { build, compact })
    }

    fn attributes(&self) -> anyhow::Result<Arc<Attributes>> {
        let Some(file) = &self.attributes else { return Ok(Arc::default()) };
        if self.kind.is_reference() || self.kind == SourceType::Tarfs {
            bail!("--attributes cannot be used with --type {}", self.kind_name());
        }
        let text = std::fs::read(file).with_context(|| format!("cannot read attributes {file:?}"))?;
        let attributes =
            Attributes::parse(&text).map_err(|reason| anyhow!("attributes {file:?}: {reason}"))?;
        Ok(Arc::new(attributes))
    }

    fn kind_name(&self) -> String {
        use clap::ValueEnum as _;
        self.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Compressor and digester, some of which the type of source decides.
    fn codecs(&self) -> ImageOptions {
        let forced = match self.kind {
            SourceType::Tarfs => Some((Compressor::None, Digester::Sha256)),
            kind if kind.is_reference() => Some((Compressor::Gzip, Digester::Sha256)),
            _ if self.blob_cache_dir.is_some() => {
                Some((Compressor::None, self.digester.map_or(Digester::Blake3, Into::into)))
            }
            _ => None,
        };
        let asked = self.compressor.map(Compressor::from);
        let (compressor, digester) = forced.unwrap_or_else(|| {
            (asked.unwrap_or(Compressor::Zstd), self.digester.map_or(Digester::Blake3, Into::into))
        });
        if asked.is_some_and(|asked| asked != compressor) {
            tracing::info!(
                "--type {} is stored as it is ({compressor}), whatever --compressor says",
                self.kind_name()
            );
        }
        ImageOptions { compressor, digester, ..ImageOptions::default() }
    }

    fn targets(&self) -> anyhow::Result<Targets> {
        let mut targets = Targets {
            blob: self.blob.clone(),
            blob_dir: self.blob_dir.clone(),
            backend: self.backend.section()?,
        };
        let Some((dir, file)) = targets.backend.as_ref().and_then(Section::localfs) else {
            return Ok(targets);
        };
        tracing::warn!("--backend-type localfs is the older form of --blob-dir DIR and --blob FILE");
        targets.backend = None;
        if targets.blob.is_some() || targets.blob_dir.is_some() {
            return Ok(targets);
        }
        match (file, dir) {
            (Some(file), _) => targets.blob = Some(file),
            (None, Some(dir)) => targets.blob_dir = Some(dir),
            (None, None) => bail!("backend localfs needs \"dir\" or \"blob_file\""),
        }
        Ok(targets)
    }

    /// The older form of `compact`: the numbers are in the file of `--config`, the image is the parent.
    fn compaction(&self, targets: &Targets) -> anyhow::Result<Option<CompactOptions>> {
        let Some(file) = &self.config else { return Ok(None) };
        // The file may as well be a daemon's configuration, even one in TOML.
        let config = compact::read_config(file).unwrap_or_default();
        if config.is_empty() {
            ConfigFile::load(file)?;
            return Ok(None);
        }
        let Some(bootstrap) = self.parent_bootstrap.clone().filter(|path| !path.as_os_str().is_empty())
        else {
            tracing::info!("there is no parent image (--parent-bootstrap): nothing to compact");
            return Ok(None);
        };
        let Some(blob_dir) = config.blobs_dir.clone().or_else(|| targets.blob_dir.clone()) else {
            bail!("say where the parent's blobs are: \"blobs_dir\" in {file:?}, or --blob-dir");
        };
        Ok(Some(CompactOptions {
            output: bootstrap.with_extension("bootstrap.compact"),
            bootstrap,
            blob_dir,
            backend: targets.backend.as_ref().map(Section::open).transpose()?,
            chunk_dict: self.chunk_dict.clone(),
            settings: config.settings(),
        }))
    }

    fn source_kind(&self, layer: Option<BlobPlace>) -> anyhow::Result<SourceKind> {
        let path = self.source.clone();
        if self.blob_meta.is_some() && self.kind != SourceType::StargzIndex {
            bail!("--blob-meta is for --type estargztoc-ref: other images have the chunk info in their blob");
        }
        Ok(match self.kind {
            SourceType::Directory => SourceKind::Directory(path),
            SourceType::Tarfs => SourceKind::Tarfs(path),
            SourceType::Reference | SourceType::EstargzReference => SourceKind::TarReference(path),
            SourceType::Tar | SourceType::TarGz | SourceType::Estargz => SourceKind::Tar(path),
            SourceType::StargzIndex => SourceKind::StargzIndex(StargzLayer {
                index: path,
                size: self.blob_data_size,
                place: layer,
                chunk_meta: self.blob_meta.clone(),
            }),
        })
    }

    fn blob_target(&self, targets: &Targets) -> anyhow::Result<Option<BlobTarget>> {
        let none = |what: &str| match &targets.blob {
            Some(_) => bail!("--blob cannot be used with --type {what}, which writes no blob"),
            None => Ok(None),
        };
        if let Some(dir) = &self.blob_cache_dir {
            if matches!(self.kind, SourceType::Tarfs | SourceType::Estargz) || self.kind.is_reference() {
                bail!("--blob-cache-dir cannot be used with --type {}", self.kind_name());
            }
            return Ok(Some(BlobTarget::CacheDirectory(dir.clone())));
        }
        match (self.kind, &targets.blob, &targets.blob_dir) {
            (SourceType::Tarfs | SourceType::StargzIndex, ..) => none(&self.kind_name()),
            (_, Some(file), _) => Ok(Some(BlobTarget::File(file.clone()))),
            (_, None, Some(dir)) => Ok(Some(BlobTarget::Directory(dir.clone()))),
            (_, None, None) => {
                bail!(
                    "both --blob and --blob-dir or --blob-cache-dir are missing: say where the data blob goes"
                )
            }
        }
    }
}

/// Blob ids become file names: no separators, nothing that means another directory.
fn checked_id(id: String) -> anyhow::Result<String> {
    if id.is_empty() || id.len() > 64 || id.contains(['/', '\0']) || id == "." || id == ".." {
        bail!("--blob-id {id:?}: an id has 1 to 64 bytes, no slash, and is not . or ..");
    }
    if id.starts_with("sha256:") {
        bail!("--blob-id {id:?}: leave out the prefix sha256:");
    }
    Ok(id)
}
