//! What the launcher found before Rust's runtime changed it on the way to `main`.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use super::signals::Disposition;

static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

// SAFETY: the loader calls the functions in this section on the main thread, before `main`.
// `record_startup_state` needs nothing that Rust's runtime sets up.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = record_startup_state;

/// Records SIGPIPE's disposition, and opens /dev/null in place of each closed standard stream.
/// Rust's runtime would open a /dev/null that COMMAND inherits; ours closes on exec.
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

/// SIGPIPE's disposition when the launcher started.
pub fn sigpipe() -> Disposition {
    match SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) {
        true => Disposition::Ignored,
        false => Disposition::Default,
    }
}
