//! Blobs as partitions of one disk or disk image (config.md section 4, `localdisk`).

use super::gpt::{Gpt, Partition};
use super::{ErrorClass, FetchDone, FetchRequest, SizeDone, Store, StoreError};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Characters of a blob id that an old image keeps in a partition's name.
const OLD_NAME_LEN: usize = 32;

/// A disk whose partitions are blobs. Reads happen in the caller's thread.
#[derive(Debug)]
pub struct LocalDisk {
    path: PathBuf,
    file: File,
    blobs: Blobs,
}

#[derive(Debug)]
enum Blobs {
    /// The whole disk stands for every id.
    Whole(Range<u64>),
    Partitions(Vec<Partition>),
}

impl LocalDisk {
    /// Opens the disk and reads its partition table, unless `disable_gpt` says that it is one blob as a whole.
    ///
    /// # Errors
    /// The disk cannot be read, or has no valid table.
    pub fn new(path: &Path, disable_gpt: bool) -> Result<Self, StoreError> {
        let error = |class, reason: String| StoreError {
            class,
            object: path.display().to_string(),
            range: None,
            reason,
        };
        let io = |e: std::io::Error| {
            let class = match e.kind() {
                std::io::ErrorKind::NotFound => ErrorClass::Missing,
                std::io::ErrorKind::PermissionDenied => ErrorClass::Denied,
                _ => ErrorClass::Transient,
            };
            error(class, format!("the disk cannot be read: {e}"))
        };
        // A FIFO of that name must not hang us.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
        let kind = rustix::fs::fstat(&file).map_err(|e| io(e.into()))?.st_mode;
        if !matches!(
            rustix::fs::FileType::from_raw_mode(kind),
            rustix::fs::FileType::RegularFile | rustix::fs::FileType::BlockDevice
        ) {
            return Err(error(ErrorClass::Corrupt, "it is neither a block device nor an image file".into()));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(io)?;
        let blobs = if disable_gpt {
            Blobs::Whole(0..size)
        } else {
            let table = Gpt::read(&file, size).map_err(|e| error(ErrorClass::Corrupt, e.to_string()))?;
            Blobs::Partitions(table.partitions)
        };
        Ok(Self { path: path.to_owned(), file, blobs })
    }

    /// Where a blob is on the disk.
    fn place(&self, object: &str) -> Result<Range<u64>, StoreError> {
        let partitions = match &self.blobs {
            Blobs::Whole(all) => return Ok(all.clone()),
            Blobs::Partitions(partitions) => partitions,
        };
        let is = |p: &&Partition| {
            if p.basic_data {
                p.name.len() == OLD_NAME_LEN && object.len() > OLD_NAME_LEN && object.starts_with(&p.name)
            } else {
                object.strip_prefix(p.name.as_str()).is_some_and(|rest| rest == p.guid)
            }
        };
        partitions.iter().find(is).map(|p| p.bytes.clone()).ok_or_else(|| StoreError {
            class: ErrorClass::Missing,
            object: format!("blob {object} on {}", self.path.display()),
            range: None,
            reason: "no partition is called so".into(),
        })
    }

    fn read(&self, request: FetchRequest) -> Result<Vec<u8>, StoreError> {
        let FetchRequest { object, range, mut buffer, .. } = request;
        let place = self.place(&object)?;
        let failed = |class, reason| StoreError {
            class,
            object: format!("blob {object} on {}", self.path.display()),
            range: Some(range.clone()),
            reason,
        };
        let size = place.end - place.start;
        if range.end > size || range.start > range.end {
            return Err(failed(ErrorClass::Corrupt, format!("the partition has only {size} bytes")));
        }
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| failed(ErrorClass::Corrupt, "range is too large".into()))?;
        buffer.resize(len, 0);
        self.file
            .read_exact_at(&mut buffer, place.start + range.start)
            .map_err(|e| failed(ErrorClass::Transient, e.to_string()))?;
        Ok(buffer)
    }
}

impl Store for LocalDisk {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        done(self.read(request));
    }

    fn size(&self, object: &str, done: SizeDone) {
        done(self.place(object).map(|place| place.end - place.start));
    }
}

#[cfg(test)]
mod tests {
    use super::super::gpt::tests::disk;
    use super::super::{Priority, is_safe_object_name};
    use super::*;
    use std::sync::mpsc;

    fn fetch(store: &LocalDisk, object: &str, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let (tx, rx) = mpsc::channel();
        let request = FetchRequest {
            object: object.into(),
            range,
            buffer: Vec::new(),
            attempt: 0,
            priority: Priority::Demand,
        };
        store.fetch(request, Box::new(move |r| tx.send(r).unwrap()));
        rx.recv().unwrap()
    }

    #[test]
    fn partitions_are_blobs() {
        let (image, id, old) = disk();
        assert!(is_safe_object_name(&id));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &image).unwrap();
        let store = LocalDisk::new(file.path(), false).unwrap();
        assert_eq!(fetch(&store, &id, 3..9).unwrap(), image[40 * 512 + 3..40 * 512 + 9]);
        assert_eq!(fetch(&store, &old, 0..512).unwrap(), image[50 * 512..51 * 512]);
        assert_eq!(fetch(&store, &id, 0..10 * 512 + 1).unwrap_err().class, ErrorClass::Corrupt);
        for missing in ["", "x", &old[..32], &id[..63], &format!("{id}0")] {
            assert_eq!(fetch(&store, missing, 0..1).unwrap_err().class, ErrorClass::Missing, "{missing}");
        }
        let (tx, rx) = mpsc::channel();
        store.size(&id, Box::new(move |size| tx.send(size.unwrap()).unwrap()));
        assert_eq!(rx.recv().unwrap(), 10 * 512);
        let whole = LocalDisk::new(file.path(), true).unwrap();
        assert_eq!(fetch(&whole, "any", 512..520).unwrap(), b"EFI PART");
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LocalDisk::new(dir.path(), true).unwrap_err().class, ErrorClass::Corrupt);
        let missing = LocalDisk::new(&dir.path().join("x"), false).unwrap_err();
        assert_eq!(missing.class, ErrorClass::Missing);
        std::fs::write(dir.path().join("zeros"), [0; 100_000]).unwrap();
        let zeros = LocalDisk::new(&dir.path().join("zeros"), false).unwrap_err();
        assert!(zeros.to_string().contains("partition table"), "{zeros}");
    }
}
