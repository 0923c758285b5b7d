//! Starts processes, executes programs, and waits for the end of child processes.

#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{env, fs, ptr};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{self, c_char};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{
    ForkResult, Pid, close, execve, fork, getpid, getppid, pipe2, read, setpgid, write,
};

use super::inherited::Inherited;
use super::signals;

unsafe extern "C" {
    /// The C library's pointer to the entries of this process's environment, see environ(7).
    static environ: *const *const c_char;
}

/// Returns the entries of this process's environment, including entries without `=`, which
/// [`std::env::vars_os`] omits.
pub fn environment() -> Vec<CString> {
    let mut entries = Vec::new();
    // SAFETY: `environ` is null, or points to an array of string pointers that ends with a null
    // pointer. The environment does not change during this call, because only `set_variable`
    // changes the environment, and only in a process with one thread.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            entries.push(CStr::from_ptr(*entry).to_owned());
            entry = entry.add(1);
        }
    }
    entries
}

/// Sets an environment variable of this process, if the process has only one thread. If there are
/// more threads, does nothing, because another thread might be reading the environment.
pub fn set_variable(name: &str, value: &str) {
    if fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1) {
        // SAFETY: this thread is the process's only thread, and starts no other thread during this
        // call.
        unsafe { env::set_var(name, value) };
    }
}

/// A program that the launcher executes as COMMAND.
pub struct Program {
    pub file: CString,
    pub words: Vec<CString>,
    pub environment: Vec<CString>,
    /// The entries of `environment` whose value must be the child's pid. Each item contains the
    /// entry's index and the text `NAME=`. The child process appends its own pid to the text. The
    /// text's vector must have enough free capacity, because the child must not allocate memory.
    pub pid_entries: Vec<(usize, Vec<u8>)>,
}

/// The choice of the process group for a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The child shares the launcher's process group, so that keys such as Ctrl-C reach both
    /// processes.
    Shared,
    /// The child has a process group of its own.
    Own,
}

impl Program {
    /// Replaces this process by the program. Returns only if the program cannot be executed.
    ///
    /// # Errors
    /// Returns the error of execve(2).
    pub fn execute(&self) -> nix::Result<Infallible> {
        execve(&self.file, &self.words, &self.environment)
    }

    /// Executes the program in a child process, with the signal mask and the limits in `inherited`.
    /// The kernel sends SIGTERM to the child when the launcher ends. Returns the child, and the
    /// signals that this process had received before.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot create a process or a pipe, or if the program cannot
    /// be executed.
    pub fn spawn(
        &mut self,
        placement: Placement,
        inherited: &Inherited,
    ) -> nix::Result<(Pid, SigSet)> {
        let launcher = getpid();
        // Allocate all memory now, because a process must not allocate memory between fork and
        // exec.
        let (words, mut environment) = (pointers(&self.words), pointers(&self.environment));
        // This pipe shows whether exec succeeds: a successful exec closes the child's end of the
        // pipe, because of O_CLOEXEC.
        let (from_child, to_launcher) = pipe2(OFlag::O_CLOEXEC)?;
        // Ask at the last moment: after the fork, the terminal's signals also reach the child.
        let missed = signals::pending()?;
        // SAFETY: the child makes only async-signal-safe calls until the child executes a file or
        // exits.
        let child = match unsafe { fork() }? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let Err(error) = become_child(placement, launcher, inherited).and_then(|()| {
                    for (index, entry) in &mut self.pid_entries {
                        write!(entry, "{}\0", getpid()).expect("a Vec takes everything");
                        environment[*index] = entry.as_ptr().cast();
                    }
                    let file = self.file.as_ptr();
                    // SAFETY: each string ends with a NUL, and each array ends with a null pointer.
                    // The strings belong to `self`, which does not change during this call.
                    unsafe { libc::execve(file, words.as_ptr(), environment.as_ptr()) };
                    Err::<Infallible, _>(Errno::last())
                });
                // Ignore the error, because the write fails only if the launcher has ended.
                let _ = write(&to_launcher, &(error as i32).to_ne_bytes());
                // SAFETY: _exit(2) only ends the process.
                unsafe { libc::_exit(1) }
            }
        };
        drop(to_launcher);
        let stopped = await_exec(child, &from_child);
        let mut error = [0; 4];
        if read(&from_child, &mut error)? == 0 {
            // Ignore the error: the child may have ended.
            let _ = stopped.map(|signal| signals::send(child, signal));
            return Ok((child, missed));
        }
        waitpid(child, None)?;
        Err(Errno::from_raw(i32::from_ne_bytes(error)))
    }
}

/// Waits until `child` closes its end of the pipe by executing a file, or writes to the pipe. A key
/// such as Ctrl-Z may stop the child before then. Continues the child in this case, because the
/// launcher can do job control only after the file was executed, and returns the stop signal.
fn await_exec(child: Pid, from_child: &OwnedFd) -> Option<i32> {
    const CHECK: u8 = 20; // milliseconds
    let mut stopped = None;
    while poll(&mut [PollFd::new(from_child.as_fd(), PollFlags::POLLIN)], CHECK) == Ok(0) {
        if let Some(JobEvent::Stopped(signal)) = job_event(child) {
            stopped = Some(signal);
            // Ignore the error: the child may have ended.
            let _ = signals::send(child, libc::SIGCONT);
        }
    }
    stopped
}

