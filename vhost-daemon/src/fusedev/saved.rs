//! What a successor needs to know to serve the same mount: versioned JSON.
//!
//! Owns: the form of the state and its limits. It comes back from a supervisor, so it is checked like any other input.
//! Does not own: how it travels (`handover`), what is done with it (`transport`).

use crate::daemon::{FsKind, MountConfig, MountRequest, StartupConfig};
use crate::fuse::Agreed;
use crate::mounts::{MountPath, Place, Rested};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Says whose state it is.
const FORMAT: &str = "rafsd-fuse";
/// Version of the form; a newer one is refused.
const VERSION: u32 = 1;

/// The state of a FUSE mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    format: String,
    version: u32,
    /// Minor number of the mount's device.
    pub(super) connection: Option<u32>,
    /// What INIT agreed on.
    no_open: bool,
    no_opendir: bool,
    pub(super) mounts: Vec<SavedMount>,
    /// Indexes of mounts that are gone, the one that has rested longest first. Older daemons do not say.
    #[serde(default)]
    pub(super) rested: Vec<Rested>,
}

/// One mount in the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedMount {
    path: String,
    fs_type: String,
    source: PathBuf,
    config: SavedConfig,
    prefetch_files: Vec<PathBuf>,
    index: u8,
    generation: u32,
}

/// A mount's configuration. With its secrets: the supervisor keeps the state in memory, as the socket's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedConfig {
    Text(String),
    Startup(StartupConfig),
}

/// Why a state is not understood, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum SavedError {
    #[error("the state is not one of rafsd ({0}); a daemon can take over from its own kind only")]
    Form(String),
    #[error(
        "the state ends too early ({0}): what `sendfd` sent has to come back whole, the end of the stream being its end"
    )]
    Cut(String),
    #[error("the state has version {0}; this daemon understands {VERSION}: start one that is as new")]
    Version(u32),
    #[error("the state names a mount that cannot be: {0}")]
    Mount(String),
    #[error("the mount at {0} has no configuration that could be handed over")]
    NotSaved(String),
}

impl Saved {
    pub(super) fn new(
        connection: Option<u32>,
        agreed: Agreed,
        mounts: Vec<SavedMount>,
        rested: Vec<Rested>,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            connection,
            no_open: agreed.no_open,
            no_opendir: agreed.no_opendir,
            mounts,
            rested,
        }
    }

    pub(super) fn agreed(&self) -> Agreed {
        Agreed { no_open: self.no_open, no_opendir: self.no_opendir }
    }

    /// Paths of directories that are passed through: nodes and open files of those end with their daemon.
    pub(super) fn passed_through(&self) -> impl Iterator<Item = &str> {
        let all = self.mounts.iter();
        all.filter(|mount| mount.fs_type == FsKind::Passthrough.name()).map(|mount| mount.path.as_str())
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, SavedError> {
        serde_json::to_vec(self).map_err(|e| SavedError::Form(e.to_string()))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SavedError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let wrong = |e: serde_json::Error| match e.is_eof() && bytes.starts_with(b"{") {
            true => SavedError::Cut(e.to_string()),
            false => SavedError::Form(e.to_string()),
        };
        let head: Head = serde_json::from_slice(bytes).map_err(wrong)?;
        if head.format != FORMAT {
            return Err(SavedError::Form("it says so itself".to_owned()));
        }
        if head.version != VERSION {
            return Err(SavedError::Version(head.version));
        }
        let saved: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        // That of the directories which lead to mounts.
        if saved.rested.iter().any(|rested| rested.index == 0) {
            return Err(SavedError::Mount("one that is gone had index 0".to_owned()));
        }
        Ok(saved)
    }
}

impl SavedMount {
    pub(super) fn new(
        path: &MountPath,
        kind: FsKind,
        source: PathBuf,
        config: &MountConfig,
        prefetch_files: &[PathBuf],
        place: Place,
    ) -> Result<Self, SavedError> {
        let config = match config {
            MountConfig::Text(text) => SavedConfig::Text(text.clone()),
            MountConfig::Startup(startup) => SavedConfig::Startup(startup.clone()),
            MountConfig::Ready(_) => return Err(SavedError::NotSaved(path.as_str().to_owned())),
        };
        Ok(Self {
            path: path.as_str().to_owned(),
            fs_type: kind.name().to_owned(),
            source,
            config,
            prefetch_files: prefetch_files.to_vec(),
            index: place.index,
            generation: place.generation,
        })
    }

