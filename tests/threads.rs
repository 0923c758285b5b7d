//! The launcher when the system refuses threads (RLIMIT_NPROC, or a container's limit of pids).
//! Root is exempt from the limit, so these tests run the launcher as another user.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::Value;
use start_stunnel::logging::{self, LevelFilter, LogFormat, LogSettings};
use support::launcher::{BINARY, HOLD, Launcher, logged, port_of};
use support::resp::{Client, Reply};
use support::servers::{Front, Server};
use support::status::StatusPage;
use tempfile::TempDir;

/// A copy of the launcher that any user may execute, in a temporary folder.
struct Copy(TempDir);

impl Copy {
    fn make() -> Copy {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(BINARY, folder.path().join("start-stunnel")).unwrap();
        Copy(folder)
    }

    fn binary(&self) -> PathBuf {
        self.0.path().join("start-stunnel")
    }
}

/// A command line that runs a program as a user without other processes.
fn own_user() -> Option<Vec<String>> {
    if !nix::unistd::Uid::effective().is_root() {
        support::skip("only root can become another user");
        return None;
    }
    let user = 700_000 + std::process::id() % 100_000 * 10 + next();
    let user = format!("--reuid={user}");
    Some(["setpriv", "--clear-groups", "--regid=65534", &user].map(str::to_owned).to_vec())
}

/// A number for each test of this process.
fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Limits the processes and threads of `user`, for the process `pid` of that user.
fn limit_threads(user: &[String], pid: i32, most: &str) {
    let words = [format!("--pid={pid}"), format!("--nproc={most}:")];
    let set = Command::new(&user[0]).args(&user[1..]).arg("prlimit").args(words).status();
    assert!(set.expect("prlimit of util-linux").success());
}

/// A launcher that runs as `user`.
fn launcher(copy: &Copy, user: &[String], words: &[&str]) -> Launcher {
    let mut launcher = Launcher::of(&user[0], &user[1..]);
    launcher.command.arg(copy.binary()).args(words);
    launcher
}

/// A URL whose host is a name.
fn by_name(server: &Server) -> String {
    server.url().replace("127.0.0.1", "localhost")
}

#[test]
fn names_resolve_even_if_no_thread_can_be_started() {
    let Some(user) = own_user() else { return };
    let (copy, server) = (Copy::make(), Server::start(Front::Redis));
    let held = launcher(&copy, &user, &["sh", "-c", HOLD]).redis(&by_name(&server)).start_held();
    limit_threads(&user, held.running.pid(), "1");
    for _ in 0..5 {
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    }
    let ended = held.finish();
    assert_eq!(ended.code(), 0);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn without_threads_one_silent_lookup_fails_other_tunnels() {
    let Some(user) = own_user() else { return };
    let (copy, server) = (Copy::make(), Server::start(Front::Redis));
    // A name server that never answers, on a loopback address of its own.
    let [_, high, low, _] = std::process::id().to_be_bytes();
    let address = format!("127.7{}.{high}.{low}", next() % 10);
    let silent = UdpSocket::bind((address.as_str(), 53)).unwrap();
    let configuration = copy.0.path().join("resolv.conf");
    fs::write(&configuration, format!("nameserver {address}\noptions timeout:30\n")).unwrap();
    let mount =
        format!("mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"", configuration.display());
    let mut words = ["unshare", "--mount", "sh", "-c", &mount].map(str::to_owned).to_vec();
    words.extend(user.clone());
    let hold_two = "echo $REDIS_URL; echo $SILENT_URL; exec cat >/dev/null";
    let mut held = launcher(&copy, &words, &["sh", "-c", hold_two])
        .redis(&by_name(&server))
        .env("SILENT_URL", "rediss://silent.test")
        .env("REDIS_STUNNEL_URLS", "REDIS_URL SILENT_URL")
        .env("STUNNEL_CONNECT_TIMEOUT", "60s")
        .env("STUNNEL_STATUS_ADDRESS", "0")
        .start_held();
    let silent_port = port_of(&held.running.line());
    let pid = held.running.pid();
    let page = StatusPage::of(pid, &[held.port, silent_port]);
    // From now on, there is one thread for lookups, which is busy with the silent name.
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    limit_threads(&user, pid, "1");
    let mut waiting = Client::open(silent_port);
    silent.recv(&mut [0; 512]).expect("a query to the name server");
    let refused = held.open().reply().unwrap_err();
    assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&refused.kind()));
    let text = page.get("/status.txt").body;
    assert!(text.contains("REDIS_URL → localhost") && text.contains("FAILING since"), "{text}");
    assert!(text.contains("threads 1") && text.contains("ulimit -u"), "{text}");
    assert_eq!(page.get("/readyz").code, 503);

    // With another thread, the silent name delays no other tunnel.
    limit_threads(&user, pid, "10000");
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    waiting.send(&["PING"]);
    drop(waiting);
    held.running.signal(nix::libc::SIGTERM);
    let ended = held.finish();
    let errors = logged(&ended.stderr, "connection-failed", "error");
    assert!(errors[0].starts_with("no thread is free for the name lookup"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn without_any_thread_the_launcher_exits_with_126() {
    let Some(user) = own_user() else { return };
    let copy = Copy::make();
    let mut words = user;
    words.extend(["prlimit", "--nproc=1"].map(str::to_owned));
    let ended = launcher(&copy, &words, &["sh", "-c", "echo started"])
        .redis("redis://localhost")
        .env("STUNNEL_LOG_FORMAT", "json")
        .run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (126, ""), "{}", ended.stderr);
    let parse = |line| serde_json::from_str::<Value>(line).expect(line);
    let lines: Vec<Value> = ended.stderr.lines().map(parse).collect();
    let last = lines.last().unwrap();
    assert_eq!(last["at"], "command-failed", "{last}");
}

/// The variable that turns the next test's process into the one that panics.
const PANICS: &str = "START_STUNNEL_TEST_PANICS";

#[test]
fn a_panic_is_one_line_and_repetitions_are_summarised() {
    if std::env::var_os(PANICS).is_some() {
        let log = LogSettings { level: LevelFilter::INFO, format: LogFormat::Json };
        let guard = logging::init(log);
        for _ in 0..20 {
            thread::spawn(|| panic!("hunter2\nsecond line")).join().unwrap_err();
        }
        drop(guard);
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_is_one_line_and_repetitions_are_summarised", "--nocapture"])
        .env(PANICS, "1")
        .output()
        .unwrap();
    let log = String::from_utf8(child.stderr).unwrap();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect(&log)).collect();
    let counts: Vec<_> = lines.iter().map(|line| line["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 2, 3, 4, 5, 8, 16], "{log}");
    assert_eq!((&lines[0]["level"], &lines[0]["at"]), (&"err".into(), &"internal-error".into()));
    let error = lines[0]["error"].as_str().unwrap();
    assert!(error.starts_with("start-stunnel has a defect at tests/threads.rs:"), "{error}");
    assert!(!log.contains("hunter2"), "{log}");
}
