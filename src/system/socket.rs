//! The state of a TCP socket in the kernel.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Number of bytes written to a TCP socket that the peer's kernel has not acknowledged; 0 if
/// unknown.
pub fn unacknowledged(socket: &impl AsFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for a socket (tcp(7)), fills one int.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}
