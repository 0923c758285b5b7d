//! Signals as data: all are blocked, and read from a descriptor together with their sender.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid};
use tokio::io::unix::AsyncFd;

/// The origin of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The kernel, usually for a terminal (`si_code` SI_KERNEL).
    Kernel,
    /// A process, by kill(2), sigqueue(3) or tgkill(2). The pid is 0 for a process outside the
    /// launcher's pid namespace.
    Process(Pid),
}

/// A signal that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The signal's number; real-time signals included.
    pub number: i32,
    pub sender: Sender,
}

impl Received {
    pub fn is(&self, signal: Signal) -> bool {
        self.number == signal as i32
    }

    /// This signal, if it is one of `signals`.
    pub fn one_of(&self, signals: &[Signal]) -> Option<Signal> {
        signals.iter().copied().find(|signal| self.is(*signal))
    }
}

/// The stream of this process's signals.
#[derive(Debug)]
pub struct Signals {
    descriptor: AsyncFd<SignalFd>,
}

/// A thread's signal mask in the kernel's format: bit n - 1 is signal n.
///
/// The C libraries' own functions never block the signals that the libraries use themselves: glibc
/// 32 and 33, musl also 34, which is glibc's SIGRTMIN. Such a signal would kill the launcher.
#[derive(Debug, Clone, Copy)]
pub struct Mask(u64);

impl Mask {
    const ALL: Mask = Mask(!0);

    fn all_but(number: i32) -> Mask {
        Mask(!(1 << (number - 1)))
    }

    /// Sets this thread's mask, and returns the previous mask. Async-signal-safe.
    ///
    /// # Errors
    /// As rt_sigprocmask(2); none is expected.
    pub fn swap(self) -> nix::Result<Mask> {
        let mut before = Mask(0);
        let (how, size) = (libc::SIG_SETMASK, size_of::<Mask>());
        // SAFETY: both pointers lead to masks of our own, whose size is the last argument.
        let done = unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const self.0, &raw mut before.0, size)
        };
        nix::errno::Errno::result(done).map(|_| before)
    }
}

/// Makes the kernel ignore `signal`, or perform the signal's default action. Returns whether the
/// signal was ignored before. Async-signal-safe.
///
/// # Errors
/// As sigaction(2); none is expected.
pub fn set_ignored(signal: Signal, ignored: bool) -> nix::Result<bool> {
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: installs no handler that could interrupt other code.
    let before = unsafe { nix::sys::signal::signal(signal, handler)? };
    Ok(matches!(before, SigHandler::SigIgn))
}

/// Recorded before `main`, because Rust's runtime makes the process ignore SIGPIPE.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

// SAFETY: the loader calls the functions in this section on the main thread, before `main`.
// `record_startup_state` does not need Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = record_startup_state;

/// Records SIGPIPE's disposition, and opens /dev/null in place of each closed standard stream.
/// Rust's runtime would also open /dev/null, but COMMAND would inherit that descriptor. This
/// descriptor closes on exec.
extern "C" fn record_startup_state() {
    // SAFETY: plain system calls on memory of our own; a zeroed sigaction is valid.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut found);
        SIGPIPE_WAS_IGNORED.store(found.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        for stream in 0..=2 {
            if libc::fcntl(stream, libc::F_GETFD) == -1 {
                // `stream` is the lowest free descriptor, so open(2) returns it.
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            }
        }
    }
}

/// Whether SIGPIPE was ignored when the launcher started.
pub fn sigpipe_was_ignored() -> bool {
    SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed)
}

/// Blocks every signal for this thread and the threads that it starts, and returns the previous
/// mask. Blocked signals wait for [`Signals`], even those that are ignored. Dispositions stay
/// unchanged, so that COMMAND inherits them.
pub fn block_all() -> nix::Result<Mask> {
    if cfg!(target_env = "musl") {
        // musl unblocks its own signals when a process starts its first thread, so start a thread
        // before the signals are blocked. If this thread fails, later threads also fail, and their
        // failure is reported.
        let _ = std::thread::Builder::new().spawn(|| ()).map(std::thread::JoinHandle::join);
    }
    Mask::ALL.swap()
}

/// Every signal, including those of the C library: see [`Mask`].
fn every_signal() -> SigSet {
    // SAFETY: a sigset_t is plain bits, and any of them may be set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        std::ptr::write_bytes(&raw mut set, 0xff, 1);
        SigSet::from_sigset_t_unchecked(set)
    }
}

impl Signals {
    /// Opens the stream. Signals that arrived since [`block_all`] come first.
    ///
    /// # Errors
    /// If the system refuses a descriptor.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> io::Result<Signals> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signal_fd = SignalFd::with_flags(&every_signal(), flags)?;
        // SAFETY: the SignalFd owns its descriptor and never replaces it.
        let descriptor = unsafe { AsyncFd::register(signal_fd)? };
        Ok(Signals { descriptor })
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    /// If the descriptor cannot be read, which would be a defect.
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
    // The kernel's SIGPIPE and similar signals have SI_USER and the launcher's own pid.
    let sender = match info.ssi_code {
        libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL => {
            Sender::Process(Pid::from_raw(info.ssi_pid as i32))
        }
        _ => Sender::Kernel,
    };
    Received { number: info.ssi_signo as i32, sender }
}

/// Sends signal `number` (real-time ones included) to a process, or to the process group of a
/// negative pid.
///
/// # Errors
/// As kill(2).
pub fn send(to: Pid, number: i32) -> nix::Result<()> {
    // SAFETY: kill(2) touches no memory. nix's wrapper does not know real-time signals.
    nix::errno::Errno::result(unsafe { libc::kill(to.as_raw(), number) }).map(drop)
}

/// Kills this process by signal `number`, without a core dump. Returns only if that is impossible,
/// as for pid 1, which the kernel protects from itself.
///
/// Call this on the main thread: every other thread blocks all signals.
pub fn die_by(number: i32) {
    // Even under RLIMIT_CORE 0, the kernel would pipe the memory to a collector (core(5)).
    let _ = set_dumpable(false);
    // SAFETY: installs no handler. Fails for SIGKILL, which needs no action.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    if send(getpid(), number).is_ok() {
        let _ = Mask::all_but(number).swap();
    }
}

/// The signals that have arrived but have not been read from [`Signals`].
pub fn pending() -> nix::Result<SigSet> {
    // SAFETY: a zeroed sigset_t is a valid one, and sigpending(2) fills it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        nix::errno::Errno::result(libc::sigpending(&mut set))?;
        Ok(SigSet::from_sigset_t_unchecked(set))
    }
}

/// Stops this process by `signal` (SIGTSTP, SIGTTIN or SIGTTOU) until a SIGCONT continues the
/// process. [`Signals`] does not return that SIGCONT. Returns false if the kernel ignored `signal`,
/// because the process is pid 1, or because no shell could continue its orphaned process group
/// (POSIX 2.4.3).
pub fn stop_self(signal: Signal) -> nix::Result<bool> {
    let mask = SigSet::from(signal);
    // A stop signal discards a pending SIGCONT, which its sender would not repeat. A SIGCONT
    // between the check and the stop is lost: no system call does both.
    if !pending()?.contains(Signal::SIGCONT) {
        kill(getpid(), signal)?;
        mask.thread_unblock()?; // Here the signal is delivered, and this process stops.
        mask.thread_block()?;
    }
    let sigcont = SigSet::from(Signal::SIGCONT);
    let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads a signal set and a time of our own.
    let taken = unsafe { libc::sigtimedwait(sigcont.as_ref(), std::ptr::null_mut(), &no_wait) };
    Ok(taken == libc::SIGCONT)
}
