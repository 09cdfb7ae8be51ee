//! The samples in configs/: all are what they say they are, and their command lines are ones that rafsd takes.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use clap::Parser;
use rafsd::cli::{Cli, Command, argv};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(configs().join(name)).unwrap()
}

fn parse(line: &str) -> Command {
    let words = line.split_whitespace().map(OsString::from).collect();
    let argv = argv::normalised(words);
    assert_eq!(argv.ignored, Vec::<String>::new(), "{line}");
    Cli::try_parse_from(argv.words).unwrap_or_else(|e| panic!("{line}: {e}")).command
}

#[test]
fn all_have_their_form() {
    let mut read = 0;
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".toml") {
            let _: toml::Value = toml::from_str(&text(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        } else if name.ends_with(".json") {
            let _: serde_json::Value =
                serde_json::from_str(&text(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        } else {
            continue;
        }
        read += 1;
        assert!(text("README.md").contains(&format!("`{name}`")), "{name} is not in README.md");
    }
    assert!(read >= 14, "{read}");
}

#[test]
fn command_lines_are_taken() {
    let unit = text("rafsd@.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let line = start
        .replace("${RUNTIME_DIRECTORY}", "/run/rafsd-x")
        .replace("$ARGS", "--bootstrap /var/lib/rafsd/app.boot --config /etc/rafsd/app.toml");
    let Command::Virtiofs(args) = parse(&line) else { panic!("{line}") };
    assert_eq!(args.sock.len(), 1);

    let pod = text("kubernetes-daemonset.yaml");
    let (_, after) = pod.split_once("command:\n").unwrap();
    let words: Vec<&str> = after.lines().map_while(|line| line.trim().strip_prefix("- ")).collect();
    let Command::Virtiofs(args) = parse(&words.join(" ")) else { panic!("{words:?}") };
    assert_eq!(args.common.apisock.as_deref(), Some(Path::new("/run/rafsd/api.sock")));
    let probe = pod.lines().find_map(|line| line.trim().strip_prefix("command: [")).unwrap();
    let probe = probe.trim_end_matches(']').replace(['"', ','], "");
    assert!(matches!(parse(&probe), Command::Ctl(_)), "{probe}");

    for name in ["localfs.v2.toml", "dragonfly.v2.toml", "registry.v2.toml"] {
        let first = text(name).lines().next().unwrap().trim_start_matches("# ").to_owned();
        assert!(matches!(parse(&first), Command::Virtiofs(_)), "{name}: {first}");
    }
}

/// Command lines of clients (nydusd-cli-api.md section 2).
#[test]
fn clients_argv() {
    for line in [
        "nydusd fuse --thread-num 4 --id x --config c.json --bootstrap b --mountpoint m --apisock a --log-level info \
         --log-rotation-size 100 --supervisor s --log-file l --prefetch-files p --failover-policy resend",
        "nydusd --config C --mountpoint M --bootstrap B --apisock A --log-level warn",
        "nydusd --mountpoint M --apisock A --log-level error --thread-num 10",
    ] {
        let Command::Fuse(args) = parse(line) else { panic!("{line}") };
        assert!(args.mountpoint.as_os_str().eq_ignore_ascii_case("m"), "{line}");
    }
    let Command::Virtiofs(args) =
        parse("nydusd virtiofs --hybrid-mode --log-level debug --apisock a.sock --sock v.sock --upgrade")
    else {
        panic!()
    };
    assert!(args.common.upgrade);
}
