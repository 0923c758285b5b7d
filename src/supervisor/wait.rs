//! How processes end: waitid(2), with real-time signals told apart, which nix's wrapper cannot.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

use super::signals;

/// How a process ended, or is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitOutcome {
    /// By itself, with this code (0 to 255).
    Exited(i32),
    /// By the signal of this number.
    Killed(i32),
}

impl ExitOutcome {
    /// The exit code: 128 + the signal's number, as in shells, for a process that a signal killed.
    fn exit_code(self) -> i32 {
        match self {
            ExitOutcome::Exited(code) => code,
            ExitOutcome::Killed(signal) => 128 + signal,
        }
    }

    /// Ends the launcher in the same way: a shell that runs it in a loop, xargs and others look at
    /// the signal, not at the exit code. If the signal does not kill the launcher, its exit code
    /// tells the signal.
    pub fn end_launcher(self) -> ! {
        if let ExitOutcome::Killed(signal) = self {
            signals::die_by(signal);
        }
        // SAFETY: ends the process, and nothing else. `exit` would have OpenSSL tear down its
        // globals while another thread may still read certificates.
        unsafe { libc::_exit(self.exit_code()) }
    }
}

/// What happened to a child that goes on living.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// Stopped by the signal of this number.
    Stopped(i32),
    Continued,
}

/// A child that has ended but is still a zombie, if any: its pid and process group are not reused
/// until [`reap`].
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

/// Removes every zombie that is there.
pub fn reap_all() {
    while let Some((zombie, _)) = ended_child() {
        reap(zombie);
    }
}

/// Whether `child` was stopped or continued since this was asked last; the latest state counts.
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

/// Never waits; `None` when there is nothing to tell or no child left.
fn waitid(kind: libc::idtype_t, id: libc::id_t, options: i32) -> Option<Info> {
    // SAFETY: waitid(2) fills the siginfo_t, for which all zeroes is a valid value; si_pid and
    // si_status are the fields that it fills for a child's event. A pid of 0 means no event.
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
                // ECHILD: none left. Anything else would be a defect in the arguments above.
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(ExitOutcome::Exited(0).exit_code(), 0);
        assert_eq!(ExitOutcome::Exited(255).exit_code(), 255);
        assert_eq!(ExitOutcome::Killed(15).exit_code(), 143);
        assert_eq!(ExitOutcome::Killed(64).exit_code(), 192);
    }
}
