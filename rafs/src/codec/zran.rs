//! Random access into a gzip file: inflating from a deflate block boundary in the middle of a byte, with
//! the window that was there, across the ends of gzip members (blob.md section 8).

use super::gzip::{TRAILER, header_len, inflate, with_inflater};
use super::{CodecError, Compressor};

/// State of the deflate stream at the start of a zran context.
#[derive(Clone, Copy, Debug)]
pub struct ZranStart<'a> {
    /// The 32 KiB window before the start, or what there was of it.
    pub dictionary: &'a [u8],
    /// Byte before the start.
    pub previous_byte: u8,
    /// How many of its high bits belong to the stream, 0 ..= 7 (higher bits of the field are ignored).
    pub bit_count: u8,
}

/// Inflates `stored` from `start` until `plain` is full; goes on with the next gzip member when the stream ends
/// before that.
///
/// # Errors
/// A damaged stream, or one that ends before `plain` is full.
pub fn inflate_zran(start: ZranStart<'_>, stored: &[u8], plain: &mut [u8]) -> Result<(), CodecError> {
    let damaged = |reason| CodecError::Damaged { compressor: Compressor::Gzip, stored: stored.len(), reason };
    let expected = plain.len();
    with_inflater(|inflater| {
        if !start.dictionary.is_empty() {
            inflater
                .set_dictionary(start.dictionary)
                .map_err(|_| damaged("its dictionary was not accepted"))?;
        }
        let lead = lead_in(start.previous_byte, start.bit_count & 7);
        let mut fed = 0;
        while fed < lead.len() {
            // A stream whose first block is tiny may produce bytes, or end, within the lead-in.
            let step = inflate(inflater, lead.get(fed..).unwrap_or_default(), &mut [])?;
            if step.consumed == 0 {
                break;
            }
            fed += step.consumed;
        }
        if fed < lead.len() {
            return Err(damaged("its first byte cannot be read"));
        }
        let (mut input, mut filled) = (stored, 0);
        loop {
            let room = plain.get_mut(filled..).unwrap_or_default();
            if room.is_empty() {
                return Ok(());
            }
            let step = inflate(inflater, input, room)?;
            filled += step.produced;
            input = input.get(step.consumed..).unwrap_or_default();
            if filled == expected {
                return Ok(());
            }
            if step.ended {
                let member = input.get(TRAILER..).unwrap_or_default();
                input = header_len(member)
                    .and_then(|at| member.get(at..))
                    .ok_or_else(|| damaged("no gzip member follows where one is needed"))?;
                inflater.reset(false);
            } else if step.consumed == 0 && step.produced == 0 {
                return Err(CodecError::WrongSize { compressor: Compressor::Gzip, expected, actual: filled });
            }
        }
    })
}

/// Whole bytes that bring an inflater to the state "`bits` high bits of `previous` are still to be read":
/// empty deflate blocks that end where those bits must begin, then the bits. Stands in for zlib's
/// `inflatePrime`, which safe interfaces lack. Shifting all of the input instead would break stored blocks,
/// which are aligned to bytes.
fn lead_in(previous: u8, bits: u8) -> Vec<u8> {
    let mut writer = BitWriter::default();
    if bits == 0 {
        return writer.bytes;
    }
    let before = usize::from(8 - bits);
    if before % 2 == 1 {
        writer.empty_dynamic_block();
    }
    while writer.len % 8 != before {
        writer.empty_fixed_block();
    }
    writer.put(u32::from(previous) >> before, usize::from(bits));
    writer.bytes
}

/// Bits in deflate's order, low bit first.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    len: usize,
}

impl BitWriter {
    fn put(&mut self, value: u32, count: usize) {
        for k in 0..count {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut()
                && value >> k & 1 == 1
            {
                *last |= 1 << (self.len % 8);
            }
            self.len += 1;
        }
    }

    /// 10 bits: not final, fixed codes, end of block.
    fn empty_fixed_block(&mut self) {
        self.put(0b010, 3);
        self.put(0, 7);
    }

