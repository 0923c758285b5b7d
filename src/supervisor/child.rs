//! Starting COMMAND, or becoming it.

#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{
    ForkResult, Pid, dup2_stdin, dup2_stdout, fork, getpid, getppid, pipe2, setpgid, write,
};

use super::environment::{ChildEnvironment, CommandEnvironment};
use super::inherited::Inherited;
use super::not_executed::{self, NotExecuted};
use super::program::{Failure, Program};
use super::signals;

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

/// Starts COMMAND with `environment`.
///
/// # Errors
/// When COMMAND cannot be executed.
///
/// # Panics
/// When `words` is empty.
pub fn spawn(
    words: &[OsString],
    environment: CommandEnvironment,
    placement: Placement,
    inherited: Inherited,
) -> Result<Child, NotExecuted> {
    let missed = signals::pending().map_err(io::Error::from)?;
    let mut program = Program::new(words, environment.get("PATH"));
    let launcher = getpid();
    let mut environment = environment.for_child_of(launcher);
    let mut start = |program: &mut Program| {
        in_child(|| {
            become_child(placement, launcher, &inherited).map_err(Failure::of_system)?;
            environment.write_pid(getpid());
            Err(program.execute(&mut environment))
        })
    };
    let mut started = start(&mut program)?;
    if let Err(failure) = started
        && let Some(script) = not_executed::script_for_shell(&program, failure)
    {
        program = Program::shell(&script, words);
        started = start(&mut program)?;
    }
    match started {
        Ok(pid) => Ok(Child { pid, placement, missed }),
        Err(failure) => Err(not_executed::explain(&program, failure)),
    }
}

/// Runs `execute` in a new process. Returns the process's pid once it has executed a program, or
/// its failure.
///
/// # Errors
/// When the system gives no process, or no pipe.
fn in_child(
    mut execute: impl FnMut() -> Result<Infallible, Failure>,
) -> io::Result<Result<Pid, Failure>> {
    // A successful exec closes the child's end.
    let (failed, tell_failure) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child makes async-signal-safe calls only, until it executes a program or exits.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            let Err(failure) = execute();
            // Without a launcher there is nobody to tell.
            let _ = write(&tell_failure, &failure.to_bytes());
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(tell_failure);
    let mut failure = Vec::new();
    File::from(failed).read_to_end(&mut failure)?;
    match Failure::from_bytes(&failure) {
        None => Ok(Ok(child)),
        Some(failure) => {
            waitpid(child, None)?;
            Ok(Err(failure))
        }
    }
}

/// Turns a copy of the launcher into a process that is ready to execute COMMAND.
fn become_child(placement: Placement, launcher: Pid, inherited: &Inherited) -> nix::Result<()> {
    if placement == Placement::Own {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    }
    // Sent when the launcher's main thread, which forks, is gone (PR_SET_PDEATHSIG(2const)).
    set_pdeathsig(Signal::SIGTERM)?;
    // The launcher may have gone before the kernel was told.
    if getppid() != launcher {
        return Err(Errno::ESRCH);
    }
    inherited.give_back()
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
pub fn become_command(words: &[OsString], environment: CommandEnvironment) -> NotExecuted {
    if let Err(error) = Inherited::restore_before_exec() {
        return NotExecuted::from(io::Error::from(error));
    }
    let mut program = Program::new(words, environment.get("PATH"));
    let mut environment = ChildEnvironment::unchanged(environment);
    let mut failure = program.execute(&mut environment);
    if let Some(script) = not_executed::script_for_shell(&program, failure) {
        program = Program::shell(&script, words);
        failure = program.execute(&mut environment);
    }
    not_executed::explain(&program, failure)
}
