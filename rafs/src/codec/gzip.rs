//! Gzip members: header, deflate body, trailer (RFC 1952).

use super::{CodecError, Compressor};
use flate2::{Decompress, FlushDecompress, Status};
use std::cell::RefCell;

/// CRC and length behind the deflate body.
pub(super) const TRAILER: usize = 8;
/// Fixed part of a member header.
const HEADER: usize = 10;

/// Header flags.
const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;

thread_local! {
    static INFLATER: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// Runs `f` with this thread's raw inflater, reset.
pub(super) fn with_inflater<T>(f: impl FnOnce(&mut Decompress) -> T) -> T {
    INFLATER.with_borrow_mut(|inflater| {
        inflater.reset(false);
        f(inflater)
    })
}

/// Bytes of the member header at the start of `data`; `None` when it is none, or is cut short.
pub(super) fn header_len(data: &[u8]) -> Option<usize> {
    let (&[0x1f, 0x8b, 8, flags, ..], true) = (data.first_chunk::<4>()?, data.len() >= HEADER) else {
        return None;
    };
    let mut at = HEADER;
    if flags & FEXTRA != 0 {
        let len = data.get(at..)?.first_chunk::<2>()?;
        at = at.checked_add(2)?.checked_add(usize::from(u16::from_le_bytes(*len)))?;
    }
    for flag in [FNAME, FCOMMENT] {
        if flags & flag != 0 {
            let end = data.get(at..)?.iter().position(|&b| b == 0)?;
            at = at.checked_add(end)?.checked_add(1)?;
        }
    }
    if flags & FHCRC != 0 {
        at = at.checked_add(2)?;
    }
    (at <= data.len()).then_some(at)
}

/// One run of the inflater: how many bytes went in and out, and whether the stream is at its end.
pub(super) struct Step {
    pub consumed: usize,
    pub produced: usize,
    pub ended: bool,
}

/// Inflates from `input` into `output` until either is used up or the stream ends.
pub(super) fn inflate(
    inflater: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
) -> Result<Step, CodecError> {
    let damaged = |reason| CodecError::Damaged { compressor: Compressor::Gzip, stored: input.len(), reason };
    let (in_before, out_before) = (inflater.total_in(), inflater.total_out());
    let status = inflater
        .decompress(input, output, FlushDecompress::None)
        .map_err(|_| damaged("not a deflate stream"))?;
    Ok(Step {
        consumed: usize::try_from(inflater.total_in() - in_before).map_err(|_| damaged("too long"))?,
        produced: usize::try_from(inflater.total_out() - out_before).map_err(|_| damaged("too long"))?,
        ended: matches!(status, Status::StreamEnd),
    })
}

/// Decodes the one member at the start of `stored` into exactly `plain`; its checksum must match.
pub(super) fn gunzip(stored: &[u8], plain: &mut [u8]) -> Result<(), CodecError> {
    let damaged = |reason| CodecError::Damaged { compressor: Compressor::Gzip, stored: stored.len(), reason };
    let body = header_len(stored).and_then(|at| stored.get(at..)).ok_or_else(|| damaged("no gzip header"))?;
    let expected = plain.len();
    let wrong = |actual| CodecError::WrongSize { compressor: Compressor::Gzip, expected, actual };
    with_inflater(|inflater| {
        let mut step = inflate(inflater, body, plain)?;
        if !step.ended && step.produced == expected {
            // The end-of-block code may still be unread; it must produce nothing more.
            let rest = body.get(step.consumed..).unwrap_or_default();
            let last = inflate(inflater, rest, &mut [0])?;
            if last.produced > 0 {
                return Err(wrong(expected.saturating_add(1)));
            }
            step.consumed += last.consumed;
            step.ended = last.ended;
        }
        if !step.ended {
            return Err(damaged("it ends early"));
        }
        if step.produced != expected {
            return Err(wrong(step.produced));
        }
        let trailer = body.get(step.consumed..).and_then(|t| t.first_chunk::<TRAILER>());
        let Some(&[a, b, c, d, ..]) = trailer else {
            return Err(damaged("its trailer is cut off"));
        };
        let mut crc = flate2::Crc::new();
        crc.update(plain);
        if crc.sum() != u32::from_le_bytes([a, b, c, d]) {
            return Err(damaged("its checksum does not match"));
        }
        Ok(())
    })
}

/// Decodes the first `plain.len()` bytes of the gzip member at the start of `stored`, and looks no further:
/// the member may be longer, `stored` may end before the member does. This is how chunks of legacy eStargz
/// images are read, whose stored sizes are estimates (build-rules.md section 10).
///
/// # Errors
/// No gzip member, a damaged one, or one that ends before `plain` is full.
pub fn gunzip_prefix(stored: &[u8], plain: &mut [u8]) -> Result<(), CodecError> {
    let damaged = |reason| CodecError::Damaged { compressor: Compressor::Gzip, stored: stored.len(), reason };
    let body = header_len(stored).and_then(|at| stored.get(at..)).ok_or_else(|| damaged("no gzip header"))?;
    let step = with_inflater(|inflater| inflate(inflater, body, plain))?;
    if step.produced == plain.len() {
        return Ok(());
    }
    Err(CodecError::WrongSize { compressor: Compressor::Gzip, expected: plain.len(), actual: step.produced })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, GzBuilder};
    use std::io::Write;

    fn member(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzBuilder::new()
            .filename("name")
            .comment("comment")
            .extra(vec![1, 2, 3])
            .write(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| b"abcdefghij klm"[i * i % 14]).collect()
    }

    #[test]
    fn one_member_and_trailing_bytes() {
        for len in [0, 1, 4096, 100_000] {
            let plain = text(len);
            let mut stored = member(&plain);
            stored.extend_from_slice(b"trailing");
            let mut back = vec![0; len];
            gunzip(&stored, &mut back).unwrap();
            assert_eq!(back, plain);
        }
    }

    #[test]
    fn sizes_and_checksum_are_checked() {
        let plain = text(5000);
        let mut stored = member(&plain);
        for len in [0, 1, 4999, 5001] {
            assert!(gunzip(&stored, &mut vec![0; len]).is_err(), "{len}");
        }
        for len in 0..stored.len() {
            assert!(
                gunzip(&stored[..len], &mut vec![0; 5000]).is_err() || len >= stored.len() - 4,
                "cut to {len}"
            );
        }
        let crc = stored.len() - 8;
        stored[crc] ^= 1;
        assert!(gunzip(&stored, &mut vec![0; 5000]).is_err());
    }

    #[test]
    fn prefix_stops_where_asked() {
        let plain = text(5000);
        let stored = member(&plain);
        let mut back = vec![0; 4000];
        gunzip_prefix(&stored, &mut back).unwrap();
        assert_eq!(back, plain[..4000]);
        gunzip_prefix(&stored[..stored.len() - 8], &mut vec![0; 5000]).unwrap();
        assert!(gunzip_prefix(&stored, &mut vec![0; 5001]).is_err());
    }

    #[test]
    fn headers_that_are_none() {
        for bad in [
            &b""[..],
            b"\x1f\x8b\x08",
            b"\x1f\x8b\x08\x04\0\0\0\0\0\0\xff\xff",
            b"\x1f\x8b\x08\x08\0\0\0\0\0\0ab",
        ] {
            assert_eq!(header_len(bad), None);
        }
        assert_eq!(header_len(b"\x1f\x8b\x08\x00\0\0\0\0\0\0"), Some(10));
    }
}
