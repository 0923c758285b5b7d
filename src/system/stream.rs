//! Makes descriptors from and for the standard streams (stdin, stdout, stderr).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Returns a descriptor that behaves like a closed stream: reading finds the end of the stream, and
/// writing fails. The descriptor is the read end of a pipe without writers, because /dev/null may
/// be missing in a container.
///
/// # Errors
/// Returns the error of pipe2(2), for example if fewer than two descriptors are free.
pub fn closed() -> nix::Result<OwnedFd> {
    pipe2(OFlag::O_CLOEXEC).map(|(read_end, _)| read_end)
}

/// Reserves a file descriptor, which is a copy of stderr. Dropping the value makes one descriptor
/// free.
///
/// # Errors
/// Returns the error of fcntl(2), for example if no descriptor is free.
pub fn reserve() -> io::Result<OwnedFd> {
    io::stderr().as_fd().try_clone_to_owned()
}
