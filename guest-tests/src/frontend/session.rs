//! FUSE requests in flight over the rings of one device.
//!
//! Owns unique ids, request and reply buffers, and the checks that every reply must pass whatever it says:
//! right length, right unique id, a legal errno. Knows no opcode but those that have no reply.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::buffers::Buffer;
use super::device::{Device, Shape};
use super::error::{FrontendError, Result};
use super::fuse::{IN_HEADER, OUT_HEADER, in_header, op};
use super::ring::Segment;

const PAGE: u32 = 4096;

#[derive(Debug)]
struct Pending {
    unique: u64,
    opcode: u32,
    request: Buffer,
    reply: Option<Reply>,
    table: Option<Buffer>,
}

#[derive(Debug, Clone, Copy)]
struct Reply {
    buffer: Buffer,
    shape: Shape,
    /// Body bytes there is room for.
    room: u32,
}

impl Reply {
    /// Where `offset` of the body lies, and how many bytes follow it in one piece.
    fn locate(&self, offset: u32) -> (u64, u32) {
        match self.shape {
            Shape::Whole => (self.buffer.gpa + 16 + u64::from(offset), self.room - offset),
            Shape::Pages => (self.buffer.gpa + u64::from(PAGE + offset), self.room - offset),
            Shape::Scattered => {
                let page = (offset / PAGE) ^ 1;
                let within = offset % PAGE;
                (self.buffer.gpa + u64::from(PAGE + page * PAGE + within), PAGE - within)
            }
        }
    }
}

/// A request that is done. Its reply stays in guest memory until [`Session::release`].
#[derive(Debug)]
#[must_use]
pub struct Completion {
    /// The request's id, as [`Session::submit`] answered.
    pub unique: u64,
    /// The request's opcode.
    pub opcode: u32,
    /// Positive errno, or 0.
    pub errno: i32,
    /// Bytes in the reply's body.
    pub len: u32,
    reply: Option<Reply>,
}

/// A device and the requests in flight on it.
#[derive(Debug)]
pub struct Session {
    /// The device below.
    pub device: Device,
    pending: Vec<Vec<Option<Pending>>>,
    /// Of each ring.
    in_flight: Vec<usize>,
    next_unique: u64,
    stash: VecDeque<Completion>,
    segments: Vec<Segment>,
    /// Kept between requests, which then cost no allocation.
    scratch: Vec<u8>,
}

