//! Available rings full of nonsense. The ring may stop; the other rings of the same guest must go on.

use std::time::Duration;

use super::raw::Raw;
use super::{Target, mounted};
use crate::frontend::FrontendError;
use crate::frontend::error::Result;
use crate::frontend::ring::{NEXT, WRITE};
use crate::support::random::Random;

/// What is wrong with the available ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Abuse {
    IndexJump,
    IndexBack,
    HeadOutOfRange,
    SameHeadTwice,
    KicksForNothing,
    NoiseInFlags,
    NoiseEverywhere,
    FullOfRequests,
}

const ALL: [Abuse; 8] = [
    Abuse::IndexJump,
    Abuse::IndexBack,
    Abuse::HeadOutOfRange,
    Abuse::SameHeadTwice,
    Abuse::KicksForNothing,
    Abuse::NoiseInFlags,
    Abuse::NoiseEverywhere,
    Abuse::FullOfRequests,
];

/// Every kind once, then `count` at random, each on a guest of its own.
///
/// # Errors
/// The abuse of one ring that another one suffered from.
pub fn run(
    target: &Target<'_>,
    random: &mut Random,
    count: usize,
) -> std::result::Result<usize, (String, FrontendError)> {
    // A connection costs more than a chain, so these are fewer.
    let total = ALL.len() + count / 8;
    for turn in 0..total {
        let abuse = ALL.get(turn).copied().unwrap_or_else(|| *random.pick(&ALL));
        attack(target, abuse, random).map_err(|e| (format!("ring {turn}: {abuse:?}"), e))?;
    }
    Ok(total)
}

fn attack(target: &Target<'_>, abuse: Abuse, random: &mut Random) -> Result<()> {
    let mut device = mounted(target)?;
    let bystander = device.rings.len() - 1;
    let mut raw = Raw::new(&mut device, 1)?;
    let len = raw.write_getattr()?;
    raw.set(0, raw.request, len, NEXT, 1)?;
    raw.set(1, raw.reply, 120, WRITE, 0)?;
    let size = raw.device.rings[1].size;
    let mut stays = false;
    match abuse {
        Abuse::IndexJump => {
            let jump = size.saturating_add(*random.pick(&[1, 2, 100, 0x7000]));
            raw.device.rings[1].raw_skip(jump);
            raw.offer(0)?;
        }
        Abuse::IndexBack => {
            raw.device.rings[1].raw_skip(0_u16.wrapping_sub(1 + random.next_u16() % 300));
            raw.offer(0)?;
        }
        Abuse::HeadOutOfRange => raw.offer(*random.pick(&[size, size + 1, u16::MAX]))?,
        Abuse::SameHeadTwice => {
            raw.offer(0)?;
            raw.offer(0)?;
        }
        Abuse::KicksForNothing => {
            for _ in 0..200 {
                raw.device.rings[1].kick_now()?;
            }
            stays = true;
        }
        Abuse::NoiseInFlags => {
            let (avail, entries) = (raw.device.rings[1].avail, u64::from(size));
            raw.device.mem.store_u16(avail, random.next_u16())?;
            raw.device.mem.store_u16(avail + 4 + 2 * entries, random.next_u16())?;
            raw.offer(0)?;
            raw.used(super::raw::LOST)?.ok_or_else(|| {
                FrontendError::Timeout("a request beside odd flags was not answered".to_owned())
            })?;
            stays = true;
        }
        Abuse::NoiseEverywhere => {
            let (desc, avail) = (raw.device.rings[1].desc, raw.device.rings[1].avail);
            let mut noise =
                |len: usize| -> Vec<u8> { (0..len).map(|_| random.next().to_le_bytes()[0]).collect() };
            let (table, heads) = (noise(16 * usize::from(size)), noise(2 * usize::from(size)));
            raw.device.mem.write(desc, &table)?;
            raw.device.mem.write(avail + 4, &heads)?;
            raw.device.rings[1].raw_skip(size);
            raw.device.rings[1].publish(&raw.device.mem)?;
            raw.device.rings[1].kick_now()?;
        }
        Abuse::FullOfRequests => {
            // Every slot names the same pair; all must be answered.
            for _ in 0..size {
                raw.device.rings[1].raw_push(&raw.device.mem, 0)?;
            }
            raw.device.rings[1].publish(&raw.device.mem)?;
            raw.device.rings[1].kick_now()?;
        }
    }
    // Time enough to fall over, not to be served in full.
    std::thread::sleep(Duration::from_millis(5));
    if stays {
        raw.still_serves()?;
    }
    raw.ring = bystander;
    if bystander > 1 {
        raw.still_serves()?;
    }
    Ok(())
}
