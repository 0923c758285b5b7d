//! What the kernel tells of a socket, beyond the standard library and tokio.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Bytes that were written to a TCP socket, but that the peer's kernel has not acknowledged yet; 0
/// if the kernel does not say.
pub fn unacknowledged(socket: &impl AsFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for a socket (tcp(7)), fills one int.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}
