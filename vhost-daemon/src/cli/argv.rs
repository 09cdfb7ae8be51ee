//! What clients of nydusd and virtiofsd write on command lines, put into the form that our own parser reads.
//!
//! Owns: flags before the command, no command at all, the name nydusd, and flags of virtiofsd that need nothing from us.
//! Does not own: what our flags mean.

use crate::daemon::Version;
use std::ffi::OsString;
use std::path::Path;

/// Names of commands.
const COMMANDS: [&str; 11] =
    ["fuse", "virtiofs", "singleton", "nbd", "uffd", "config", "ctl", "cache", "completions", "man", "help"];
/// Flags of ours that take a value in the next word.
const VALUED: [&str; 36] = [
    "-A",
    "--apisock",
    "-C",
    "--config",
    "--id",
    "--supervisor",
    "-l",
    "--log-level",
    "-L",
    "--log-file",
    "--log-format",
    "--log-rotation-size",
    "--rlimit-nofile",
    "-M",
    "--mountpoint",
    "--failover-policy",
    "--fuse-threads",
    "--thread-num",
    "-B",
    "--bootstrap",
    "-D",
    "--localfs-dir",
    "-s",
    "--shared-dir",
    "--prefetch-files",
    "-m",
    "--virtual-mountpoint",
    "--dedup-db",
    "--sock",
    "--queues",
    "--verify",
    "--image",
    "--record-trace",
    "--prefetch-trace",
    "-S",
    "--fscache",
];
/// Flags of virtiofsd and of other clients that take a value and need nothing from us.
const IGNORED_VALUED: [&str; 12] = [
    "--thread-pool-size",
    "--threads",
    "--cache",
    "--backend-source",
    "--sandbox",
    "--seccomp",
    "--socket-group",
    "--inode-file-handles",
    "--modcaps",
    "--xattrmap",
    "--socket-path",
    "-o",
];
/// The same without a value.
const IGNORED: [&str; 14] = [
    "--announce-submounts",
    "--no-announce-submounts",
    "--xattr",
    "--posix-acl",
    "--writeback",
    "--allow-direct-io",
    "--killpriv-v2",
    "--no-killpriv-v2",
    "--no-readdirplus",
    "--preserve-noatime",
    "--security-label",
    "--syslog",
    "-f",
    "--foreground",
];

/// A command line for our parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argv {
    /// The words, the program's name first.
    pub words: Vec<OsString>,
    /// Flags that were left out; each deserves a warning.
    pub ignored: Vec<String>,
}

/// Whether the program was called by the name of nydusd, as a link does.
#[must_use]
pub fn called_nydusd(program: Option<&OsString>) -> bool {
    program
        .and_then(|p| Path::new(p).file_name())
        .is_some_and(|name| name.to_string_lossy().starts_with("nydusd"))
}

/// What `nydusd --version` prints: clients look for `Git Commit:`.
#[must_use]
pub fn nydusd_version(version: &Version) -> String {
    format!(
        "nydusd \rVersion: \t{}\nGit Commit: \t{}\nBuild Time: \t{}\nProfile: \t{}\nRustc: \t\t{}\n",
        version.package_ver, version.git_commit, version.build_time, version.profile, version.rustc
    )
}

/// Whether all that is asked for is the version.
#[must_use]
pub fn asks_version(words: &[OsString]) -> bool {
    words.iter().skip(1).any(|word| word == "-V" || word == "--version")
        && !words.iter().skip(1).any(|word| COMMANDS.iter().any(|command| word == command))
}

