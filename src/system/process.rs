//! Starts, executes, awaits and ends processes.

#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::{env, fs, ptr};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{self, c_char};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execve, fork, getpid, getppid, pipe2, read, setpgid, write};

use super::inherited::Inherited;
use super::signals;

unsafe extern "C" {
    /// See environ(7).
    static environ: *const *const c_char;
}

/// The process's environment, entry by entry. [`std::env::vars_os`] leaves out entries without `=`.
pub fn environment() -> Vec<CString> {
    let mut entries = Vec::new();
    // SAFETY: `environ` is null, or an array of strings that a null pointer ends. Only
    // `set_variable` changes the environment, while no other thread exists.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            entries.push(CStr::from_ptr(*entry).to_owned());
            entry = entry.add(1);
        }
    }
    entries
}

/// Sets an environment variable of this process, unless the process has several threads: another
/// thread might be reading the environment. Returns whether the variable was set.
pub fn set_variable(name: &str, value: &str) -> bool {
    let is_alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if is_alone {
        // SAFETY: no other thread exists, and this one starts none meanwhile.
        unsafe { env::set_var(name, value) };
    }
    is_alone
}

/// A program to execute.
pub struct Program {
    pub file: CString,
    pub words: Vec<CString>,
    pub environment: Vec<CString>,
    /// Entries of `environment` that a child replaces: the index of each, and a text with reserved
    /// memory to which the child adds its own pid.
    pub pid_entries: Vec<(usize, Vec<u8>)>,
}

/// Which process group a child runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In the launcher's process group, so that the terminal's keys reach both processes.
    Shared,
    /// In the child's own process group.
    Own,
}

impl Program {
    /// Executes the program in place of this process. Returns only if that fails.
    ///
    /// # Errors
    /// As execve(2).
    pub fn execute(&self) -> nix::Result<Infallible> {
        execve(&self.file, &self.words, &self.environment)
    }

    /// Executes the program in a child process, with the state that the launcher `inherited`. The
    /// child gets SIGTERM when the launcher dies.
    ///
    /// # Errors
    /// If the system refuses a process or a pipe, or the program cannot be executed.
    pub fn spawn(&mut self, placement: Placement, inherited: &Inherited) -> nix::Result<Pid> {
        let launcher = getpid();
        // Nothing may be allocated between fork and exec.
        let (words, mut environment) = (pointers(&self.words), pointers(&self.environment));
        // A successful exec closes the child's end.
        let (from_child, to_launcher) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: until the child executes a file or exits, it makes only async-signal-safe calls.
        let child = match unsafe { fork() }? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let Err(error) = become_child(placement, launcher, inherited).and_then(|()| {
                    for (index, entry) in &mut self.pid_entries {
                        write!(entry, "{}\0", getpid()).expect("a Vec takes everything");
                        environment[*index] = entry.as_ptr().cast();
                    }
                    let file = self.file.as_ptr();
                    // SAFETY: every string ends with a NUL, and both arrays with a null pointer.
                    // The strings belong to `self`, which does not change meanwhile.
                    unsafe { libc::execve(file, words.as_ptr(), environment.as_ptr()) };
                    Err::<Infallible, _>(Errno::last())
                });
                // If the write fails, the launcher is gone.
                let _ = write(&to_launcher, &(error as i32).to_ne_bytes());
                // SAFETY: ends the process, and nothing else.
                unsafe { libc::_exit(1) }
            }
        };
        drop(to_launcher);
        let mut error = [0; 4];
        if read(&from_child, &mut error)? == 0 {
            return Ok(child);
        }
        waitpid(child, None)?;
        Err(Errno::from_raw(i32::from_ne_bytes(error)))
    }
}

/// Pointers to the strings, then a null pointer, as in execve(2).
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Prepares the child after fork(2) for executing COMMAND. Async-signal-safe.
fn become_child(placement: Placement, launcher: Pid, inherited: &Inherited) -> nix::Result<()> {
    if placement == Placement::Own {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    }
    // The kernel sends this signal when the launcher's main thread, which forks, has ended
    // (PR_SET_PDEATHSIG(2const)).
    set_pdeathsig(Signal::SIGTERM)?;
    // The launcher may have ended before the last call.
    if getppid() != launcher {
        return Err(Errno::ESRCH);
    }
    inherited.give_back()
}

/// The way in which a process has ended, or in which the launcher must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitOutcome {
    /// With this exit code, 0 to 255.
    Exited(i32),
    /// Killed by the signal with this number.
    Killed(i32),
}

impl ExitOutcome {
    /// The exit code as in shells: 128 + the signal's number if a signal killed the process.
    fn exit_code(self) -> i32 {
        match self {
            ExitOutcome::Exited(code) => code,
            ExitOutcome::Killed(signal) => 128 + signal,
        }
    }

    /// Ends the launcher in the same way, because shell loops and xargs stop only after a process
    /// that a signal killed. If the signal does not kill the launcher, the launcher exits with 128
    /// + the signal's number.
    pub fn end_launcher(self) -> ! {
        if let ExitOutcome::Killed(signal) = self {
            signals::die_by(signal);
        }
        // SAFETY: ends the process, and nothing else. `exit` would make OpenSSL free its globals
        // while another thread may still read certificates.
        unsafe { libc::_exit(self.exit_code()) }
    }
}

/// A change of a living child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// Stopped by the signal with this number.
    Stopped(i32),
    Continued,
}

/// A child that has ended, if there is one. The child stays a zombie until [`reap`], so that the
/// kernel does not reuse its pid and process group.
pub fn ended_child() -> Option<(Pid, ExitOutcome)> {
    let (child, code, status) = waitid(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)?;
    let killed = code != libc::CLD_EXITED;
    Some((child, if killed { ExitOutcome::Killed(status) } else { ExitOutcome::Exited(status) }))
}

/// Removes a zombie.
pub fn reap(zombie: Pid) {
    waitid(libc::P_PID, zombie.as_raw() as libc::id_t, libc::WEXITED);
}

/// Removes all zombies.
pub fn reap_all() {
    while let Some((zombie, _)) = ended_child() {
        reap(zombie);
    }
}

/// The latest stop or continuation of `child` since the last call, if there was one.
pub fn job_event(child: Pid) -> Option<JobEvent> {
    let id = child.as_raw() as libc::id_t;
    match waitid(libc::P_PID, id, libc::WSTOPPED | libc::WCONTINUED)? {
        (_, libc::CLD_CONTINUED, _) => Some(JobEvent::Continued),
        (_, _, signal) => Some(JobEvent::Stopped(signal)),
    }
}

/// The child, code and status of the next event that waitid(2) knows; `None` if there is no event,
/// or no child. nix's wrapper does not know real-time signals.
fn waitid(kind: libc::idtype_t, id: libc::id_t, options: i32) -> Option<(Pid, i32, i32)> {
    // SAFETY: all zeroes are a valid siginfo_t. For a child's event, waitid(2) fills si_pid and
    // si_status; without an event, and without a child (an error), si_pid stays 0.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(kind, id, &mut info, options | libc::WNOHANG);
        let child = Pid::from_raw(info.si_pid());
        (info.si_pid() != 0).then(|| (child, info.si_code, info.si_status()))
    }
}
