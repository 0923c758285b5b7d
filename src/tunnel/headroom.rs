//! Memory that may be missing: an error ends one connection, and not the launcher.
//!
//! Rust ends a program that gets no memory. These functions return an error instead, so that a
//! limit (RLIMIT_AS, or vm.overcommit_memory=2) costs only the connection that needs the memory.

use std::io;

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

/// A buffer of zeros.
///
/// # Errors
/// As [`copy_of`].
pub fn zeros(length: usize) -> io::Result<Box<[u8]>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(length)?;
    zeros.resize(length, 0);
    Ok(zeros.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_memory_is_an_error() {
        for too_many in [usize::MAX, 1 << 60] {
            assert_eq!(zeros(too_many).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        }
        assert_eq!(*zeros(3).unwrap(), [0; 3]);
        assert_eq!(copy_of(b"left").unwrap(), b"left");
    }
}
