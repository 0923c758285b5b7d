//! Socket functions that the crates socket2 and tokio lack.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::Socket;
use tokio::io::unix::AsyncFd;

/// Registers a non-blocking socket with tokio's runtime.
///
/// # Errors
/// If the runtime cannot watch another descriptor (epoll_ctl(2)).
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor, and never replaces the descriptor.
    Ok(unsafe { AsyncFd::register(socket)? })
}

/// The number of bytes that were written to a TCP socket but that the peer's kernel has not
/// acknowledged yet. 0 if the kernel returns an error.
pub fn unacknowledged(socket: &impl AsRawFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the ioctl TIOCOUTQ, named SIOCOUTQ in tcp(7), writes one int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}