    /// 93 bits, an odd number: not final, dynamic codes in which only the end-of-block symbol exists.
    fn empty_dynamic_block(&mut self) {
        self.put(0b100, 3);
        // 257 literal codes, 1 distance code, 18 code length codes.
        self.put(0, 5);
        self.put(0, 5);
        self.put(14, 4);
        // In the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1: lengths 2 for 18 and 0, 1 for symbol 1.
        for length in [0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] {
            self.put(length, 3);
        }
        // Canonical codes, first bit lowest: 1 is "0", 0 is "10", 18 is "11" and takes 7 bits of count - 11.
        for zeros in [138u32, 118] {
            self.put(0b11, 2);
            self.put(zeros - 11, 7);
        }
        self.put(0b0, 1);
        self.put(0b01, 2);
        // End of block.
        self.put(0, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress, GzBuilder};
    use std::io::Write;

    /// Random-looking text, so that matches reach far back.
    fn text(len: usize) -> Vec<u8> {
        let mut state = 12345u32;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
                b"etaoinshr dlu"[(state >> 16) as usize % 13]
            })
            .collect()
    }

    /// A deflate stream delayed by `shift` bits: fixed-code blocks in front, whose bits are then cut away.
    fn shifted(stream: &[u8], shift: u8) -> (u8, Vec<u8>) {
        let mut writer = BitWriter::default();
        writer.put(0, usize::from(shift));
        for &byte in stream {
            writer.put(u32::from(byte), 8);
        }
        let first = writer.bytes.remove(0);
        (first, writer.bytes)
    }

    fn deflate(plain: &[u8], dictionary: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1000);
        let mut encoder = Compress::new(Compression::default(), false);
        if !dictionary.is_empty() {
            encoder.set_dictionary(dictionary).unwrap();
        }
        encoder.compress_vec(plain, &mut out, FlushCompress::Finish).unwrap();
        out
    }

    #[test]
    fn every_bit_count_with_dictionary() {
        let all = text(60_000);
        let (dictionary, plain) = all.split_at(32_768);
        let stream = deflate(plain, dictionary);
        for bit_count in 0..8u8 {
            // The stream's first `bit_count` bits are the high bits of the previous byte.
            let (previous_byte, rest) = match bit_count {
                0 => (0xff, stream.clone()),
                n => shifted(&stream, 8 - n),
            };
            let mut back = vec![0; plain.len()];
            let start = ZranStart { dictionary, previous_byte, bit_count };
            inflate_zran(start, &rest, &mut back).unwrap();
            assert_eq!(back, plain, "{bit_count} bits");
        }
    }

    #[test]
    fn goes_on_into_the_next_member() {
        let plain = text(30_000);
        let mut stored = deflate(&plain[..10_000], b"");
        stored.extend_from_slice(&[0xaa; TRAILER]);
        for piece in [&plain[10_000..10_000], &plain[10_000..15_000], &plain[15_000..]] {
            let mut encoder = GzBuilder::new().filename("x").write(Vec::new(), Compression::fast());
            encoder.write_all(piece).unwrap();
            stored.extend_from_slice(&encoder.finish().unwrap());
        }
        let start = ZranStart { dictionary: &[], previous_byte: 0, bit_count: 0 };
        let mut back = vec![0; plain.len()];
        inflate_zran(start, &stored, &mut back).unwrap();
        assert_eq!(back, plain);
        assert!(inflate_zran(start, &stored, &mut vec![0; plain.len() + 1]).is_err());
        for cut in (0..stored.len() - 8).step_by(97) {
            assert!(inflate_zran(start, &stored[..cut], &mut back).is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn short_streams_inside_the_first_byte() {
        // An empty final fixed block takes 10 bits: with 7 bits in the previous byte it ends in the next one.
        let stream = deflate(b"", b"");
        let (previous_byte, rest) = shifted(&stream, 1);
        let start = ZranStart { dictionary: &[], previous_byte, bit_count: 7 };
        inflate_zran(start, &rest, &mut []).unwrap();
        assert!(inflate_zran(start, &rest, &mut [0]).is_err());
    }
}