impl Session {
    /// Takes over a device whose rings are running.
    #[must_use]
    pub fn new(device: Device) -> Self {
        let pending = device.rings.iter().map(|r| (0..r.size).map(|_| None).collect()).collect();
        let in_flight = vec![0; device.rings.len()];
        Self {
            device,
            pending,
            in_flight,
            next_unique: 2,
            stash: VecDeque::new(),
            segments: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The unique id that the next request will have.
    #[must_use]
    pub fn next_unique(&self) -> u64 {
        self.next_unique
    }

    /// Requests not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().sum()
    }

    /// Queues a request with `body` behind its header and room for `room` bytes behind the reply's header;
    /// without `room` it has no writable part. Visible to the device after [`Session::flush`].
    ///
    /// # Errors
    /// When the ring or the memory for buffers is full.
    pub fn submit(
        &mut self,
        ring: usize,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: Option<u32>,
    ) -> Result<u64> {
        let unique = self.next_unique;
        let len = u32::try_from(IN_HEADER + body.len()).map_err(|e| FrontendError::Memory(e.to_string()))?;
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        message.extend_from_slice(&in_header(len, opcode, unique, node));
        message.extend_from_slice(body);
        let submitted = self.submit_bytes(ring, opcode, &message, room);
        self.scratch = message;
        submitted
    }

    /// Queues `message` as it is, header included, under the unique id that [`Session::submit`] would use
    /// next. The reply is checked against that id, so a message with another one must not be sent here.
    ///
    /// # Errors
    /// See [`Session::submit`].
    pub fn submit_bytes(
        &mut self,
        ring: usize,
        opcode: u32,
        message: &[u8],
        room: Option<u32>,
    ) -> Result<u64> {
        let options = &self.device.options;
        let (shape, indirect) = (options.shape, options.indirect);
        let request = self.device.buffers.alloc(message.len())?;
        self.device.mem.write(request.gpa, message)?;
        let len = u32::try_from(message.len()).map_err(|e| FrontendError::Memory(e.to_string()))?;
        self.segments.clear();
        let header = if shape == Shape::Whole { len } else { len.min(40) };
        self.segments.push(Segment { gpa: request.gpa, len: header, writable: false });
        if header < len {
            let gpa = request.gpa + u64::from(header);
            self.segments.push(Segment { gpa, len: len - header, writable: false });
        }
        let reply = match room {
            None => None,
            Some(room) => {
                let bytes = match shape {
                    Shape::Whole => 16 + room as usize,
                    // One page more than needed, for the header, and an even number for the swapping.
                    _ => PAGE as usize + (room.next_multiple_of(2 * PAGE)) as usize,
                };
                let reply = Reply { buffer: self.device.buffers.alloc(bytes)?, shape, room };
                self.reply_segments(&reply, indirect, self.device.options.queue_size);
                Some(reply)
            }
        };
        let table = if indirect && self.segments.len() > 1 {
            Some(self.device.buffers.alloc(16 * self.segments.len())?)
        } else {
            None
        };
        let added = self.device.rings[ring].add(&self.device.mem, &self.segments, table.map(|t| t.gpa));
        let head = match added {
            Ok(head) => head,
            Err(e) => {
                self.device.buffers.free(request);
                for buffer in reply.map(|r| r.buffer).into_iter().chain(table) {
                    self.device.buffers.free(buffer);
                }
                return Err(e);
            }
        };
        let unique = self.next_unique;
        self.next_unique += 2;
        self.pending[ring][usize::from(head)] = Some(Pending { unique, opcode, request, reply, table });
        self.in_flight[ring] += 1;
        Ok(unique)
    }

    fn reply_segments(&mut self, reply: &Reply, indirect: bool, queue_size: u16) {
        if reply.shape == Shape::Whole {
            self.segments.push(Segment { gpa: reply.buffer.gpa, len: 16 + reply.room, writable: true });
            return;
        }
        self.segments.push(Segment { gpa: reply.buffer.gpa, len: 16, writable: true });
        // Without tables a long reply must not take the whole ring.
        let mut piece = PAGE;
        if !indirect && reply.shape == Shape::Pages {
            let pieces = u32::from(queue_size / 4).max(1);
            piece = piece.max(reply.room.div_ceil(pieces).next_multiple_of(PAGE));
        }
        let mut offset = 0;
        while offset < reply.room {
            let (gpa, run) = reply.locate(offset);
            let len = run.min(piece).min(reply.room - offset);
            self.segments.push(Segment { gpa, len, writable: true });
            offset += len;
        }
    }

    /// Makes queued requests of all rings visible to the device.
    ///
    /// # Errors
    /// When the kick fails.
    pub fn flush(&mut self) -> Result<()> {
        for ring in &mut self.device.rings {
            ring.publish(&self.device.mem)?;
        }
        Ok(())
    }

    /// The next request that is done, if one is done now.
    ///
    /// # Errors
    /// [`FrontendError::BadReply`] when a reply breaks the rules.
    pub fn try_next_done(&mut self) -> Result<Option<Completion>> {
        if let Some(c) = self.stash.pop_front() {
            return Ok(Some(c));
        }
        for ring in 0..self.device.rings.len() {
            // Who polls does not look where nothing can come: of many guests that would be most of the work.
            if self.device.options.busy && self.in_flight[ring] == 0 {
                continue;
            }
            if let Some((head, len)) = self.device.rings[ring].pop_used(&self.device.mem)? {
                return self.complete(ring, head, len).map(Some);
            }
        }
        Ok(None)
    }

    fn complete(&mut self, ring: usize, head: u16, used: u32) -> Result<Completion> {
        let Some(p) = self.pending[ring][usize::from(head)].take() else {
            return Err(FrontendError::BadReply(format!("ring {ring} head {head}: no request")));
        };
        self.in_flight[ring] -= 1;
        self.device.buffers.free(p.request);
        if let Some(table) = p.table {
            self.device.buffers.free(table);
        }
        let mut done = Completion { unique: p.unique, opcode: p.opcode, errno: 0, len: 0, reply: p.reply };
        let what = || format!("opcode {} unique {}", p.opcode, p.unique);
        let Some(reply) = p.reply else {
            return if used == 0 {
                Ok(done)
            } else {
                Err(FrontendError::BadReply(format!("{}: {used} bytes written into nothing", what())))
            };
        };
        // Linux asks nothing of DESTROY's answer, and daemons differ in giving one.
        if used == 0 && p.opcode == op::DESTROY {
            return Ok(done);
        }
        let mut header = [0; OUT_HEADER];
        self.device.mem.read(reply.buffer.gpa, &mut header)?;
        let [l0, l1, l2, l3, e0, e1, e2, e3, unique @ ..] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let error = i32::from_le_bytes([e0, e1, e2, e3]);
        let unique = u64::from_le_bytes(unique);
        if used < 16
            || used - 16 > reply.room
            || len != used
            || unique != p.unique
            || !(-4095..=0).contains(&error)
            || (error != 0 && len != 16)
        {
            return Err(FrontendError::BadReply(format!(
                "{}: {used} bytes used of {}, header says length {len}, error {error}, unique {unique}",
                what(),
                16 + reply.room
            )));
        }
        done.errno = -error;
        done.len = len - 16;
        Ok(done)
    }

    /// Waits for the next request that is done.
    ///
    /// # Errors
    /// [`FrontendError::Timeout`] names requests that were not answered in time.
    pub fn next_done(&mut self) -> Result<Completion> {
        let deadline = Instant::now() + self.device.options.timeout;
        let mut spins = 0_u32;
        loop {
            if let Some(c) = self.try_next_done()? {
                return Ok(c);
            }
            if self.device.options.busy {
                spins = spins.wrapping_add(1);
                if !spins.is_multiple_of(4096) {
                    std::hint::spin_loop();
                    continue;
                }
                std::thread::yield_now();
            } else if !self.sleep(deadline)? {
                continue;
            }
            if Instant::now() >= deadline {
                return Err(FrontendError::Timeout(self.waiting()));
            }
        }
    }

    /// Sleeps until a call, the end of the connection or the deadline; false when there is work already.
    fn sleep(&mut self, deadline: Instant) -> Result<bool> {
        for ring in &self.device.rings {
            if ring.arm(&self.device.mem)? {
                return Ok(false);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds: Vec<PollFd<'_>> =
            self.device.rings.iter().map(|r| PollFd::new(&r.call, PollFlags::IN)).collect();
        let socket = self.device.control.as_fd();
        fds.push(PollFd::from_borrowed_fd(socket, PollFlags::RDHUP));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(FrontendError::sys("waiting for a call")(e)),
        }
        let gone = fds.last().is_some_and(|f| !f.revents().is_empty());
        let called: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        for (ring, called) in self.device.rings.iter().zip(called) {
            if called {
                ring.clear_call();
            }
        }
        if gone && self.stash.is_empty() {
            let mut idle = true;
            for ring in &self.device.rings {
                idle &= ring.raw_used_ahead(&self.device.mem)? == 0;
            }
            if idle {
                return Err(FrontendError::Disconnected("waiting for replies"));
            }
        }
        Ok(true)
    }

    /// Up to five requests that have no answer yet, for error texts.
    fn waiting(&self) -> String {
        let mut list: Vec<String> = Vec::new();
        for (ring, heads) in self.pending.iter().enumerate() {
            for (head, p) in heads.iter().enumerate() {
                if let Some(p) = p {
                    list.push(format!("opcode {} unique {} (ring {ring} head {head})", p.opcode, p.unique));
                }
            }
        }
        let more = list.len().saturating_sub(5);
        list.truncate(5);
        format!("{} and {more} more", list.join(", "))
    }

    /// Waits for the request `unique`; others that are done meanwhile are kept for [`Session::next_done`].
    ///
    /// # Errors
    /// See [`Session::next_done`].
    pub fn wait_for(&mut self, unique: u64) -> Result<Completion> {
        let mut others = VecDeque::new();
        let found = loop {
            match self.next_done() {
                Ok(c) if c.unique == unique => break Ok(c),
                Ok(c) => others.push_back(c),
                Err(e) => break Err(e),
            }
        };
        others.append(&mut self.stash);
        self.stash = others;
        found
    }

    /// Sends one request and waits for its reply's body.
    ///
    /// # Errors
    /// [`FrontendError::Errno`] when the daemon answers one.
    pub fn call(&mut self, ring: usize, opcode: u32, node: u64, body: &[u8], room: u32) -> Result<Vec<u8>> {
        let unique = self.submit(ring, opcode, node, body, Some(room))?;
        self.flush()?;
        let done = self.wait_for(unique)?;
        self.take(done)
    }

    /// Copies the body of a reply out of guest memory and releases its buffer.
    ///
    /// # Errors
    /// [`FrontendError::Errno`] when the reply is one.
    pub fn take(&mut self, done: Completion) -> Result<Vec<u8>> {
        let (errno, what) = (done.errno, format!("opcode {}", done.opcode));
        let body = self.body(&done);
        self.release(done);
        if errno != 0 {
            return Err(FrontendError::Errno { what, errno });
        }
        body
    }

    /// Copies the body of a reply out of guest memory.
    ///
    /// # Errors
    /// Never for a completion of this session.
    pub fn body(&self, done: &Completion) -> Result<Vec<u8>> {
        let mut body = vec![0; done.len as usize];
        let Some(reply) = &done.reply else { return Ok(body) };
        let mut offset = 0;
        while offset < done.len {
            let (gpa, run) = reply.locate(offset);
            let len = run.min(done.len - offset);
            self.device.mem.read(gpa, &mut body[offset as usize..(offset + len) as usize])?;
            offset += len;
        }
        Ok(body)
    }

    /// Gives a reply's buffer back.
    pub fn release(&mut self, done: Completion) {
        if let Some(reply) = done.reply {
            self.device.buffers.free(reply.buffer);
        }
    }
}
