//! Signal mask, signal dispositions and resource limits: the launcher changes them for itself, and
//! COMMAND gets them as the launcher found them.

use std::io;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::Signal;

use super::signals::{self, Disposition, Mask};

/// The state that the launcher found and COMMAND gets back.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    mask: Mask,
    sigchld: Disposition,
    /// The limits on open descriptors and on core dumps; `None` if a limit could not be changed.
    limits: [Option<Limit>; 2],
}

/// A resource limit as it was found.
#[derive(Debug, Clone, Copy)]
struct Limit {
    resource: Resource,
    soft: rlim_t,
    hard: rlim_t,
}

impl Limit {
    /// Changes the soft limit to `wanted(hard limit)`. Returns the limit as it was found, or `None`
    /// if it could not be changed.
    fn change(resource: Resource, wanted: impl Fn(rlim_t) -> rlim_t) -> Option<Limit> {
        let (soft, hard) = getrlimit(resource).ok()?;
        setrlimit(resource, wanted(hard), hard).ok()?;
        Some(Limit { resource, soft, hard })
    }
}

/// The limit on core dumps, in bytes. A core dump would write passwords, keys and traffic to a
/// disk. A limit of 1 also keeps the kernel from piping the dump to a collector; a limit of 0 does
/// not (core(5), and the kernel's fs/coredump.c).
const NO_CORE: rlim_t = 1;

/// Keeps this process from dumping core, and other processes of the user from reading its memory,
/// as far as the system allows.
pub fn forbid_core_dumps() {
    no_core_dumps();
}

fn no_core_dumps() -> Option<Limit> {
    // exec makes COMMAND dumpable again (PR_SET_DUMPABLE(2const)). If the kernel refuses, the
    // limit below still prevents core dumps.
    let _ = nix::sys::prctl::set_dumpable(false);
    Limit::change(Resource::RLIMIT_CORE, |hard| NO_CORE.min(hard))
}

impl Inherited {
    /// Undoes the changes of Rust's runtime. A launcher that becomes COMMAND needs no more than
    /// this.
    ///
    /// # Errors
    /// As sigaction(2); none is expected.
    pub fn restore_before_exec() -> nix::Result<()> {
        signals::sigpipe_at_start().set(Signal::SIGPIPE).map(drop)
    }

    /// Prepares this process for its work as the launcher: blocks all signals (see
    /// [`signals::block_all`]), receives SIGCHLD even if it was ignored, allows as many descriptors
    /// as the hard limit, since a connection takes two, and forbids core dumps.
    ///
    /// # Errors
    /// As the system calls; none is expected.
    pub fn take_over() -> io::Result<Inherited> {
        let mask = signals::block_all()?;
        let sigchld = Disposition::Default.set(Signal::SIGCHLD)?;
        // If the limit cannot be raised, `accept` reports the lack of descriptors later.
        let limits = [Limit::change(Resource::RLIMIT_NOFILE, |hard| hard), no_core_dumps()];
        Ok(Inherited { mask, sigchld, limits })
    }

    /// Restores everything as it was found. Async-signal-safe.
    ///
    /// # Errors
    /// As the system calls; none is expected.
    pub fn give_back(&self) -> nix::Result<()> {
        for Limit { resource, soft, hard } in self.limits.iter().flatten() {
            setrlimit(*resource, *soft, *hard)?;
        }
        self.sigchld.set(Signal::SIGCHLD)?;
        Inherited::restore_before_exec()?;
        self.mask.swap().map(drop)
    }
}
