//! The bootstrap layer (oci.md section 4): a tar, mostly compressed with gzip, perhaps with zstd, with the bootstrap somewhere in it.

use anyhow::{Context, bail};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest bootstrap, unpacked, bytes.
const BOOTSTRAP_MAX: u64 = 1 << 30;
/// Bytes that are looked through for it.
const TAR_MAX: u64 = 4 << 30;
/// A tar block.
const BLOCK: usize = 512;

/// Unpacks the bootstrap of a layer into `dir`, under the name of its digest; one that is there is checked and used.
pub(super) fn unpacked(layer: &[u8], dir: &Path) -> anyhow::Result<PathBuf> {
    let name: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Unpacked each time: what lies there may have been changed, and its own digest is nowhere written down.
    let mut file = Temporary::new(dir)?;
    let found = if layer.starts_with(&[0x1f, 0x8b]) {
        copy_bootstrap(MultiGzDecoder::new(layer).take(TAR_MAX), &mut file.file)
    } else if layer.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let plain = zstd::stream::read::Decoder::new(layer).context("the bootstrap layer")?;
        copy_bootstrap(plain.take(TAR_MAX), &mut file.file)
    } else {
        copy_bootstrap(layer, &mut file.file)
    };
    if !found.context("the bootstrap layer")? {
        bail!("the bootstrap layer has no image/image.boot");
    }
    let path = dir.join(format!("{name}.boot"));
    if same(&file.path, &path).unwrap_or(false) {
        // A file that stays is the same image to guests after a restart.
        return Ok(path);
    }
    file.file.sync_all().context("cannot write the bootstrap")?;
    std::fs::rename(&file.path, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    if std::fs::metadata(one)?.len() != std::fs::metadata(other)?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = one.read(&mut a)?;
        let Some(part) = b.get_mut(..n) else { return Ok(false) };
        other.read_exact(part)?;
        if a.get(..n) != Some(&*part) {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

/// A file that goes away unless it gets another name.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        // Daemons in containers may have the same process id.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = dir.join(format!(".{}-{}.tmp", std::process::id(), now.as_nanos()));
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Looks through a tar for the bootstrap and copies it. False: it is not there.
fn copy_bootstrap(mut tar: impl Read, to: &mut impl Write) -> anyhow::Result<bool> {
    let mut header = [0; BLOCK];
    loop {
        if let Err(error) = tar.read_exact(&mut header) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(error.into()) };
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(false);
        }
        let field = |from: usize, len: usize| header.get(from..from + len).unwrap_or_default();
        let size = number(field(124, 12)).context("a tar header's size is no number")?;
        let name = text(field(0, 100));
        let kind = field(156, 1).first().copied().unwrap_or(0);
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        if matches!(kind, 0 | b'0') && (name == b"image/image.boot" || name == b"image.boot") {
            if size > BOOTSTRAP_MAX {
                bail!("the bootstrap has {size} bytes, more than 1 GiB");
            }
            if io::copy(&mut tar.by_ref().take(size), to)? != size {
                bail!("it ends in the middle of the bootstrap");
            }
            return Ok(true);
        }
        let padded = size.checked_next_multiple_of(BLOCK as u64).context("a tar header's size is no size")?;
        if io::copy(&mut tar.by_ref().take(padded), &mut io::sink())? != padded {
            return Ok(false);
        }
    }
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// An octal number.
fn number(field: &[u8]) -> Option<u64> {
    let digits = String::from_utf8(text(field)).ok()?;
    let digits = digits.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut header = [0u8; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        let mut out = header.to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    #[test]
    fn the_bootstrap_is_found_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["image/image.boot", "./image/image.boot", "image.boot"] {
            let tar = [entry("image/x.blob.meta", &[7; 700]), entry(name, b"boot"), vec![0; 1024]].concat();
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&tar).unwrap();
            let zstd = zstd::encode_all(&tar[..], 1).unwrap();
            for layer in [tar.clone(), packed.finish().unwrap(), zstd] {
                let path = unpacked(&layer, dir.path()).unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), b"boot");
                std::fs::write(&path, b"hack").unwrap();
                assert_eq!(
                    std::fs::read(unpacked(&layer, dir.path()).unwrap()).unwrap(),
                    b"boot",
                    "changed files do not stay"
                );
            }
        }
        let long = entry("image/image.boot", &[1; 600]);
        for layer in [&[][..], &[1; 40], &long[..900], &entry("other", b"x"), &[b'z'; 512]] {
            unpacked(layer, dir.path()).unwrap_err();
        }
        assert!(
            std::fs::read_dir(dir.path())
                .unwrap()
                .all(|e| e.unwrap().path().extension() == Some("boot".as_ref()))
        );
    }
}
