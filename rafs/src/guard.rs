//! Mapped memory whose bytes may vanish, without the process going with them.
//!
//! The kernel raises SIGBUS on an access to a mapping behind which nothing is left: a file that somebody shortened, a
//! disk or server that reads no more, huge pages that have run out. One front-end's memory or one image must not be
//! the end of all others', so whoever maps such memory has it watched, and a daemon catches the signal ([`catch`]):
//! from the page of the access to the end of the range there are zeros from then on, and the range is no longer
//! [whole](Watch::is_whole). Whoever answers from a range asks for that *after* the answer was made, and gives none if
//! not.
//!
//! Owns: the list of watched ranges and the signal's handler. Does not own: mappings, nor what becomes of a guest or image
//! that lost its bytes. Nothing is caught unless [`catch`] was called: a tool that runs once rather ends than goes on with
//! zeros.
//!
//! Unsafe code is here because signals and mappings have no safe interface. The handler takes no lock and allocates nothing:
//! it walks a list of places that are never freed, only used again.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

/// Ranges that lost bytes since the process began. While there is none nobody needs to look at a range.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
/// All places, used or not.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(null_mut());
/// Held by whoever changes the list or a place; never by the handler.
static CHANGE: Mutex<()> = Mutex::new(());
/// Bytes of a page, from [`catch`] on.
static PAGE: AtomicUsize = AtomicUsize::new(4096);
/// What SIGBUS meant before [`catch`], for what is no range of ours. Written once.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

/// A range that is watched, or room for one.
#[derive(Debug)]
struct Place {
    /// Odd while the two below are changed.
    sequence: AtomicUsize,
    /// First address.
    start: AtomicUsize,
    /// Bytes; 0 where nothing is watched.
    len: AtomicUsize,
    /// Whether it may be written.
    writable: AtomicBool,
    lost: AtomicBool,
    /// Set once, before the place is in the list.
    next: *const Place,
}

/// A mapping that is watched for as long as this lives.
#[derive(Debug)]
pub struct Watch {
    place: &'static Place,
}

// SAFETY: all that is reached through it is atomic, or does not change.
unsafe impl Send for Watch {}
// SAFETY: as above.
unsafe impl Sync for Watch {}

impl Place {
    /// The range, if there is one and nobody changes it at the moment.
    fn range(&self) -> Option<(usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let (start, len) = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        (before == after && before.is_multiple_of(2) && len > 0).then_some((start, len))
    }

    /// Makes it another range. Only with [`CHANGE`] held.
    fn set(&self, start: usize, len: usize, writable: bool) {
        self.sequence.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }
}

/// All places there are.
fn places() -> impl Iterator<Item = &'static Place> {
    let mut next = PLACES.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null, or a place that was leaked and filled before the list led to it.
        let place = unsafe { next.as_ref() }?;
        next = place.next;
        Some(place)
    })
}

impl Watch {
    /// Watches `len` bytes from `start` on; of what is not `writable` zeros can only be read, too.
    ///
    /// # Safety
    ///
    /// The pages of the range, the first and last of which it may use in part, are the caller's mappings alone and stay mapped
    /// until the watch is dropped. Other processes may change the bytes at any moment, and whoever reads them copes with that:
    /// the handler is one more who changes them.
    #[must_use]
    pub unsafe fn new(start: *const u8, len: usize, writable: bool) -> Self {
        let _held = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = places().find(|place| place.len.load(Ordering::Relaxed) == 0);
        let place = free.unwrap_or_else(|| {
            let place: &'static Place = Box::leak(Box::new(Place {
                sequence: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                writable: AtomicBool::new(false),
                lost: AtomicBool::new(false),
                next: PLACES.load(Ordering::Relaxed),
            }));
            PLACES.store(std::ptr::from_ref(place).cast_mut(), Ordering::Release);
            place
        });
        place.set(start.expose_provenance(), len, writable);
        Self { place }
    }

    /// Whether no access found bytes missing so far. Costs a load as long as no range of the process lost any.
    #[inline]
    #[must_use]
    pub fn is_whole(&self) -> bool {
        nothing_lost() || !self.place.lost.load(Ordering::Acquire)
    }
}