/// Closes all pipes and sockets that this process inherited, except the standard streams. COMMAND
/// has inherited them, too. If the launcher kept copies, a pipe or a socket would stay open after
/// COMMAND has closed it. Files stay open, because closing a file would release this process's
/// locks on the file (F_SETLK in fcntl(2)). The launcher's own descriptors are closed on exec, the
/// inherited ones are not. Without /proc, does nothing.
pub fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    // The link's text names the kind of an anonymous pipe or a socket. Named pipes stay open, too:
    // looking a file up could block, for example on a server that is down.
    let is_stream = |path: &Path| {
        fs::read_link(path).is_ok_and(|target| {
            let target = target.as_os_str().as_bytes();
            target.starts_with(b"pipe:") || target.starts_with(b"socket:")
        })
    };
    let streams =
        entries.filter_map(|entry| Some(entry.ok()?.path()).filter(|path| is_stream(path)));
    let numbers = streams.filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    for number in numbers.filter(|number| *number > 2).collect::<Vec<RawFd>>() {
        // SAFETY: F_GETFD touches no memory.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == 0 {
            // Linux closes the descriptor even if close(2) returns an error.
            let _ = close(number);
        }
    }
}

/// Returns the array that execve(2) expects: a pointer to each string, and then a null pointer.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Prepares the child process between fork and exec. This function is async-signal-safe.
fn become_child(placement: Placement, launcher: Pid, inherited: &Inherited) -> nix::Result<()> {
    if placement == Placement::Own {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    }
    // Make the kernel send SIGTERM to the child when the thread that called fork(2) ends
    // (PR_SET_PDEATHSIG(2const)). This thread is the launcher's main thread.
    set_pdeathsig(Signal::SIGTERM)?;
    // If the launcher ended before the call of `set_pdeathsig`, the kernel sends no signal.
    if getppid() != launcher {
        return Err(Errno::ESRCH);
    }
    inherited.give_back()
}

/// The way in which a process has ended, or in which the launcher must end itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitOutcome {
    /// The process exited with this exit code from 0 to 255.
    Exited(i32),
    /// The signal with this number killed the process.
    Killed(i32),
}

impl ExitOutcome {
    /// Ends the launcher in the same way as COMMAND. If a signal killed COMMAND, the launcher kills
    /// itself by the same signal, because shell loops and xargs stop only if a signal kills the
    /// process that they started. If the signal does not kill the launcher, the launcher adds 128
    /// to the signal's number and exits with the sum, as a shell does.
    pub fn end_launcher(self) -> ! {
        let code = match self {
            ExitOutcome::Exited(code) => code,
            ExitOutcome::Killed(signal) => {
                signals::die_by(signal);
                128 + signal
            }
        };
        // SAFETY: _exit(2) only ends the process. exit(3) would also free OpenSSL's global data,
        // which another thread may still be using.
        unsafe { libc::_exit(code) }
    }
}

/// The event that a child process was stopped or continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// The signal with this number stopped the child.
    Stopped(i32),
    Continued,
}

/// Returns a child process that has ended, and how the child ended. Returns `None` if no child has
/// ended. The child stays a zombie until the caller calls [`reap`], so that the kernel does not
/// reuse the child's pid.
pub fn ended_child() -> Option<(Pid, ExitOutcome)> {
    let (child, code, status) = waitid(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)?;
    let killed = code != libc::CLD_EXITED;
    Some((child, if killed { ExitOutcome::Killed(status) } else { ExitOutcome::Exited(status) }))
}

/// Removes the process `zombie`, which has ended, from the kernel's process table.
pub fn reap(zombie: Pid) {
    waitid(libc::P_PID, zombie.as_raw() as libc::id_t, libc::WEXITED);
}

/// Removes all child processes that have ended from the kernel's process table.
pub fn reap_all() {
    while let Some((zombie, _)) = ended_child() {
        reap(zombie);
    }
}

/// Returns whether `child` was stopped or continued since the previous call. If both happened,
/// returns the later event. If neither happened, returns `None`.
pub fn job_event(child: Pid) -> Option<JobEvent> {
    let id = child.as_raw() as libc::id_t;
    match waitid(libc::P_PID, id, libc::WSTOPPED | libc::WCONTINUED)? {
        (_, libc::CLD_CONTINUED, _) => Some(JobEvent::Continued),
        (_, _, signal) => Some(JobEvent::Stopped(signal)),
    }
}

/// Calls waitid(2) without waiting for an event. Returns the pid, si_code and si_status of an
/// event, or `None` if there is no event or no child. nix's function `waitid` rejects real-time
/// signals.
fn waitid(kind: libc::idtype_t, id: libc::id_t, options: i32) -> Option<(Pid, i32, i32)> {
    // SAFETY: a siginfo_t that contains only zeroes is valid. For an event, waitid(2) sets si_pid
    // and si_status. If there is no event, or if waitid(2) fails because there is no child, si_pid
    // stays 0.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(kind, id, &mut info, options | libc::WNOHANG);
        let child = Pid::from_raw(info.si_pid());
        (info.si_pid() != 0).then(|| (child, info.si_code, info.si_status()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_is_stopped_before_exec_is_continued() {
        let (from_child, to_launcher) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut child = Command::new("sh");
        child.args(["-c", "kill -STOP $$; kill -TSTP $$; exit 3"]).stdout(to_launcher);
        let mut running = child.spawn().unwrap();
        drop(child);
        let stopped = await_exec(Pid::from_raw(running.id() as i32), &from_child);
        assert!(stopped.is_some());
        assert_eq!(running.wait().unwrap().code(), Some(3));
    }
}
