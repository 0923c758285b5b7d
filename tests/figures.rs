//! Tests the numbers and texts about a tunnel on the status page, in the metrics, in `--status` and
//! in the log.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use nix::libc;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use start_stunnel::figures::CloseReason;
use support::figures::Scene;
use support::launcher::{logged, send_signal, warned};
use support::peer::Peer;
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{Front, PASSWORD, Server, connections};
use support::{eventually, two_free_ports, wait_until};

const MIB: usize = 1024 * 1024;

/// Listens on a port, and fills the socket's accept queue. New connections to the port then time
/// out, until the socket or the streams are dropped.
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

/// Answers the beginning of a TLS handshake with the alert handshake_failure (RFC 8446 section 6).
fn answer_with_an_alert(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; 1])?;
    stream.write_all(&[21, 3, 3, 0, 2, 2, 40])?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

#[test]
fn page_status_metrics_and_log_show_each_failure_reason() {
    let server = Server::start(Front::Redis);
    let old = Server::with_words(&["--tls-protocols", "TLSv1.2"]);
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
        // The kernel refuses TCP connections to the broadcast address.
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
    for (variable, reason, _) in &cases {
        let is_failing = *reason != "queue_timeout";
        assert_eq!(readiness.body.contains(variable), is_failing, "{variable} {readiness:?}");
    }
    // `/healthz` ignores Redis, so that a platform does not restart apps during an outage of Redis.
    assert_eq!(scene.page.get("/healthz").code, 200);
}

#[test]
fn the_status_says_that_apps_wait_for_free_descriptors() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    scene.has_opened_all_descriptors();
    let pid = scene.running.pid();
    let most = support::proc::descriptors(pid) + 20;
    let limit = [format!("--pid={pid}"), format!("--nofile={most}:")];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    let mut crowd: Vec<Client> = (0..40).map(|_| Client::open(scene.port("REDIS_URL"))).collect();
    crowd.iter_mut().for_each(|client| client.send(&["AUTH", PASSWORD]));
    wait_until("the descriptors are used up", || support::proc::descriptors(pid) >= most - 1);
    for _ in 0..3 {
        assert_eq!(scene.page.get("/healthz").code, 200);
        assert!(scene.status("REDIS_URL").0.contains("REDIS_URL → "));
    }
    wait_until("the status page says why apps wait", || {
        let says_why = scene.page.get("/").body.contains("Raise the limit on open files");
        says_why && scene.page.get("/readyz").code == 503
    });
    assert!(scene.metric("accept_errors_total") > Some(0.0));
}

/// Sends requests until the tunnel counts as failing. One request may be too few: if the launcher
/// closes the connection before the request arrives, the tunnel does not count as failing.
fn fail(scene: &Scene) {
    wait_until("the tunnel counts as failing", || {
        scene.exchange("REDIS_URL");
        scene.page.get("/readyz").code == 503
    });
}

const SUCCESS: &str = "last_success_timestamp_seconds";

#[test]
fn a_tunnel_that_works_again_still_shows_its_last_failure() {
    let mut server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    drop(scene.client());
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains(" WORKING 1 Held "), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);
    let first = scene.metric(SUCCESS).expect("Redis has answered");

    server.stop();
    fail(&scene);
    assert_eq!(scene.status("REDIS_URL").1, 1);
    assert!(scene.page.get("/").body.contains("<title>FAILING "));

    server.start_again();
    drop(scene.client());
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains(" WORKING, SEE BELOW "), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);
    assert!(scene.metric(SUCCESS) > Some(first));
    let tunnel = &scene.json()["tunnels"][0];
    assert_eq!(tunnel["failing_since"], Value::Null);
    assert_eq!(tunnel["last_failure"]["reason"], "tcp_refused");
}

#[test]
fn a_redis_that_hangs_shows_as_a_long_wait_not_as_a_failure() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    let longest = || scene.metric("longest_wait_for_reply_seconds").expect("a sample");
    let (mut client, _idle) = (scene.client(), scene.client());
    assert_eq!(longest(), 0.0, "all requests are answered");
    let success = scene.metric(SUCCESS).expect("Redis has answered");

    send_signal(server.pid(), libc::SIGSTOP);
    client.send(&["PING"]);
    wait_until("the client has waited for more than a second", || longest() > 1.0);
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
    wait_until("no request waits for a reply", || longest() == 0.0);
    assert!(scene.metric(SUCCESS) > Some(success), "a reply on an old connection is a success");
}

