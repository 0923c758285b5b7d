//! Receives and sends signals. The launcher blocks all signals, and reads each signal, together
//! with the signal's sender, from a descriptor (signalfd(2)). Before `main`, this module also
//! records and prepares what Rust's runtime would change: SIGPIPE and closed standard streams.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid};
use tokio::io::unix::AsyncFd;

use super::stream;

/// A signal that the launcher has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The number of the signal, which may be a real-time signal.
    pub number: i32,
    /// The process that sent the signal by kill(2), sigqueue(3) or tgkill(2). The pid is 0 if the
    /// process is outside the launcher's pid namespace. `None` if the kernel sent the signal
    /// (`si_code` SI_KERNEL), usually for a terminal.
    pub sender: Option<Pid>,
}

impl Received {
    pub fn is(&self, signal: Signal) -> bool {
        self.number == signal as i32
    }

    /// Returns the received signal, if `signals` contains the signal.
    pub fn one_of(&self, signals: &[Signal]) -> Option<Signal> {
        signals.iter().copied().find(|signal| self.is(*signal))
    }
}

/// The stream of the signals that this process receives.
#[derive(Debug)]
pub struct Signals {
    descriptor: AsyncFd<SignalFd>,
}

/// A thread's signal mask in the kernel's format. Bit 0 stands for signal 1, bit 1 for signal 2,
/// and so on.
///
/// The C library's functions cannot block every signal, because glibc keeps signals 32 and 33 for
/// itself, and musl keeps signals 32 to 34. An unblocked signal would kill the launcher.
#[derive(Debug, Clone, Copy)]
pub struct Mask(u64);

impl Mask {
    /// Sets this thread's signal mask, and returns the previous mask. This function is
    /// async-signal-safe.
    ///
    /// # Errors
    /// Returns the error of rt_sigprocmask(2), but no error is expected.
    pub fn swap(self) -> nix::Result<Mask> {
        let mut before = Mask(0);
        let (how, size) = (libc::SIG_SETMASK, size_of::<Mask>());
        // SAFETY: both pointers point to local masks, and the last argument is the size of a mask.
        let done = unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const self.0, &raw mut before.0, size)
        };
        nix::errno::Errno::result(done).map(|_| before)
    }
}

/// Makes the kernel ignore `signal`, or perform the signal's default action. Returns true if the
/// kernel ignored the signal before. This function is async-signal-safe.
///
/// # Errors
/// Returns the error of sigaction(2), but no error is expected.
pub fn set_ignored(signal: Signal, ignored: bool) -> nix::Result<bool> {
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: neither SIG_IGN nor SIG_DFL runs a handler that could interrupt other code.
    let before = unsafe { nix::sys::signal::signal(signal, handler)? };
    Ok(matches!(before, SigHandler::SigIgn))
}

/// Returns true if the kernel ignores `signal` for this process. This function does not need
/// Rust's runtime.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction(2) writes only to `found`, and a sigaction that contains only zeroes is
    // valid.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, std::ptr::null(), &mut found);
        found.sa_sigaction == libc::SIG_IGN
    }
}

/// True if SIGPIPE was ignored when the launcher started. The launcher stores the value before
/// Rust's runtime starts, because Rust's runtime makes the process ignore SIGPIPE.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

// SAFETY: the dynamic loader calls the functions in the section .init_array on the main thread,
// before `main`. `record_startup_state` does not need Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = record_startup_state;

/// Records whether SIGPIPE is ignored, and opens a replacement for each closed standard stream.
/// COMMAND does not inherit the replacements. Without a replacement, Rust's runtime would open
/// /dev/null, and COMMAND would inherit the descriptor. If /dev/null is missing, Rust's runtime
/// would abort.
extern "C" fn record_startup_state() {
    SIGPIPE_WAS_IGNORED.store(is_ignored(Signal::SIGPIPE), Ordering::Relaxed);
    for number in 0..=2 {
        // SAFETY: F_GETFD writes to no memory.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            // The replacement gets `number`, because `number` is the lowest free descriptor.
            let _ = stream::closed().map(OwnedFd::into_raw_fd);
        }
    }
}

/// Returns true if SIGPIPE was ignored when the launcher started.
pub fn sigpipe_was_ignored() -> bool {
    SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed)
}

/// Blocks every signal for this thread and for the threads that this thread starts later. Returns
/// the previous mask. [`Signals`] returns the blocked signals, even signals whose disposition is
/// "ignore". Leaves all dispositions unchanged, so that COMMAND inherits the original dispositions.
pub fn block_all() -> nix::Result<Mask> {
    if cfg!(target_env = "musl") {
        // musl unblocks signals 32 to 34 when a process starts its first thread, so start a thread
        // before blocking the signals. Ignore the error, because if the system refuses this thread,
        // the system also refuses later threads, and the launcher then reports the error.
        let _ = std::thread::Builder::new().spawn(|| ()).map(std::thread::JoinHandle::join);
    }
    Mask(!0).swap()
}

