//! Ways in which a server of blobs goes wrong.

use crate::support::random::Random;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error status.
    Status(u16),
    /// The connection is reset before an answer.
    Reset,
    /// The connection is closed in the middle of the body.
    Truncate,
    /// Bytes of the body are changed.
    Corrupt,
    /// Nothing comes for a while, then the connection closes.
    Stall,
    /// As that, in the middle of the body.
    StallInBody,
    /// A late answer, which is right.
    Late,
    /// A right answer that comes in drops.
    Trickle,
    /// A right answer at [`Fault::SLOW`] bytes a second.
    Slow,
    /// A redirect to a location that has expired.
    ExpiredLocation,
    /// Content-Range speaks of other bytes than were asked for.
    OtherRange,
    /// What was asked for and all that is in the same pages, which is right and odd.
    WiderRange,
    /// Content-Length is smaller than the range.
    ShortLength,
    /// The object is said to be shorter than it is.
    ShortTotal,
    /// 206 and an endless chunked body.
    Endless,
    /// The whole object with 200.
    IgnoreRange,
    /// A head that is no HTTP.
    Garbage,
}

impl Fault {
    /// Bandwidth of [`Fault::Slow`], bytes a second.
    pub const SLOW: u64 = 30 << 10;

    /// One of each.
    pub const ALL: [Self; 23] = [
        Self::Status(401),
        Self::Status(403),
        Self::Status(404),
        Self::Status(429),
        Self::Status(500),
        Self::Status(502),
        Self::Status(503),
        Self::Reset,
        Self::Truncate,
        Self::Corrupt,
        Self::Stall,
        Self::StallInBody,
        Self::Late,
        Self::Trickle,
        Self::Slow,
        Self::ExpiredLocation,
        Self::OtherRange,
        Self::WiderRange,
        Self::ShortLength,
        Self::ShortTotal,
        Self::Endless,
        Self::IgnoreRange,
        Self::Garbage,
    ];

    /// A fault for a share of requests.
    pub(super) fn draw(faults: &[Self], percent: u64, random: &mut Random) -> Option<Self> {
        if faults.is_empty() || random.below(100) >= percent {
            return None;
        }
        Some(*random.pick(faults))
    }
}