#[test]
fn a_tunnel_fails_if_redis_is_down_behind_stunnel() {
    let mut server = Server::start(Front::Stunnel);
    let scene = Scene::of(&server.url());
    let _silent = Client::open(scene.port("REDIS_URL"));
    eventually("the silent client has a TLS connection to stunnel", || {
        (scene.metric("connection_wait_seconds_count")? == 1.0).then_some(())
    });
    assert_eq!(scene.metric(SUCCESS), None, "Redis has not answered yet");
    drop(scene.client());
    let first = scene.metric(SUCCESS);
    assert!(first.is_some());

    server.stop();
    fail(&scene);
    let (text, code) = scene.status("REDIS_URL");
    assert!(text.contains(" FAILING since ") && code == 1, "{text}");
    assert!(text.contains("Redis may be down or starting behind its TLS proxy"), "{text}");
    assert_eq!(scene.json()["tunnels"][0]["last_failure"]["reason"], "unanswered");
    assert_eq!(scene.metric(SUCCESS), first);
}

#[test]
fn metrics_count_bytes_while_they_pass_and_each_close_once() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    let [sent, received] = ["sent", "received"].map(|direction| {
        let scene = &scene;
        move || scene.metric(&format!("{direction}_bytes_total")).unwrap()
    });
    let open = || scene.metric("connections_open").unwrap();
    let closed = |reason: &str| scene.count("connections_closed_total", "reason", reason);
    let mut client = scene.client();
    let value = "x".repeat(3 * MIB);
    assert_eq!(client.ask(&["SET", "big", &value]), Reply::line("+OK"));
    assert!(sent() > 3e6 && received() < 1e3, "{} {}", sent(), received());
    assert_eq!(client.ask(&["GET", "big"]), Reply::bulk(&value));
    assert!(received() > 3e6);
    assert_eq!((open(), closed("closed")), (1.0, 0.0));
    drop(client);
    wait_until("the connection counts as closed", || closed("closed") == 1.0 && open() == 0.0);

    let broken = scene.client();
    support::reset(broken.stream.get_ref());
    drop(broken);
    wait_until("the connection counts as reset by the app", || closed("app_reset") == 1.0);
    let mut killed = scene.client();
    server.direct().ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert!(killed.reply().is_err(), "Redis has closed the connection");
    drop(killed);
    wait_until("all connections are closed", || open() == 0.0);
    let all: f64 = CloseReason::WORDS.map(closed).iter().sum();
    assert_eq!(scene.metric("connections_accepted_total"), Some(all));
}

#[test]
fn metrics_count_reused_connections_and_resumed_sessions() {
    let server = Server::start(Front::Redis);
    let scene =
        Scene::new(&[("REDIS_URL", server.url())], |launcher| launcher.env("STUNNEL_POOL", "on"));
    let pooled = |result: &str| scene.count("pool_requests_total", "result", result);
    let upstream = |state: &str| scene.count("upstream_connections", "state", state);
    let first = scene.client();
    assert_eq!((pooled("new"), upstream("relaying")), (1.0, 1.0));
    // No connection is idle, so the launcher opens a second connection, which resumes the first
    // connection's TLS session.
    drop((scene.client(), first));
    wait_until("a connection is reused", || {
        drop(scene.client());
        pooled("reused") > 0.0
    });
    let accepted = scene.metric("connections_accepted_total").unwrap();
    assert_eq!(accepted, pooled("reused") + pooled("new"));
    scene.page.wait_until_all_is_idle();
    let mut direct = server.direct();
    wait_until("Redis counts the idle connections, too", || {
        connections(&mut direct) as f64 == upstream("idle")
    });
    let tunnel = &scene.json()["tunnels"][0];
    assert!(tunnel["tls_handshakes"]["full"]["count"].as_u64() >= Some(1), "{tunnel}");
    assert!(tunnel["tls_handshakes"]["resumed"]["count"].as_u64() >= Some(1), "{tunnel}");
    // Each client has sent one request, AUTH, so each connection has waited for one reply.
    for wait in ["connection_wait", "reply_wait"] {
        assert_eq!(tunnel[wait]["count"], accepted as u64, "{tunnel}");
    }
    let ends = tunnel["certificate"]["expires"].as_f64().expect("the expiry of a certificate");
    assert_eq!(scene.metric("server_certificate_expiry_timestamp_seconds"), Some(ends));
}

