//! A front-end that breaks the vhost-user conversation, or breaks it off.
//!
//! The daemon may refuse, ignore or hang up on what is wrong; it must be there for the next front-end.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::Duration;

use super::{Target, mounted};
use crate::frontend::control::{Control, code, words};
use crate::frontend::device::{Device, Options, start_ring};
use crate::frontend::error::Result;
use crate::frontend::fuse::{getattr_in, op, read_in};
use crate::frontend::memory::Region;
use crate::frontend::{Client, FrontendError, Session};
use crate::support::random::Random;

/// What is wrong with the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Rudeness {
    LeaveWithRequestsInFlight,
    LeaveInMidMessage,
    LeaveAtOnce,
    OddRingSize,
    RingsNowhere,
    RingsUnaligned,
    NoMemory,
    UnknownRequest,
    WrongVersion,
    HugeMessage,
    Noise,
    DescriptorsMissing,
    DescriptorsTooMany,
    WrongRingIndex,
    MemoryOverlap,
    TwoFrontends,
    /// Honest: memory announced again and again while requests run.
    MemoryTableWhileRunning,
    /// Honest: rings switched off and on while requests run.
    EnableFlapping,
    /// Honest: rings stopped with requests in flight and started again where they stopped.
    StopAndGoOn,
    /// Honest: memory slots added and removed.
    MemorySlots,
    /// Honest: device reset, then all over again on the same connection.
    ResetDevice,
}

const ALL: [Rudeness; 21] = [
    Rudeness::LeaveWithRequestsInFlight,
    Rudeness::LeaveInMidMessage,
    Rudeness::LeaveAtOnce,
    Rudeness::OddRingSize,
    Rudeness::RingsNowhere,
    Rudeness::RingsUnaligned,
    Rudeness::NoMemory,
    Rudeness::UnknownRequest,
    Rudeness::WrongVersion,
    Rudeness::HugeMessage,
    Rudeness::Noise,
    Rudeness::DescriptorsMissing,
    Rudeness::DescriptorsTooMany,
    Rudeness::WrongRingIndex,
    Rudeness::MemoryOverlap,
    Rudeness::TwoFrontends,
    Rudeness::MemoryTableWhileRunning,
    Rudeness::EnableFlapping,
    Rudeness::StopAndGoOn,
    Rudeness::MemorySlots,
    Rudeness::ResetDevice,
];

/// Every kind once, then `count / 8` at random; after each an honest guest must be served at once.
///
/// # Errors
/// The rudeness after which it was not.
pub fn run(
    target: &Target<'_>,
    random: &mut Random,
    count: usize,
) -> std::result::Result<usize, (String, FrontendError)> {
    let total = ALL.len() + count / 8;
    for turn in 0..total {
        let kind = ALL.get(turn).copied().unwrap_or_else(|| *random.pick(&ALL));
        let name = format!("conversation {turn}: {kind:?}");
        attack(target, kind, random).map_err(|e| (name.clone(), e))?;
        let honest = || -> Result<()> {
            let mut client = Client::connect(target.socket, &target.options)?;
            client.getattr(crate::frontend::client::ROOT)?;
            client.unmount()
        };
        honest().map_err(|e| (format!("the guest after {name}"), e))?;
    }
    Ok(total)
}

/// Errors of the front-end that only say that the daemon refused or hung up: fine for what is wrong.
fn refused(result: Result<()>) -> Result<()> {
    match result {
        Err(FrontendError::Protocol(_) | FrontendError::Disconnected(_) | FrontendError::Io { .. }) => Ok(()),
        other => other,
    }
}

fn attack(target: &Target<'_>, kind: Rudeness, random: &mut Random) -> Result<()> {
    match kind {
        Rudeness::LeaveWithRequestsInFlight => leave_in_flight(target, random),
        Rudeness::LeaveInMidMessage => {
            let mut control = Control::connect(target.socket, target.options.timeout)?;
            control.send(code::SET_OWNER, 0, &[], &[])?;
            control.send_bytes(&words(&[code::SET_FEATURES, 1, 8])[..7], &[])
        }
        Rudeness::LeaveAtOnce => Control::connect(target.socket, target.options.timeout).map(drop),
        Rudeness::TwoFrontends => {
            let mut first = Client::mount(Session::new(mounted(target)?))?;
            // The second may wait or be refused; neither may harm the first.
            let second = Control::connect(target.socket, target.options.timeout)?;
            first.getattr(crate::frontend::client::ROOT)?;
            drop(second);
            first.getattr(crate::frontend::client::ROOT).map(drop)
        }
        Rudeness::MemoryTableWhileRunning | Rudeness::EnableFlapping | Rudeness::StopAndGoOn => {
            while_running(target, kind, random)
        }
        Rudeness::MemorySlots => memory_slots(target),
        Rudeness::ResetDevice => reset_device(target),
        _ => {
            let mut device = Device::negotiate(target.socket, &target.options)?;
            refused(broken_setup(&mut device, kind, random))
        }
    }
}

