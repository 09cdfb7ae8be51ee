//! An image, what it was made of, and a place where `rafsd fuse` mounts it.
#![allow(dead_code, missing_docs, reason = "each user takes a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use guest_tests::support::api::{call, wait_for_state};
use guest_tests::support::fuse_mode::FuseHost;
use guest_tests::support::image::Image;
use guest_tests::support::process::Process;
use guest_tests::support::random::Random;
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(60);
pub const FILES: u64 = 4;
pub const FILE_SIZE: u64 = 3 << 20;

/// An image, its source, and a place to mount it.
pub struct Setting {
    pub source: TempDir,
    pub image: Image,
    pub host: FuseHost,
}

impl Setting {
    pub fn new() -> Self {
        let source = tempfile::tempdir().unwrap();
        let mut random = Random::new(5);
        for file in 0..FILES {
            let words = (0..FILE_SIZE / 8).flat_map(|_| random.next().to_le_bytes());
            let data: Vec<u8> = words.collect();
            fs::write(source.path().join(file.to_string()), data).unwrap();
        }
        let image = Image::build(source.path(), 6, &["--chunk-size", "0x10000"]).unwrap();
        Self { source, image, host: FuseHost::new().unwrap() }
    }

    pub fn image_flags(&self) -> [String; 4] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [
            "--bootstrap".to_owned(),
            text(&self.image.bootstrap),
            "--localfs-dir".to_owned(),
            text(&self.image.blobs),
        ]
    }

    /// What the API is told to mount the image.
    pub fn image_body(&self) -> serde_json::Value {
        let config = format!(
            r#"{{"device":{{"backend":{{"type":"localfs","config":{{"dir":"{0}"}}}},"cache":{{"type":"blobcache","config":{{"work_dir":"{0}"}}}}}},"mode":"direct"}}"#,
            self.image.blobs.display()
        );
        serde_json::json!({"fs_type": "rafs", "source": self.image.bootstrap, "config": config})
    }

    /// Mounts something by the API.
    pub fn mount(&self, api: &str, path: &str, body: &serde_json::Value) {
        let path = format!("/api/v1/mount?mountpoint={path}");
        let (status, answer) = call(&self.path(api), "POST", &path, &body.to_string()).unwrap();
        assert_eq!(status, 204, "{answer}");
    }

    /// Unmounts something by the API.
    pub fn umount(&self, api: &str, path: &str) {
        let path = format!("/api/v1/mount?mountpoint={path}");
        let (status, answer) = call(&self.path(api), "DELETE", &path, "").unwrap();
        assert_eq!(status, 204, "{answer}");
    }

    /// A daemon that has a supervisor, and runs.
    pub fn supervised(&self, api: &str, flags: &[&str]) -> Process {
        let daemon = self.start_supervised(api, flags).unwrap();
        wait_for_state(&self.path(api), "RUNNING").unwrap();
        daemon
    }

    pub fn ends(&self, daemon: &mut Process) {
        daemon.terminate().unwrap();
        assert!(daemon.wait(LIMIT).unwrap().success(), "{}", daemon.output());
        assert!(!self.is_mounted().unwrap());
    }
}

impl Deref for Setting {
    type Target = FuseHost;
    fn deref(&self) -> &FuseHost {
        &self.host
    }
}
