//! Adds functions for sockets that the crates socket2 and tokio do not have.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::Socket;
use tokio::io::unix::AsyncFd;

/// Registers a non-blocking socket with tokio's runtime.
///
/// # Errors
/// Returns an error if the kernel refuses to watch another descriptor for the runtime
/// (epoll_ctl(2)).
///
/// # Panics
/// Panics outside a tokio runtime.
pub fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor, and never replaces the descriptor.
    Ok(unsafe { AsyncFd::register(socket)? })
}

/// Returns the number of bytes that this process has written to a TCP socket, but that the peer's
/// kernel has not acknowledged yet. Returns 0 if the kernel reports an error.
pub fn unacknowledged(socket: &impl AsRawFd) -> i32 {
    queued(socket, libc::TIOCOUTQ)
}

/// Returns the number of bytes that have arrived at a socket, but that this process has not read
/// yet. Returns 0 if the kernel reports an error.
pub fn unread(socket: &impl AsRawFd) -> i32 {
    queued(socket, libc::FIONREAD)
}

fn queued(socket: &impl AsRawFd, request: libc::Ioctl) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both callers' ioctls, which tcp(7) calls SIOCOUTQ and SIOCINQ, write one int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), request, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}
