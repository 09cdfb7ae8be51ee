//! AES-128-XTS over one unit, with the padding rule for units shorter than a cipher block (blob.md section 12).

use super::CodecError;
use aes::cipher::{KeyInit, generic_array::GenericArray};
use std::fmt;
use xts_mode::Xts128;

/// Bytes of an AES block; XTS needs at least one.
const BLOCK: usize = 16;
/// Marks a unit that was padded to [`BLOCK`] before encryption.
const PADDING_MARK: [u8; 2] = [0x78, 0x90];
/// A padded unit: one block and the mark.
const PADDED: usize = BLOCK + PADDING_MARK.len();

/// AES-128-XTS key material of a blob (blob.md section 12).
#[derive(Clone, PartialEq, Eq)]
pub struct CipherKey {
    /// Data key, then tweak key.
    pub key: [u8; 32],
    /// Tweak of every unit.
    pub iv: [u8; 16],
}

impl fmt::Debug for CipherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CipherKey(..)")
    }
}

/// The cipher of one blob. Every unit (a chunk as stored, a batch, the chunk info table, its header) is one
/// XTS data unit with the same tweak.
pub struct Cipher {
    xts: Xts128<aes::Aes128>,
    tweak: [u8; BLOCK],
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

impl Cipher {
    /// The cipher with the key and tweak of a blob table.
    #[must_use]
    pub fn new(key: &CipherKey) -> Self {
        let (data_key, tweak_key) = key.key.split_at(BLOCK);
        Self {
            xts: Xts128::new(
                aes::Aes128::new(GenericArray::from_slice(data_key)),
                aes::Aes128::new(GenericArray::from_slice(tweak_key)),
            ),
            tweak: key.iv,
        }
    }

    /// Replaces `out` by the encrypted form of `plain`: as long as `plain`, or 18 bytes when `plain` has
    /// fewer than 16.
    pub fn encrypt(&self, plain: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(plain);
        if let Ok(missing) = u8::try_from(BLOCK.saturating_sub(plain.len()))
            && missing > 0
        {
            out.resize(BLOCK, missing);
            out.extend_from_slice(&PADDING_MARK);
        }
        self.xts.encrypt_sector(out, self.tweak);
    }

    /// Decrypts `stored` in place and removes the padding of a short unit.
    ///
    /// # Errors
    /// A unit of fewer than 16 bytes, which no encryption makes.
    pub fn decrypt(&self, stored: &mut Vec<u8>) -> Result<(), CodecError> {
        if stored.len() < BLOCK {
            return Err(CodecError::CipherTooShort(stored.len()));
        }
        self.xts.decrypt_sector(stored, self.tweak);
        if let Some(len) = padded_len(stored) {
            stored.truncate(len);
        }
        Ok(())
    }
}

/// The length before padding when `unit` looks padded. The mark alone could be data of a unit that had 18
/// bytes from the start, so all padding bytes must agree.
fn padded_len(unit: &[u8]) -> Option<usize> {
    if unit.len() != PADDED || !unit.ends_with(&PADDING_MARK) {
        return None;
    }
    let block = unit.get(..BLOCK)?;
    let count = *block.last()?;
    let len = BLOCK.checked_sub(usize::from(count))?;
    let padding = block.get(len..)?;
    (!padding.is_empty() && padding.iter().all(|&b| b == count)).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher() -> Cipher {
        let mut key = [0u8; 32];
        for (i, b) in (0u8..).zip(key.iter_mut()) {
            *b = i;
        }
        Cipher::new(&CipherKey { key, iv: [7; 16] })
    }

    #[test]
    fn round_trip_of_every_short_length() {
        let cipher = cipher();
        let mut out = Vec::new();
        for len in 0u8..=70 {
            let plain: Vec<u8> = (0..len).map(|i| i.wrapping_mul(31)).collect();
            cipher.encrypt(&plain, &mut out);
            let expected = if len < 16 { 18 } else { usize::from(len) };
            assert_eq!(out.len(), expected, "length {len}");
            assert_ne!(out, plain);
            cipher.decrypt(&mut out).unwrap();
            assert_eq!(out, plain, "length {len}");
        }
    }

    #[test]
    fn eighteen_plain_bytes_that_end_like_padding_survive() {
        let cipher = cipher();
        let mut plain = [0u8; 18];
        plain[15] = 200;
        plain[16..].copy_from_slice(&PADDING_MARK);
        let mut out = Vec::new();
        cipher.encrypt(&plain, &mut out);
        cipher.decrypt(&mut out).unwrap();
        assert_eq!(out, plain);
    }

    /// IEEE 1619-2007, XTS-AES-128 vector 2.
    #[test]
    fn known_answer() {
        let mut key = [0x11u8; 32];
        key[16..].fill(0x22);
        let mut iv = [0u8; 16];
        iv[..5].fill(0x33);
        let mut out = Vec::new();
        Cipher::new(&CipherKey { key, iv }).encrypt(&[0x44; 32], &mut out);
        assert_eq!(hex::encode(out), "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0");
    }

    #[test]
    fn too_short_is_an_error() {
        assert_eq!(cipher().decrypt(&mut vec![0; 15]), Err(CodecError::CipherTooShort(15)));
    }
}