/// Puts as many long READs as fit on all rings and goes away.
fn leave_in_flight(target: &Target<'_>, random: &mut Random) -> Result<()> {
    let options = Options { memory_mib: 256, ..target.options.clone() };
    let mut session = Session::new(Device::connect(target.socket, &options)?);
    crate::frontend::client::init(&mut session, 7, 38, crate::frontend::fuse::INIT_FLAGS, 0)?;
    let mut sent = 0;
    for turn in 0..100 {
        let node = *random.pick(&target.nodes);
        let ring = 1 + turn % options.queues;
        match session.submit(ring, op::READ, node, &read_in(0, 0, 1 << 20), Some(1 << 20)) {
            Ok(_) => sent += 1,
            Err(FrontendError::RingFull(_) | FrontendError::NoBuffer(_)) => break,
            Err(e) => return Err(e),
        }
    }
    session.flush()?;
    if random.below(2) == 0 {
        // Some are being answered when the socket goes.
        for _ in 0..sent / 4 {
            let done = session.next_done()?;
            session.release(done);
        }
    }
    Ok(())
}

fn broken_setup(device: &mut Device, kind: Rudeness, random: &mut Random) -> Result<()> {
    let control = &mut device.control;
    match kind {
        Rudeness::OddRingSize => {
            control.set_mem_table(&device.mem)?;
            let size = *random.pick(&[0, 3, 1000, 32769, 65535, 65536, u32::MAX]);
            control.set_vring(code::SET_VRING_NUM, 1, size)?;
            control.set_vring_addr(1, 0x1000, 0x2000, 0x3000)?;
            let kick = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC)
                .map_err(FrontendError::sys("eventfd"))?;
            control.set_vring_fd(code::SET_VRING_KICK, 1, kick.as_fd())?;
            control.set_vring(code::SET_VRING_ENABLE, 1, 1)
        }
        Rudeness::RingsNowhere | Rudeness::RingsUnaligned | Rudeness::NoMemory => {
            if kind != Rudeness::NoMemory {
                control.set_mem_table(&device.mem)?;
            }
            control.set_vring(code::SET_VRING_NUM, 1, 256)?;
            control.set_vring(code::SET_VRING_BASE, 1, random.next_u32() & 0xffff)?;
            let nowhere = super::raw::NOWHERE;
            let (desc, avail, used) = match kind {
                Rudeness::RingsUnaligned => (0x1003, 0x3001, 0x5002),
                _ => (
                    *random.pick(&[0x1000, nowhere]),
                    *random.pick(&[0x3000, u64::MAX - 4]),
                    *random.pick(&[nowhere, crate::frontend::device::HIGH_GPA + (1 << 20) - 8]),
                ),
            };
            control.set_vring_addr(1, desc, avail, used)?;
            let kick = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC)
                .map_err(FrontendError::sys("eventfd"))?;
            control.set_vring_fd(code::SET_VRING_CALL, 1, kick.as_fd())?;
            control.set_vring_fd(code::SET_VRING_KICK, 1, kick.as_fd())?;
            control.set_vring(code::SET_VRING_ENABLE, 1, 1)?;
            device.mem.store_u16(0x3002, 1)?;
            rustix::io::write(&kick, &1_u64.to_ne_bytes()).map_err(FrontendError::sys("kick"))?;
            std::thread::sleep(Duration::from_millis(5));
            control.get_vring_base(1).map(drop)
        }
        Rudeness::UnknownRequest => {
            let request = *random.pick(&[0, 21, 26, 27, 28, 44, 45, 1000, u32::MAX]);
            // Some of these have replies of their own once their feature is agreed, so none is waited for.
            control.send(request, 0, &random.next().to_le_bytes(), &[])?;
            std::thread::sleep(Duration::from_millis(2));
            Ok(())
        }
        Rudeness::WrongVersion => {
            control
                .send_bytes(&words(&[code::GET_FEATURES, *random.pick(&[0, 2, 3, 0xffff_ffff]), 0]), &[])?;
            control.reply(code::GET_FEATURES).map(drop)
        }
        Rudeness::HugeMessage => {
            let size = *random.pick(&[4097, 0x10_0000, u32::MAX]);
            control.send_bytes(&words(&[code::SET_FEATURES, 1, size, 1, 2, 3]), &[])
        }
        Rudeness::Noise => {
            let noise: Vec<u8> = (0..random.below(600)).map(|_| random.next().to_le_bytes()[0]).collect();
            control.send_bytes(&noise, &[])
        }
        Rudeness::DescriptorsMissing => {
            let request = *random.pick(&[code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_MEM_TABLE]);
            let mut body = words(&[1, 0]);
            if request == code::SET_MEM_TABLE {
                body.extend_from_slice(&[0; 32]);
            }
            control.set(request, &body, &[])
        }
        Rudeness::DescriptorsTooMany => {
            let fds = vec![device.mem.regions()[0].file.as_fd(); 16];
            control.set(code::SET_VRING_KICK, &1_u64.to_le_bytes(), &fds)
        }
        Rudeness::WrongRingIndex => {
            let index = *random.pick(&[64, 255, 256, 65536, u32::MAX]);
            control.set_vring(code::SET_VRING_NUM, index, 256)?;
            control.set_vring(code::SET_VRING_ENABLE, index, 1)?;
            control.get_vring_base(index).map(drop)
        }
        _ => {
            let region = &device.mem.regions()[0];
            let twice: Vec<&Region> = vec![region; 2];
            control.set_mem_regions(&twice)
        }
    }
}

