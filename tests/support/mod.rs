//! Real servers, the real launcher, and bounded waits for the tests.

#![allow(dead_code)] // Each test file uses its own part.

pub mod dist;
pub mod figures;
pub mod launcher;
pub mod links;
pub mod peer;
pub mod pki;
pub mod proc;
pub mod pty;
pub mod resp;
pub mod scripted;
pub mod servers;
pub mod slow_link;
pub mod snippets;
pub mod status;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal};

/// How long anything may take before a test fails: far more than it does. A timeout that must not
/// pass in a test is twice as long.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` yields something.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, condition)
}

/// Like [`eventually`], for what takes longer by design.
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A process that does not outlive the test.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let Process(child) = self;
        eventually("the process ends", || child.try_wait().expect("wait"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port `p`; `p` and `p + 1` are free, for a plaintext server and TLS next to it. No other test
/// gets them, also while a server is restarted: both are below the ports that the kernel picks
/// (ip_local_port_range in ip(7)), and this process claims them until it ends.
pub fn two_free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    eventually("two neighbouring free ports", || {
        let step = NEXT.fetch_add(2, Ordering::Relaxed);
        let start = (std::process::id() % 9_000) as u16 * 2;
        let port = 10_000 + start.wrapping_add(step) % 20_000;
        let _first = TcpListener::bind(("127.0.0.1", port)).ok()?;
        let _second = TcpListener::bind(("127.0.0.1", port + 1)).ok()?;
        let claim = SocketAddr::from_abstract_name(format!("start-stunnel-tests-{port}")).unwrap();
        std::mem::forget(UnixListener::bind_addr(&claim).ok()?);
        Some(port)
    })
}

/// Has a program find the signals from terminals with their default action, however the tests were
/// started: a script's background job, or what nohup(1) runs, ignores some, and hands that on.
pub fn heed_signals(command: &mut Command) {
    // SAFETY: signal(2) is async-signal-safe, and the default action is no handler of ours.
    unsafe {
        command.pre_exec(|| {
            for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
                nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
}

/// Says that the running test is skipped, and why. bin/test counts these lines, so they are written
/// past the test harness, which hides what a successful test prints.
pub fn skip(reason: &str) {
    let line = format!("skipped: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Reads to the end and says how it came.
pub fn rest(stream: &mut impl Read) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).err().map(|error| error.kind());
    (all, error)
}

/// Makes closing a stream send a reset.
pub fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// libfaketime, by which the clock can be made to jump while a program runs; `None`, said aloud,
/// without.
pub fn faketime() -> Option<&'static str> {
    const LIBRARIES: [&str; 2] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    ];
    let found = LIBRARIES.into_iter().find(|path| std::path::Path::new(path).exists());
    if found.is_none() {
        skip("there is no libfaketime here");
    }
    found
}

/// What release.conf says of `name`.
pub fn release_setting(name: &str) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/release.conf");
    let settings = std::fs::read_to_string(file).unwrap();
    let found = settings.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("no {name} in {file}")).to_owned()
}
