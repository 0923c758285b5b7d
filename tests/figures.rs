//! The counts of a launcher, which the page, metrics, `--status` and the log show alike.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use nix::libc;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::figures::Scene;
use support::launcher::{logged, send_signal};
use support::peer::Peer;
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server, connections};
use support::{eventually, two_free_ports};

const MIB: usize = 1024 * 1024;

/// A port whose queue is full, so that connecting times out. The streams fill the queue.
fn full_queue() -> (Socket, Vec<TcpStream>, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let patience = Duration::from_millis(300);
    let mut fill = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, patience) {
        fill.push(stream);
        assert!(fill.len() < 100, "the queue has no end");
    }
    (socket, fill, address.port())
}

/// Answers a ClientHello with the fatal alert handshake_failure (RFC 8446 section 6).
fn answer_with_an_alert(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; 1])?;
    stream.write_all(&[21, 3, 3, 0, 2, 2, 40])?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

#[test]
fn each_failure_reason_is_shown_everywhere() {
    let server = Server::start(Front::Redis);
    let old = Server::start_with(
        Front::Redis,
        Options { words: &["--tls-protocols", "TLSv1.2"], ..Options::default() },
    );
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path());
    let demanding = Server::for_clients_of(&other, "TLSv1.3");
    let (_queue, _fill, full) = full_queue();
    let cut = Peer::tcp(drop);
    let silent = Peer::tcp(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let alert = Peer::tcp(answer_with_an_alert);
    let local = |port| format!("rediss://127.0.0.1:{port}");
    let cases = [
        ("DNS_URL", "dns", "rediss://no-such-host.invalid:6379".to_owned()),
        ("REFUSED_URL", "tcp_refused", local(two_free_ports())),
        ("TIMEOUT_URL", "tcp_timeout", local(full)),
        // TCP cannot connect to the broadcast address.
        ("NO_ROUTE_URL", "tcp_other", "rediss://255.255.255.255:6379".to_owned()),
        ("CUT_URL", "tls_eof", cut.url()),
        ("SILENT_URL", "tls_timeout", silent.url()),
        ("PLAIN_URL", "no_tls", local(server.port)),
        ("CERTIFICATE_URL", "certificate", local(server.tls_port())),
        ("PIN_URL", "pin", format!("rediss://localhost:{}", server.tls_port())),
        ("CLIENT_URL", "client_certificate", local(demanding.tls_port())),
        ("OLD_URL", "tls_version", local(old.tls_port())),
        ("ALERT_URL", "tls_other", alert.url()),
        ("FULL_URL", "queue_timeout", format!("rediss://localhost:{}", server.tls_port())),
    ];
    let urls: Vec<_> = cases.iter().map(|(name, _, url)| (*name, url.clone())).collect();
    let scene = Scene::new(&urls, |launcher| {
        launcher
            .env("STUNNEL_MIN_TLS", "1.3")
            .env("STUNNEL_CONNECT_TIMEOUT", "3s")
            .env("CERTIFICATE_URL_STUNNEL_VERIFY", "full")
            .env("CERTIFICATE_URL_STUNNEL_CA_PEM", other.pem())
            .env("PIN_URL_STUNNEL_PIN", other.pin())
            .env("FULL_URL_STUNNEL_MAX_CONNECTIONS", "1")
    });
    let _the_only_one = Client::connect(scene.port("FULL_URL"), PASSWORD);
    std::thread::scope(|scope| {
        for (variable, reason, _) in &cases {
            let scene = &scene;
            scope.spawn(move || {
                assert!(!scene.exchange(variable).starts_with(b"+"), "{variable}");
                scene.failed_once(variable, reason);
            });
        }
    });
    let readiness = scene.page.get("/readyz");
    assert_eq!(readiness.code, 503);
    for (variable, ..) in &cases {
        assert!(readiness.body.contains(variable), "{readiness:?}");
    }
    // A platform must not restart the app because Redis is down.
    assert_eq!(scene.page.get("/healthz").code, 200);
    scene.held.finish();
}

