//! Descriptor chains no driver would write. Each head must come back, and the ring must go on serving.

use super::raw::{NOWHERE, Raw};
use super::{Target, mounted};
use crate::frontend::FrontendError;
use crate::frontend::device::{HIGH_GPA, HIGH_SIZE, LOW_SIZE};
use crate::frontend::error::Result;
use crate::frontend::ring::{INDIRECT, NEXT, WRITE};
use crate::support::random::Random;

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Chain {
    Loop,
    SelfLoop,
    LoopOfWritable,
    ZeroLengthReadable,
    ZeroLengthWritable,
    HugeReadable,
    HugeWritable,
    ReadableNowhere,
    WritableNowhere,
    ReadableIntoHole,
    WritableIntoHole,
    EndOfAddressSpace,
    ReadableAfterWritable,
    NextOutOfTable,
    NoWritable,
    NoReadable,
    TinyWritable,
    ShortHeader,
    IndirectOddLength,
    IndirectEmpty,
    IndirectHuge,
    IndirectNowhere,
    IndirectNested,
    IndirectWithNext,
    IndirectNextOutside,
    IndirectLoop,
    /// Honest: header and reply in pieces of one byte.
    ByteWise,
    /// Honest: request and reply across the border of two regions that touch.
    AcrossRegions,
}

const ALL: [Chain; 28] = [
    Chain::Loop,
    Chain::SelfLoop,
    Chain::LoopOfWritable,
    Chain::ZeroLengthReadable,
    Chain::ZeroLengthWritable,
    Chain::HugeReadable,
    Chain::HugeWritable,
    Chain::ReadableNowhere,
    Chain::WritableNowhere,
    Chain::ReadableIntoHole,
    Chain::WritableIntoHole,
    Chain::EndOfAddressSpace,
    Chain::ReadableAfterWritable,
    Chain::NextOutOfTable,
    Chain::NoWritable,
    Chain::NoReadable,
    Chain::TinyWritable,
    Chain::ShortHeader,
    Chain::IndirectOddLength,
    Chain::IndirectEmpty,
    Chain::IndirectHuge,
    Chain::IndirectNowhere,
    Chain::IndirectNested,
    Chain::IndirectWithNext,
    Chain::IndirectNextOutside,
    Chain::IndirectLoop,
    Chain::ByteWise,
    Chain::AcrossRegions,
];

/// Every kind once, then `count` at random, all on one ring of one guest.
///
/// # Errors
/// The attack whose head did not come back, or that stopped the ring.
pub fn run(
    target: &Target<'_>,
    random: &mut Random,
    count: usize,
) -> std::result::Result<usize, (String, FrontendError)> {
    let mut device = mounted(target).map_err(|e| ("connecting for chains".to_owned(), e))?;
    let mut raw = Raw::new(&mut device, 1).map_err(|e| ("buffers".to_owned(), e))?;
    for turn in 0..ALL.len() + count {
        let chain = ALL.get(turn).copied().unwrap_or_else(|| *random.pick(&ALL));
        attack(&mut raw, chain, random)
            .and_then(|()| raw.still_serves())
            .map_err(|e| (format!("chain {turn}: {chain:?}"), e))?;
    }
    Ok(ALL.len() + count)
}