/// Puts a command line into order.
#[must_use]
pub fn normalised(words: Vec<OsString>) -> Argv {
    let mut words = words.into_iter();
    let program = words.next().unwrap_or_else(|| OsString::from("rafsd"));
    let (mut command, mut flags, mut ignored) = (None, Vec::new(), Vec::new());
    let mut rest = words.peekable();
    while let Some(word) = rest.next() {
        let text = word.to_string_lossy().into_owned();
        let (name, has_value) = match text.split_once('=') {
            Some((name, _)) if name.starts_with("--") => (name.to_owned(), true),
            _ => (text.clone(), false),
        };
        let serving = command.as_deref().is_none_or(|c: &str| matches!(c, "virtiofs" | "fuse"));
        if command.is_none() && COMMANDS.contains(&text.as_str()) {
            let own = !matches!(text.as_str(), "virtiofs" | "fuse");
            command = Some(text);
            if own {
                // Commands of ours have nothing that older clients write differently.
                flags.extend(rest);
                break;
            }
        } else if command.is_none() && flags.is_empty() && ignored.is_empty() && !text.starts_with('-') {
            // No command of ours, and no value of a flag either: the parser says which command is like it.
            flags.push(word);
            flags.extend(rest);
            command = Some(String::new());
            break;
        } else if serving && IGNORED.contains(&name.as_str()) {
            ignored.push(name);
        } else if serving && IGNORED_VALUED.contains(&name.as_str()) {
            if !has_value && rest.peek().is_some_and(|next| !next.to_string_lossy().starts_with('-')) {
                let _ = rest.next();
            }
            ignored.push(name);
        } else {
            flags.push(word);
            if !has_value && VALUED.contains(&name.as_str()) {
                flags.extend(rest.next());
            }
        }
    }
    let has = |name: &str| {
        let with_value = format!("{name}=");
        flags.iter().any(|flag| flag == name || flag.to_string_lossy().starts_with(&with_value))
    };
    let asks = ["-h", "--help", "-V", "--version"].iter().any(|flag| has(flag));
    let command = command.or_else(|| {
        if has("--sock") {
            Some("virtiofs".to_owned())
        } else if asks || flags.is_empty() {
            None
        } else {
            Some("fuse".to_owned())
        }
    });
    let mut out = vec![program];
    out.extend(command.filter(|command| !command.is_empty()).map(OsString::from));
    out.extend(flags);
    Argv { words: out, ignored }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> (String, Vec<String>) {
        let argv = normalised(line.split_whitespace().map(OsString::from).collect());
        let words: Vec<_> = argv.words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        (words.join(" "), argv.ignored)
    }

    #[test]
    fn command_lines_of_clients() {
        for (line, words, ignored) in [
            ("rafsd virtiofs --sock s", "rafsd virtiofs --sock s", &[][..]),
            ("rafsd --log-level debug virtiofs --sock s", "rafsd virtiofs --log-level debug --sock s", &[]),
            ("nydusd --sock S --apisock A", "nydusd virtiofs --sock S --apisock A", &[]),
            ("nydusd --config C --mountpoint M", "nydusd fuse --config C --mountpoint M", &[]),
            ("nydusd --id fuse --mountpoint M", "nydusd fuse --id fuse --mountpoint M", &[]),
            (
                "rafsd virtiofs --log-level info --sock s --thread-pool-size=1 --announce-submounts",
                "rafsd virtiofs --log-level info --sock s",
                &["--thread-pool-size", "--announce-submounts"],
            ),
            (
                "rafsd virtiofs --sock s --log-level debug --threads 4 -o source=/x --cache auto --xattr",
                "rafsd virtiofs --sock s --log-level debug",
                &["--threads", "-o", "--cache", "--xattr"],
            ),
            (
                "rafsd virtiofs --backend-source http://x --sock s",
                "rafsd virtiofs --sock s",
                &["--backend-source"],
            ),
            ("rafsd ctl --sock x mounts --cache", "rafsd ctl --sock x mounts --cache", &[]),
            ("rafsd --help", "rafsd --help", &[]),
            ("rafsd", "rafsd", &[]),
            ("rafsd virtofs --sock s --xattr", "rafsd virtofs --sock s --xattr", &[]),
        ] {
            let want = (words.to_owned(), ignored.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
            assert_eq!(of(line), want, "{line}");
        }
    }

    #[test]
    fn the_version_as_the_snapshotter_reads_it() {
        let text = nydusd_version(&Version::of_build());
        let commit = text.lines().find_map(|line| line.strip_prefix("Git Commit:")).unwrap();
        assert!(!commit.trim().is_empty());
        assert!(text.starts_with("nydusd \rVersion: \tv"));
        assert!(called_nydusd(Some(&"/usr/bin/nydusd-2.2".into())));
        assert!(!called_nydusd(Some(&"/opt/nydusd/rafsd".into())));
    }
}
