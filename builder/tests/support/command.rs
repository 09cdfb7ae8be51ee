//! Runs `rafs-image` as a user does, and what tests do with its files.

use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;

pub fn rafs_image(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rafs-image"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(args: &[&str]) -> Output {
    rafs_image(args).output().unwrap()
}

pub fn ok(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The words of a command line as people write it; for paths without spaces, as those of temporary folders are.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn hex(bytes: &[u8]) -> String {
    rafs::codec::digest(rafs::codec::Digester::Sha256, bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

pub fn feed(path: &Path, bytes: Vec<u8>) -> JoinHandle<()> {
    let path = path.to_path_buf();
    std::thread::spawn(move || File::options().write(true).open(path).unwrap().write_all(&bytes).unwrap())
}

pub fn take(path: &Path) -> JoinHandle<Vec<u8>> {
    let path = path.to_path_buf();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

pub fn finish(mut child: Child, stdin: Option<&[u8]>) {
    if let Some(bytes) = stdin {
        child.stdin.take().unwrap().write_all(bytes).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty());
}