#[allow(clippy::too_many_lines, reason = "one arm per kind of chain")]
fn attack(raw: &mut Raw<'_>, chain: Chain, random: &mut Random) -> Result<()> {
    let len = raw.write_getattr()?;
    let (request, reply) = (raw.request, raw.reply);
    let size = raw.device.rings[raw.ring].size;
    let hole = HIGH_GPA + HIGH_SIZE - 8;
    let table = request + 8192;
    // An ordinary pair, of which each arm spoils something.
    raw.set(0, request, len, NEXT, 1)?;
    raw.set(1, reply, 120, WRITE, 0)?;
    let room = match chain {
        Chain::Loop => {
            raw.set(1, request, len, NEXT, 0)?;
            0
        }
        Chain::SelfLoop => {
            raw.set(0, request, len, NEXT, 0)?;
            0
        }
        Chain::LoopOfWritable => {
            raw.set(1, reply, 120, NEXT | WRITE, 1)?;
            120
        }
        Chain::ZeroLengthReadable => {
            raw.set(0, request, 0, NEXT, 2)?;
            raw.set(2, request, len, NEXT, 1)?;
            120
        }
        Chain::ZeroLengthWritable => {
            raw.set(0, request, len, NEXT, 2)?;
            raw.set(2, reply, 0, NEXT | WRITE, 1)?;
            120
        }
        Chain::HugeReadable => {
            raw.set(0, request, *random.pick(&[u32::MAX, 1 << 31, 0x4000_0000]), NEXT, 1)?;
            120
        }
        Chain::HugeWritable => {
            raw.set(1, reply, *random.pick(&[u32::MAX, 1 << 31]), WRITE, 0)?;
            120
        }
        Chain::ReadableNowhere => {
            raw.set(0, NOWHERE + random.below(1 << 20), len, NEXT, 1)?;
            120
        }
        Chain::WritableNowhere => {
            raw.set(1, NOWHERE + random.below(1 << 20), 120, WRITE, 0)?;
            120
        }
        Chain::ReadableIntoHole => {
            raw.set(0, hole, len, NEXT, 1)?;
            120
        }
        Chain::WritableIntoHole => {
            raw.set(1, hole, 120, WRITE, 0)?;
            120
        }
        Chain::EndOfAddressSpace => {
            raw.set(0, u64::MAX - random.below(64), len, NEXT, 1)?;
            120
        }
        Chain::ReadableAfterWritable => {
            raw.set(0, reply, 120, WRITE | NEXT, 1)?;
            raw.set(1, request, len, 0, 0)?;
            120
        }
        Chain::NextOutOfTable => {
            raw.set(0, request, len, NEXT, *random.pick(&[size, size + 1, u16::MAX]))?;
            0
        }
        Chain::NoWritable => {
            raw.set(0, request, len, 0, 0)?;
            0
        }
        Chain::NoReadable => {
            raw.set(0, reply, 120, WRITE, 0)?;
            120
        }
        Chain::TinyWritable => {
            let tiny = *random.pick(&[1, 8, 15, 16, 17, 119]);
            raw.set(1, reply, tiny, WRITE, 0)?;
            return tiny_reply(raw, tiny);
        }
        Chain::ShortHeader => {
            let short = u32::try_from(random.below(40)).unwrap_or_default().max(1);
            raw.set(0, request, short, NEXT, 1)?;
            120
        }
        Chain::IndirectOddLength => {
            write_table(raw, table)?;
            raw.set(0, table, *random.pick(&[1, 15, 17, 31, 33]), INDIRECT, 0)?;
            120
        }
        Chain::IndirectEmpty => {
            raw.set(0, table, 0, INDIRECT, 0)?;
            0
        }
        Chain::IndirectHuge => {
            write_table(raw, table)?;
            raw.set(0, table, *random.pick(&[0xffff_fff0, 0x4000_0000, 16 * 65536]), INDIRECT, 0)?;
            120
        }
        Chain::IndirectNowhere => {
            raw.set(0, *random.pick(&[NOWHERE, hole, u64::MAX - 15, 0xffff_fff8]), 32, INDIRECT, 0)?;
            0
        }
        Chain::IndirectNested => {
            write_table(raw, table)?;
            entry(raw, table, 0, (table, 32), INDIRECT | NEXT, 1)?;
            raw.set(0, table, 32, INDIRECT, 0)?;
            120
        }
        Chain::IndirectWithNext => {
            write_table(raw, table)?;
            raw.set(0, table, 32, INDIRECT | NEXT, 1)?;
            120
        }
        Chain::IndirectNextOutside => {
            write_table(raw, table)?;
            entry(raw, table, 0, (request, len), NEXT, *random.pick(&[2, 3, 1000, u16::MAX]))?;
            raw.set(0, table, 32, INDIRECT, 0)?;
            120
        }
        Chain::IndirectLoop => {
            write_table(raw, table)?;
            entry(raw, table, 1, (reply, 120), NEXT | WRITE, 0)?;
            raw.set(0, table, 32, INDIRECT, 0)?;
            120
        }
        Chain::ByteWise => return byte_wise(raw, len),
        Chain::AcrossRegions => return across_regions(raw, len),
    };
    let used = raw.given_back(0, room)?;
    // Whether such a chain is served or refused is the daemon's choice; an answer must still be one.
    if used > 0 && chain != Chain::ShortHeader {
        raw.errno(used)?;
    }
    Ok(())
}

