//! `unpack`: an image back to a tar stream.
//!
//! Owns: the walk, which name of a hardlink group carries the data, what is checked before the output is opened.
//! Does not own: the archive format (`tar_writer`), reading blobs.
//!
//! One client copies the output to its end and never looks at our exit status: so everything that can be checked
//! is checked first, and a stream that fails later does not get the end mark of an archive.

mod tar_writer;

use crate::blobs::{BlobDataError, BlobPlace, Blobs, FileData};
use crate::error::BuildError;
use crate::output::Output;
use rafs::ids::InodeNumber;
use rafs::image::{FileKind, Image, Inode, InodeError};
use std::collections::HashMap;
use std::path::PathBuf;
use tar_writer::{Entry, TarWriter};

/// What to unpack, and where to.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// Bootstrap, or a blob with an inlined one.
    pub bootstrap: PathBuf,
    /// Where the data is; an image without blobs needs none.
    pub blobs: Option<BlobPlace>,
    /// File or FIFO that gets the archive.
    pub output: PathBuf,
}

/// Why unpacking failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The bootstrap cannot be used, or the output not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] BlobDataError),
    /// An inode is corrupt.
    #[error("{path}: {source}")]
    Inode {
        /// Path in the image.
        path: String,
        /// What is wrong.
        source: InodeError,
    },
    /// There is data to read and no place to read it from.
    #[error("the image has data: --blob, --blob-dir or --backend-type must be specified")]
    NoBlobs,
    /// One file cannot be several blobs.
    #[error(
        "the image has {0} blobs, one file cannot be all of them: give the directory that holds them (--blob-dir)"
    )]
    ManyBlobs(usize),
}

/// Writes the image as a tar archive.
///
/// # Errors
/// What went wrong, and where.
pub fn unpack(options: &UnpackOptions) -> Result<(), UnpackError> {
    let image = crate::layer::open(&options.bootstrap)?;
    image
        .check()
        .map_err(|e| BuildError::Image { path: options.bootstrap.clone(), reason: e.to_string() })?;
    let nowhere = BlobPlace::Directory(PathBuf::from("."));
    let place = match (&options.blobs, image.blobs().len()) {
        (Some(BlobPlace::File(_)), n) if n > 1 => return Err(UnpackError::ManyBlobs(n)),
        (Some(place), _) => place,
        (None, 0) => &nowhere,
        (None, _) => return Err(UnpackError::NoBlobs),
    };
    let blobs = Blobs::open(&image, &options.bootstrap, place)?;
    let output = Output::create(&options.output)?;
    let mut walk = Walk {
        image: &image,
        data: FileData::new(&blobs),
        tar: TarWriter::new(output),
        names: HashMap::new(),
    };
    walk.run()?;
    let output = walk.tar.finish()?;
    output.commit()?;
    Ok(())
}

struct Walk<'a> {
    image: &'a Image,
    data: FileData<'a>,
    tar: TarWriter,
    /// Path of the name that carried the data, of files with several.
    names: HashMap<InodeNumber, Vec<u8>>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), UnpackError> {
        let image = self.image;
        let root = image.inode(image.root()).map_err(inode_error(b"/"))?;
        // Directories whose entries are to be written: what is left of each.
        let mut pending = vec![(Vec::new(), image.read_dir(&root, 0).map_err(inode_error(b"/"))?)];
        while let Some((dir, entries)) = pending.last_mut() {
            let Some(entry) = entries.next() else {
                pending.pop();
                continue;
            };
            let entry = entry.map_err(inode_error(dir))?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let path =
                if dir.is_empty() { entry.name.to_vec() } else { [&dir[..], b"/", entry.name].concat() };
            let inode = image.inode(entry.number).map_err(inode_error(&path))?;
            self.write(&inode, &path)?;
            if inode.kind == FileKind::Directory {
                let entries = image.read_dir(&inode, 0).map_err(inode_error(&path))?;
                pending.push((path, entries));
            }
        }
        Ok(())
    }

    fn write(&mut self, inode: &Inode, path: &[u8]) -> Result<(), UnpackError> {
        let mut xattrs = Vec::new();
        for xattr in self.image.xattrs(inode).map_err(inode_error(path))? {
            let xattr = xattr.map_err(inode_error(path))?;
            xattrs.push(([xattr.prefix, xattr.suffix].concat(), xattr.value.to_vec()));
        }
        let mut entry =
            Entry { path: path.to_vec(), inode: *inode, link: Vec::new(), is_hardlink: false, xattrs };
        match inode.kind {
            FileKind::Socket => {
                tracing::debug!(
                    "{:?} is a socket, which an archive cannot hold",
                    String::from_utf8_lossy(path)
                );
                return Ok(());
            }
            FileKind::Symlink => {
                entry.link = self.image.read_link(inode).map_err(inode_error(path))?;
            }
            FileKind::Directory => entry.path.push(b'/'),
            FileKind::Regular if inode.nlink > 1 => {
                if let Some(first) = self.names.get(&inode.number) {
                    entry.link = [b"/", &first[..]].concat();
                    entry.is_hardlink = true;
                } else {
                    self.names.insert(inode.number, path.to_vec());
                }
            }
            _ => {}
        }
        self.tar.entry(&entry)?;
        if inode.kind == FileKind::Regular && !entry.is_hardlink {
            self.data(inode, path)?;
        }
        Ok(())
    }

    fn data(&mut self, inode: &Inode, path: &[u8]) -> Result<(), UnpackError> {
        let user = || format!("/{}", String::from_utf8_lossy(path));
        let mut at = 0;
        for chunk in self.image.chunks(inode, 0, inode.size).map_err(inode_error(path))? {
            let chunk = chunk.map_err(inode_error(path))?;
            // What no chunk covers is a hole.
            self.tar.zeros(chunk.file_offset.saturating_sub(at))?;
            let plain = self.data.read(&chunk, &user)?;
            let left = usize::try_from(inode.size - chunk.file_offset.min(inode.size)).unwrap_or(usize::MAX);
            let plain = &plain[..plain.len().min(left)];
            self.tar.data(plain)?;
            at = chunk.file_offset + plain.len() as u64;
        }
        self.tar.zeros(inode.size.saturating_sub(at))?;
        self.tar.pad(inode.size)?;
        Ok(())
    }
}

fn inode_error(path: &[u8]) -> impl FnOnce(InodeError) -> UnpackError + use<> {
    let path = String::from_utf8_lossy(path).into_owned();
    move |source| UnpackError::Inode { path, source }
}