/// Sets a soft limit of a process.
fn limit(pid: i32, what: &str, value: u64) {
    let limit = format!("--{what}={value}:");
    let set = Command::new("prlimit").args([format!("--pid={pid}"), limit]).status();
    assert!(set.expect("prlimit of util-linux").success());
}

#[test]
fn without_descriptors_apps_wait_and_the_page_says_why() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    scene.has_settled();
    let pid = scene.held.running.pid();
    limit(pid, "nofile", support::proc::descriptors(pid) as u64);
    let mut app = Client::open(scene.port("REDIS_URL"));
    app.send(&["AUTH", PASSWORD]);
    eventually("the page says why the app waits", || {
        let page = scene.page.get("/").body;
        page.contains("Raise the limit on open files").then_some(())
    });
    assert_eq!(scene.page.get("/readyz").code, 503);
    limit(pid, "nofile", 1024);
    assert_eq!(app.reply().unwrap(), Reply::line("+OK"));
    assert!(scene.metric("accept_errors_total") > Some(0.0));
    scene.held.finish();
}

#[test]
fn status_answers_even_without_free_descriptors() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    scene.has_settled();
    let pid = scene.held.running.pid();
    let descriptors = |pid| support::proc::descriptors(pid) as u64;
    let most = descriptors(pid) + 20;
    limit(pid, "nofile", most);
    let _crowd: Vec<Client> = (0..40)
        .map(|_| {
            let mut client = Client::open(scene.ports[0].1);
            client.send(&["AUTH", PASSWORD]);
            client
        })
        .collect();
    eventually("the descriptors are used up", || (descriptors(pid) >= most - 1).then_some(()));
    for _ in 0..3 {
        assert_eq!(scene.page.get("/healthz").code, 200);
        assert!(scene.status("REDIS_URL").0.contains("REDIS_URL → "));
    }
    assert!(scene.metric("accept_errors_total") > Some(0.0));
    scene.held.finish();
}

#[test]
fn a_recovered_tunnel_still_shows_its_last_failure() {
    let mut server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains(" WORKING 1 Held "), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);
    let success = "last_success_timestamp_seconds";
    let first = scene.metric(success).expect("it worked");

    server.stop();
    eventually("it fails", || {
        assert_eq!(scene.exchange("REDIS_URL"), b"");
        (scene.page.get("/readyz").code == 503).then_some(())
    });
    assert_eq!(scene.status("REDIS_URL").1, 1);
    assert!(scene.page.get("/").body.contains("<title>FAILING "));

    server.start_again();
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains(" WORKING, SEE BELOW "), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);
    assert!(scene.metric(success) > Some(first));
    let tunnel = &scene.json()["tunnels"][0];
    assert_eq!(tunnel["failing_since"], Value::Null);
    assert_eq!(tunnel["last_failure"]["reason"], "tcp_refused");
    scene.held.finish();
}

#[test]
fn a_hanging_redis_shows_a_long_wait_and_no_failure() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    let longest = || scene.metric("longest_wait_for_reply_seconds").expect("a sample");
    let mut client = scene.client();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    let idle = scene.client();
    assert_eq!(longest(), 0.0, "nothing was asked");

    send_signal(server.pid(), libc::SIGSTOP);
    client.send(&["PING"]);
    eventually("it waits for more than a second", || (longest() > 1.0).then_some(()));
    assert!(scene.json()["tunnels"][0]["longest_wait_for_reply_seconds"].as_f64() > Some(1.0));
    let (text, _) = scene.status("REDIS_URL");
    for said in [&text, &scene.page.get("/").body] {
        let (_, wait) = said.split_once("longest wait for a reply ").expect("the wait");
        assert!(!wait.starts_with("none") && !wait.starts_with("0"), "{said}");
    }
    assert!(text.contains(" WORKING 1 Held "), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);

    send_signal(server.pid(), libc::SIGCONT);
    assert_eq!(client.reply().unwrap(), Reply::line("+PONG"));
    eventually("the wait is over", || (longest() == 0.0).then_some(()));
    drop(idle);
    scene.held.finish();
}

