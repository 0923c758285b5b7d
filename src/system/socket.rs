//! Functions for sockets that socket2 and tokio lack.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::Socket;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a socket that does not block.
///
/// # Errors
/// When the runtime cannot watch another descriptor (epoll_ctl(2)).
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its one descriptor and never replaces it.
    Ok(unsafe { AsyncFd::register(socket)? })
}

/// Bytes that were written to a TCP socket but that the peer's kernel has not acknowledged yet; 0
/// if the system does not say.
pub fn unacknowledged(socket: &impl AsRawFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for a socket (tcp(7)), fills one int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}
