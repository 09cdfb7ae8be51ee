//! What the builder's targets do: tar archives, compressed streams, prefetch patterns.
//!
//! Invariants: no panic, no overflow, no endless loop, memory in proportion to the input; the readers of one archive
//! understand the same of it; our inflater gives what another one gives.

use flate2::Crc;
use flate2::read::DeflateDecoder;
use rafs_builder::{Patterns, parsers};
use std::io::Read;

/// Plain bytes that are compared; the input may unpack to more.
const PLAIN_MAX: u64 = 1 << 20;

/// Any bytes as an archive. The header's checksum is made right, or hardly any input gets past it: the first byte says
/// for how many headers, wherever a block looks like one.
pub fn tar_archive(input: &[u8]) {
    let Some((settings, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).take(usize::from(settings >> 2)) {
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        let own: u32 = block[148..156].iter().map(|b| u32::from(*b)).sum();
        if block[257..262] == *b"ustar" {
            block[148..156].copy_from_slice(format!("{:06o}\0 ", sum - own + 256).as_bytes());
        }
    }
    // The builder tells compression by the first bytes: that is the other target's.
    if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5]) {
        return;
    }
    let chunk_size = 0x1000 << (settings & 3);
    let read = parsers::read(bytes.clone(), chunk_size);
    let referred = parsers::refer(bytes.clone(), chunk_size);
    let indexed = parsers::index(bytes, chunk_size);
    match (read, referred, indexed) {
        (Ok(read), Ok(referred), Ok(indexed)) => {
            assert_eq!(read, referred);
            let total: u64 = read.pieces.iter().map(|(_, len)| u64::from(*len)).sum();
            assert_eq!(total, indexed.iter().map(|(_, len)| len).sum::<u64>());
        }
        (Err(_), Err(_), _) => {}
        // What takes no data away notices no end within the padding, nor anything behind the data.
        (Ok(_), Ok(_), Err(e)) => panic!("an archive that can be read cannot be indexed: {e}"),
        (read, referred, _) => panic!("two readers disagree: {read:?} {referred:?}"),
    }
}

/// Any bytes as a compressed stream: as they are, and as the inside of a gzip member.
pub fn tar_stream(input: &[u8]) {
    let _ = parsers::read(input.to_vec(), 0x1000);
    let _ = parsers::inflate(input, PLAIN_MAX);
    let mut plain = Vec::new();
    let mut other = DeflateDecoder::new(input);
    let valid = (&mut other).take(PLAIN_MAX + 1).read_to_end(&mut plain).is_ok();
    if plain.len() as u64 > PLAIN_MAX {
        return;
    }
    let used = usize::try_from(other.total_in()).expect("it is in memory");
    let mut crc = Crc::new();
    crc.update(&plain);
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend_from_slice(if valid { &input[..used] } else { input });
    gzip.extend_from_slice(&crc.sum().to_le_bytes());
    gzip.extend_from_slice(&crc.amount().to_le_bytes());
    let ours = parsers::inflate(&gzip, PLAIN_MAX + 1);
    if valid {
        assert_eq!(ours.expect("another inflater takes it"), plain);
    }
    let _ = parsers::refer(gzip, 0x1000);
}

/// Any bytes as a list of prefetch patterns.
pub fn patterns(input: &[u8]) {
    let patterns = Patterns::parse(input);
    assert!(!patterns.is_empty() || input.is_empty() || !input.starts_with(b"/"));
}
