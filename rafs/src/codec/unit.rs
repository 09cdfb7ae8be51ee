//! Compresses and decompresses one unit: a chunk, a batch, a chunk info table.

use super::{CodecError, Compressor, gzip};
use std::cell::RefCell;

/// Level the reference writer uses, and ours.
const ZSTD_LEVEL: i32 = 3;

thread_local! {
    // Making a zstd context costs more than a small chunk; one a thread is reused for its life.
    static ZSTD_ENCODER: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static ZSTD_DECODER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses `plain` into `out` (whose former contents are dropped). `Ok(true)`: `out` holds a form that is
/// smaller than `plain`. `Ok(false)`: it cannot be made smaller, store `plain` as it is; `out` is then
/// unspecified.
///
/// # Errors
/// The compressor refused. [`Compressor::Gzip`] always does: builders do not write gzip chunks.
pub fn compress(compressor: Compressor, plain: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
    out.clear();
    let refused = |reason| CodecError::Compress { compressor, plain: plain.len(), reason };
    match compressor {
        Compressor::None => return Ok(false),
        Compressor::Gzip => return Err(refused("gzip is only read, not written")),
        Compressor::Lz4Block => {
            out.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
            let len = lz4_flex::block::compress_into(plain, out).map_err(|_| refused("no room"))?;
            out.truncate(len);
        }
        Compressor::Zstd => {
            out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
            ZSTD_ENCODER.with_borrow_mut(|slot| {
                let encoder = match slot {
                    Some(encoder) => encoder,
                    None => slot
                        .insert(zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|_| refused("no memory"))?),
                };
                encoder.compress_to_buffer(plain, out).map_err(|_| refused("encoder error"))
            })?;
        }
    }
    Ok(out.len() < plain.len())
}

/// Decompresses `stored` so that it fills `plain` exactly.
///
/// For gzip, `stored` is one member; bytes behind it are ignored. For all others all of `stored` counts.
///
/// # Errors
/// A damaged stream, or one that holds more or fewer bytes than `plain`. `plain` is then unspecified.
pub fn decompress(compressor: Compressor, stored: &[u8], plain: &mut [u8]) -> Result<(), CodecError> {
    let expected = plain.len();
    let damaged = |reason| CodecError::Damaged { compressor, stored: stored.len(), reason };
    let actual = match compressor {
        Compressor::None => {
            if stored.len() == expected {
                plain.copy_from_slice(stored);
            }
            stored.len()
        }
        Compressor::Lz4Block => {
            use lz4_flex::block::DecompressError;
            lz4_flex::block::decompress_into(stored, plain).map_err(|e| {
                damaged(match e {
                    DecompressError::OutputTooSmall { .. } => "it is longer than the image promises",
                    DecompressError::ExpectedAnotherByte => "it ends early",
                    DecompressError::LiteralOutOfBounds => "a literal reaches behind its end",
                    DecompressError::OffsetOutOfBounds | DecompressError::OffsetZero => {
                        "a match points outside of the output"
                    }
                    _ => "not an LZ4 block",
                })
            })?
        }
        Compressor::Zstd => ZSTD_DECODER.with_borrow_mut(|slot| {
            let decoder = match slot {
                Some(decoder) => decoder,
                None => slot.insert(zstd::bulk::Decompressor::new().map_err(|_| damaged("no memory"))?),
            };
            decoder
                .decompress_to_buffer(stored, plain)
                .map_err(|_| damaged("not a zstd frame of the promised size"))
        })?,
        Compressor::Gzip => return gzip::gunzip(stored, plain),
    };
    if actual == expected { Ok(()) } else { Err(CodecError::WrongSize { compressor, expected, actual }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: [Compressor; 2] = [Compressor::Lz4Block, Compressor::Zstd];

    fn text(len: usize) -> Vec<u8> {
        b"the quick brown fox jumps over the lazy dog; ".iter().copied().cycle().take(len).collect()
    }

    #[test]
    fn round_trip() {
        let mut out = Vec::new();
        for compressor in WRITTEN {
            for len in [100, 4096, 1 << 20] {
                let plain = text(len);
                assert!(compress(compressor, &plain, &mut out).unwrap());
                let mut back = vec![0; len];
                decompress(compressor, &out, &mut back).unwrap();
                assert_eq!(back, plain);
            }
        }
    }

    #[test]
    fn zstd_frames_carry_their_size_and_no_checksum() {
        let mut out = Vec::new();
        assert!(compress(Compressor::Zstd, &text(70_000), &mut out).unwrap());
        assert_eq!(out[..4], [0x28, 0xb5, 0x2f, 0xfd]);
        let descriptor = out[4];
        assert_eq!(descriptor & 0x20, 0x20, "single segment");
        assert_eq!(descriptor & 0x04, 0, "no checksum");
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&out).unwrap(), Some(70_000));
    }

    #[test]
    fn what_does_not_shrink_is_stored_raw() {
        let mut out = Vec::new();
        for compressor in WRITTEN {
            assert!(!compress(compressor, b"", &mut out).unwrap());
            assert!(!compress(compressor, b"abcdefgh", &mut out).unwrap());
        }
        assert!(!compress(Compressor::None, &text(1000), &mut out).unwrap());
        compress(Compressor::Gzip, &text(1000), &mut out).unwrap_err();
    }

    #[test]
    fn wrong_sizes_are_errors() {
        let plain = text(5000);
        let mut out = Vec::new();
        for compressor in WRITTEN {
            compress(compressor, &plain, &mut out).unwrap();
            for len in [0, 4999, 5001] {
                assert!(decompress(compressor, &out, &mut vec![0; len]).is_err(), "{compressor} {len}");
            }
        }
        assert_eq!(
            decompress(Compressor::None, &plain, &mut [0; 3]),
            Err(CodecError::WrongSize { compressor: Compressor::None, expected: 3, actual: 5000 })
        );
    }

    #[test]
    fn truncated_and_flipped_streams_never_panic() {
        let plain = text(3000);
        let mut out = Vec::new();
        let mut back = vec![0; 3000];
        for compressor in WRITTEN {
            compress(compressor, &plain, &mut out).unwrap();
            for len in 0..out.len() {
                assert!(decompress(compressor, &out[..len], &mut back).is_err(), "{compressor} {len}");
            }
            for bit in 0..out.len() * 8 {
                let mut bad = out.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let _may_fail = decompress(compressor, &bad, &mut back);
            }
        }
    }
}
