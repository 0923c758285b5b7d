//! Who may read what goes through, where, and how: the status page, `--status`, metrics and lines
//! of the log.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::libc;
use serde_json::Value;
use support::launcher::{BINARY, Held, Launcher, Outcome, logged, send_signal};
use support::proc::{command_of, state};
use support::status::StatusPage;
use support::{eventually, two_free_ports};

/// A URL that nobody connects to here.
const NOWHERE: &str = "redis://:s3cret-password@127.0.0.1:1";

/// A launcher that serves its page at a port of the kernel's pick.
fn with_page() -> (Held, StatusPage) {
    let held = Launcher::holding(NOWHERE).env("STUNNEL_STATUS_ADDRESS", "0").start_held();
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    (held, page)
}

/// `start-stunnel --status` with further words.
fn status(words: &[&str]) -> Outcome {
    Launcher::new([&["--status"], words].concat()).run()
}

/// What `--status` in JSON says of one launcher among all that run here.
fn status_of(launcher: i32) -> Option<Value> {
    let said = status(&["--log-format", "json"]).stdout;
    let mut launchers = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    launchers.find(|status| status["pid"] == launcher)
}

#[test]
fn a_launcher_is_found_with_nothing_set_and_gone_when_it_has_ended() {
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    let found = eventually("it is found", || status_of(pid));
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
fn where_no_launcher_runs_the_exit_code_is_3_unless_none_is_to_run() {
    // A network namespace has its own names of sockets.
    let unshare = ["--user", "--map-root-user", "--net", BINARY, "--status"];
    let output = Command::new("unshare").args(unshare).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("unshare failed") {
        support::skip("unshare may not make a namespace here");
        return;
    }
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "No start-stunnel of this user runs here.\n"
    );
    let mut switched_off = Command::new("unshare");
    let output = switched_off.args(unshare).env("STUNNEL_ENABLED", "false").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "No start-stunnel of this user runs here, and none is to: STUNNEL_ENABLED is off.\n"
    );
}

#[test]
fn status_goes_with_no_command_and_no_other_task() {
    for words in [["--status", "true"], ["--status", "--check"], ["--status", "--print-env"]] {
        assert_eq!(Launcher::new(words).run().code(), 2, "{words:?}");
    }
}

#[test]
fn a_launcher_that_is_frozen_does_not_answer_and_counts_as_failing() {
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    eventually("it is found", || status_of(pid));
    held.running.signal(libc::SIGSTOP);
    eventually("it is frozen", || (state(pid) == 'T').then_some(()));
    let said = status(&[]);
    held.running.signal(libc::SIGCONT);
    assert!(said.stdout.contains(&format!("start-stunnel pid {pid} does not answer")), "{said:?}");
    assert_eq!(said.code(), 1);
    held.finish();
}

#[test]
fn another_user_is_told_nothing() {
    if !nix::unistd::geteuid().is_root() {
        support::skip("only root can become somebody else");
        return;
    }
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    eventually("it is found", || status_of(pid));
    let script = format!(
        "import os, socket\nos.setgid(65534); os.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n\
         s.connect('\\0start-stunnel/{pid}')\n\
         try: s.sendall(b'GET /status.json HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')\n\
         except OSError: pass\ntry: print(s.recv(4096))\nexcept OSError: print(b'')\n"
    );
    let output = Command::new("/usr/bin/python3").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b''\n", "{output:?}");
    held.finish();
}

/// Answers in a launcher's stead, on the socket of a launcher of pid `pid`.
const IMPOSTOR: &str = "import os, socket, sys\n\
    pid, uid = sys.argv[1:]\n\
    if uid: os.setgid(int(uid)); os.setuid(int(uid))\n\
    s = socket.socket(socket.AF_UNIX)\n\
    s.bind('\\0start-stunnel/' + (pid or str(os.getpid())) + '.9')\n\
    s.listen(64)\n\
    print('listening', flush=True)\n\
    while True:\n \
        c = s.accept()[0]\n \
        answer = b'HTTP/1.1 200 OK\\r\\nstart-stunnel-well: true\\r\\n\\r\\n{\"pid\":%d}\\n'\n \
        try: c.recv(4096), c.sendall(answer % os.getpid())\n \
        except OSError: pass\n \
        c.close()\n";