#[test]
fn the_status_shows_app_connections_waiting_at_the_limit() {
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&[("REDIS_URL", server.url())], |launcher| {
        launcher.env("STUNNEL_MAX_CONNECTIONS", "1").env("STUNNEL_CONNECT_TIMEOUT", "30s")
    });
    let first = scene.client();
    assert_eq!(scene.metric("upstream_connections_limit"), Some(1.0));
    let mut second = Client::open(scene.port("REDIS_URL"));
    second.send(&["AUTH", PASSWORD]);
    scene.page.wait_for_waiting(1);
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains("= 1 (peak 1, limit 1) · 1 app connection waiting"), "{text}");
    assert!(text.contains("> Raise this limit if Redis allows more"), "{text}");
    drop(first);
    assert_eq!(second.reply().unwrap(), Reply::line("+OK"));
    assert_eq!(scene.metric("connections_waiting"), Some(0.0));
}

#[test]
fn page_and_status_give_the_same_advice_at_redis_client_limit() {
    for front in [Front::Redis, Front::Stunnel] {
        let server = Server::start(front);
        let scene = Scene::of(&server.url());
        let _held = [scene.client(), scene.client(), scene.client()];
        let mut direct = server.direct();
        wait_until("Redis has no other connections", || connections(&mut direct) == 3);
        assert_eq!(direct.ask(&["CONFIG", "SET", "maxclients", "4"]), Reply::line("+OK"));
        fail(&scene);
        // One request may be too few: stunnel does not always pass on Redis's error.
        eventually("the client limit is noticed", || {
            scene.exchange("REDIS_URL");
            (scene.metric("max_clients_errors_total")? > 0.0).then_some(())
        });
        let remedy = "Limit the connections of each process with STUNNEL_MAX_CONNECTIONS, so that";
        for said in [scene.status("REDIS_URL").0, scene.page.get("/").body] {
            assert!(said.contains("Redis was probably at its client limit: "), "{said}");
            assert!(said.contains(remedy), "{said}");
        }
    }
}

#[test]
fn the_log_has_a_metrics_line_at_each_interval() {
    let server = Server::start(Front::Redis);
    let scene =
        Scene::new(&[("REDIS_URL", server.url())], |launcher| launcher.env("DYNO", "web.1"));
    drop(scene.client());
    let lines = eventually("three lines", || {
        let log = fs::read_to_string(scene.log.path()).unwrap();
        let lines = log.lines().filter(|line| line.contains(" at=metrics source=web.1.REDIS_URL "));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        (lines.len() >= 3).then_some(lines)
    });
    let pairs = lines.iter().flat_map(|line| line.split(' ')).filter(|pair| pair.contains('#'));
    for pair in pairs {
        let number = pair.split_once('=').expect("a pair").1.trim_end_matches("ms");
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        assert!(is_plain && !number.is_empty(), "{pair}");
    }
    let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(with(" count#redis-tunnel.accepted=1 "), 1, "{lines:?}");
    assert_eq!(with(" sample#redis-tunnel.wait.p95="), 1, "{lines:?}");
    assert_eq!(with(" count#redis-tunnel.accepted=0 "), lines.len() - 1, "{lines:?}");
    assert_eq!(with(" count#redis-tunnel.failed=0"), lines.len(), "{lines:?}");
}

#[test]
fn an_outage_logs_five_lines_and_then_summaries() {
    let scene = Scene::of(&format!("rediss://127.0.0.1:{}", two_free_ports()));
    let log = || fs::read_to_string(scene.log.path()).unwrap();
    let refuse = |times| (0..times).for_each(|_| assert_eq!(scene.exchange("REDIS_URL"), b""));
    refuse(8);
    wait_until("a summary is logged while COMMAND runs", || {
        let counts = logged(&log(), "connection-failed", "count");
        counts == ["", "", "", "", "", "3"]
    });
    refuse(4);
    assert_eq!(scene.count("connections_failed_total", "reason", "tcp_refused"), 12.0);
    scene.running.finish();
    assert_eq!(warned(&log(), "connection-failed", "reason"), ["tcp_refused"; 12]);
    assert!(log().lines().last().unwrap().contains(" at=command-ended "), "{}", log());
}
