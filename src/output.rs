//! Writes to stdout and stderr. Each text is written completely, even if the stream is non-blocking
//! (O_NONBLOCK). A process that shares the stream with the launcher can make the stream
//! non-blocking. For example, Node.js does this if its stderr is a pipe.

use std::io::{self, ErrorKind, StderrLock, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A stream that blocks its writer while the stream is full, even if the stream is non-blocking.
pub struct Blocking<S>(S);

impl<S: AsFd> Blocking<S> {
    /// Repeats `attempt` until the result is not [`ErrorKind::WouldBlock`].
    fn wait<T>(&mut self, attempt: impl Fn(&mut S) -> io::Result<T>) -> io::Result<T> {
        loop {
            match attempt(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut waiting = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut waiting, PollTimeout::NONE)?;
                }
                done => return done,
            }
        }
    }
}

impl<S: AsFd + Write> Write for Blocking<S> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.wait(|stream| stream.write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wait(S::flush)
    }
}

/// Returns the launcher's stderr. While one thread owns the returned value, other threads wait.
pub fn stderr() -> Blocking<StderrLock<'static>> {
    Blocking(io::stderr().lock())
}

/// Writes `line` to stderr. Ignores errors, because stderr may be broken.
pub fn note(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// Writes `text` to stdout, and returns `code`. A closed stdout is no error, and neither is a pipe
/// whose reader is gone, because users run commands such as `start-stunnel --check | head -1`.
///
/// # Errors
/// Returns any other error of write(2), for example that the disk is full.
pub fn print(text: &str, code: u8) -> io::Result<u8> {
    let mut stdout = Blocking(io::stdout().lock());
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(code),
    }
}
