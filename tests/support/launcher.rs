//! Runs the real binary, as a user does.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::resp::Client;
use super::servers::PASSWORD;
use super::status::StatusPage;
use super::{PATIENCE, Process, copy_executable, heed_signals, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_start-stunnel");

/// If this environment variable is set, launchers run under valgrind. The variable contains the
/// path of the folder for valgrind's logs (see bin/soak).
const VALGRIND_LOGS: &str = "VALGRIND_LOGS";

/// A script for COMMAND: prints the tunnelled URL, then waits until its standard input ends.
pub const HOLD: &str = "printf '%s\\n' \"$REDIS_URL\"; exec cat >/dev/null";

/// Like [`HOLD`], but also prints the second tunnel's URL.
pub const HOLD_TWO: &str = "echo $REDIS_URL; echo $OTHER_URL; exec cat >/dev/null";

/// A launcher that a test will start. The launcher inherits only a few environment variables.
pub struct Launcher {
    pub command: Command,
}

/// The exit status and the output of a launcher.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Runs a command without input until it ends.
    pub fn of(command: &mut Command) -> Outcome {
        let output = command.stdin(Stdio::null()).output();
        let Output { status, stdout, stderr } = output.expect("the program starts");
        let [stdout, stderr] =
            [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Outcome { status, stdout, stderr }
    }

    /// Checks that the program succeeded and printed no error. Returns its standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.code(), self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout
    }

    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// The signal that killed the launcher.
    pub fn signal(&self) -> i32 {
        self.status.signal().unwrap_or_else(|| panic!("ended by no signal: {self:?}"))
    }
}

impl Launcher {
    /// A launcher with the command line `words`. The kernel chooses the launcher's ports, so that
    /// tests can run at the same time.
    pub fn new<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Launcher {
        match std::env::var_os(VALGRIND_LOGS) {
            None => Launcher::of(BINARY, words),
            Some(folder) => {
                let log = Path::new(&folder).join("%p");
                let log = format!("--log-file={}", log.display());
                let mut launcher = Launcher::of("valgrind", ["-q", "--error-exitcode=99", &log]);
                launcher.command.arg(BINARY).args(words);
                launcher
            }
        }
    }

