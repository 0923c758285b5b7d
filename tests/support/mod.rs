//! Code that all tests share: real servers, the real launcher, and waits with a time limit.

#![allow(dead_code)] // No test file uses the whole module.

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
pub mod tool;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal};
use socket2::{Domain, Socket, Type};

/// The time limit of each wait in a test. If one of the launcher's timeouts must not expire during
/// a test, the test sets this timeout to at least twice `PATIENCE`.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The time between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` returns a value. `what` describes the expected event.
///
/// # Panics
/// If `condition` still returns `None` after [`PATIENCE`].
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, condition)
}

/// Waits until `condition` is true. `what` describes the expected event.
///
/// # Panics
/// If `condition` is still false after [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Like [`eventually`], with the time limit `patience`.
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
        assert!(Instant::now() < deadline, "timed out; expected: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A process that is killed when this value is dropped, at the latest at the end of the test.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits until the process ends.
    pub fn wait(&mut self) -> ExitStatus {
        let Process(child) = self;
        eventually("the process ends", || child.try_wait().expect("wait"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a port `p` such that the ports `p` (for plaintext) and `p + 1` (for TLS) are free. No
/// other test gets these two ports until this process ends, because this process binds an abstract
/// socket as a claim. The kernel itself chooses only higher ports (see ip_local_port_range in
/// ip(7)).
pub fn two_free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    eventually("two neighbouring free ports", || {
        let step = NEXT.fetch_add(2, Ordering::Relaxed);
        let start = (std::process::id() % 9_000) as u16 * 2;
        let port = 10_000 + start.wrapping_add(step) % 20_000;
        (is_free(port) && is_free(port + 1)).then_some(())?;
        let claim = SocketAddr::from_abstract_name(format!("start-stunnel-tests-{port}")).unwrap();
        std::mem::forget(UnixListener::bind_addr(&claim).ok()?);
        Some(port)
    })
}

/// This function only binds the port. If it listened, a child that another thread is starting could
/// hold the listener open, and the port would be taken until the child runs its program.
fn is_free(port: u16) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()).is_ok()
}

/// Makes `command` run with the default actions for SIGHUP, SIGINT and SIGQUIT. The tests ignore
/// some of these signals if the tests run under nohup(1) or as a background job of a script. Each
/// program that a test starts would inherit the ignored signals.
pub fn heed_signals(command: &mut Command) {
    // SAFETY: signal(2) is async-signal-safe, and the default action runs no code of ours.
    unsafe {
        command.pre_exec(|| {
            for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
                nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
}

/// Prints why the running test is skipped. bin/test counts these lines. This function writes
/// directly to standard error, because the test harness hides all other output of successful tests.
pub fn skip(reason: &str) {
    let line = format!("skipped: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// True if the tests run as root. If not, prints that the running test is skipped.
pub fn is_root() -> bool {
    let is_root = nix::unistd::Uid::effective().is_root();
    if !is_root {
        skip("only root can do this");
    }
    is_root
}

/// Writes a file that every user may execute.
pub fn write_executable(file: &Path, content: impl AsRef<[u8]>) {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(content.as_ref()).unwrap();
    copy_executable(source.path(), file);
    fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
}

/// Copies a program or a script. A child process writes the copy. If this process wrote the copy,
/// a child that another thread is starting could hold the copy open, and the kernel would not
/// execute the copy (ETXTBSY in execve(2)).
pub fn copy_executable(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status().unwrap();
    assert!(copied.success(), "cannot copy {}", from.display());
}

/// Reads to the end. Returns all bytes, and the error if an error ended the stream.
pub fn rest(stream: &mut impl Read) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).err().map(|error| error.kind());
    (all, error)
}

/// A full pipe. If its writers write, they get an error instead of waiting (O_NONBLOCK). The pipe
/// contains only newlines.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(b"\n").is_ok() {}
    (reader, writer)
}

/// Makes the kernel send a TCP reset when this stream is closed.
pub fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Raises this process's limit on open descriptors. If the hard limit is below `needed`, prints
/// that the test is skipped, and returns `false`.
pub fn may_open(needed: u64) -> bool {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < needed {
        skip(&format!("{needed} descriptors are needed, and the hard limit is {hard}"));
        return false;
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    true
}

/// The body of a page of any HTTP server on 127.0.0.1. Returns `None` unless the page's status is
/// 200.
pub fn http_get(port: u16, path: &str) -> Option<String> {
    let answer = status::StatusPage { port }.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"))?;
    (answer.code == 200).then_some(answer.body)
}

/// The path of libfaketime, a library that changes a program's clock. If libfaketime is missing,
/// prints that the test is skipped, and returns `None`.
pub fn faketime() -> Option<&'static str> {
    const LIBRARIES: [&str; 2] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    ];
    let found = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        skip("libfaketime is missing");
    }
    found
}

/// The value of a setting in release.conf.
pub fn release_setting(name: &str) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/release.conf");
    let settings = fs::read_to_string(file).unwrap();
    let found = settings.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("no {name} in {file}")).to_owned()
}

/// The paths of all files below `folder`, in alphabetical order.
pub fn all_files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let (inner, found): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
        folders.extend(inner);
        files.extend(found);
    }
    files.sort();
    files
}

/// The files with this extension below a folder of this repository, in alphabetical order. Each
/// path is relative to the repository.
pub fn files(folder: &str, extension: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = all_files(&root.join(folder));
    all.retain(|path| path.extension().is_some_and(|found| found == extension));
    let relative = |path: &PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    all.iter().map(relative).collect()
}
