//! Every exit code of the launcher's own, with its source. COMMAND's code, or 128 + the number of
//! the signal that ended it, comes from [`crate::supervisor::ExitOutcome`].

use std::io;

pub const SUCCESS: u8 = 0;
/// `--check` found a tunnel that does not work.
pub const CHECK_FAILED: u8 = 1;
/// `--status` found a tunnel that fails.
pub const STATUS_FAILING: u8 = 1;
/// `--status` found no launcher.
pub const NO_LAUNCHER: u8 = 3;
/// A defect, or a system that refuses what no launcher can do without.
pub const INTERNAL_ERROR: u8 = 1;
/// A setting or a URL is wrong: EX_CONFIG of sysexits.h. Wrong usage of the command line exits with
/// 2, by clap.
pub const CONFIG: u8 = 78;

/// The exit code `code`, also if the reader of stdout has gone: `start-stunnel --check | head -1`.
///
/// # Errors
/// Any other error of `printed`.
pub fn despite_closed_pipe(printed: io::Result<()>, code: u8) -> io::Result<u8> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(code),
    }
}

/// For a COMMAND that could not be executed: 127 when there is none of that name, 126 when there is
/// one that cannot be run (POSIX.1-2017 Shell & Utilities 2.8.2).
pub fn not_executed(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    }
}