/// Returns the set of all signals, including the signals that the C library keeps for itself (see
/// [`Mask`]).
fn every_signal() -> SigSet {
    // SAFETY: a sigset_t is an array of bits, and any combination of bits is valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        std::ptr::write_bytes(&raw mut set, 0xff, 1);
        SigSet::from_sigset_t_unchecked(set)
    }
}

impl Signals {
    /// Opens the stream. The stream begins with the signals that have arrived since [`block_all`].
    ///
    /// # Errors
    /// Returns the error of signalfd(2) or epoll_ctl(2), for example if no descriptor is free.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn open() -> io::Result<Signals> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signal_fd = SignalFd::with_flags(&every_signal(), flags)?;
        // SAFETY: a SignalFd owns its descriptor, and never replaces the descriptor.
        let descriptor = unsafe { AsyncFd::register(signal_fd)? };
        Ok(Signals { descriptor })
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    /// Returns an error if the descriptor cannot be read. No error is expected.
    pub async fn next(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.descriptor.readable().await?;
            match self.descriptor.get_ref().read_signal()? {
                Some(info) => return Ok(received(&info)),
                None => ready.clear_ready(),
            }
        }
    }
}

fn received(info: &libc::signalfd_siginfo) -> Received {
    // If the kernel sends SIGPIPE or a similar signal, `ssi_code` is SI_USER and the sender is the
    // launcher itself.
    let by_process = matches!(info.ssi_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
    let sender = by_process.then(|| Pid::from_raw(info.ssi_pid as i32));
    Received { number: info.ssi_signo as i32, sender }
}

/// Sends the signal `number`, which may be a real-time signal, to the process `to`. If `to` is
/// negative, sends the signal to the process group with the number `-to`.
///
/// # Errors
/// Returns the error of kill(2).
pub fn send(to: Pid, number: i32) -> nix::Result<()> {
    // SAFETY: kill(2) touches no memory. nix's function `kill` cannot send real-time signals.
    nix::errno::Errno::result(unsafe { libc::kill(to.as_raw(), number) }).map(drop)
}

/// Kills this process by the signal `number`, without a core dump. Returns only if the signal does
/// not kill the process, for example because the process is pid 1.
///
/// The caller must be the main thread, because all other threads block all signals.
pub fn die_by(number: i32) {
    // Make the process undumpable, because the kernel would pipe a core dump to a collector even if
    // RLIMIT_CORE is 0 (core(5)).
    let _ = set_dumpable(false);
    // SAFETY: SIG_DFL runs no handler. The call fails only for signals such as SIGKILL, which
    // always have their default action.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    if send(getpid(), number).is_ok() {
        let _ = Mask(!(1 << (number - 1))).swap();
    }
}

/// Returns the signals that this process has received, but that [`Signals`] has not returned yet.
pub fn pending() -> nix::Result<SigSet> {
    // SAFETY: a sigset_t that contains only zeroes is valid, and sigpending(2) fills the set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        nix::errno::Errno::result(libc::sigpending(&mut set))?;
        Ok(SigSet::from_sigset_t_unchecked(set))
    }
}

/// Stops this process by `signal` (SIGTSTP, SIGTTIN or SIGTTOU) until a SIGCONT continues the
/// process. [`Signals`] does not return this SIGCONT. `whom` is this process, or 0 for its whole
/// process group (kill(2)). Returns false if the kernel ignored `signal`, because the process is
/// pid 1 or belongs to an orphaned process group, which no shell could continue (POSIX 2.4.3).
pub fn stop(whom: Pid, signal: Signal) -> nix::Result<bool> {
    let mask = SigSet::from(signal);
    // Do not stop if a SIGCONT is pending, because a stop signal discards a pending SIGCONT. A
    // SIGCONT that arrives between the check and the stop is lost, because no system call can check
    // and stop at once.
    if !pending()?.contains(Signal::SIGCONT) {
        kill(whom, signal)?;
        mask.thread_unblock()?; // The kernel delivers the signal here, and this process stops.
        mask.thread_block()?;
    }
    let sigcont = SigSet::from(Signal::SIGCONT);
    let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: sigtimedwait(2) only reads the local values `sigcont` and `no_wait`.
    let taken = unsafe { libc::sigtimedwait(sigcont.as_ref(), std::ptr::null_mut(), &no_wait) };
    Ok(taken == libc::SIGCONT)
}
