//! Starts, executes, awaits and ends processes.

#![allow(unsafe_code)]

use std::env;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{self, c_char};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pipe2, setpgid, write};

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

/// A list of C strings, for execve(2).
pub struct Strings {
    strings: Vec<Vec<u8>>,
    /// Allocated in advance, because nothing may be allocated between fork and exec.
    pointers: Vec<*const c_char>,
}

impl Strings {
    pub fn new(strings: Vec<CString>) -> Strings {
        let pointers = Vec::with_capacity(strings.len() + 1);
        let strings = strings.into_iter().map(CString::into_bytes_with_nul).collect();
        Strings { strings, pointers }
    }

    /// Reserves memory in string `index` for [`Strings::write_number`].
    pub fn reserve_number(&mut self, index: usize) {
        const LONGEST: usize = "-2147483648\0".len();
        self.strings[index].reserve(LONGEST);
    }

    /// Replaces everything from byte `start` of string `index` with a number. Async-signal-safe
    /// after [`Strings::reserve_number`].
    pub fn write_number(&mut self, index: usize, start: usize, number: i32) {
        let string = &mut self.strings[index];
        string.truncate(start);
        write!(string, "{number}\0").expect("a Vec takes everything");
    }

    /// Pointers to the strings, then a null pointer; valid until `self` changes.
    fn array(&mut self) -> *const *const c_char {
        self.pointers.clear();
        self.pointers.extend(self.strings.iter().map(|string| string.as_ptr().cast::<c_char>()));
        self.pointers.push(std::ptr::null());
        self.pointers.as_ptr()
    }
}

/// A program to execute. Everything is allocated in advance: nothing may be allocated between fork
/// and exec.
pub struct Program {
    /// The files to try, in order.
    pub files: Vec<CString>,
    pub words: Strings,
    environment: Strings,
    /// The entries of `environment` that get the program's pid: the index of each, and the byte at
    /// which the pid starts.
    pid_entries: Vec<(usize, usize)>,
}

/// The reason why no file of a [`Program`] could be executed.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    pub error: Errno,
    /// The index of the file that caused the error; [`u32::MAX`] if no file did.
    pub file: u32,
}

impl Failure {
    fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.file) << 32 | self.error as u64).to_ne_bytes()
    }

    fn from_bytes(bytes: [u8; 8]) -> Failure {
        let both = u64::from_ne_bytes(bytes);
        Failure { error: Errno::from_raw(both as i32), file: (both >> 32) as u32 }
    }
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
    pub fn new(files: Vec<CString>, words: Strings, environment: Strings) -> Program {
        Program { files, words, environment, pid_entries: Vec::new() }
    }

    /// Makes [`Program::execute`] write the program's pid into these entries.
    pub fn name_pid_in(&mut self, entries: Vec<(usize, usize)>) {
        entries.iter().for_each(|(index, _)| self.environment.reserve_number(*index));
        self.pid_entries = entries;
    }

    /// Executes the first executable file, in place of this process. Returns only if no file can be
    /// executed. Async-signal-safe.
    pub fn execute(&mut self) -> Failure {
        for (index, start) in &self.pid_entries {
            self.environment.write_number(*index, *start, getpid().as_raw());
        }
        let (words, environment) = (self.words.array(), self.environment.array());
        let mut failure = Failure { error: Errno::ENOENT, file: 0 };
        for (path, file) in self.files.iter().zip(0..) {
            // SAFETY: every string ends with a NUL, and both arrays with a null pointer. All of
            // them belong to `self`, which does not change meanwhile.
            unsafe { libc::execve(path.as_ptr(), words, environment) };
            match Errno::last() {
                // A later folder of PATH may have the program, as in execvp(3).
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => failure = Failure { error: Errno::EACCES, file },
                error => return Failure { error, file },
            }
        }
        failure
    }

    /// Executes the program in a child process, with the state that the launcher `inherited`. The
    /// child gets SIGTERM when the launcher dies. The inner error says why the program could not be
    /// executed.
    ///
    /// # Errors
    /// If the system refuses a process or a pipe.
    pub fn spawn(
        &mut self,
        placement: Placement,
        inherited: &Inherited,
    ) -> io::Result<Result<Pid, Failure>> {
        let launcher = getpid();
        // A successful exec closes the child's end.
        let (from_child, to_launcher) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: until the child executes a file or exits, it makes only async-signal-safe calls.
        let child = match unsafe { fork() }? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let failure = match become_child(placement, launcher, inherited) {
                    Ok(()) => self.execute(),
                    Err(error) => Failure { error, file: u32::MAX },
                };
                // If the write fails, the launcher is gone.
                let _ = write(&to_launcher, &failure.to_bytes());
                // SAFETY: ends the process, and nothing else.
                unsafe { libc::_exit(1) }
            }
        };
        drop(to_launcher);
        let mut written = Vec::new();
        File::from(from_child).read_to_end(&mut written)?;
        match <[u8; 8]>::try_from(written) {
            Err(_) => Ok(Ok(child)),
            Ok(failure) => {
                waitpid(child, None)?;
                Ok(Err(Failure::from_bytes(failure)))
            }
        }
    }
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
    let info = waitid(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)?;
    let ended = match info.code {
        libc::CLD_EXITED => ExitOutcome::Exited(info.status),
        _ => ExitOutcome::Killed(info.status),
    };
    Some((info.pid, ended))
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
    let info = waitid(libc::P_PID, id, libc::WSTOPPED | libc::WCONTINUED)?;
    match info.code {
        libc::CLD_STOPPED => Some(JobEvent::Stopped(info.status)),
        libc::CLD_CONTINUED => Some(JobEvent::Continued),
        _ => None,
    }
}

struct Info {
    pid: Pid,
    code: i32,
    status: i32,
}

/// Calls waitid(2) without waiting, because nix's wrapper does not know real-time signals. `None`
/// if there is no event, or no child.
fn waitid(kind: libc::idtype_t, id: libc::id_t, options: i32) -> Option<Info> {
    // SAFETY: all zeroes are a valid siginfo_t. For a child's event, waitid(2) fills si_pid and
    // si_status; without an event, si_pid stays 0.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        loop {
            match Errno::result(libc::waitid(kind, id, &mut info, options | libc::WNOHANG)) {
                Ok(_) if info.si_pid() == 0 => return None,
                Ok(_) => {
                    return Some(Info {
                        pid: Pid::from_raw(info.si_pid()),
                        code: info.si_code,
                        status: info.si_status(),
                    });
                }
                Err(Errno::EINTR) => {}
                // ECHILD: there is no child. Any other error would be a defect in the arguments.
                Err(_) => return None,
            }
        }
    }
}