    /// Where it was.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether a mount at `path` with that index is in its way.
    pub(super) fn meets(&self, path: &MountPath, index: u8) -> bool {
        self.path == path.as_str() || self.index == index
    }

    /// The mount to make again, and its index and generation.
    pub(super) fn request(&self) -> Result<(MountRequest, u8, u32), SavedError> {
        let wrong = |what: String| SavedError::Mount(format!("{}: {what}", self.path));
        let config = match &self.config {
            SavedConfig::Text(text) => MountConfig::Text(text.clone()),
            SavedConfig::Startup(startup) => MountConfig::Startup(startup.clone()),
        };
        if self.index == 0 {
            return Err(wrong("index 0".to_owned()));
        }
        let request = MountRequest {
            path: MountPath::parse(&self.path).map_err(|e| wrong(e.to_string()))?,
            kind: FsKind::parse(&self.fs_type).map_err(|e| wrong(e.to_string()))?,
            source: self.source.clone(),
            config,
            prefetch_files: self.prefetch_files.clone(),
        };
        Ok((request, self.index, self.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rested() -> Rested {
        Rested { index: 9, generation: Some(7), path: "/gone".to_owned() }
    }

    fn mount(config: &MountConfig) -> Result<SavedMount, SavedError> {
        let path = MountPath::parse("/a/b").unwrap();
        let place = Place { index: 7, generation: 9, at_root: false };
        SavedMount::new(&path, FsKind::Rafs, "/image.boot".into(), config, &["/etc".into()], place)
    }

    #[test]
    fn what_is_saved_comes_back() {
        let agreed = Agreed { no_open: false, no_opendir: true };
        let mounts = vec![mount(&MountConfig::Text("{\"device\":1}".into())).unwrap()];
        let saved = Saved::new(Some(55), agreed, mounts, vec![rested()]);
        let back = Saved::decode(&saved.encode().unwrap()).unwrap();
        assert_eq!(back, saved);
        assert_eq!(back.agreed(), agreed);
        assert_eq!(back.passed_through().count(), 0, "an image has nothing that is lost");
        let (request, index, generation) = back.mounts[0].request().unwrap();
        assert_eq!((request.path.as_str(), request.kind, index, generation), ("/a/b", FsKind::Rafs, 7, 9));
        assert!(matches!(request.config, MountConfig::Text(text) if text == "{\"device\":1}"));
    }

    #[test]
    fn an_older_daemon_does_not_say_which_indexes_rest() {
        let agreed = Agreed { no_open: true, no_opendir: true };
        let saved = Saved::new(None, agreed, Vec::new(), vec![rested()]).encode().unwrap();
        let mut older: serde_json::Value = serde_json::from_slice(&saved).unwrap();
        older.as_object_mut().unwrap().remove("rested").unwrap();
        assert_eq!(Saved::decode(older.to_string().as_bytes()).unwrap().rested, []);
        // Or not where they were.
        older["rested"] = serde_json::json!([{"index": 9, "generation": 7}]);
        let without = Saved::decode(older.to_string().as_bytes()).unwrap().rested;
        assert_eq!(without, [Rested { path: String::new(), ..rested() }]);
    }

    #[test]
    fn states_of_others_and_of_the_future_are_refused() {
        // The reference's own form begins like this.
        let reference = Saved::decode(&[1, 0, 0x64, 0x86, 0x84, 0x19, 0x10, 7]);
        assert!(matches!(reference, Err(SavedError::Form(_))));
        let cut = Saved::decode(br#"{"format":"rafsd-fuse","version":1,"mou"#);
        assert!(matches!(cut, Err(SavedError::Cut(_))));
        let other = Saved::decode(br#"{"format":"other","version":1}"#);
        assert!(matches!(other, Err(SavedError::Form(_))));
        let newer = Saved::decode(br#"{"format":"rafsd-fuse","version":2,"new":true}"#);
        assert!(matches!(newer, Err(SavedError::Version(2))));
        let agreed = Agreed { no_open: true, no_opendir: true };
        let nowhere = Saved::new(None, agreed, Vec::new(), vec![Rested { index: 0, ..rested() }]);
        assert!(matches!(Saved::decode(&nowhere.encode().unwrap()), Err(SavedError::Mount(_))));
        let mut bad = mount(&MountConfig::Text(String::new())).unwrap();
        bad.index = 0;
        assert!(matches!(bad.request(), Err(SavedError::Mount(_))));
    }
}
