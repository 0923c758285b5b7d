//! What only the system knows about a socket.

#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use nix::libc;

/// Bytes that were written to a TCP socket but that the peer's kernel has not acknowledged yet; 0
/// if the system does not say.
pub fn unacknowledged(socket: &impl AsRawFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for a socket (tcp(7)), fills one int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}
