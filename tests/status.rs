//! Tests the two ways to get a launcher's status: `--status` and the status page.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use serde_json::{Value, json};
use support::launcher::{BINARY, Launcher, Outcome, logged, send_signal};
use support::proc::{command_of, state};
use support::status::StatusPage;
use support::{eventually, two_free_ports, wait_until};

/// A URL that no test connects to.
const NOWHERE: &str = "redis://:s3cret-password@127.0.0.1:1";

/// Checks that SECURITY.md contains `sentence`. The calling test shows that the sentence is true.
fn security_says(sentence: &str) {
    let page = include_str!("../SECURITY.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(page.contains(sentence), "SECURITY.md does not say: {sentence}");
}

/// Runs `start-stunnel --status` with the further arguments `words`.
fn status(words: &[&str]) -> Outcome {
    Launcher::new([&["--status"], words].concat()).run()
}

/// The JSON object that `--status` prints about a launcher. Returns `None` if `--status` does not
/// find the launcher.
fn status_of(launcher: i32) -> Option<Value> {
    let said = status(&["--log-format", "json"]).stdout;
    let mut launchers = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    launchers.find(|status| status["pid"] == launcher)
}

#[test]
fn status_finds_a_launcher_that_has_no_status_address() {
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    let found = eventually("--status finds the launcher", || status_of(pid));
    assert_eq!(found["version"], 1);
    assert_eq!(found["well"], true);
    assert_eq!(found["command"]["pid"], command_of(pid));
    assert_eq!(found["tunnels"][0]["variables"][0], "REDIS_URL");
    assert_eq!(found["tunnels"][0]["state"], "not used yet");
    let text = status(&[]);
    assert!(text.stdout.contains("REDIS_URL → 127.0.0.1:2   NOT USED YET\n"), "{text:?}");
    for said in [text.stdout, found.to_string()] {
        assert!(!said.contains("s3cret-password"), "{said}");
    }
    held.finish();
    assert_eq!(status_of(pid), None);
}

#[test]
fn log_and_status_show_that_a_pin_is_set() {
    let pin = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (pin, logs, shows) in [(pin, "true", "verify none, with a pin"), ("", "", "verify none")] {
        let settings = [("STUNNEL_PIN", pin), ("STUNNEL_STATUS_ADDRESS", "0")];
        let held = Launcher::hold_with(NOWHERE, &settings);
        let found = eventually("--status finds the launcher", || status_of(held.running.pid()));
        let tunnel = &found["tunnels"][0];
        assert_eq!(
            (&tunnel["verify"], &tunnel["pinned"]),
            (&json!("none"), &json!(!pin.is_empty()))
        );
        let page = held.page().get("/status.txt").body;
        assert!(page.lines().any(|line| line.ends_with(&format!(" · {shows}"))), "{page}");
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "tunnel-up", "verify"), ["none"], "{log}");
        assert_eq!(logged(&log, "tunnel-up", "pinned"), [logs], "{log}");
    }
}

#[test]
fn status_without_a_launcher_exits_with_3() {
    // Each network namespace has its own abstract sockets, so `--status` finds no launcher here.
    let unshare = ["--user", "--map-root-user", "--net", BINARY, "--status"];
    for (enabled, code, reason) in
        [("true", 3, ""), ("false", 0, ", because STUNNEL_ENABLED turns it off")]
    {
        let ended = Launcher::of("unshare", unshare).env("STUNNEL_ENABLED", enabled).run();
        if ended.stderr.contains("unshare failed") {
            return support::skip("unshare may not make a namespace here");
        }
        let expected = format!("No start-stunnel of this user is running{reason}.\n");
        assert_eq!((ended.code(), ended.stdout), (code, expected), "{}", ended.stderr);
    }
}

#[test]
fn options_for_two_tasks_exit_with_2() {
    for words in [["--status", "true"], ["--status", "--check"], ["--print-shim", "--print-env"]] {
        assert_eq!(Launcher::new(words).run().code(), 2, "{words:?}");
    }
}

