//! Starts COMMAND, or turns the launcher into COMMAND.

use std::ffi::OsString;
use std::fs::File;
use std::io;

use nix::sys::signal::SigSet;
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, getpid};

use super::environment::CommandEnvironment;
use super::not_executed::{self, NotExecuted};
use super::program;
use crate::system::inherited::Inherited;
use crate::system::process::Placement;
use crate::system::signals;

/// A running COMMAND.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    pub pid: Pid,
    pub placement: Placement,
    /// The signals that reached the launcher before COMMAND existed.
    pub(super) missed: SigSet,
}

/// Starts COMMAND with `environment`.
///
/// # Errors
/// If COMMAND cannot be executed.
///
/// # Panics
/// If `words` is empty.
pub fn spawn(
    words: &[OsString],
    mut environment: CommandEnvironment,
    placement: Placement,
    inherited: &Inherited,
) -> Result<Child, NotExecuted> {
    let missed = signals::pending().map_err(io::Error::from)?;
    environment.remove_pidfd(getpid());
    let pid_entries = environment.pid_entries(getpid());
    let mut program = program::program(words, environment);
    program.name_pid_in(pid_entries);
    let mut started = program.spawn(placement, inherited)?;
    if let Err(failure) = started
        && let Some(script) = not_executed::script_for_shell(&program, failure)
    {
        program::run_by_shell(&mut program, &script, words);
        started = program.spawn(placement, inherited)?;
    }
    match started {
        Ok(pid) => Ok(Child { pid, placement, missed }),
        Err(failure) => Err(not_executed::explain(&program, failure)),
    }
}

/// Closes the launcher's stdin and stdout, which only COMMAND uses. Otherwise the process at the
/// other end of a pipe would not notice that COMMAND has closed them.
///
/// # Errors
/// As open(2) and dup2(2).
pub fn let_go_of_streams() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    Ok(())
}

/// Becomes COMMAND, with the same pid and this environment. Returns only if that fails.
pub fn become_command(words: &[OsString], environment: CommandEnvironment) -> NotExecuted {
    if let Err(error) = Inherited::restore_before_exec() {
        return NotExecuted::from(io::Error::from(error));
    }
    let mut program = program::program(words, environment);
    let mut failure = program.execute();
    if let Some(script) = not_executed::script_for_shell(&program, failure) {
        program::run_by_shell(&mut program, &script, words);
        failure = program.execute();
    }
    not_executed::explain(&program, failure)
}
