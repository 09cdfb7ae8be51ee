//! Values of flags that more than one command has, or that have names of their own.

use crate::options::{Version, WhiteoutSpec};
use clap::builder::PossibleValue;
use rafs::codec::{Compressor, Digester};

/// Kinds of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceType {
    Directory,
    Tar,
    TarGz,
    Estargz,
    Reference,
    EstargzReference,
    StargzIndex,
    Tarfs,
}

impl clap::ValueEnum for SourceType {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Directory,
            Self::Tar,
            Self::TarGz,
            Self::Estargz,
            Self::Reference,
            Self::EstargzReference,
            Self::StargzIndex,
            Self::Tarfs,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Directory => {
                PossibleValue::new("dir-rafs").alias("directory").help("a directory tree (also: directory)")
            }
            Self::Tar => PossibleValue::new("tar-rafs").help("a tar archive; gzip and zstd are recognised"),
            Self::TarGz => PossibleValue::new("targz-rafs").help("the same"),
            Self::Estargz => PossibleValue::new("estargz-rafs").help("the same, for eStargz layers"),
            Self::Reference => PossibleValue::new("targz-ref")
                .help("a tar.gz layer that stays as it is; the blob is an index into it"),
            Self::EstargzReference => PossibleValue::new("estargz-ref").help("the same, for eStargz layers"),
            Self::StargzIndex => PossibleValue::new("estargztoc-ref").alias("stargz_index").help(
                "the index of an eStargz layer (also: stargz_index); needs --blob-id, and no blob is written",
            ),
            Self::Tarfs => PossibleValue::new("tar-tarfs")
                .help("a plain tar archive that is read in place; no blob is written"),
        })
    }
}

/// How chunks are stored.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum CompressorArg {
    None,
    #[value(name = "lz4_block")]
    Lz4Block,
    Zstd,
}

/// How chunks are named.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum DigesterArg {
    Blake3,
    Sha256,
}

/// RAFS versions.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum VersionArg {
    #[value(name = "5")]
    V5,
    #[value(name = "6")]
    V6,
}

/// Which entries mark deletions.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum WhiteoutArg {
    Oci,
    Overlayfs,
    None,
}

/// Optional parts of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FeatureArg {
    BlobToc,
}

impl SourceType {
    /// Whether the image refers to an archive that stays as it is.
    pub(super) fn is_reference(self) -> bool {
        matches!(self, Self::Reference | Self::EstargzReference | Self::StargzIndex)
    }
}

impl From<CompressorArg> for Compressor {
    fn from(arg: CompressorArg) -> Self {
        match arg {
            CompressorArg::None => Self::None,
            CompressorArg::Lz4Block => Self::Lz4Block,
            CompressorArg::Zstd => Self::Zstd,
        }
    }
}

impl From<DigesterArg> for Digester {
    fn from(arg: DigesterArg) -> Self {
        match arg {
            DigesterArg::Blake3 => Self::Blake3,
            DigesterArg::Sha256 => Self::Sha256,
        }
    }
}

impl From<VersionArg> for Version {
    fn from(arg: VersionArg) -> Self {
        match arg {
            VersionArg::V5 => Self::V5,
            VersionArg::V6 => Self::V6,
        }
    }
}

impl From<WhiteoutArg> for WhiteoutSpec {
    fn from(arg: WhiteoutArg) -> Self {
        match arg {
            WhiteoutArg::Oci => Self::Oci,
            WhiteoutArg::Overlayfs => Self::Overlayfs,
            WhiteoutArg::None => Self::None,
        }
    }
}