/// What `--status` says of an [`IMPOSTOR`].
fn said_of_impostor(pid: &str, uid: &str) -> Option<Value> {
    let mut impostor = Command::new("/usr/bin/python3")
        .args(["-c", IMPOSTOR, pid, uid])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(impostor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said = status_of(impostor.id() as i32);
    impostor.kill().unwrap();
    impostor.wait().unwrap();
    assert_eq!(line, "listening\n");
    said
}

#[test]
fn only_this_users_process_after_which_the_socket_is_named_is_believed() {
    assert!(said_of_impostor("", "").is_some(), "its own pid, and this user");
    assert_eq!(said_of_impostor("1", ""), None, "another's pid");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(said_of_impostor("", "65534"), None, "another user, even for root");
    }
}

#[test]
fn a_launcher_that_hangs_up_does_not_answer_and_counts_as_failing() {
    // It hangs up when memory is short: here is one that always does.
    let script = "import os, socket\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.bind('\\0start-stunnel/%d' % os.getpid())\n\
        s.listen(64)\n\
        print('listening', flush=True)\n\
        while True: s.accept()[0].close()\n";
    let mut server = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said = status(&[]);
    server.kill().unwrap();
    server.wait().unwrap();
    let expected = format!("start-stunnel pid {} does not answer", server.id());
    assert!(said.stdout.contains(&expected) && said.code() == 1, "{said:?}");
}

#[test]
fn watching_draws_again_each_second_until_nobody_reads_any_more() {
    let held = Launcher::hold(NOWHERE);
    let pid = held.running.pid();
    eventually("it is found", || status_of(pid));
    let mut watching = Launcher::new(["--status", "--watch", "--log-format", "json"]).start();
    let needle = format!("\"pid\":{pid},");
    let mut seen = 0;
    while seen < 2 {
        seen += usize::from(watching.line().contains(&needle));
    }
    drop(watching.stdout.take());
    let ended = watching.finish();
    assert!(ended.status.code().is_some(), "{ended:?}");
    held.finish();
}

#[test]
fn watching_alone_is_wrong_usage() {
    assert_eq!(Launcher::new(["--watch", "true"]).run().code(), 2);
}

