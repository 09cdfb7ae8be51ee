//! Contents of images, read as a daemon reads them.

use rafs::image::{FileKind, Image};
use rafs::reader::{Reader, ReaderOptions};
use rafs::store::LocalFs;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Every regular file with its contents, by path.
pub type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads every file of the image at `bootstrap`, verified, with blobs from `dir`.
pub fn contents(bootstrap: &Path, dir: &Path) -> Contents {
    let image = Image::open(bootstrap).unwrap();
    image.check().unwrap_or_else(|e| panic!("{bootstrap:?}: {e}"));
    let store = Arc::new(LocalFs::in_dir(dir).unwrap());
    let options = ReaderOptions { workers: 2, ..ReaderOptions::default() };
    let reader = Reader::new(Arc::new(image), store, options).unwrap();
    let image = reader.image();
    let mut contents = Contents::new();
    let mut pending = vec![(image.inode(image.root()).unwrap(), Vec::new())];
    while let Some((inode, path)) = pending.pop() {
        match inode.kind {
            FileKind::Directory => {
                for entry in image.read_dir(&inode, 0).unwrap() {
                    let entry = entry.unwrap();
                    if !matches!(entry.name, b"." | b"..") {
                        let path = [&path[..], b"/", entry.name].concat();
                        pending.push((image.inode(entry.number).unwrap(), path));
                    }
                }
            }
            FileKind::Regular => {
                let mut data = vec![0; usize::try_from(inode.size).unwrap()];
                let read = reader.read_at(&inode, 0, &mut data);
                let read = read.unwrap_or_else(|e| panic!("{}: {e}", path.escape_ascii()));
                assert_eq!(read, data.len(), "{}", path.escape_ascii());
                contents.insert(path, data);
            }
            _ => {}
        }
    }
    contents
}
