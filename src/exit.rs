//! The exit codes of the launcher itself. After COMMAND has run, the launcher exits with COMMAND's
//! exit code instead: see [`crate::supervisor::ExitOutcome`].

use std::io::{self, Write as _};

pub const SUCCESS: u8 = 0;
/// `--check` found a tunnel that does not work.
pub const CHECK_FAILED: u8 = 1;
/// `--status` found a tunnel that fails.
pub const STATUS_FAILING: u8 = 1;
/// `--status` found no launcher.
pub const NO_LAUNCHER: u8 = 3;
/// The launcher has a defect, or the system refuses a resource that the launcher needs.
pub const INTERNAL_ERROR: u8 = 1;
/// A setting or a URL is invalid (EX_CONFIG of sysexits.h). For a command line that cannot be
/// parsed, clap exits with 2.
pub const CONFIG: u8 = 78;

/// COMMAND exists, but cannot be executed (POSIX.1-2017, Shell & Utilities, 2.8.2).
pub const COMMAND_NOT_EXECUTABLE: u8 = 126;
/// COMMAND, or the interpreter that it needs, does not exist.
pub const COMMAND_NOT_FOUND: u8 = 127;

/// Writes `text` to stdout, and returns `code`. A closed pipe is no error, because users run
/// commands such as `start-stunnel --check | head -1`.
///
/// # Errors
/// If stdout cannot be written.
pub fn print(text: &str, code: u8) -> io::Result<u8> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(code),
    }
}