/// Entry `index` of an indirect table.
fn entry(
    raw: &Raw<'_>,
    table: u64,
    index: u16,
    (addr, len): (u64, u32),
    flags: u16,
    next: u16,
) -> Result<()> {
    let d = crate::frontend::ring::Descriptor { addr, len, flags, next };
    raw.device.mem.write(table + 16 * u64::from(index), &d.bytes())
}

/// An honest table of two.
fn write_table(raw: &Raw<'_>, table: u64) -> Result<()> {
    entry(raw, table, 0, (raw.request, 56), NEXT, 1)?;
    entry(raw, table, 1, (raw.reply, 120), WRITE, 0)
}

/// Too little room: nothing below 16 bytes, an errno from there on.
fn tiny_reply(raw: &mut Raw<'_>, room: u32) -> Result<()> {
    let used = raw.given_back(0, room)?;
    let errno = raw.errno(used)?;
    let right = if room < 16 { used == 0 } else { errno.is_some_and(|e| e != 0) };
    if right {
        Ok(())
    } else {
        Err(FrontendError::BadReply(format!("{used} bytes, errno {errno:?} in {room} bytes")))
    }
}

fn served(raw: &mut Raw<'_>, head: u16) -> Result<()> {
    raw.offer(head)?;
    let used = raw.used(super::raw::LOST)?;
    if used != Some((u32::from(head), 120)) {
        return Err(FrontendError::BadReply(format!("an honest GETATTR came back as {used:?}")));
    }
    Ok(())
}

fn byte_wise(raw: &mut Raw<'_>, len: u32) -> Result<()> {
    let total = u16::try_from(len + 120).unwrap_or_default();
    if total > raw.device.rings[raw.ring].size {
        return Ok(());
    }
    for i in 0..total {
        let more = if i + 1 < total { NEXT } else { 0 };
        if u32::from(i) < len {
            raw.set(i, raw.request + u64::from(i), 1, more, i + 1)?;
        } else {
            let at = u64::from(i) - u64::from(len);
            raw.set(i, raw.reply + at, 1, more | WRITE, if more == 0 { 0 } else { i + 1 })?;
        }
    }
    served(raw, 0)?;
    match raw.errno(120)? {
        Some(0) => Ok(()),
        other => Err(FrontendError::BadReply(format!("byte by byte: {other:?}"))),
    }
}

/// The last 30 bytes of the first region and the first of the second hold the request; the reply lies 4096 bytes
/// before, across no border, since the header of a reply is checked in the usual place elsewhere.
fn across_regions(raw: &mut Raw<'_>, len: u32) -> Result<()> {
    let mut message = vec![0; len as usize];
    raw.device.mem.read(raw.request, &mut message)?;
    let from = LOW_SIZE - 30;
    raw.device.mem.write(from, &message[..30])?;
    raw.device.mem.write(LOW_SIZE, &message[30..])?;
    raw.set(0, from, len, NEXT, 1)?;
    served(raw, 0)?;
    let border = LOW_SIZE - 50;
    raw.set(0, raw.request, len, NEXT, 1)?;
    raw.set(1, border, 120, WRITE, 0)?;
    served(raw, 0)?;
    let mut header = [0; 4];
    raw.device.mem.read(border, &mut header)?;
    if u32::from_le_bytes(header) != 120 {
        return Err(FrontendError::BadReply("a reply across two regions is damaged".to_owned()));
    }
    Ok(())
}