    /// Like `new`, but starts `program` with the arguments `words`. In most tests, `program` then
    /// executes the launcher.
    pub fn of<S: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = S>) -> Launcher {
        let mut command = Command::new(program);
        command.args(words).env_clear().env("STUNNEL_LISTEN_PORT", "0");
        for inherited in ["PATH", "HOME", "LANG"] {
            if let Some(value) = std::env::var_os(inherited) {
                command.env(inherited, value);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        heed_signals(&mut command);
        Launcher { command }
    }

    /// A launcher with the command line `words` that runs as `user`. Only root can start this
    /// launcher. The binary is copied to `folder`, because `user` might lack access to the
    /// original.
    pub fn as_user(user: u32, folder: &Path, words: &[&str]) -> Launcher {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        let copy = folder.join("start-stunnel");
        copy_executable(Path::new(BINARY), &copy);
        let user = format!("--reuid={user}");
        let mut launcher = Launcher::of("setpriv", ["--clear-groups", "--regid=65534", &user]);
        launcher.command.arg(copy).args(words);
        launcher
    }

    /// A launcher with a shell script as COMMAND.
    pub fn script(script: &str) -> Launcher {
        Launcher::new(["sh", "-c", script])
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Launcher {
        self.command.env(name, value);
        self
    }

    /// Sets several environment variables.
    pub fn settings(mut self, settings: &[(&str, &str)]) -> Launcher {
        for (name, value) in settings {
            self.command.env(name, value);
        }
        self
    }

    pub fn redis(self, url: &str) -> Launcher {
        self.env("REDIS_URL", url)
    }

    /// Starts the launcher, and waits until it ends.
    pub fn run(self) -> Outcome {
        self.start().finish()
    }

    /// Runs a launcher that must exit with code 78 before COMMAND starts. Returns the log.
    pub fn refused(self) -> String {
        let ended = self.run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
        ended.stderr
    }

    pub fn start(mut self) -> Running {
        let mut child = self.command.spawn().expect("start-stunnel starts");
        let stderr = child.stderr.take().map(collect);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        Running { process: Process(child), stdin, stdout, stderr }
    }

    /// A launcher whose COMMAND runs until [`Running::finish`].
    pub fn holding(url: &str) -> Launcher {
        Launcher::script(HOLD).redis(url)
    }

    /// Starts a launcher whose COMMAND runs until [`Running::finish`]. Returns when the tunnel is
    /// up.
    pub fn hold(url: &str) -> Held {
        Launcher::holding(url).start_held()
    }

    /// Like `hold`, with settings.
    pub fn hold_with(url: &str, settings: &[(&str, &str)]) -> Held {
        Launcher::holding(url).settings(settings).start_held()
    }

    /// Starts a launcher with a tunnel to each of two servers. The launcher's script must be
    /// [`HOLD_TWO`]. Returns the launcher and the second tunnel's port.
    pub fn start_two(self, url: &str, other: &str) -> (Held, u16) {
        let launcher = self.redis(url).env("OTHER_URL", other);
        let mut held = launcher.env("REDIS_STUNNEL_URLS", "REDIS_URL OTHER_URL").start_held();
        let port = port_of(&held.running.line());
        (held, port)
    }

    /// Like `hold`, for any COMMAND that first prints the value of `REDIS_URL`, as [`HOLD`] does.
    pub fn start_held(self) -> Held {
        let mut running = self.start();
        let url = running.line();
        let port = port_of(&url);
        Held { running, url, port }
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read output");
        String::from_utf8_lossy(&all).into_owned()
    })
}

/// A running launcher.
pub struct Running {
    pub process: Process,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits for the next line that COMMAND prints. Returns an empty text at the end of the output.
    ///
    /// # Panics
    /// If no line comes within [`PATIENCE`].
    pub fn line(&mut self) -> String {
        let stdout = self.stdout.as_mut().expect("stdout");
        let mut line = Vec::new();
        loop {
            if stdout.buffer().is_empty() {
                let mut waiting = [PollFd::new(stdout.get_ref().as_fd(), PollFlags::POLLIN)];
                let patience = PollTimeout::try_from(PATIENCE).expect("some seconds");
                let arrived = poll(&mut waiting, patience).expect("poll");
                assert_ne!(arrived, 0, "timed out waiting for a line from COMMAND");
            }
            let there = stdout.fill_buf().expect("a line");
            let end = there.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(there.len());
            line.extend(&there[..taken]);
            stdout.consume(taken);
            if end.is_some() || taken == 0 {
                let line = String::from_utf8(line).expect("text");
                return line.trim_end_matches('\n').to_owned();
            }
        }
    }

    pub fn signal(&self, number: i32) {
        send_signal(self.pid(), number);
    }

    pub fn say(&mut self, text: &str) {
        self.stdin.as_mut().expect("stdin").write_all(text.as_bytes()).expect("write to COMMAND");
    }

    /// Closes COMMAND's standard input, and waits until the launcher has ended.
    pub fn finish(mut self) -> Outcome {
        drop(self.stdin.take());
        let stdout = self.stdout.take().map(collect);
        let status = self.process.wait();
        let text = |collected: Option<JoinHandle<String>>| {
            collected.map_or_else(String::new, |thread| {
                wait_until("all writers have closed the output", || thread.is_finished());
                thread.join().expect("output")
            })
        };
        Outcome { status, stdout: text(stdout), stderr: text(self.stderr.take()) }
    }
}

/// A launcher whose tunnel is up and whose COMMAND is running.
pub struct Held {
    pub running: Running,
    /// The value of `REDIS_URL` in COMMAND's environment.
    pub url: String,
    /// The tunnel's local port.
    pub port: u16,
}

impl Held {
    /// A client that has connected through the tunnel and has logged in.
    pub fn client(&self) -> Client {
        Client::connect(self.port, PASSWORD)
    }

    /// A TCP connection to the tunnel.
    pub fn tcp(&self) -> TcpStream {
        self.open().stream.into_inner()
    }

    /// A client that has connected to the tunnel and has sent nothing.
    pub fn open(&self) -> Client {
        Client::open(self.port)
    }

    /// The status page of a launcher with `STUNNEL_STATUS_ADDRESS=0`.
    pub fn page(&self) -> StatusPage {
        StatusPage::of(self.running.pid(), &[self.port])
    }

    pub fn finish(self) -> Outcome {
        self.running.finish()
    }
}

/// Writes `content` to the file `hosts`. Returns a launcher that sees this file as /etc/hosts, or
/// `None` if the test must be skipped.
pub fn with_hosts(hosts: &Path, content: &str) -> Option<Launcher> {
    fs::write(hosts, content).unwrap();
    with_mounted(hosts, "/etc/hosts", ["sh", "-c", HOLD])
}

/// A launcher in its own mount namespace, where the file or folder `what` is mounted at `place`. If
/// the system does not allow that, prints that the test is skipped and returns `None`.
pub fn with_mounted<const N: usize>(
    what: &Path,
    place: &str,
    words: [&str; N],
) -> Option<Launcher> {
    let script = format!("mount --bind '{}' {place} && exec \"$0\" \"$@\"", what.display());
    unshared(&["--mount", "sh", "-c", &script], &words)
}

/// A launcher that is pid 1 in its own pid namespace, with a shell script as COMMAND. If the system
/// does not allow that, prints that the test is skipped and returns `None`.
pub fn as_pid_1(script: &str) -> Option<Launcher> {
    unshared(&["--pid", "--fork", "--mount-proc", "--kill-child"], &["sh", "-c", script])
}

/// A launcher that unshare(1) starts. `options` are unshare's options, and `words` is the
/// launcher's command line. If the system does not allow that, prints that the test is skipped and
/// returns `None`.
fn unshared(options: &[&str], words: &[&str]) -> Option<Launcher> {
    let allowed = Command::new("unshare").args(options).arg("true").stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        super::skip(&format!("unshare {} is not allowed here", options[0]));
        return None;
    }
    Some(Launcher::of("unshare", [options, &[BINARY], words].concat()))
}

