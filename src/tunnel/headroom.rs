//! Memory that may be missing: an error ends one connection, and not the launcher.
//!
//! Rust ends a program that gets no memory. These functions return an error instead, so that a
//! limit (RLIMIT_AS, or vm.overcommit_memory=2) costs only the connection that needs the memory.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::num::NonZeroUsize;

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
    fn missing_memory_is_an_error() {
        for too_many in [NonZeroUsize::MAX, NonZeroUsize::new(1 << 60).unwrap()] {
            assert_eq!(zeros(too_many).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        }
        assert_eq!(*zeros(NonZeroUsize::new(3).unwrap()).unwrap(), [0; 3]);
        assert_eq!(copy_of(b"left").unwrap(), b"left");
    }
}
