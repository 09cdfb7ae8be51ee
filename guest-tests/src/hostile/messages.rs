//! FUSE requests with anything in them. Each must be answered, with an errno or a reply that is consistent.

use super::Target;
use crate::frontend::client::ROOT;
use crate::frontend::fuse::{Body, INIT_FLAGS, in_header, init_in, op};
use crate::frontend::{Client, FrontendError};
use crate::support::random::Random;

/// `4 * count` messages on one guest, which mounts again from time to time because DESTROY is among them.
///
/// # Errors
/// The message that was not answered, or not properly.
pub fn run(target: &Target<'_>, random: &mut Random, count: usize) -> Result<usize, (String, FrontendError)> {
    let mut client = Client::connect(target.socket, &target.options)
        .map_err(|e| ("connecting for messages".to_owned(), e))?;
    let total = 4 * count;
    for turn in 0..total {
        let message = message(random, &target.nodes);
        let what = || format!("message {turn}: {}", hex::encode(&message[..message.len().min(160)]));
        let room = match random.below(8) {
            0 => 0,
            1 => u32::try_from(random.below(64)).unwrap_or_default(),
            2 => 1 << 20,
            _ => 4096,
        };
        send(&mut client, &message, room, random).map_err(|e| (what(), e))?;
        if turn % 64 == 63 {
            client
                .session
                .call(1, op::INIT, 0, &init_in(7, 38, INIT_FLAGS, 0), 64)
                .map_err(|e| (what(), e))?;
            client.getattr(ROOT).map_err(|e| (what(), e))?;
        }
    }
    Ok(total)
}

fn send(client: &mut Client, message: &[u8], room: u32, random: &mut Random) -> Result<(), FrontendError> {
    let opcode = u32::from_le_bytes([message[4], message[5], message[6], message[7]]);
    // The session's ids are its own; a message carries the next one, so that the reply can be told.
    let mut message = message.to_vec();
    message[8..16].copy_from_slice(&client.session.next_unique().to_le_bytes());
    let ring = if random.below(10) == 0 { 0 } else { client.ring() };
    let silent = matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT);
    let room = if silent { None } else { Some(room) };
    client.session.submit_bytes(ring, opcode, &message, room)?;
    client.session.flush()?;
    let done = client.session.next_done()?;
    client.session.release(done);
    Ok(())
}

/// Node ids that are, that nearly are, and all kinds of bits.
fn node(random: &mut Random, nodes: &[u64]) -> u64 {
    match random.below(6) {
        0 => random.next(),
        1 => 1 << random.below(64),
        2 => u64::MAX >> random.below(64),
        3 => random.pick(nodes).wrapping_add(random.below(64)).wrapping_sub(32),
        4 => random.pick(nodes) ^ (1 << random.below(64)),
        _ => *random.pick(nodes),
    }
}

/// Numbers near the limits that matter.
fn number(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => random.next(),
        1 => u64::MAX - random.below(4096),
        2 => 1 << random.below(64),
        3 => (1_u64 << random.below(64)).wrapping_sub(1),
        _ => random.below(1 << 17),
    }
}

fn name(random: &mut Random) -> Vec<u8> {
    let len = *random.pick(&[0_usize, 1, 2, 17, 254, 255, 256, 257, 1000, 4000]);
    let byte = *random.pick(b"a/.\x01\xff");
    let mut name = vec![byte; len];
    if random.below(3) > 0 {
        name.push(0);
    }
    name
}

/// One message of 40 bytes or more; its unique id is filled in later.
fn message(random: &mut Random, nodes: &[u64]) -> Vec<u8> {
    let opcode = match random.below(12) {
        0 => random.next_u32(),
        1 => 4096 + random.next_u32() % 4,
        2 => 200 + random.next_u32() % 100,
        3 => *random.pick(&[op::READ, op::READDIR, op::READDIRPLUS, op::READLINK, op::LOOKUP, op::GETXATTR]),
        4 => *random.pick(&[op::LSEEK, op::ACCESS, op::BATCH_FORGET, op::IOCTL, op::SETUPMAPPING, op::STATX]),
        _ => random.next_u32() % 61,
    };
    let body = match random.below(6) {
        0 => Vec::new(),
        1 => name(random),
        2 => Body::new().u32(random.next_u32()).u32(random.next_u32()).raw(&name(random)).done(),
        3 => {
            let size = match random.below(3) {
                0 => random.next_u32(),
                1 => 4096,
                _ => 1 << random.below(32),
            };
            Body::new().u64(number(random)).u64(number(random)).u32(size).u32(0).u64(0).u64(0).done()
        }
        _ => {
            let len = usize::try_from(random.below(200)).unwrap_or_default();
            (0..len).map(|_| random.next().to_le_bytes()[0]).collect()
        }
    };
    let mut body = body;
    if random.below(5) == 0 {
        let keep = usize::try_from(random.below(body.len() as u64 + 1)).unwrap_or_default();
        body.truncate(keep);
    }
    let honest = u32::try_from(40 + body.len()).unwrap_or_default();
    let len = if random.below(8) == 0 {
        *random.pick(&[0, 1, 39, 40, 41, u32::MAX, honest.wrapping_add(1), honest.wrapping_sub(1)])
    } else {
        honest
    };
    let mut message = in_header(len, opcode, 0, node(random, nodes)).to_vec();
    message.extend_from_slice(&body);
    message
}