/// The port in a local URL.
pub fn port_of(url: &str) -> u16 {
    let port = url.rsplit(':').next().and_then(|rest| rest.split('/').next()?.parse().ok());
    port.unwrap_or_else(|| panic!("not a local URL: {url}"))
}

/// Sends the signal with this number, which may be a real-time signal.
pub fn send_signal(pid: i32, number: i32) {
    // SAFETY: kill(2) touches no memory.
    let sent = unsafe { nix::libc::kill(pid, number) };
    assert_eq!(sent, 0, "signal {number} to {pid}");
}

/// The values of `key` in all log lines about the event `event`.
pub fn logged(log: &str, event: &str, key: &str) -> Vec<String> {
    log.lines()
        .filter(|line| line.contains(&format!(" at={event} ")))
        .map(|line| {
            let value = line.split_once(&format!(" {key}=")).map_or("", |(_, rest)| rest);
            match value.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
                None => value.split(' ').next().unwrap_or_default().to_owned(),
            }
        })
        .collect()
}

/// Like [`logged`], for warnings that the launcher summarises. A line with `count=3` yields its
/// value three times.
pub fn warned(log: &str, event: &str, key: &str) -> Vec<String> {
    let counts = logged(log, event, "count").into_iter().map(|count| count.parse().unwrap_or(1));
    let values = logged(log, event, key).into_iter().zip(counts);
    values.flat_map(|(value, count)| std::iter::repeat_n(value, count)).collect()
}