#[test]
fn a_redis_down_behind_a_tls_front_fails() {
    let server = Server::start(Front::Stunnel);
    let scene = Scene::of(&server.url());
    let success = "last_success_timestamp_seconds";
    // A connection to stunnel alone is no success.
    let silent = Client::open(scene.port("REDIS_URL"));
    eventually("it has TLS", || {
        (scene.metric("connection_wait_seconds_count")? == 1.0).then_some(())
    });
    assert_eq!(scene.metric(success), None);
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    let first = scene.metric(success);
    assert!(first.is_some());

    send_signal(server.pid(), libc::SIGKILL);
    eventually("it is gone", || TcpStream::connect(("127.0.0.1", server.port)).err());
    // A connection that closes before its request arrives does not count as a failure.
    eventually("it fails", || {
        assert_eq!(scene.exchange("REDIS_URL"), b"");
        (scene.page.get("/readyz").code == 503).then_some(())
    });
    let (text, code) = scene.status("REDIS_URL");
    assert!(text.contains(" FAILING since ") && code == 1, "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("Redis may be down or starting behind its TLS proxy"), "{text}");
    assert_eq!(scene.json()["tunnels"][0]["last_failure"]["reason"], "unanswered");
    assert_eq!(scene.metric(success), first);
    drop(silent);
    scene.held.finish();
}

#[test]
fn bytes_count_as_they_move_and_each_close_counts_once() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    let moved = |direction: &str| scene.metric(&format!("{direction}_bytes_total")).unwrap();
    let open = || scene.metric("connections_open").unwrap();
    let closed = |reason: &str| scene.count("connections_closed_total", "reason", reason);
    let mut client = scene.client();
    let value = "x".repeat(3 * MIB);
    assert_eq!(client.ask(&["SET", "big", &value]), Reply::line("+OK"));
    assert!(moved("sent") > 3e6 && moved("received") < 1e3, "{} {}", moved("sent"), open());
    assert_eq!(client.ask(&["GET", "big"]), Reply::bulk(&value));
    assert!(moved("received") > 3e6);
    assert_eq!((open(), closed("closed")), (1.0, 0.0));
    drop(client);
    eventually("it is closed", || (closed("closed") == 1.0 && open() == 0.0).then_some(()));

    let broken = scene.client();
    support::reset(broken.stream.get_ref());
    drop(broken);
    eventually("the app's reset", || (closed("app_reset") == 1.0).then_some(()));
    let mut direct = server.direct();
    let mut killed = scene.client();
    assert_eq!(killed.ask(&["PING"]), Reply::line("+PONG"));
    direct.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert!(killed.reply().is_err(), "Redis closed it");
    drop(killed);
    eventually("both sides have closed", || (open() == 0.0).then_some(()));
    let accepted = scene.metric("connections_accepted_total");
    let all: f64 = ["closed", "idle", "app_reset", "redis_reset", "drain"].map(closed).iter().sum();
    assert_eq!(accepted, Some(all), "open, closed and failed ones are all");
    scene.held.finish();
}

#[test]
fn pool_results_and_handshake_modes_are_counted() {
    let server = Server::start(Front::Redis);
    let scene =
        Scene::new(&[("REDIS_URL", server.url())], |launcher| launcher.env("STUNNEL_POOL", "on"));
    let pooled = |result: &str| scene.count("pool_requests_total", "result", result);
    let upstream = |state: &str| scene.count("upstream_connections", "state", state);
    let mut first = scene.client();
    assert_eq!(first.ask(&["PING"]), Reply::line("+PONG"));
    assert_eq!((pooled("new"), upstream("relaying")), (1.0, 1.0));
    // None is idle, so that the second one makes its own, and resumes the first one's session.
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    drop(first);
    // Connect until a connection is reused.
    eventually("one is reused", || {
        assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
        (pooled("reused") > 0.0).then_some(())
    });
    let got = ["reused", "new"].map(pooled).iter().sum::<f64>();
    let accepted = scene.metric("connections_accepted_total");
    assert_eq!(accepted, Some(got));
    let mut direct = server.direct();
    eventually("all are idle, and Redis counts the same", || {
        let told = upstream("idle");
        let settled = upstream("relaying") == 0.0 && upstream("connecting") == 0.0;
        (settled && told > 0.0 && connections(&mut direct) as f64 == told).then_some(())
    });
    let tunnel = &scene.json()["tunnels"][0];
    assert!(tunnel["tls_handshakes"]["full"]["count"].as_u64() >= Some(1), "{tunnel}");
    assert!(tunnel["tls_handshakes"]["resumed"]["count"].as_u64() >= Some(1), "{tunnel}");
    assert_eq!(tunnel["connection_wait"]["count"], accepted.unwrap() as u64);
    // Each client sent two requests, the second one after the reply to the first one.
    assert_eq!(tunnel["reply_wait"]["count"], 2 * accepted.unwrap() as u64);
    let ends = tunnel["certificate"]["expires"].as_i64().expect("a certificate was shown");
    let sample = "server_certificate_expiry_timestamp_seconds";
    assert_eq!(scene.metric(sample), Some(ends as f64));
    scene.held.finish();
}

