//! What the launcher found when it started, changed for itself, and gives back to COMMAND: signal
//! mask, signal dispositions, resource limits, and descriptors 0 to 2 where they were closed.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signals::{self, Mask};

/// SIGPIPE's disposition, before Rust's runtime ignores it on the way to `main`.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

// SAFETY: the loader calls what this section lists, on the main thread, before `main`;
// `record_startup_state` uses nothing that Rust's runtime would have to set up first.
#[used]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".init_array"))]
static BEFORE_MAIN: extern "C" fn() = record_startup_state;

/// Sees what Rust's runtime is about to change, and keeps it from opening a permanent /dev/null in
/// place of a closed standard stream: ours closes when COMMAND is executed.
extern "C" fn record_startup_state() {
    // SAFETY: plain system calls on memory of our own; a zeroed sigaction is a valid one.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut found);
        SIGPIPE_WAS_IGNORED.store(found.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        for stream in 0..=2 {
            if libc::fcntl(stream, libc::F_GETFD) == -1 {
                // The lowest free descriptor is this very one.
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            }
        }
    }
}

/// What COMMAND gets back.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    mask: Mask,
    sigchld_was_ignored: bool,
    /// On open descriptors, and on the size of a core dump; `None` where it could not be changed.
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
    /// Changes the soft limit to what `wanted` makes of the hard one; returns what was found. One
    /// that cannot be changed stays.
    fn change(resource: Resource, wanted: impl Fn(rlim_t) -> rlim_t) -> Option<Limit> {
        let (soft, hard) = getrlimit(resource).ok()?;
        setrlimit(resource, wanted(hard), hard).ok()?;
        Some(Limit { resource, soft, hard })
    }
}

/// A core dump would write passwords, keys and traffic to a disk. With a limit of 1 there is none,
/// and none is piped to a collector either, as one would be with 0 (core(5), and the kernel's
/// fs/coredump.c).
const NO_CORE: rlim_t = 1;

/// Keeps this process from dumping core, and other processes of the user from reading its memory,
/// as far as the system allows.
pub fn forbid_core_dumps() {
    no_core_dumps();
}

fn no_core_dumps() -> Option<Limit> {
    // exec makes COMMAND dumpable again (PR_SET_DUMPABLE(2const)). If the kernel refuses, the
    // limit below still prevents core dumps.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
    Limit::change(Resource::RLIMIT_CORE, |hard| NO_CORE.min(hard))
}

impl Inherited {
    /// What an unchanged launcher gives to the program that it becomes: only what Rust's runtime
    /// has changed is put back.
    pub fn restore_before_exec() -> io::Result<()> {
        Ok(restore(Signal::SIGPIPE, SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed))?)
    }

    /// Changes for the launcher what it needs otherwise: all signals blocked (see
    /// [`signals::block_all`]), SIGCHLD reported even where it was found ignored, and as many
    /// descriptors as the hard limit allows, since a connection takes two, and no core dump.
    ///
    /// # Errors
    /// As the system calls; none is expected.
    pub fn take_over() -> io::Result<Inherited> {
        let mask = signals::block_all()?;
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: installs no handler, so nothing can be interrupted by one.
        let sigchld = unsafe { sigaction(Signal::SIGCHLD, &default)? };
        // Descriptors that cannot be had: `accept` reports it when it comes to that.
        let limits = [Limit::change(Resource::RLIMIT_NOFILE, |hard| hard), no_core_dumps()];
        Ok(Inherited {
            mask,
            sigchld_was_ignored: matches!(sigchld.handler(), SigHandler::SigIgn),
            limits,
        })
    }

    /// Gives everything back; called between fork and exec, and async-signal-safe for that.
    pub fn give_back(&self) -> io::Result<()> {
        for Limit { resource, soft, hard } in self.limits.iter().flatten() {
            setrlimit(*resource, *soft, *hard)?;
        }
        restore(Signal::SIGCHLD, self.sigchld_was_ignored)?;
        Inherited::restore_before_exec()?;
        Ok(self.mask.swap().map(drop)?)
    }
}

/// Sets a signal that the launcher handles its own way back to ignored or default.
fn restore(signal: Signal, ignored: bool) -> nix::Result<()> {
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: installs no handler, so nothing can be interrupted by one.
    unsafe { sigaction(signal, &action) }.map(drop)
}
