//! Reads and changes which process group is in the foreground of the launcher's controlling
//! terminal.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The open controlling terminal of the launcher.
#[derive(Debug)]
pub struct Terminal(File);

impl Terminal {
    /// Opens the launcher's terminal. Returns `None` if the launcher has no terminal, for example
    /// in a service or on a Heroku dyno.
    pub fn open() -> Option<Terminal> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        options.open("/dev/tty").ok().map(Terminal)
    }

    /// Returns true if the launcher's process group is in the terminal's foreground.
    pub fn is_ours(&self) -> bool {
        self.is_of(getpgrp())
    }

    /// Returns true if the terminal has hung up.
    pub fn has_hung_up(&self) -> bool {
        tcgetpgrp(&self.0).is_err()
    }

    /// Returns true if the process group `group` is in the terminal's foreground.
    pub fn is_of(&self, group: Pid) -> bool {
        tcgetpgrp(&self.0) == Ok(group)
    }

    /// Puts the process group `group` into the terminal's foreground. The caller must block
    /// SIGTTOU, because the kernel sends SIGTTOU to a background process that calls tcsetpgrp(3).
    pub fn give_to(&self, group: Pid) -> nix::Result<()> {
        tcsetpgrp(&self.0, group)
    }
}