#[test]
fn connections_waiting_at_the_limit_are_shown() {
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&[("REDIS_URL", server.url())], |launcher| {
        launcher.env("STUNNEL_MAX_CONNECTIONS", "1").env("STUNNEL_CONNECT_TIMEOUT", "30s")
    });
    let mut first = scene.client();
    assert_eq!(first.ask(&["PING"]), Reply::line("+PONG"));
    assert_eq!(scene.metric("upstream_connections_limit"), Some(1.0));
    let mut second = Client::open(scene.ports[0].1);
    second.send(&["AUTH", PASSWORD]);
    let waiting = || scene.metric("connections_waiting").unwrap();
    eventually("it waits", || (waiting() == 1.0).then_some(()));
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains("= 1 (peak 1, limit 1) · 1 app connection waits"), "{text}");
    assert!(text.contains("> Raise STUNNEL_MAX_CONNECTIONS if Redis allows more"), "{text}");
    drop(first);
    assert_eq!(second.reply().unwrap(), Reply::line("+OK"));
    assert_eq!(waiting(), 0.0);
    scene.held.finish();
}

#[test]
fn a_client_limit_has_the_same_words_everywhere() {
    for front in [Front::Redis, Front::Stunnel] {
        let server = Server::start(front);
        let scene = Scene::of(&server.url());
        let held: Vec<_> = (0..3).map(|_| scene.client()).collect();
        let mut direct = server.direct();
        eventually("only these are left", || (connections(&mut direct) == 3).then_some(()));
        assert_eq!(direct.ask(&["CONFIG", "SET", "maxclients", "4"]), Reply::line("+OK"));
        // stunnel may lose Redis's error message to the reset that follows it.
        eventually("it is noticed", || {
            drop(scene.exchange("REDIS_URL"));
            (scene.metric("max_clients_errors_total")? > 0.0).then_some(())
        });
        eventually("it fails", || (scene.page.get("/readyz").code == 503).then_some(()));
        let remedy = "imit the connections of each process with STUNNEL_MAX_CONNECTIONS, so that";
        for said in [scene.status("REDIS_URL").0, scene.page.get("/").body.replace("&#39;", "'")] {
            assert!(said.contains("Redis is probably at its client limit: "), "{said}");
            assert!(said.contains(&format!("L{remedy}")), "{said}");
        }
        if front == Front::Redis {
            let log = fs::read_to_string(scene.log.path()).unwrap();
            let hint = "Redis is probably at its client limit (this launcher holds 3 other";
            assert!(log.contains(hint) && log.contains(&format!("l{remedy}")), "{log}");
        }
        drop((held, direct));
        scene.held.finish();
    }
}

#[test]
fn metrics_lines_come_each_interval_and_name_the_dyno() {
    let server = Server::start(Front::Redis);
    let scene =
        Scene::new(&[("REDIS_URL", server.url())], |launcher| launcher.env("DYNO", "web.1"));
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    let lines = eventually("three lines", || {
        let log = fs::read_to_string(scene.log.path()).unwrap();
        let lines = log.lines().filter(|line| line.contains(" at=metrics source=web.1.REDIS_URL "));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        (lines.len() >= 3).then_some(lines)
    });
    for line in &lines {
        for pair in line.split(' ').filter(|pair| pair.contains('#')) {
            let (key, value) = pair.split_once('=').expect("a pair");
            let number = value.strip_suffix("ms").unwrap_or(value);
            let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            assert!(is_plain && !number.is_empty(), "{key}={value}");
        }
    }
    let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(with(" count#redis-tunnel.accepted=1 "), 1, "{lines:?}");
    assert_eq!(with(" sample#redis-tunnel.wait.p95="), 1, "{lines:?}");
    assert_eq!(with(" count#redis-tunnel.accepted=0 "), lines.len() - 1, "{lines:?}");
    assert_eq!(with(" count#redis-tunnel.failed=0"), lines.len(), "{lines:?}");
    scene.held.finish();
}

