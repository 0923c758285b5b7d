//! Saves the signal mask, signal dispositions and resource limits that the launcher inherited,
//! changes them for the launcher, and restores them for COMMAND.

use std::io;

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::Signal;

use super::signals::{self, Mask, set_ignored};

/// The signal mask, signal dispositions and resource limits that the launcher had when it started.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    mask: Mask,
    sigchld_was_ignored: bool,
    /// The limits on open descriptors and on core dumps. A limit is `None` if the launcher could
    /// not change the limit.
    limits: [Option<Limit>; 2],
}

/// A resource with its soft limit and its hard limit.
type Limit = (Resource, rlim_t, rlim_t);

/// Changes the soft limit of a resource. `wanted` computes the new soft limit from the hard limit.
/// Returns the old limits, or `None` if the soft limit cannot be changed.
fn change_limit(resource: Resource, wanted: impl Fn(rlim_t) -> rlim_t) -> Option<Limit> {
    let (soft, hard) = getrlimit(resource).ok()?;
    setrlimit(resource, wanted(hard), hard).ok()?;
    Some((resource, soft, hard))
}

/// The limit on core dumps, in bytes. A core dump would write passwords, keys and traffic to the
/// disk. If the limit is 0, the kernel still pipes a dump to a collector (core(5)). If the limit is
/// 1, the kernel makes no dump (fs/coredump.c).
const NO_CORE: rlim_t = 1;

/// Prevents core dumps of this process, and prevents other processes of the same user from reading
/// this process's memory. Ignores errors. Returns the old limits on core dumps.
pub fn forbid_core_dumps() -> Option<Limit> {
    // This call does not affect COMMAND, because execve(2) makes a process dumpable again
    // (PR_SET_DUMPABLE(2const)).
    let _ = set_dumpable(false);
    change_limit(Resource::RLIMIT_CORE, |hard| NO_CORE.min(hard))
}

impl Inherited {
    /// Restores SIGPIPE's disposition, which Rust's runtime changes before `main`. If the user
    /// disables the launcher, the launcher executes COMMAND in its own process. In this case, the
    /// launcher has changed no other disposition, no signal mask and no limit.
    ///
    /// # Errors
    /// Returns the error of sigaction(2), but no error is expected.
    pub fn restore_before_exec() -> nix::Result<()> {
        set_ignored(Signal::SIGPIPE, signals::sigpipe_was_ignored()).map(drop)
    }

    /// Prepares this process to supervise COMMAND and to relay traffic. Blocks all signals (see
    /// [`signals::block_all`]). Stops ignoring SIGCHLD. Raises the limit on descriptors to the hard
    /// limit, because each connection needs two descriptors. Prevents core dumps.
    ///
    /// # Errors
    /// Returns the error of a system call, but no error is expected.
    pub fn take_over() -> io::Result<Inherited> {
        let mask = signals::block_all()?;
        let sigchld_was_ignored = set_ignored(Signal::SIGCHLD, false)?;
        // If the limit on descriptors cannot be raised, continue, because `accept` later reports a
        // lack of descriptors.
        let limits = [change_limit(Resource::RLIMIT_NOFILE, |hard| hard), forbid_core_dumps()];
        Ok(Inherited { mask, sigchld_was_ignored, limits })
    }

    /// Restores the signal mask, dispositions and limits that the launcher had when it started.
    /// This function is async-signal-safe.
    ///
    /// # Errors
    /// Returns the error of a system call, but no error is expected.
    pub fn give_back(&self) -> nix::Result<()> {
        for (resource, soft, hard) in self.limits.into_iter().flatten() {
            setrlimit(resource, soft, hard)?;
        }
        set_ignored(Signal::SIGCHLD, self.sigchld_was_ignored)?;
        Inherited::restore_before_exec()?;
        self.mask.swap().map(drop)
    }
}
