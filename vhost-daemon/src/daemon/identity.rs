//! Who the daemon is: version, instance id, supervisor.

use std::path::PathBuf;

/// What `GET /daemon` and `--version` say of the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Package version.
    pub package_ver: String,
    /// Commit it was built from.
    pub git_commit: String,
    /// When it was built.
    pub build_time: String,
    /// `release` or `debug`.
    pub profile: String,
    /// Compiler.
    pub rustc: String,
}

impl Version {
    /// Of this build.
    #[must_use]
    pub fn of_build() -> Self {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        Self {
            package_ver: format!("v{}", env!("CARGO_PKG_VERSION")),
            git_commit: env!("RAFSD_GIT_COMMIT").to_owned(),
            build_time: env!("RAFSD_BUILD_TIME").to_owned(),
            profile: profile.to_owned(),
            rustc: env!("RAFSD_RUSTC").to_owned(),
        }
    }
}

/// Who the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The build.
    pub version: Version,
    /// `--id`.
    pub id: Option<String>,
    /// `--supervisor`.
    pub supervisor: Option<PathBuf>,
}
