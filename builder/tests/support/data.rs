//! Gets file data out of an image with nothing but the records and the codecs: no cache, no reader.

use rafs::codec;
use rafs::ids::BlobIndex;
use rafs::image::{FileKind, Image, Inode};
use rafs::layout::chunk::{ChunkFlags, ChunkRecord};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Decodes chunks of an image whose blobs lie in one directory.
pub struct Blobs<'a> {
    image: &'a Image,
    files: Vec<File>,
    /// v6: records by blob and chunk.
    records: HashMap<(u32, u32), ChunkRecord>,
}

impl<'a> Blobs<'a> {
    pub fn open(image: &'a Image, dir: &Path) -> Self {
        let files = image.blobs().iter().map(|blob| File::open(dir.join(&blob.id)).unwrap()).collect();
        let records = image.chunk_table().iter().map(|r| ((r.blob_index.get(), r.index.get()), *r)).collect();
        Self { image, files, records }
    }

    /// Plain bytes of a chunk; digest and CRC are checked.
    pub fn decode(&self, record: &ChunkRecord) -> Vec<u8> {
        let blob = &self.image.blobs()[BlobIndex(record.blob_index.get()).as_usize()];
        let mut stored = vec![0; record.compressed_size.get() as usize];
        let file = &self.files[record.blob_index.get() as usize];
        file.read_exact_at(&mut stored, record.compressed_offset.get()).unwrap();
        let mut plain = vec![0; record.uncompressed_size.get() as usize];
        let flags = ChunkFlags::from_bits(record.flags.get()).unwrap();
        if flags.contains(ChunkFlags::COMPRESSED) {
            codec::decompress(blob.compressor, &stored, &mut plain).unwrap();
        } else {
            plain.copy_from_slice(&stored);
        }
        assert_eq!(codec::digest(blob.digester, &plain), record.digest);
        assert!(flags.contains(ChunkFlags::HAS_CRC32));
        assert_eq!(codec::crc32c(&plain), record.crc32c.get());
        plain
    }

    /// Contents of a file.
    pub fn read(&self, inode: &Inode) -> Vec<u8> {
        let mut data = Vec::new();
        for chunk in self.image.chunks(inode, 0, inode.size).unwrap() {
            let chunk = chunk.unwrap();
            let record = self
                .image
                .chunk_record(&chunk)
                .unwrap_or_else(|| self.records[&(chunk.blob.0, chunk.chunk.0)]);
            assert_eq!(record.uncompressed_offset.get(), chunk.uncompressed_offset);
            assert_eq!(chunk.file_offset, data.len() as u64);
            data.extend_from_slice(&self.decode(&record));
        }
        assert_eq!(data.len() as u64, inode.size);
        data
    }

    /// Fails unless every file of the image has the contents of the same file below `root`.
    pub fn assert_contents(&self, root: &Path) -> u64 {
        let mut pending = vec![(self.image.inode(self.image.root()).unwrap(), root.to_path_buf())];
        let mut files = 0;
        while let Some((inode, path)) = pending.pop() {
            match inode.kind {
                FileKind::Regular => {
                    assert!(self.read(&inode) == std::fs::read(&path).unwrap(), "{path:?} differs");
                    files += 1;
                }
                FileKind::Directory => {
                    for entry in self.image.read_dir(&inode, 0).unwrap() {
                        let entry = entry.unwrap();
                        if !matches!(entry.name, b"." | b"..") {
                            let name = std::os::unix::ffi::OsStrExt::from_bytes(entry.name);
                            pending.push((
                                self.image.inode(entry.number).unwrap(),
                                path.join::<&std::ffi::OsStr>(name),
                            ));
                        }
                    }
                }
                _ => {}
            }
        }
        files
    }

    /// Writes each blob's uncompressed address space to `dir`: what the kernel takes as `device=`.
    pub fn devices(&self, dir: &Path) -> Vec<std::path::PathBuf> {
        let paths: Vec<_> =
            self.image.blobs().iter().map(|blob| dir.join(format!("{}.device", blob.id))).collect();
        for (blob, path) in self.image.blobs().iter().zip(&paths) {
            let file = File::create(path).unwrap();
            file.set_len(blob.uncompressed_size).unwrap();
            for record in self.records.values().filter(|r| r.blob_index.get() == blob.index.0) {
                file.write_all_at(&self.decode(record), record.uncompressed_offset.get()).unwrap();
            }
        }
        paths
    }
}
