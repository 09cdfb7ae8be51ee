//! Keys for encrypted blobs.
//!
//! Owns: making them. Does not own: keeping them; the bootstrap does.

use crate::error::BuildError;
use rafs::image::CipherKey;
use std::fs::File;
use std::io::Read;

/// Where random bytes come from.
const RANDOM: &str = "/dev/urandom";

/// A new random key and tweak. The halves of the key differ, as XTS demands.
pub(crate) fn new_key() -> Result<CipherKey, BuildError> {
    let mut key = CipherKey { key: [0; 32], iv: [0; 16] };
    let mut random = File::open(RANDOM).map_err(BuildError::io("open", RANDOM))?;
    while key.key[..16] == key.key[16..] {
        random.read_exact(&mut key.key).map_err(BuildError::io("read", RANDOM))?;
    }
    random.read_exact(&mut key.iv).map_err(BuildError::io("read", RANDOM))?;
    Ok(key)
}
