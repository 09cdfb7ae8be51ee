//! Inflates a gzip stream and knows where its deflate blocks begin.
//!
//! Owns: gzip members, deflate, block boundaries with their windows. Does not own: which boundaries are used. The
//! libraries we have do not tell where blocks begin, which random access into a gzip file needs. Memory: a window
//! and a little more, whatever the stream says.

use super::huffman::{BITS_MAX, Huffman};
use flate2::Crc;
use std::collections::VecDeque;
use std::io::{self, Read};

/// Farthest distance of a match, bytes.
const WINDOW: usize = 32 << 10;
/// Bytes that are produced before the reader gets them: few, so that positions are exact.
const STEP: usize = 4 << 10;
/// The history is cut back to the window when it is longer than this.
const HISTORY_MAX: usize = 256 << 10;
const INPUT_BUFFER: usize = 256 << 10;

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195,
    227, 258,
];
const LENGTH_EXTRA: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const DISTANCE_BASE: [u16; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073,
    4097, 6145, 8193, 12289, 16385, 24577,
];
const DISTANCE_EXTRA: [u8; 30] =
    [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13];
const CODE_LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// A place where inflating can begin.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boundary {
    /// First whole byte of the block.
    pub in_offset: u64,
    /// Plain bytes before it.
    pub out_offset: u64,
    /// Byte before, whose high bits belong to the block.
    pub previous_byte: u8,
    /// How many of them.
    pub bit_count: u8,
    /// Which gzip member it is in.
    pub member: u64,
    /// How many plain bytes before it matches may refer to.
    reach: usize,
    /// These bytes.
    pub dictionary: Vec<u8>,
}

enum State {
    Member,
    Block,
    Stored(usize),
    Codes(Box<(Huffman, Huffman)>),
    End,
}

/// See the module's head.
pub(crate) struct Inflater<R> {
    input: R,
    buffer: Vec<u8>,
    buffered: usize,
    next: usize,
    /// Bytes taken from the input into `bits`.
    taken: u64,
    /// The last eight of them, the newest lowest.
    recent: u64,
    bits: u64,
    bit_count: u32,
    state: State,
    last_block: bool,
    /// Plain bytes: what was read already, then what was not.
    history: Vec<u8>,
    /// Position in the plain stream of the first byte of `history`.
    history_start: u64,
    /// How much of `history` was read.
    read: usize,
    /// How much of it is in the member's CRC.
    summed: usize,
    crc: Crc,
    member: u64,
    member_start: u64,
    /// Boundaries that the reader has not reached.
    ahead: VecDeque<Boundary>,
    current: Boundary,
    /// Compressed position when the last step began.
    step_start: u64,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged gzip stream: {what}"))
}

