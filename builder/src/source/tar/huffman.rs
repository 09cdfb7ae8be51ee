//! Huffman codes of a deflate stream.
//!
//! Owns: tables made from code lengths, and the fixed ones. Does not own: bits.

/// Longest code, bits.
pub(super) const BITS_MAX: u32 = 15;
/// Codes up to this many bits are found with one look-up.
const FAST_BITS: u32 = 10;

/// A code.
#[derive(Clone, Debug)]
pub(super) struct Huffman {
    /// By the next FAST_BITS bits: symbol << 4 | length; 0 for longer codes.
    fast: Vec<u16>,
    /// Number of codes of each length.
    counts: [u16; BITS_MAX as usize + 1],
    /// Symbols in the order of their codes.
    symbols: Vec<u16>,
}

impl Huffman {
    /// The code with these lengths by symbol. `None`: more codes than the lengths have room for.
    pub(super) fn new(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0_u16; BITS_MAX as usize + 1];
        for length in lengths {
            *counts.get_mut(usize::from(*length))? += 1;
        }
        counts[0] = 0;
        let mut room: i32 = 1;
        let mut offsets = [0_u16; BITS_MAX as usize + 2];
        let mut next_code = [0_u32; BITS_MAX as usize + 2];
        for length in 1..=BITS_MAX as usize {
            room = (room << 1) - i32::from(counts[length]);
            if room < 0 {
                return None;
            }
            offsets[length + 1] = offsets[length] + counts[length];
            next_code[length + 1] = (next_code[length] + u32::from(counts[length])) << 1;
        }
        let mut symbols = vec![0; lengths.len()];
        let mut fast = vec![0; 1 << FAST_BITS];
        for (symbol, length) in (0_u16..).zip(lengths) {
            if *length == 0 {
                continue;
            }
            let at = usize::from(*length);
            symbols[usize::from(offsets[at])] = symbol;
            offsets[at] += 1;
            let code = next_code[at];
            next_code[at] += 1;
            let bits = u32::from(*length);
            if bits <= FAST_BITS {
                // Codes come with their first bit lowest.
                let reversed = code.reverse_bits() >> (32 - bits);
                for high in 0..1_u32 << (FAST_BITS - bits) {
                    fast[(high << bits | reversed) as usize] = symbol << 4 | u16::from(*length);
                }
            }
        }
        Some(Self { fast, counts, symbols })
    }

    /// Symbol and length of the code at the low end of `bits`. `None`: no such code.
    pub(super) fn decode(&self, bits: u64) -> Option<(u16, u32)> {
        let index = usize::try_from(bits & ((1 << FAST_BITS) - 1)).ok()?;
        let entry = *self.fast.get(index)?;
        if entry != 0 {
            return Some((entry >> 4, u32::from(entry & 15)));
        }
        let (mut code, mut first, mut index) = (0_i32, 0_i32, 0_i32);
        for length in 1..=BITS_MAX {
            code |= i32::from(bits >> (length - 1) & 1 != 0);
            let count = i32::from(self.counts[length as usize]);
            if code - count < first {
                let at = usize::try_from(index + code - first).ok()?;
                return Some((*self.symbols.get(at)?, length));
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }

    /// The fixed codes of literals and lengths, and of distances.
    pub(super) fn fixed() -> Option<(Self, Self)> {
        let mut lengths = [8_u8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        Some((Self::new(&lengths)?, Self::new(&[5; 30])?))
    }
}