#[test]
fn the_dockerfile_example_has_status_as_its_health_check() {
    let dockerfile = include_str!("../examples/docker/Dockerfile");
    let check = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK ")).expect("a line");
    assert!(check.ends_with(r#" CMD ["start-stunnel", "--status"]"#), "{check}");
}

#[test]
fn status_reports_a_stopped_launcher_as_failing() {
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    eventually("--status finds the launcher", || status_of(pid));
    held.running.signal(libc::SIGSTOP);
    wait_until("the launcher is stopped", || state(pid) == 'T');
    let said = status(&[]);
    held.running.signal(libc::SIGCONT);
    let expected = format!("start-stunnel pid {pid} does not report its state");
    assert!(said.stdout.contains(&expected), "{said:?}");
    assert_eq!(said.code(), 1);
}

#[test]
fn a_launcher_answers_status_only_to_its_user_and_root() {
    if !nix::unistd::geteuid().is_root() {
        return support::skip("only root can change its user");
    }
    security_says("answers only its own user and root");
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    eventually("--status finds the launcher", || status_of(pid));
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let is_ours = |name: &&str| name.starts_with(&format!("start-stunnel/{pid}."));
    let name = sockets.split(['@', '\n']).find(is_ours).expect("the launcher's socket");
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let answer = as_another_user(move || {
        let mut stream = UnixStream::connect_addr(&address).unwrap();
        // Writing fails if the launcher has already closed the connection.
        let _ = stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n");
        support::rest(&mut stream).0
    });
    assert_eq!(answer, b"");
}

/// Runs `action` in a thread that belongs to another user. Only root can start such a thread.
fn as_another_user<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        // SAFETY: the call touches no memory. Unlike setresuid(2), it changes only this thread.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0);
        action()
    });
    thread.join().unwrap()
}

/// Pretends to be a launcher with this pid: listens on a socket that has the name of this
/// launcher's status socket, and answers each request with `answer`.
fn impostor(pid: u32, answer: String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("start-stunnel/{pid}.{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            // Reading and writing fail if `--status` closes the connection without a request.
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer.as_bytes()));
        }
    });
}

