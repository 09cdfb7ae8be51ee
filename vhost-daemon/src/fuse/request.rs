//! A request as it came from the guest, checked as far as the wire goes.
//!
//! Owns: header checks, typed access to the body, names. Does not own: what an opcode does.

use super::abi::{InHeader, NAME_MAX};
use std::ffi::CStr;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Bytes of a request that are handed to the dispatcher: header, body, and two names. What lies beyond
/// (data of WRITE, values of SETXATTR, long BATCH_FORGETs) is taken from the transport when it is wanted.
pub const REQUEST_HEAD_MAX: usize = 4096;

/// A request whose header is complete and agrees with the descriptor chain.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The header.
    pub header: InHeader,
    body: &'a [u8],
    truncated: bool,
}

impl<'a> Request<'a> {
    /// Takes the first bytes of a request and the length of its whole readable part.
    ///
    /// # Errors
    ///
    /// `unique` of the header as far as it is there (else 0), and the errno: `EINVAL` for a header that
    /// is cut off or whose length is not the chain's.
    pub fn parse(head: &'a [u8], total: usize) -> Result<Self, (u64, i32)> {
        let Ok((header, body)) = InHeader::read_from_prefix(head) else {
            return Err((unique_of(head), libc::EINVAL));
        };
        if usize::try_from(header.len) != Ok(total) {
            return Err((header.unique, libc::EINVAL));
        }
        Ok(Self { header, body, truncated: head.len() < total })
    }

    /// The fixed body of the request.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is cut off.
    pub fn body<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, i32> {
        T::read_from_prefix(self.body).map(|(body, _)| body).map_err(|_| libc::EINVAL)
    }

    /// Bytes behind a fixed body of type `T`, as far as they were handed over.
    pub(super) fn behind<T>(&self) -> Result<&'a [u8], i32> {
        self.body.get(size_of::<T>()..).ok_or(libc::EINVAL)
    }

    /// The two names behind a fixed body of type `T`.
    ///
    /// # Errors
    ///
    /// See [`Request::name`].
    pub fn names_behind<T>(&self) -> Result<(&'a CStr, &'a CStr), i32> {
        let bytes = self.behind::<T>()?;
        let first = self.name_in(bytes)?;
        let rest = bytes.get(first.count_bytes() + 1..).unwrap_or_default();
        Ok((first, self.name_in(rest)?))
    }

    /// Whether there is more of the request than was handed over.
    pub(super) fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The same request over a copy of its whole body.
    pub(super) fn with_body<'b>(&self, body: &'b [u8]) -> Request<'b> {
        Request { header: self.header, body, truncated: false }
    }

    /// The name that is the whole body.
    ///
    /// # Errors
    ///
    /// `EINVAL` for one that is empty or without NUL, `ENAMETOOLONG` for one over 255 bytes.
    pub fn name(&self) -> Result<&'a CStr, i32> {
        self.name_in(self.body)
    }

    /// The name behind a fixed body of type `T`; errors as for [`Request::name`].
    ///
    /// # Errors
    ///
    /// See [`Request::name`].
    pub fn name_behind<T>(&self) -> Result<&'a CStr, i32> {
        self.name_in(self.behind::<T>()?)
    }

    fn name_in(&self, bytes: &'a [u8]) -> Result<&'a CStr, i32> {
        match CStr::from_bytes_until_nul(bytes) {
            Ok(name) if name.is_empty() => Err(libc::EINVAL),
            Ok(name) if name.count_bytes() > NAME_MAX => Err(libc::ENAMETOOLONG),
            Ok(name) => Ok(name),
            Err(_) if self.truncated || bytes.len() > NAME_MAX => Err(libc::ENAMETOOLONG),
            Err(_) => Err(libc::EINVAL),
        }
    }

    /// The INIT body's second part, `flags2`, if it is there.
    #[must_use]
    pub fn init_flags2(&self) -> u32 {
        self.body.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }
}

/// `unique` of a header that is cut off, so that even such a request gets its answer.
fn unique_of(head: &[u8]) -> u64 {
    head.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn request(body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(40 + body.len()).unwrap();
        let header = InHeader {
            len,
            opcode: 1,
            unique: 7,
            nodeid: 1,
            uid: 0,
            gid: 0,
            pid: 0,
            total_extlen: 0,
            padding: 0,
        };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn names() {
        let long = [vec![b'x'; 255], vec![0]].concat();
        let too_long = [vec![b'x'; 256], vec![0]].concat();
        for (body, want) in [
            (&b"abc\0"[..], Ok(&b"abc"[..])),
            (b"abc\0def", Ok(b"abc")),
            (b"\0", Err(libc::EINVAL)),
            (b"", Err(libc::EINVAL)),
            (b"abc", Err(libc::EINVAL)),
            (&long, Ok(&long[..255])),
            (&too_long, Err(libc::ENAMETOOLONG)),
        ] {
            let bytes = request(body);
            let parsed = Request::parse(&bytes, bytes.len()).unwrap();
            assert_eq!(parsed.name().map(CStr::to_bytes), want, "{body:?}");
        }
    }

    #[test]
    fn headers_that_lie() {
        let bytes = request(b"a\0");
        assert_eq!(Request::parse(&bytes, bytes.len() + 1).unwrap_err(), (7, libc::EINVAL));
        assert_eq!(Request::parse(&bytes[..39], 39).unwrap_err(), (7, libc::EINVAL));
        assert_eq!(Request::parse(&bytes[..12], 12).unwrap_err(), (0, libc::EINVAL));
        assert_eq!(Request::parse(&[], 0).unwrap_err(), (0, libc::EINVAL));
    }

    #[test]
    fn a_name_beyond_what_is_looked_at_is_too_long() {
        let mut bytes = request(&vec![b'x'; 5000]);
        let total = bytes.len();
        bytes.truncate(REQUEST_HEAD_MAX);
        let parsed = Request::parse(&bytes, total).unwrap();
        assert_eq!(parsed.name(), Err(libc::ENAMETOOLONG));
    }
}