/// Keeps requests running on all rings, disturbs the rings in legal ways, and demands every answer once.
fn while_running(target: &Target<'_>, kind: Rudeness, random: &mut Random) -> Result<()> {
    let mut client = Client::mount(Session::new(mounted(target)?))?;
    let queues = client.session.device.options.queues;
    let mut open = HashSet::new();
    for round in 0..40_usize {
        for turn in 0..24 {
            let node = *random.pick(&target.nodes);
            let ring = 1 + turn % queues;
            let unique = client.session.submit(ring, op::GETATTR, node, &getattr_in(), Some(104))?;
            open.insert(unique);
        }
        client.session.flush()?;
        let device = &mut client.session.device;
        match kind {
            Rudeness::MemoryTableWhileRunning => device.control.set_mem_table(&device.mem)?,
            Rudeness::EnableFlapping => {
                let index = u32::try_from(1 + round % queues).unwrap_or(1);
                device.control.set_vring(code::SET_VRING_ENABLE, index, 0)?;
                device.control.set_vring(code::SET_VRING_ENABLE, index, 1)?;
            }
            _ => {
                let index = 1 + round % queues;
                let base = device.control.get_vring_base(u32::try_from(index).unwrap_or(1))?;
                let base =
                    u16::try_from(base).map_err(|_| FrontendError::Protocol(format!("ring base {base}")))?;
                start_ring(&mut device.control, &device.rings[index], base)?;
                // What was added while the ring stood still was kicked into nothing.
                device.rings[index].kick_now()?;
            }
        }
        while !open.is_empty() {
            let done = client.session.next_done()?;
            if !open.remove(&done.unique) {
                return Err(FrontendError::BadReply(format!("request {} was answered twice", done.unique)));
            }
            client.session.release(done);
        }
    }
    client.unmount()
}

/// Adds a region that holds a request and its reply's place, uses it, and takes it away again.
fn memory_slots(target: &Target<'_>) -> Result<()> {
    let mut client = Client::mount(Session::new(mounted(target)?))?;
    let slots = crate::frontend::control::protocol::CONFIGURE_MEM_SLOTS;
    if client.session.device.offered_protocol & slots == 0 {
        return client.unmount();
    }
    let region = Region::new(2 << 32, 1 << 20)?;
    let mut body = 0_u64.to_le_bytes().to_vec();
    for number in [region.gpa, region.size, region.gpa + crate::frontend::memory::USER_OFFSET, 0] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    for _ in 0..8 {
        let control = &mut client.session.device.control;
        control.set(code::ADD_MEM_REG, &body, &[region.file.as_fd()])?;
        client.getattr(crate::frontend::client::ROOT)?;
        client.session.device.control.set(code::REM_MEM_REG, &body, &[])?;
        client.getattr(crate::frontend::client::ROOT)?;
    }
    client.unmount()
}

/// RESET_DEVICE forgets rings and features; a guest that reboots then sets up everything again.
fn reset_device(target: &Target<'_>) -> Result<()> {
    let client = Client::mount(Session::new(mounted(target)?))?;
    let mut device = client.session.device;
    if device.offered_protocol & crate::frontend::control::protocol::RESET_DEVICE == 0 {
        return Ok(());
    }
    device.control.set(code::RESET_DEVICE, &[], &[])?;
    let features = crate::frontend::device::features(&device.options);
    device.control.set_u64(code::SET_FEATURES, features)?;
    device.rings.clear();
    device.start()?;
    let mut client = Client::mount(Session::new(device))?;
    client.getattr(crate::frontend::client::ROOT)?;
    client.unmount()
}
