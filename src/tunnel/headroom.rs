//! Memory for one more connection, or none at all.
//!
//! Rust ends a program whose memory cannot be had, and OpenSSL ends a connection: when a limit is
//! reached (RLIMIT_AS, or vm.overcommit_memory=2), chance would decide whether a newcomer is
//! refused, a neighbour is cut off, or the launcher dies. So a newcomer is let in only while there
//! is more than it will need.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes that stay for those who are there: their buffers, the log, and a thread that looks up a
/// name, whose stack alone takes 2 MiB.
const HEADROOM: usize = 4 * 1024 * 1024;
/// Bytes that a connection may take until it is made: twice what is measured of OpenSSL 3.
const CONNECTING: usize = 128 * 1024;
/// The largest block that a connection cannot do without: OpenSSL's buffer for a record of 16 KiB,
/// rounded up.
const PIECE: usize = 20 * 1024;

/// Connections being made, of the whole process: memory is the process's own.
static IN_THE_MAKING: AtomicUsize = AtomicUsize::new(0);

/// The room of a connection in the making, until it is dropped.
#[derive(Debug)]
pub struct Room(());

impl Room {
    /// Claims room for another connection.
    ///
    /// # Errors
    /// When there is none beside those in the making and the headroom (as mmap(2)).
    pub fn claim() -> io::Result<Room> {
        let making = IN_THE_MAKING.fetch_add(1, Ordering::Relaxed) + 1;
        let room = Room(());
        probe(HEADROOM.saturating_add(CONNECTING.saturating_mul(making)))?;
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        IN_THE_MAKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether so many bytes could be had, for something that can do without.
pub fn has(bytes: usize) -> bool {
    probe(bytes).is_ok()
}

/// Whether so many bytes could be had: from the kernel, or of what the allocator has free. The
/// allocator is asked last: giving a large block back would make it keep more than before for
/// itself (M_MMAP_THRESHOLD in mallopt(3)).
fn probe(bytes: usize) -> io::Result<()> {
    probe_kernel(bytes).or_else(|_| probe_allocator(bytes))
}

/// No page is touched, so that it costs two system calls.
fn probe_kernel(bytes: usize) -> io::Result<()> {
    let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a mapping of its own, at a place of the kernel's choice, aliases nothing; nobody is
    // told of it before it is gone again.
    unsafe {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mapping = mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE)?;
        munmap(mapping, bytes.get())?;
    }
    Ok(())
}

/// Connections that ended leave holes between those that live.
fn probe_allocator(bytes: usize) -> io::Result<()> {
    let mut pieces = Vec::new();
    pieces.try_reserve_exact(bytes / PIECE)?;
    for _ in 0..bytes / PIECE {
        let mut piece = Vec::<u8>::new();
        piece.try_reserve_exact(PIECE)?;
        pieces.push(piece);
    }
    Ok(())
}

/// `bytes` in a vector of their own.
///
/// # Errors
/// When there is no memory for it, which must end one connection, not all.
pub fn copy_of(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len())?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// A buffer of zeros, whose pages take no memory before they are used.
///
/// # Errors
/// As [`copy_of`].
pub fn zeros(length: NonZeroUsize) -> io::Result<Box<[u8]>> {
    let length = length.get();
    let layout = Layout::array::<u8>(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // SAFETY: the layout's size is not zero; what is allocated by it, and initialised, belongs to
    // the vector alone (Vec::from_raw_parts), and is not used when it is null.
    unsafe {
        let zeros = alloc_zeroed(layout);
        if zeros.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Vec::from_raw_parts(zeros, length, length).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error_and_leaves_no_claim() {
        assert!(probe(1).is_ok());
        assert!(probe_allocator(HEADROOM).is_ok());
        assert_eq!(probe(usize::MAX / 2).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        for too_many in [NonZeroUsize::MAX, NonZeroUsize::new(1 << 60).unwrap()] {
            assert_eq!(zeros(too_many).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        }
        assert_eq!(*zeros(NonZeroUsize::new(3).unwrap()).unwrap(), [0; 3]);
        assert_eq!(copy_of(b"left").unwrap(), b"left");
        let room = Room::claim().unwrap();
        assert!(IN_THE_MAKING.load(Ordering::Relaxed) >= 1);
        drop(room);
    }
}
