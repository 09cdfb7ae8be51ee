//! `rafs-builder`: makes RAFS (Nydus) images, and checks them.
//!
//! What lives here:
//!
//! * `source`: where entries and data come from.
//! * `tree`: the tree in memory, and its numbering.
//! * `pack`: pieces of files to stored chunks, and the blob file.
//! * `layer`: existing images as input: parents, dictionaries, layers to [`merge`].
//! * `write`: v5 and v6 bootstraps.
//! * `blobs`: data of existing images, read back: [`verify`].
//! * `inspect`, `export`: looking into images, and making disk images of them.
//! * `study`, `diff`, `report`: what existing images consist of, what changed between them, where their bytes are.
//! * `rebuild`: images made from images: [`compact`], [`optimize`], [`generate_chunk_dict`].
//! * `stat`: numbers about images.
//! * `unpack`: images back to tar archives: [`unpack`].
//! * `attributes`, `external`: files whose data is in an external store.
//! * [`build`](create): the steps from a source to an image.
//! * [`cmd`]: the `rafs-image` command line; thin.
//!
//! What does not: the formats (`rafs::layout`), reading images (`rafs::image`, `rafs::reader`).

mod attributes;
mod blobs;
mod build;
mod build_ref;
mod build_stargz;
mod build_tarfs;
mod cache_files;
#[cfg(feature = "cli")]
pub mod cmd;
mod diff;
mod error;
mod export;
mod external;
#[cfg(feature = "cli")]
mod human;
mod inspect;
mod layer;
mod options;
mod output;
mod pack;
#[doc(hidden)]
pub mod parsers;
mod prefetch;
mod progress;
mod rebuild;
#[cfg(feature = "cli")]
mod report;
mod secret;
mod source;
mod stat;
mod study;
mod tree;
mod unpack;
mod write;

pub use attributes::{Attributes, ExternalFile};
pub use blobs::{BlobDataError, BlobPlace, VerifyReport, verify};
pub use build::{BlobTarget, BootstrapTarget, CreateOptions, CreateReport, SourceKind, StargzLayer, create};
pub use diff::{Change, ChangeKind, ChunkReport, ChunkSum, DiffOptions, DiffSummary, Difference, diff};
pub use error::BuildError;
pub use export::{ExportError, ExportOptions, VerityInfo, export};
pub use inspect::{Answer, Inspector};
pub use layer::{MergeOptions, MergeReport, OwnBlob, merge};
pub use options::{ChunkSize, ImageOptions, PrefetchPolicy, Version, WhiteoutSpec};
pub use prefetch::Patterns;
pub use progress::Progress;
pub use rebuild::{
    ChunkDictOptions, CompactConfig, CompactOptions, CompactSettings, OptimizeOptions, PrefetchFile,
    PrefetchFiles, RebuildError, RebuildReport, WantedFirst, compact, generate_chunk_dict, optimize,
};
pub use source::StargzIndex;
pub use stat::{ImageStat, Stat, StatBase, stat};
pub use unpack::{UnpackError, UnpackOptions, unpack};
