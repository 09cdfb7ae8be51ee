//! The version text and string (two clients parse the text).

use super::logging::Timestamp;

/// Version with its leading `v`, which one client's pattern needs.
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const COMMIT: &str = env!("RAFS_BUILD_COMMIT");

/// `<version>-<commit>`, as it stands in JSON reports.
pub(super) fn version_and_commit() -> String {
    format!("{VERSION}-{COMMIT}")
}

/// What `--version` prints.
pub(super) fn text() -> String {
    let time = Timestamp::from_epoch(env!("RAFS_BUILD_EPOCH").parse().unwrap_or(0), 0);
    format!(
        " \rVersion: \t{VERSION}\nGit Commit: \t{COMMIT}\nBuild Time: \t{}\nProfile: \t{}\nRustc: \t\t{}\n",
        time.rfc3339(),
        env!("RAFS_BUILD_PROFILE"),
        env!("RAFS_BUILD_RUSTC"),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn clients_patterns_match() {
        let text = super::text();
        assert!(text.starts_with(" \rVersion: \tv"));
        let commit = text.lines().find_map(|line| line.strip_prefix("Git Commit: \t")).unwrap();
        assert_eq!(commit.len(), 40);
        let time = text.lines().find_map(|line| line.strip_prefix("Build Time: \t")).unwrap();
        assert_eq!(time.len(), "2026-01-01T00:00:00Z".len());
        assert!(time.ends_with('Z'));
    }
}
