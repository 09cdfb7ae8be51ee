//! The numbers of a compaction, and the file they may stand in (nydus-image-cli.md sections 7 and 11).
//!
//! Owns: names, defaults and ranges. Does not own: what is done with them.

use serde_json::{Map, Value};
use std::path::PathBuf;

/// When blobs are compacted. Sizes are bytes of blob files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactSettings {
    /// Rebuild a blob of which less than so many percent are in use; 0: none for that reason. At most 99.
    pub min_used_ratio: u8,
    /// Put blobs that are smaller than this together.
    pub compact_blob_size: u64,
    /// ... into blobs of at most this much data.
    pub max_compact_size: u64,
    /// Do nothing for an image with fewer blobs than this.
    pub layers_to_compact: u64,
}

impl Default for CompactSettings {
    fn default() -> Self {
        Self {
            min_used_ratio: 0,
            compact_blob_size: 10 << 20,
            max_compact_size: 100 << 20,
            layers_to_compact: 0,
        }
    }
}

/// What a file says of a compaction; whatever it leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactConfig {
    /// See [`CompactSettings::min_used_ratio`].
    pub min_used_ratio: Option<u8>,
    /// See [`CompactSettings::compact_blob_size`].
    pub compact_blob_size: Option<u64>,
    /// See [`CompactSettings::max_compact_size`].
    pub max_compact_size: Option<u64>,
    /// See [`CompactSettings::layers_to_compact`].
    pub layers_to_compact: Option<u64>,
    /// Directory of blobs.
    pub blobs_dir: Option<PathBuf>,
}

impl CompactConfig {
    /// Reads a text: a JSON object with the builder's names and numbers
    /// (`{"min_used_ratio": 10, "blobs_dir": "/blobs"}`), or with nydusify's names (`{"MinUsedRatio": "5"}`). Numbers may be
    /// texts, other keys are left alone.
    ///
    /// # Errors
    /// A sentence: the text is no JSON object, or a value is out of range.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let keys: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|e| format!("it is no JSON object with the numbers of a compaction: {e}"))?;
        let ratio = number(&keys, "min_used_ratio", "MinUsedRatio")?;
        let min_used_ratio = match ratio.map(u8::try_from) {
            None => None,
            Some(Ok(ratio)) if ratio < 100 => Some(ratio),
            Some(_) => return Err("min_used_ratio is a percentage from 0 to 99".to_owned()),
        };
        let blobs_dir = match value(&keys, "blobs_dir", "BlobsDir") {
            None | Some(Value::Null) => None,
            Some(Value::String(dir)) => (!dir.is_empty()).then(|| PathBuf::from(dir)),
            Some(_) => return Err("blobs_dir is the name of a directory".to_owned()),
        };
        Ok(Self {
            min_used_ratio,
            compact_blob_size: number(&keys, "compact_blob_size", "CompactBlobSize")?,
            max_compact_size: number(&keys, "max_compact_size", "MaxCompactSize")?,
            layers_to_compact: number(&keys, "layers_to_compact", "LayersToCompact")?,
            blobs_dir,
        })
    }

    /// Whether it says nothing of a compaction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The numbers, with defaults for those that are left out.
    #[must_use]
    pub fn settings(&self) -> CompactSettings {
        let default = CompactSettings::default();
        CompactSettings {
            min_used_ratio: self.min_used_ratio.unwrap_or(default.min_used_ratio),
            compact_blob_size: self.compact_blob_size.unwrap_or(default.compact_blob_size),
            max_compact_size: self.max_compact_size.unwrap_or(default.max_compact_size),
            layers_to_compact: self.layers_to_compact.unwrap_or(default.layers_to_compact),
        }
    }
}

fn value<'a>(keys: &'a Map<String, Value>, name: &str, other: &str) -> Option<&'a Value> {
    keys.get(name).or_else(|| keys.get(other))
}

fn number(keys: &Map<String, Value>, name: &str, other: &str) -> Result<Option<u64>, String> {
    let read = match value(keys, name, other) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    read.map(Some).ok_or_else(|| format!("{name} is a whole number that is not negative"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings() {
        let builder =
            br#"{"min_used_ratio": 10, "compact_blob_size": 10485760, "max_compact_size": 104857600,
            "layers_to_compact": 32, "blobs_dir": "/path/to/blobs", "x": []}"#;
        let nydusify = br#"{"MinUsedRatio":"10","CompactBlobSize":"10485760","MaxCompactSize":"104857600",
            "LayersToCompact":"32","BlobsDir":"/path/to/blobs"}"#;
        let config = CompactConfig::parse(builder).unwrap();
        assert_eq!(config, CompactConfig::parse(nydusify).unwrap());
        let expected =
            CompactSettings { min_used_ratio: 10, layers_to_compact: 32, ..CompactSettings::default() };
        assert_eq!(config.settings(), expected);
        assert_eq!(config.blobs_dir, Some("/path/to/blobs".into()));
        assert!(CompactConfig::parse(br#"{"device": {}, "min_used_ratio": null}"#).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            &br#"{"min_used_ratio": 100}"#[..],
            br#"{"min_used_ratio": -1}"#,
            br#"{"compact_blob_size": "10MB"}"#,
            br#"{"layers_to_compact": 1.5}"#,
            br#"{"blobs_dir": 7}"#,
            b"[]",
            b"",
        ] {
            CompactConfig::parse(text).unwrap_err();
        }
    }
}
