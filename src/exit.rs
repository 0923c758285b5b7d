//! Defines the exit codes of the launcher itself. After COMMAND has run, the launcher exits with
//! COMMAND's exit code instead: see [`crate::supervisor::ExitOutcome`].

pub const SUCCESS: u8 = 0;
/// The exit code if `--check` has found a tunnel that does not work.
pub const CHECK_FAILED: u8 = 1;
/// The exit code if `--status` has found a tunnel whose connections to Redis fail.
pub const STATUS_FAILING: u8 = 1;
/// The exit code if `--status` has found no running launcher.
pub const NO_LAUNCHER: u8 = 3;
/// The exit code if the launcher has a defect, or if the system refuses a resource that the
/// launcher needs.
pub const INTERNAL_ERROR: u8 = 1;
/// The exit code if a setting or a URL is invalid (EX_CONFIG of sysexits.h). If the command line
/// cannot be parsed, the launcher exits with clap's exit code 2 instead.
pub const CONFIG: u8 = 78;

/// The exit code if COMMAND exists, but cannot be executed (POSIX.1-2017, Shell & Utilities,
/// 2.8.2).
pub const COMMAND_NOT_EXECUTABLE: u8 = 126;
/// The exit code if COMMAND, or the interpreter that COMMAND needs, does not exist.
pub const COMMAND_NOT_FOUND: u8 = 127;