#[test]
fn each_path_answers_and_nothing_else_does() {
    let (held, page) = with_page();
    for (path, code, kind, begin) in [
        ("/", 200, "text/html; charset=utf-8", "<!doctype html>"),
        ("/metrics", 200, "application/openmetrics-text; version=1.0.0; charset=utf-8", "# HELP "),
        ("/status.json", 200, "application/json", "{"),
        ("/status.txt", 200, "text/plain; charset=utf-8", "REDIS_URL → "),
        ("/healthz", 200, "text/plain; charset=utf-8", "running\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", "ready\n"),
        ("/nothing", 404, "text/plain; charset=utf-8", "there are: "),
    ] {
        let answer = page.get(path);
        assert_eq!(answer.code, code, "{path}: {answer:?}");
        assert!(answer.head.contains(&format!("\r\ncontent-type: {kind}\r\n")), "{answer:?}");
        assert!(answer.body.starts_with(begin), "{path}: {answer:?}");
        assert!(!answer.body.contains("s3cret-password"), "{path}");
    }
    let ask = |request: &str| page.ask(request).expect("an answer").code;
    assert_eq!(ask("POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"), 405);
    assert_eq!(ask("GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 421);
    held.finish();
}

#[test]
fn a_hundred_visitors_who_say_nothing_are_closed_and_keep_no_probe_waiting() {
    let (held, page) = with_page();
    let visitors: Vec<_> =
        (0..100).map(|_| TcpStream::connect(("127.0.0.1", page.port)).unwrap()).collect();
    assert_eq!(page.get("/healthz").code, 200);
    for mut visitor in visitors {
        assert_eq!(visitor.read_to_end(&mut Vec::new()).unwrap(), 0, "closed, and nothing said");
    }
    held.finish();
}

#[test]
fn a_command_that_is_stopped_is_told_and_health_is_not_hurt() {
    let (held, page) = with_page();
    let command = command_of(held.running.pid());
    send_signal(command, libc::SIGSTOP);
    eventually("it is told", || (page.get("/healthz").body == "stopped\n").then_some(()));
    assert_eq!(page.get("/healthz").code, 200);
    send_signal(command, libc::SIGCONT);
    eventually("it is told", || (page.get("/healthz").body == "running\n").then_some(()));
    held.finish();
}

#[test]
fn a_launcher_that_drains_is_not_healthy_any_more() {
    let launcher = Launcher::script("echo $REDIS_URL; sleep 1000 & exec cat >/dev/null");
    // Its app has gone away without closing: nobody answers, so that there is something to drain.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("rediss://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let launcher = launcher.redis(&url).env("STUNNEL_STATUS_ADDRESS", "0");
    let mut held = launcher.env("STUNNEL_DRAIN_TIMEOUT", "60s").start_held();
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let _app = held.tcp();
    assert_eq!(page.get("/healthz").code, 200);
    drop(held.running.stdin.take());
    let drains = eventually("it drains", || {
        let answer = page.get("/healthz");
        (answer.code == 503).then_some(answer)
    });
    assert_eq!(drains.body, "draining\n");
    let ready = page.get("/readyz");
    assert_eq!((ready.code, ready.body.as_str()), (503, "draining\n"));
    held.running.signal(libc::SIGTERM);
    held.finish();
}

#[test]
fn the_port_that_the_platform_wants_the_app_to_have_is_refused() {
    let launcher = Launcher::new(["true"]).redis(NOWHERE).env("PORT", "5000");
    let ended = launcher.env("STUNNEL_STATUS_ADDRESS", "5000").run();
    assert_eq!(ended.code(), 78);
    assert!(
        ended.stderr.contains(
            "STUNNEL_STATUS_ADDRESS is port 5000, which PORT says is the app's; set another"
        ),
        "{ended:?}"
    );
    let option = Launcher::new(["--status-address", "0.0.0.0:5000", "true"]).redis(NOWHERE);
    assert_eq!(option.env("PORT", "5000").run().code(), 78);
    for written in ["05000", " 5000 "] {
        let launcher = Launcher::new(["true"]).redis(NOWHERE).env("PORT", written);
        assert_eq!(launcher.env("STUNNEL_STATUS_ADDRESS", "5000").run().code(), 78, "{written}");
    }
}

#[test]
fn a_port_that_is_taken_costs_a_warning_and_no_more() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let launcher = Launcher::new(["sh", "-c", "exit 7"]).redis(NOWHERE);
    let ended = launcher.env("STUNNEL_STATUS_ADDRESS", address.port().to_string()).run();
    assert_eq!(ended.code(), 7);
    assert_eq!(logged(&ended.stderr, "status-not-served", "address"), [address.to_string()]);
}

#[test]
fn the_page_is_there_before_the_command() {
    let port = two_free_ports();
    let script = "exec 3<>/dev/tcp/127.0.0.1/$1 && \
                  printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && cat <&3";
    let launcher = Launcher::new(["bash", "-c", script, "bash", &port.to_string()]).redis(NOWHERE);
    let ended = launcher.env("STUNNEL_STATUS_ADDRESS", port.to_string()).run();
    assert!(ended.stdout.ends_with("running\n"), "{ended:?}");
}

#[test]
fn an_address_that_others_can_reach_is_warned_of() {
    for (address, exposed) in [("0.0.0.0:0", true), ("127.0.0.1:0", false), ("0", false)] {
        let launcher = Launcher::new(["true"]).redis(NOWHERE);
        let ended = launcher.env("STUNNEL_STATUS_ADDRESS", address).run();
        assert_eq!(ended.code(), 0);
        assert_eq!(logged(&ended.stderr, "status-up", "address").len(), 1, "{ended:?}");
        let warned = logged(&ended.stderr, "status-exposed", "address").len();
        assert_eq!(warned, usize::from(exposed), "{address}: {ended:?}");
    }
}

#[test]
fn a_socket_of_this_users_has_the_page_beside_those_of_the_tunnels() {
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
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }
}

#[test]
fn a_wrong_address_and_a_wrong_interval_are_told_with_what_would_be_right() {
    let launcher = Launcher::new(["true"]).redis(NOWHERE).env("STUNNEL_STATUS_ADDRESS", "here");
    let ended = launcher.env("STUNNEL_METRICS_INTERVAL", "10ms").run();
    assert_eq!(ended.code(), 78);
    for said in [
        "STUNNEL_STATUS_ADDRESS is 'here'; expected HOST:PORT, a port of 127.0.0.1, or unix",
        "STUNNEL_METRICS_INTERVAL is '10ms'; expected a time of a second or more such as 60s, or 0",
    ] {
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
}
