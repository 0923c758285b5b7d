//! Signal mask, signal dispositions and resource limits: the launcher changes them for itself, and
//! COMMAND gets them as the launcher found them.

use std::io;

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::Signal;

use super::signals::{self, Mask, set_ignored};

/// The state that the launcher found and COMMAND gets back.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    mask: Mask,
    sigchld_was_ignored: bool,
    /// The limits on open descriptors and on core dumps; `None` if a limit could not be changed.
    limits: [Option<Limit>; 2],
}

/// A resource limit: first the soft limit, then the hard limit.
type Limit = (Resource, rlim_t, rlim_t);

/// Changes the soft limit to `wanted(hard limit)`. Returns the limit as it was found, or `None` if
/// it could not be changed.
fn change_limit(resource: Resource, wanted: impl Fn(rlim_t) -> rlim_t) -> Option<Limit> {
    let (soft, hard) = getrlimit(resource).ok()?;
    setrlimit(resource, wanted(hard), hard).ok()?;
    Some((resource, soft, hard))
}

/// The limit on core dumps, in bytes. A core dump would write passwords, keys and traffic to a
/// disk. A limit of 1 also keeps the kernel from piping the dump to a collector; a limit of 0 does
/// not (core(5), and the kernel's fs/coredump.c).
const NO_CORE: rlim_t = 1;

/// Keeps this process from dumping core, and other processes of the user from reading its memory,
/// as far as the system allows. Returns the limit on core dumps as it was found.
pub fn forbid_core_dumps() -> Option<Limit> {
    // exec makes COMMAND dumpable again (PR_SET_DUMPABLE(2const)). If the kernel refuses, the
    // limit below still prevents core dumps.
    let _ = set_dumpable(false);
    change_limit(Resource::RLIMIT_CORE, |hard| NO_CORE.min(hard))
}

impl Inherited {
    /// Undoes the changes of Rust's runtime. A launcher that becomes COMMAND needs no more than
    /// this.
    ///
    /// # Errors
    /// As sigaction(2); none is expected.
    pub fn restore_before_exec() -> nix::Result<()> {
        set_ignored(Signal::SIGPIPE, signals::sigpipe_was_ignored()).map(drop)
    }

    /// Prepares this process for its work as the launcher: blocks all signals (see
    /// [`signals::block_all`]), receives SIGCHLD even if it was ignored, allows as many descriptors
    /// as the hard limit, since a connection takes two, and forbids core dumps.
    ///
    /// # Errors
    /// As the system calls; none is expected.
    pub fn take_over() -> io::Result<Inherited> {
        let mask = signals::block_all()?;
        let sigchld_was_ignored = set_ignored(Signal::SIGCHLD, false)?;
        // If the limit cannot be raised, `accept` reports the lack of descriptors later.
        let limits = [change_limit(Resource::RLIMIT_NOFILE, |hard| hard), forbid_core_dumps()];
        Ok(Inherited { mask, sigchld_was_ignored, limits })
    }

    /// Restores everything as it was found. Async-signal-safe.
    ///
    /// # Errors
    /// As the system calls; none is expected.
    pub fn give_back(&self) -> nix::Result<()> {
        for (resource, soft, hard) in self.limits.into_iter().flatten() {
            setrlimit(resource, soft, hard)?;
        }
        set_ignored(Signal::SIGCHLD, self.sigchld_was_ignored)?;
        Inherited::restore_before_exec()?;
        self.mask.swap().map(drop)
    }
}
