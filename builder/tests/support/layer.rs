//! One layer of a container's file system, as a directory and as an archive.

use super::source::noise;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// A directory with three files, and the tar of it.
pub struct Layer {
    pub dir: tempfile::TempDir,
}

impl Layer {
    pub fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join(format!("own{seed}")), noise(seed, 50_000)).unwrap();
        fs::write(tree.join("sub/common"), noise(99, 120_000)).unwrap();
        fs::write(tree.join("small"), b"small").unwrap();
        let status = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["-cf"])
            .arg(dir.path().join("tar"))
            .arg(".")
            .status();
        assert!(status.unwrap().success());
        Self { dir }
    }

    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub fn tar(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("tar")).unwrap()
    }

    pub fn tar_gz(&self) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&self.tar()).unwrap();
        encoder.finish().unwrap()
    }
}