/// Whether every watched range of the process, past ones too, was whole so far: the short way for who has many.
#[inline]
#[must_use]
pub fn nothing_lost() -> bool {
    // What was read of a range before is not to be read after.
    fence(Ordering::Acquire);
    LOSSES.load(Ordering::Acquire) == 0
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _held = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.set(0, 0, false);
    }
}

/// Catches SIGBUS in this process from now on: an access to a watched range that has lost its bytes finds zeros. What is
/// no such access does what it did before. May be called any number of times.
///
/// # Errors
///
/// That of sigaction(2).
pub fn catch() -> io::Result<()> {
    let _held = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    if !BEFORE.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
    // SAFETY: all-zero sigactions are valid ones; the calls read and write structures that live until they return. The
    // handler does what a handler may (see there), and runs on the stack that the thread has for signals, if it has one.
    unsafe {
        let mut before: Box<libc::sigaction> = Box::new(std::mem::zeroed());
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut *before) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The handler reads it: it has to be there first.
        BEFORE.store(Box::into_raw(before), Ordering::Release);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) != 0 {
            let error = io::Error::last_os_error();
            drop(Box::from_raw(BEFORE.swap(null_mut(), Ordering::AcqRel)));
            return Err(error);
        }
    }
    Ok(())
}

/// SIGBUS. What it calls may be called at any moment: mmap(2) and sigaction(2) are bare system calls.
extern "C" fn on_bus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo to a handler with SA_SIGINFO; errno is this thread's, and the code that was
    // interrupted finds it as it was.
    unsafe {
        let errno = *libc::__errno_location();
        // What somebody sent (SI_USER and the like are not above 0) comes from no access.
        let mended = (*info).si_code > 0 && mend((*info).si_addr().addr());
        if !mended {
            // As if this handler had never been: the access is made again and ends as it would have.
            let before = BEFORE.load(Ordering::Acquire);
            libc::sigaction(libc::SIGBUS, before, null_mut());
            if (*info).si_code <= 0 {
                libc::raise(libc::SIGBUS);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts zeros where bytes are missing: from the page of `addr` to the end of its range. Whether it is a watched range,
/// and was done.
fn mend(addr: usize) -> bool {
    for place in places() {
        let Some((start, len)) = place.range() else { continue };
        if addr.wrapping_sub(start) >= len {
            continue;
        }
        // Nobody asks before the access returns, and then it has to be said.
        place.lost.store(true, Ordering::Release);
        LOSSES.fetch_add(1, Ordering::AcqRel);
        let writable = place.writable.load(Ordering::Relaxed);
        let page = PAGE.load(Ordering::Relaxed);
        let (first, end) = (addr & !(page - 1), start + len);
        let all = start & !(page - 1);
        // A page of a huge mapping cannot be exchanged alone.
        return zeros(first, end - first, writable) || zeros(all, end - all, writable);
    }
    false
}

/// Maps zeros over a part of a watched range.
fn zeros(start: usize, len: usize, writable: bool) -> bool {
    let access = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the part lies in a range whose owner agreed to this (`Watch::new`) and which is mapped: an access to it
    // is what brought us here, and whoever makes one keeps the mapping. Pages are exchanged, none is left out.
    let at = unsafe { libc::mmap(with_exposed_provenance_mut(start), len, access, flags, -1, 0) };
    at != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::{MmapOptions, MmapRaw};
    use std::fs::File;

    const PAGE: usize = 4096;

    fn mapped(file: &File, len: usize) -> (Watch, MmapRaw) {
        let map = MmapOptions::new().len(len).map_raw(file).unwrap();
        // SAFETY: a whole mapping, reached by volatile accesses alone; tests drop the watch first.
        (unsafe { Watch::new(map.as_ptr(), len, true) }, map)
    }

    fn read(map: &MmapRaw, at: usize) -> u8 {
        assert!(at < map.len());
        // SAFETY: inside the mapping, which lives.
        unsafe { map.as_ptr().add(at).read_volatile() }
    }

    fn write(map: &MmapRaw, at: usize, byte: u8) {
        assert!(at < map.len());
        // SAFETY: inside the mapping, which lives and may be written.
        unsafe { map.as_mut_ptr().add(at).write_volatile(byte) }
    }

    fn file(len: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; len], 0).unwrap();
        file
    }

    #[test]
    fn a_file_that_is_cut_reads_as_zeros_from_there_on() {
        catch().unwrap();
        catch().unwrap();
        let (one, other) = (file(8 * PAGE), file(2 * PAGE));
        let (watch, map) = mapped(&one, 8 * PAGE);
        let (neighbour, beside) = mapped(&other, 2 * PAGE);
        assert_eq!(read(&map, 8 * PAGE - 1), 7);
        one.set_len(3 * PAGE as u64).unwrap();
        assert!(watch.is_whole(), "nobody has noticed yet");
        assert_eq!(read(&map, 3 * PAGE - 1), 7);
        assert_eq!(read(&map, 5 * PAGE + 9), 0);
        assert!(!watch.is_whole());
        assert_eq!(read(&map, 4 * PAGE), 0, "a second hole before the first");
        write(&map, 3 * PAGE, 1);
        assert_eq!((read(&map, 3 * PAGE), read(&map, 2 * PAGE)), (1, 7));
        assert!(neighbour.is_whole());
        assert_eq!(read(&beside, 0), 7);
    }

    #[test]
    fn huge_pages_that_are_not_to_be_had_are_exchanged_as_a_whole() {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        const HUGE: usize = 2 << 20;
        catch().unwrap();
        let one = File::from(memfd_create("huge", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB).unwrap());
        ftruncate(&one, 2 * HUGE as u64).unwrap();
        let map = MmapOptions::new().len(2 * HUGE).no_reserve_swap().map_raw(&one).unwrap();
        // SAFETY: as in `mapped`.
        let watch = unsafe { Watch::new(map.as_ptr(), 2 * HUGE, true) };
        // Pages or none, from here on there are none.
        ftruncate(&one, 0).unwrap();
        assert_eq!(read(&map, HUGE + 5 * PAGE), 0);
        write(&map, HUGE - 1, 3);
        assert_eq!(read(&map, HUGE - 1), 3);
        assert!(!watch.is_whole());
    }

    #[test]
    fn places_are_used_again_and_know_nothing_of_former_ranges() {
        catch().unwrap();
        for _ in 0..100 {
            let one = file(2 * PAGE);
            let (watch, map) = mapped(&one, 2 * PAGE);
            assert!(watch.is_whole());
            one.set_len(0).unwrap();
            assert_eq!(read(&map, PAGE), 0);
            assert!(!watch.is_whole());
            drop(watch);
        }
        assert!(places().count() < 50);
    }

    #[test]
    fn many_threads_may_find_it_at_once() {
        catch().unwrap();
        for _ in 0..50 {
            let one = file(64 * PAGE);
            let (watch, map) = mapped(&one, 64 * PAGE);
            one.set_len(PAGE as u64).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let map = &map;
                    scope.spawn(move || {
                        for at in (1..64).rev().filter(|at| at % 4 == thread) {
                            assert_eq!(read(map, at * PAGE), 0);
                        }
                    });
                }
            });
            assert!(!watch.is_whole());
        }
    }

    /// In a process of its own: accesses a file beyond its end that nobody watches.
    #[test]
    #[ignore = "ends its process: run by the test below"]
    fn end_by_sigbus() {
        catch().unwrap();
        let one = file(2 * PAGE);
        let (watch, map) = mapped(&one, 2 * PAGE);
        drop(watch);
        one.set_len(0).unwrap();
        read(&map, 0);
    }

    #[test]
    fn what_nobody_watches_ends_the_process_as_ever() {
        use std::os::unix::process::ExitStatusExt;
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let status = command.args(["--exact", "--ignored", "guard::tests::end_by_sigbus"]).status().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}