#[test]
fn status_ignores_impostors_with_another_user_or_pid() {
    security_says(
        "`--status` ignores answers from processes of other users, even if root runs `--status`",
    );
    let answer = |name: &str| {
        format!("HTTP/1.1 200 OK\r\nstart-stunnel-well: true\r\n\r\n{{\"name\":\"{name}\"}}\n")
    };
    let own = std::process::id();
    impostor(own, answer("with its own pid"));
    impostor(1, answer("with the pid of another process"));
    if nix::unistd::geteuid().is_root() {
        let answer = answer("of another user");
        as_another_user(move || impostor(own, answer));
    }
    let said = status(&["--log-format", "json"]).stdout;
    let believed: Vec<&str> = said.lines().filter(|line| line.contains("\"name\"")).collect();
    assert_eq!(believed, [r#"{"name":"with its own pid"}"#]);
}

#[test]
fn status_prints_no_error_if_its_output_is_a_closed_pipe() {
    for words in [&[][..], &["--log-format", "json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut launcher = Launcher::new([&["--status"], words].concat());
        launcher.command.stdout(writer);
        let ended = launcher.run();
        assert_eq!(ended.stderr, "");
        assert!([0, 1, 3].contains(&ended.code()), "{ended:?}");
    }
}

#[test]
fn only_a_status_page_on_loopback_refuses_unknown_host_names() {
    security_says("a request with a foreign name in `Host` gets 421");
    for (address, code, warnings) in [("0", 421, 0), ("localhost:0", 421, 0), ("0.0.0.0:0", 200, 1)]
    {
        let launcher = Launcher::holding(NOWHERE).env("STUNNEL_STATUS_ADDRESS", address);
        let held = launcher.start_held();
        let page = StatusPage::of(held.running.pid(), &[held.port]);
        let scrape = "GET /metrics HTTP/1.1\r\nHost: app-1.internal:9121\r\n\r\n";
        assert_eq!(page.ask(scrape).expect("an answer").code, code, "{address}");
        assert_eq!(page.get("/healthz").code, 200, "{address}");
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "status-up", "address").len(), 1, "{log}");
        assert_eq!(logged(&log, "status-exposed", "address").len(), warnings, "{log}");
    }
}

#[test]
fn a_hundred_silent_connections_do_not_delay_health_checks() {
    let held = Launcher::holding(NOWHERE).env("STUNNEL_STATUS_ADDRESS", "0").start_held();
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let connect = || TcpStream::connect(("127.0.0.1", page.port)).unwrap();
    let mut visitors: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
    let mut probe = connect();
    probe.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    visitors.extend((0..30).map(|_| connect()));
    let mut answer = String::new();
    probe.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for mut visitor in visitors {
        assert_eq!(visitor.read_to_end(&mut Vec::new()).unwrap(), 0, "closed without an answer");
    }
}

#[test]
fn healthz_shows_whether_the_command_is_stopped_or_draining() {
    // The server never answers, so the app's connection is still open when COMMAND ends.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("rediss://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let launcher = Launcher::holding(&url).env("STUNNEL_STATUS_ADDRESS", "0");
    let mut held = launcher.env("STUNNEL_DRAIN_TIMEOUT", "60s").start_held();
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let becomes = |path: &str, code: u16, body: &str| {
        wait_until(body, || {
            let answer = page.get(path);
            answer.code == code && answer.body == body
        });
    };
    let _app = held.tcp();
    becomes("/healthz", 200, "running\n");
    let command = command_of(held.running.pid());
    send_signal(command, libc::SIGSTOP);
    becomes("/healthz", 200, "stopped\n");
    send_signal(command, libc::SIGCONT);
    becomes("/healthz", 200, "running\n");
    drop(held.running.stdin.take());
    becomes("/healthz", 503, "draining\n");
    becomes("/readyz", 503, "draining\n");
}

#[test]
fn with_the_apps_port_as_status_port_the_launcher_exits_with_78() {
    for (words, address, port) in [
        (&["true"][..], "5000", "5000"),
        (&["true"], "0.0.0.0:5000", "05000"),
        (&["true"], "5000", " 5000 "),
        (&["--status-address", "5000", "true"], "", "5000"),
    ] {
        let launcher = Launcher::new(words).redis(NOWHERE).env("PORT", port);
        let log = launcher.env("STUNNEL_STATUS_ADDRESS", address).refused();
        assert!(log.contains(" is port 5000, which PORT reserves for the app"), "{log}");
    }
}

#[test]
fn a_taken_status_port_causes_only_a_warning() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let launcher = Launcher::new(["sh", "-c", "exit 7"]).redis(NOWHERE);
    let ended = launcher.env("STUNNEL_STATUS_ADDRESS", address.port().to_string()).run();
    assert_eq!(ended.code(), 7);
    assert_eq!(logged(&ended.stderr, "status-not-served", "address"), [address.to_string()]);
}

#[test]
fn the_status_page_is_served_before_the_command_runs() {
    let port = two_free_ports();
    let script = "exec 3<>/dev/tcp/127.0.0.1/$1 && \
                  printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && cat <&3";
    let launcher = Launcher::new(["bash", "-c", script, "bash", &port.to_string()]).redis(NOWHERE);
    let ended = launcher.env("STUNNEL_STATUS_ADDRESS", port.to_string()).run();
    assert!(ended.stdout.ends_with("running\n"), "{ended:?}");
}

#[test]
fn only_the_launchers_user_can_open_the_status_pages_socket() {
    for listen in ["tcp", "unix"] {
        let folder = tempfile::tempdir().unwrap();
        let launcher = Launcher::holding(NOWHERE).env("STUNNEL_STATUS_ADDRESS", "unix");
        let launcher = launcher.env("STUNNEL_LISTEN", listen).env("TMPDIR", folder.path());
        let mut running = launcher.start();
        running.line();
        let sockets =
            fs::read_dir(folder.path()).unwrap().next().expect("a folder").unwrap().path();
        let path = sockets.join("status.sock");
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&sockets), mode(&path)), (0o700, 0o600));
        assert_eq!(sockets.join("redis0.sock").exists(), listen == "unix");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ready\n"), "{answer}");
        running.finish();
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "the launcher removes the sockets");
    }
}
