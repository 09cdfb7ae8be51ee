//! Digests and checksums.

use super::{Digest, Digester};
use sha2::Digest as _;

/// Digest of `data`.
#[must_use]
pub fn digest(digester: Digester, data: &[u8]) -> Digest {
    match digester {
        Digester::Blake3 => *blake3::hash(data).as_bytes(),
        Digester::Sha256 => sha2::Sha256::digest(data).into(),
    }
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78; rafs-v5.md section 15).
#[must_use]
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// A digest made piece by piece.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// BLAKE3, 256 bits.
    Blake3(Box<blake3::Hasher>),
    /// SHA-256.
    Sha256(sha2::Sha256),
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(digester: Digester) -> Self {
        match digester {
            Digester::Blake3 => Self::Blake3(Box::new(blake3::Hasher::new())),
            Digester::Sha256 => Self::Sha256(sha2::Sha256::new()),
        }
    }

    /// Appends `data`.
    pub fn update(&mut self, data: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(data);
            }
            Self::Sha256(hasher) => hasher.update(data),
        }
    }

    /// The digest of all that was appended.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Blake3(hasher) => *hasher.finalize().as_bytes(),
            Self::Sha256(hasher) => hasher.finalize().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        for (digester, empty) in [
            (Digester::Blake3, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
            (Digester::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ] {
            assert_eq!(hex::encode(digest(digester, b"")), empty);
        }
    }

    #[test]
    fn pieces_equal_whole() {
        let data: Vec<u8> = (0u32..5000).flat_map(u32::to_le_bytes).collect();
        for digester in [Digester::Blake3, Digester::Sha256] {
            let mut hasher = Hasher::new(digester);
            for piece in data.chunks(777) {
                hasher.update(piece);
            }
            assert_eq!(hasher.finish(), digest(digester, &data));
        }
    }
}
