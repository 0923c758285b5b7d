//! Tests of a launcher that cannot start more threads, because of RLIMIT_NPROC or a container's
//! limit on pids. RLIMIT_NPROC does not apply to root, so the launcher runs as another user.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::Value;
use start_stunnel::logging::{self, LevelFilter, LogFormat, LogSettings};
use support::launcher::{HOLD_TWO, Launcher, logged};
use support::resp::{Client, Reply};
use support::servers::{Front, Server};
use support::status::StatusPage;

/// The id of a user who has no processes yet. `None` if the test must be skipped.
fn new_user() -> Option<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let user = 700_000 + std::process::id() % 100_000 * 10 + NEXT.fetch_add(1, Ordering::Relaxed);
    support::is_root().then_some(user)
}

/// Allows the process `pid` to start threads only while `user` has fewer than `most` threads.
fn limit_threads(user: u32, pid: i32, most: &str) {
    let words = [format!("--pid={pid}"), format!("--nproc={most}:")];
    let set = Command::new("prlimit").args(words).uid(user).gid(65_534).status();
    assert!(set.expect("prlimit of util-linux").success());
}

/// Makes `program` start the launcher, as in `PROGRAM WORDS... LAUNCHER`.
fn behind<const N: usize>(program: &str, words: [&str; N], launcher: &Launcher) -> Launcher {
    let mut both = Launcher::of(program, words);
    both.command.arg(launcher.command.get_program()).args(launcher.command.get_args());
    both
}

#[test]
fn without_new_threads_one_name_is_resolved_at_a_time() {
    let Some(user) = new_user() else { return };
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(Front::Redis));
    // This name server never answers.
    let [_, high, low, _] = std::process::id().to_be_bytes();
    let address = format!("127.70.{high}.{low}");
    let silent = UdpSocket::bind((address.as_str(), 53)).unwrap();
    let configuration = folder.path().join("resolv.conf");
    fs::write(&configuration, format!("nameserver {address}\noptions timeout:30\n")).unwrap();
    let mount =
        format!("mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"", configuration.display());
    let launcher = Launcher::as_user(user, folder.path(), &["sh", "-c", HOLD_TWO]);
    let (held, silent_port) = behind("unshare", ["--mount", "sh", "-c", &mount], &launcher)
        .env("STUNNEL_CONNECT_TIMEOUT", "60s")
        .env("STUNNEL_STATUS_ADDRESS", "0")
        .start_two(&server.url().replace("127.0.0.1", "localhost"), "rediss://silent.test");
    let pid = held.running.pid();
    let page = StatusPage::of(pid, &[held.port, silent_port]);
    // From now on, the launcher has only one thread for name lookups.
    limit_threads(user, pid, "1");
    for _ in 0..5 {
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    }
    // The name lookup of silent.test keeps the only lookup thread busy.
    let mut waiting = Client::open(silent_port);
    silent.recv(&mut [0; 512]).expect("a query to the name server");
    let refused = held.open().reply().unwrap_err();
    assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&refused.kind()));
    let text = page.get("/status.txt").body;
    assert!(text.contains("REDIS_URL → localhost") && text.contains("FAILING since"), "{text}");
    assert!(text.contains("threads 1") && text.contains("ulimit -u"), "{text}");
    assert_eq!(page.get("/readyz").code, 503);

    // From now on, the launcher may start more threads. So the lookup of silent.test delays no
    // other tunnel.
    limit_threads(user, pid, "10000");
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    waiting.send(&["PING"]);
    drop(waiting);
    held.running.signal(nix::libc::SIGTERM);
    let ended = held.finish();
    let errors = logged(&ended.stderr, "connection-failed", "error");
    assert!(errors[0].starts_with("no thread is free: "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn the_launcher_exits_with_126_if_it_cannot_create_a_thread() {
    let Some(user) = new_user() else { return };
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::as_user(user, folder.path(), &["sh", "-c", "echo started"]);
    let ended = behind("prlimit", ["--nproc=1"], &launcher)
        .redis("redis://localhost")
        .env("STUNNEL_LOG_FORMAT", "json")
        .run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (126, ""), "{}", ended.stderr);
    let parse = |line| serde_json::from_str::<Value>(line).expect(line);
    let lines: Vec<Value> = ended.stderr.lines().map(parse).collect();
    let last = lines.last().unwrap();
    assert_eq!(last["at"], "command-failed", "{last}");
}

/// The following test runs itself again in a second process, with this environment variable. In the
/// second process, threads panic.
const PANICS: &str = "START_STUNNEL_TEST_PANICS";

#[test]
fn a_panic_logs_one_line_and_later_panics_are_summarised() {
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
        .args(["--exact", "a_panic_logs_one_line_and_later_panics_are_summarised", "--nocapture"])
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