/// The number of warnings that each line of an event stands for: its `count`, or 1.
fn counts(log: &str, event: &str) -> Vec<usize> {
    let counts = logged(log, event, "count").into_iter();
    counts.map(|count| if count.is_empty() { 1 } else { count.parse().expect("a count") }).collect()
}

#[test]
fn an_outage_logs_five_lines_and_then_counts() {
    let refused = format!("rediss://127.0.0.1:{}", two_free_ports());
    let urls = [("REDIS_URL", refused), ("DNS_URL", "rediss://no-such.invalid:1".to_owned())];
    let scene = Scene::new(&urls, |launcher| launcher);
    let log = || fs::read_to_string(scene.log.path()).unwrap();
    let of_tunnel = |variable: &str| -> String {
        log()
            .lines()
            .filter(|line| line.contains(variable))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let counts = || counts(&of_tunnel("=REDIS_URL "), "connection-failed");
    let fail = |times: usize| {
        (0..times).for_each(|_| assert_eq!(scene.exchange("REDIS_URL"), b""));
    };
    fail(8);
    assert_eq!(scene.exchange("DNS_URL"), b"");
    eventually("a summary comes while COMMAND runs", || {
        (counts() == [1, 1, 1, 1, 1, 3]).then_some(())
    });
    // The outage goes on.
    fail(4);
    assert_eq!(scene.count("connections_failed_total", "reason", "tcp_refused"), 12.0);
    scene.held.finish();
    assert_eq!(counts().iter().sum::<usize>(), 12, "the last count is written at the end");
    let reasons = |variable| logged(&of_tunnel(variable), "connection-failed", "reason");
    assert_eq!(reasons("=REDIS_URL ").last().unwrap(), "tcp_refused");
    assert_eq!(reasons("=DNS_URL "), ["dns"], "another tunnel's");
    assert!(log().lines().last().unwrap().contains(" at=command-ended "), "{}", log());
}

#[test]
fn the_docker_examples_healthcheck_works() {
    let dockerfile = include_str!("../examples/docker/Dockerfile");
    let check = dockerfile.lines().find_map(|line| line.strip_prefix("HEALTHCHECK ")).expect("one");
    let (_, words) = check.split_once(" CMD ").expect("its words");
    let words: Vec<String> = serde_json::from_str(words).expect("a list");
    assert_eq!(words, ["start-stunnel", "--status"]);
    // A container has its own network namespace, and therefore sees only its own launchers.
    let script = format!(
        "ip link set lo up; STUNNEL_LISTEN_PORT=0 REDIS_URL=rediss://127.0.0.1:1 {0} sh -c '\
         until {0} {1}; do sleep 0.05; done; \
         exec 3<>/dev/tcp/127.0.0.1/${{REDIS_URL##*:}}; cat <&3; {0} {1} | head -n 1; {0} {1} >&2; \
         echo $?'",
        support::launcher::BINARY,
        words[1]
    )
    .replace("sh -c", "bash -c");
    let unshare = ["--user", "--map-root-user", "--net", "bash", "-c", &script];
    let output = Command::new("unshare").args(unshare).output().unwrap();
    let (said, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if error.contains("unshare failed") {
        support::skip("unshare may not make a namespace here");
        return;
    }
    assert!(said.contains("REDIS_URL → 127.0.0.1:1   NOT USED YET\n"), "{said} {error}");
    assert!(said.contains("REDIS_URL → 127.0.0.1:1   FAILING since "), "{said} {error}");
    assert!(said.ends_with("\n1\n"), "{said} {error}");
}