impl<R: Read> Inflater<R> {
    /// At the start of a gzip file.
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            buffer: vec![0; INPUT_BUFFER],
            buffered: 0,
            next: 0,
            taken: 0,
            recent: 0,
            bits: 0,
            bit_count: 0,
            state: State::Member,
            last_block: false,
            history: Vec::new(),
            history_start: 0,
            read: 0,
            summed: 0,
            crc: Crc::new(),
            member: 0,
            member_start: 0,
            ahead: VecDeque::new(),
            current: Boundary::default(),
            step_start: 0,
        }
    }

    /// The last boundary at or before the reader's position.
    pub(crate) fn boundary(&mut self) -> &Boundary {
        let at = self.history_start + self.read as u64;
        let mut passed = None;
        while self.ahead.front().is_some_and(|b| b.out_offset <= at) {
            passed = self.ahead.pop_front();
        }
        if let Some(mut boundary) = passed {
            let end = usize::try_from(boundary.out_offset.saturating_sub(self.history_start)).unwrap_or(0);
            let end = end.min(self.history.len());
            boundary.dictionary = self.history[end.saturating_sub(boundary.reach)..end].to_vec();
            self.current = boundary;
        }
        &self.current
    }

    /// A compressed position at or before what the reader gets next.
    pub(crate) fn stored_start(&self) -> u64 {
        if self.read < self.history.len() { self.step_start } else { self.consumed() }
    }

    /// A compressed position at or behind what the reader got last.
    pub(crate) fn consumed(&self) -> u64 {
        self.taken - u64::from(self.bit_count / 8)
    }

    /// The input, to read what follows.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn take_byte(&mut self) -> io::Result<Option<u8>> {
        if self.next == self.buffered {
            self.next = 0;
            self.buffered = loop {
                match self.input.read(&mut self.buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            if self.buffered == 0 {
                return Ok(None);
            }
        }
        let byte = self.buffer[self.next];
        self.next += 1;
        self.taken += 1;
        self.recent = self.recent << 8 | u64::from(byte);
        Ok(Some(byte))
    }

    /// Makes `bits` hold at least `count` (up to 32) bits, or all there are.
    #[inline]
    fn refill(&mut self, count: u32) -> io::Result<()> {
        if self.bit_count >= count {
            return Ok(());
        }
        let ahead = &self.buffer[self.next..self.buffered];
        let Some(word) = ahead.first_chunk::<8>() else { return self.refill_slowly(count) };
        // As many whole bytes as fit, in one go: fewer than 32 bits were there, so at least four.
        let bytes = (63 - self.bit_count) / 8;
        let new = u64::from_le_bytes(*word) & ((1 << (8 * bytes)) - 1);
        self.bits |= new << self.bit_count;
        self.bit_count += 8 * bytes;
        self.next += bytes as usize;
        self.taken += u64::from(bytes);
        self.recent = self.recent << (8 * bytes) | new.swap_bytes() >> (64 - 8 * bytes);
        Ok(())
    }

    fn refill_slowly(&mut self, count: u32) -> io::Result<()> {
        while self.bit_count < count {
            let Some(byte) = self.take_byte()? else { break };
            self.bits |= u64::from(byte) << self.bit_count;
            self.bit_count += 8;
        }
        Ok(())
    }

    fn take_bits(&mut self, count: u32) -> io::Result<u32> {
        self.refill(count)?;
        if self.bit_count < count {
            return Err(bad("it ends early"));
        }
        let value = self.bits & ((1 << count) - 1);
        self.bits >>= count;
        self.bit_count -= count;
        u32::try_from(value).map_err(|_| bad("too many bits"))
    }

    fn take_symbol(&mut self, code: &Huffman) -> io::Result<u16> {
        self.refill(BITS_MAX)?;
        let (symbol, length) = code.decode(self.bits).ok_or_else(|| bad("unknown code"))?;
        if length > self.bit_count {
            return Err(bad("it ends early"));
        }
        self.bits >>= length;
        self.bit_count -= length;
        Ok(symbol)
    }

    /// Produces a step of plain bytes. `false`: the end.
    fn step(&mut self) -> io::Result<bool> {
        self.trim();
        self.step_start = self.consumed();
        let goal = self.history.len() + STEP;
        while self.history.len() < goal {
            match std::mem::replace(&mut self.state, State::End) {
                State::End => break,
                State::Member => {
                    if !self.member_header()? {
                        break;
                    }
                    self.state = State::Block;
                }
                State::Block => self.block()?,
                State::Stored(left) => self.stored(left, goal)?,
                State::Codes(codes) => {
                    let ended = self.codes(&codes, goal)?;
                    self.state = if ended { self.after_block()? } else { State::Codes(codes) };
                }
            }
        }
        self.sum();
        Ok(self.read < self.history.len())
    }

    /// Forgets history that neither the reader nor a match can ask for.
    fn trim(&mut self) {
        if self.history.len() > HISTORY_MAX && self.read == self.history.len() {
            let drop = self.history.len() - WINDOW;
            self.history.drain(..drop);
            self.history_start += drop as u64;
            self.read -= drop;
            self.summed = self.summed.saturating_sub(drop);
        }
    }

    fn sum(&mut self) {
        self.crc.update(&self.history[self.summed..]);
        self.summed = self.history.len();
    }

    fn position(&self) -> u64 {
        self.history_start + self.history.len() as u64
    }

    /// `false`: there is no further member.
    fn member_header(&mut self) -> io::Result<bool> {
        self.refill(16)?;
        if self.bit_count < 16 || self.bits & 0xffff != 0x8b1f {
            // What follows the last member may be padding.
            return if self.member > 0 { Ok(false) } else { Err(bad("it is no gzip")) };
        }
        self.take_bits(16)?;
        if self.take_bits(8)? != 8 {
            return Err(bad("unknown compression method"));
        }
        let flags = self.take_bits(8)?;
        self.take_bits(32)?;
        self.take_bits(16)?;
        if flags & 4 != 0 {
            for _ in 0..self.take_bits(16)? {
                self.take_bits(8)?;
            }
        }
        for flag in [8, 16] {
            if flags & flag != 0 {
                while self.take_bits(8)? != 0 {}
            }
        }
        if flags & 2 != 0 {
            self.take_bits(16)?;
        }
        self.member += 1;
        self.member_start = self.position();
        self.crc = Crc::new();
        self.summed = self.history.len();
        Ok(true)
    }

    fn member_end(&mut self) -> io::Result<()> {
        self.sum();
        self.take_bits(self.bit_count % 8)?;
        let crc = self.take_bits(32)?;
        let len = self.take_bits(32)?;
        if crc != self.crc.sum() || len != self.crc.amount() {
            return Err(bad("its checksum is wrong"));
        }
        Ok(())
    }

    fn after_block(&mut self) -> io::Result<State> {
        if !self.last_block {
            return Ok(State::Block);
        }
        self.member_end()?;
        Ok(State::Member)
    }

    fn note_boundary(&mut self) {
        let out_offset = self.position();
        let whole = self.bit_count / 8;
        let bit_count = self.bit_count % 8;
        let reach = usize::try_from(out_offset - self.member_start).map_or(WINDOW, |n| n.min(WINDOW));
        let boundary = Boundary {
            in_offset: self.taken - u64::from(whole),
            out_offset,
            previous_byte: if bit_count == 0 {
                0
            } else {
                u8::try_from(self.recent >> (8 * whole) & 0xff).unwrap_or(0)
            },
            bit_count: u8::try_from(bit_count).unwrap_or(0),
            member: self.member,
            reach,
            dictionary: Vec::new(),
        };
        // Of blocks without output the last serves as well. With at most one boundary a byte of a step, and the
        // dictionary taken only from what the reader reaches, a hostile stream cannot make us keep much.
        match self.ahead.back_mut() {
            Some(last) if last.out_offset == out_offset && last.member == boundary.member => *last = boundary,
            _ => self.ahead.push_back(boundary),
        }
    }

    fn block(&mut self) -> io::Result<()> {
        self.note_boundary();
        self.last_block = self.take_bits(1)? == 1;
        self.state = match self.take_bits(2)? {
            0 => {
                self.take_bits(self.bit_count % 8)?;
                let len = self.take_bits(16)?;
                if self.take_bits(16)? != len ^ 0xffff {
                    return Err(bad("stored block lengths differ"));
                }
                State::Stored(len as usize)
            }
            1 => State::Codes(Box::new(Huffman::fixed().ok_or_else(|| bad("bad code"))?)),
            2 => State::Codes(Box::new(self.dynamic()?)),
            _ => return Err(bad("unknown block type")),
        };
        Ok(())
    }

    fn dynamic(&mut self) -> io::Result<(Huffman, Huffman)> {
        let literals = self.take_bits(5)? as usize + 257;
        let distances = self.take_bits(5)? as usize + 1;
        let count = self.take_bits(4)? as usize + 4;
        let mut lengths = [0_u8; 19];
        for at in CODE_LENGTH_ORDER.iter().take(count) {
            lengths[*at] = u8::try_from(self.take_bits(3)?).unwrap_or(0);
        }
        let code = Huffman::new(&lengths).ok_or_else(|| bad("bad code"))?;
        let mut lengths = Vec::with_capacity(literals + distances);
        while lengths.len() < literals + distances {
            let symbol = self.take_symbol(&code)?;
            let (value, repeat) = match symbol {
                0..=15 => (u8::try_from(symbol).unwrap_or(0), 1),
                16 => (*lengths.last().ok_or_else(|| bad("nothing to repeat"))?, self.take_bits(2)? + 3),
                17 => (0, self.take_bits(3)? + 3),
                _ => (0, self.take_bits(7)? + 11),
            };
            lengths.extend(std::iter::repeat_n(value, repeat as usize));
        }
        if lengths.len() > literals + distances {
            return Err(bad("too many code lengths"));
        }
        let (literals, distances) = lengths.split_at(literals);
        Huffman::new(literals).zip(Huffman::new(distances)).ok_or_else(|| bad("bad code"))
    }

    fn stored(&mut self, left: usize, goal: usize) -> io::Result<()> {
        let mut left = left;
        while left > 0 && self.history.len() < goal {
            let byte = u8::try_from(self.take_bits(8)?).unwrap_or(0);
            self.history.push(byte);
            left -= 1;
        }
        self.state = if left > 0 { State::Stored(left) } else { self.after_block()? };
        Ok(())
    }

    /// `true`: the block ended.
    fn codes(&mut self, codes: &(Huffman, Huffman), goal: usize) -> io::Result<bool> {
        while self.history.len() < goal {
            let symbol = usize::from(self.take_symbol(&codes.0)?);
            match symbol {
                0..256 => self.history.push(u8::try_from(symbol).unwrap_or(0)),
                256 => return Ok(true),
                _ => {
                    let (base, extra) = LENGTH_BASE
                        .get(symbol - 257)
                        .zip(LENGTH_EXTRA.get(symbol - 257))
                        .ok_or_else(|| bad("unknown length"))?;
                    let length = usize::from(*base) + self.take_bits(u32::from(*extra))? as usize;
                    let symbol = usize::from(self.take_symbol(&codes.1)?);
                    let (base, extra) = DISTANCE_BASE
                        .get(symbol)
                        .zip(DISTANCE_EXTRA.get(symbol))
                        .ok_or_else(|| bad("unknown distance"))?;
                    let distance = usize::from(*base) + self.take_bits(u32::from(*extra))? as usize;
                    if distance as u64 > self.position() - self.member_start || distance > self.history.len()
                    {
                        return Err(bad("a match points before its beginning"));
                    }
                    let start = self.history.len() - distance;
                    if distance >= length {
                        self.history.extend_from_within(start..start + length);
                    } else {
                        for at in start..start + length {
                            self.history.push(self.history[at]);
                        }
                    }
                }
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Inflater<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.history.len() && !self.step()? {
            return Ok(0);
        }
        let n = buffer.len().min(self.history.len() - self.read);
        buffer[..n].copy_from_slice(&self.history[self.read..self.read + n]);
        self.read += n;
        // The current boundary must be known before its block's window is forgotten.
        self.boundary();
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use rafs::codec::{ZranStart, inflate_zran};
    use std::io::Write;

    fn text(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut out = Vec::new();
        while out.len() < len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            match state >> 61 {
                0..4 => out.extend_from_slice(b"the quick brown fox "),
                4 => out.extend_from_slice(&state.to_le_bytes()),
                _ => out.push(state.to_le_bytes()[5]),
            }
        }
        out.truncate(len);
        out
    }

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn inflates_every_kind_of_block_and_many_members() {
        for level in [0, 1, 6, 9] {
            for len in [0, 1, 100, 70_000, 1_000_000] {
                let plain = text(len);
                let mut file = gzip(&plain, level);
                file.extend(gzip(b"second member", level));
                file.extend([0; 100]);
                let mut out = Vec::new();
                Inflater::new(&file[..]).read_to_end(&mut out).unwrap();
                assert!(out == [&plain[..], b"second member"].concat(), "level {level} len {len}");
            }
        }
    }

    #[test]
    fn every_boundary_is_a_place_to_begin() {
        let plain = text(1_500_000);
        let mut file = gzip(&plain[..900_000], 6);
        file.extend(gzip(&plain[900_000..], 1));
        let mut inflater = Inflater::new(&file[..]);
        let mut at = 0;
        let mut places = std::collections::BTreeSet::new();
        let mut buffer = [0; 1000];
        loop {
            let boundary = inflater.boundary().clone();
            let n = inflater.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            at += n;
            if boundary.member == 0 {
                continue;
            }
            let start = usize::try_from(boundary.out_offset).unwrap();
            assert!(start <= at - n);
            let end = usize::try_from(inflater.consumed()).unwrap();
            let mut got = vec![0; at - start];
            inflate_zran(
                ZranStart {
                    dictionary: &boundary.dictionary,
                    previous_byte: boundary.previous_byte,
                    bit_count: boundary.bit_count,
                },
                &file[usize::try_from(boundary.in_offset).unwrap()..end],
                &mut got,
            )
            .unwrap();
            assert!(got == plain[start..at], "from {start} to {at}");
            places.insert((boundary.member, start));
        }
        assert_eq!(at, plain.len());
        assert!(places.len() > 5, "{places:?}");
    }

    #[test]
    fn damage_is_an_error() {
        let file = gzip(&text(50_000), 6);
        for at in (0..file.len()).step_by(97) {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            let mut out = Vec::new();
            // Only the header's time and name fields may change without harm.
            if Inflater::new(&bad[..]).read_to_end(&mut out).is_ok() {
                assert!(at < 10, "byte {at}");
            }
            Inflater::new(&file[..at]).read_to_end(&mut Vec::new()).unwrap_err();
        }
    }
}
