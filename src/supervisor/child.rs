//! Starting COMMAND, or becoming it.

#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, execvp, getpid, getppid};

use super::inherited::Inherited;
use super::signals;
use crate::environment::Environment;

/// Which process group COMMAND runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The launcher's: the terminal talks to both.
    Shared,
    /// One of its own.
    Own,
}

/// COMMAND, started.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    pub pid: Pid,
    pub placement: Placement,
    /// What the launcher had been sent before there was a COMMAND that could have got it, too.
    pub(super) missed: SigSet,
}

/// Starts COMMAND, with `environment` and nothing else of ours.
///
/// # Errors
/// When it cannot be executed; see [`crate::exit::not_executed`].
///
/// # Panics
/// When `words` is empty.
pub fn spawn(
    words: &[OsString],
    environment: &Environment,
    placement: Placement,
    inherited: Inherited,
) -> io::Result<Child> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().envs(environment);
    if placement == Placement::Own {
        command.process_group(0);
    }
    let launcher = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are made, on copies of plain data.
    unsafe {
        command.pre_exec(move || {
            die_with(launcher)?;
            inherited.give_back()
        });
    }
    let missed = signals::pending()?;
    let pid = Pid::from_raw(command.spawn()?.id() as i32);
    Ok(Child { pid, placement, missed })
}

/// Has the kernel send SIGTERM to this process when the launcher's main thread, which starts
/// COMMAND, is gone (PR_SET_PDEATHSIG(2const)).
#[cfg(target_os = "linux")]
fn die_with(launcher: Pid) -> io::Result<()> {
    nix::errno::Errno::result(
        // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes a number and touches no memory.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) },
    )?;
    // It may have gone before the kernel was told.
    if getppid() != launcher {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn die_with(_: Pid) -> io::Result<()> {
    Ok(())
}

/// Lets go of stdin and stdout, which are COMMAND's alone: when COMMAND closes them, whoever is at
/// the other end of a pipe must notice.
///
/// # Errors
/// As open(2) and dup2(2).
pub fn let_go_of_streams() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    Ok(())
}

/// Becomes COMMAND: same pid, environment untouched. Returns only when that fails.
pub fn become_command(words: Vec<OsString>) -> io::Error {
    let words: Result<Vec<CString>, _> =
        words.into_iter().map(|word| CString::new(word.into_vec())).collect();
    let words = match words {
        Ok(words) => words,
        Err(error) => return error.into(),
    };
    if let Err(error) = Inherited::restore_before_exec() {
        return error;
    }
    match execvp(&words[0], &words) {
        Err(error) => error.into(),
        Ok(never) => match never {},
    }
}
