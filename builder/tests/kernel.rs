//! The kernel's EROFS mounts our v6 images and shows the source tree.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use rafs_builder::{ChunkSize, ImageOptions};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use support::data::Blobs;
use support::expected;

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn erofs_shows_the_source() {
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 5000);
    let want = expected::of_directory(source.path());
    for chunk in [0x1000, 0x10_0000] {
        let chunk_size = ChunkSize::new(chunk).unwrap();
        let built = support::build(source.path(), ImageOptions { chunk_size, ..ImageOptions::default() });
        let image = Image::open(&built.bootstrap()).unwrap();
        let devices = Blobs::open(&image, built.dir.path()).devices(built.dir.path());
        let at = tempfile::tempdir().unwrap();
        let options: Vec<_> = devices.iter().map(|path| format!("device={}", path.display())).collect();
        let options = CString::new(options.join(",")).unwrap();
        if let Err(e) =
            mount(built.bootstrap(), at.path(), "erofs", MountFlags::RDONLY, Some(options.as_c_str()))
        {
            println!("skipped: this host cannot mount a file as EROFS ({e}); needs root and Linux 6.12");
            return;
        }
        let mounted = Mounted(at.path());
        let mut got = expected::of_directory(at.path());
        // The kernel gives names in a group no common first one until they are stat'ed: compare as they are.
        assert_eq!(got.remove(&b"/"[..]).unwrap().nlink, want[&b"/"[..]].nlink);
        let mut want = want.clone();
        want.remove(&b"/"[..]);
        expected::assert_same(&want, &got);
        for (path, entry) in &want {
            if entry.mode & 0o170_000 == 0o100_000 {
                let name = std::ffi::OsStr::from_bytes(&path[1..]);
                let same = std::fs::read(source.path().join(name)).unwrap()
                    == std::fs::read(at.path().join(name)).unwrap();
                assert!(same, "{name:?}");
            }
        }
        drop(mounted);
    }
}
