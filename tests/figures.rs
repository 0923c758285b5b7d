//! What is counted of all that goes through, and that the status page, metrics, `--status` and the
//! log say the same of it.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::libc;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::launcher::{Held, Launcher, port_of, send_signal};
use support::peer::Peer;
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server, connections};
use support::status::StatusPage;
use support::{eventually, rest, two_free_ports};

const MIB: usize = 1024 * 1024;

/// Prints the URL in each of the variables that `REDIS_STUNNEL_URLS` lists, then lives until its
/// standard input ends.
const HOLD_ALL: &str = "for name in $REDIS_STUNNEL_URLS; do eval \"echo \\$$name\"; done
                        exec cat >/dev/null";

/// A launcher whose page, `--status` and log are read.
struct Scene {
    held: Held,
    page: StatusPage,
    /// The variables, with the local port of each.
    ports: Vec<(String, u16)>,
    /// Where its log is, which can be read while it runs.
    log: tempfile::NamedTempFile,
}

impl Scene {
    /// With a tunnel for each URL, and lines of figures each second.
    fn new(urls: &[(&str, String)], set: impl FnOnce(Launcher) -> Launcher) -> Scene {
        let log = tempfile::NamedTempFile::new().unwrap();
        let names: Vec<&str> = urls.iter().map(|(name, _)| *name).collect();
        let mut launcher = Launcher::script(HOLD_ALL)
            .env("REDIS_STUNNEL_URLS", names.join(" "))
            .env("STUNNEL_STATUS_ADDRESS", "0")
            .env("STUNNEL_METRICS_INTERVAL", "1s");
        for (name, url) in urls {
            launcher = launcher.env(name, url);
        }
        launcher.command.stderr(File::create(log.path()).unwrap());
        let mut held = set(launcher).start_held();
        let mut ports = vec![(names[0].to_owned(), held.port)];
        for name in &names[1..] {
            ports.push(((*name).to_owned(), port_of(&held.running.line())));
        }
        let taken: Vec<u16> = ports.iter().map(|(_, port)| *port).collect();
        let page = StatusPage::of(held.running.pid(), &taken);
        Scene { held, page, ports, log }
    }

    /// With one tunnel, for `REDIS_URL`.
    fn of(url: &str) -> Scene {
        Scene::new(&[("REDIS_URL", url.to_owned())], |launcher| launcher)
    }

    /// That it has all descriptors that it takes once: COMMAND may be faster than its runtime.
    fn has_settled(&self) {
        assert_eq!(self.page.get("/healthz").code, 200);
        eventually("--status finds it", || {
            let said = Launcher::new(["--status"]).run().stdout;
            said.contains(&format!(" pid {} ", self.held.running.pid())).then_some(())
        });
    }

    fn port(&self, variable: &str) -> u16 {
        self.ports.iter().find(|(name, _)| name == variable).expect("a tunnel").1
    }

    fn client(&self) -> Client {
        Client::connect(self.ports[0].1, PASSWORD)
    }

    /// What an app reads that has sent a request to a tunnel.
    fn exchange(&self, variable: &str) -> Vec<u8> {
        let mut app = Client::open(self.port(variable)).stream.into_inner();
        // The connection may be gone before the request is; then reading finds its end only.
        let _ = app.write_all(b"PING\r\n");
        rest(&mut app).0
    }

    /// A sample of `/metrics`, by its name behind the prefix and its labels.
    fn metric(&self, sample: &str) -> Option<f64> {
        self.page.metric(&format!("start_stunnel_{sample}"))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.page.get("/status.json").body).expect("JSON")
    }

    /// The block of a tunnel in what `--status` prints of this launcher, and the exit code.
    fn status(&self, variable: &str) -> (String, i32) {
        let ended = Launcher::new(["--status"]).run();
        let pid = format!("start-stunnel 0.1.0 pid {} ", self.held.running.pid());
        let of_us = ended.stdout.split("\n\n").find(|part| part.contains(&pid));
        let of_us = of_us.unwrap_or_else(|| panic!("{pid} is not in {}", ended.stdout));
        let begin = of_us.find(&format!("{variable} → ")).expect("a block");
        let end = of_us[begin..].find("\n    Moved").expect("its last row");
        (of_us[begin..begin + end].to_owned(), ended.code())
    }

    /// What the lines of figures of a tunnel have counted under a key, in all.
    fn logged(&self, variable: &str, key: &str) -> u64 {
        let log = fs::read_to_string(self.log.path()).unwrap();
        let lines =
            log.lines().filter(|line| line.contains(&format!(" at=metrics source={variable} ")));
        let values = lines.filter_map(|line| {
            let (_, rest) = line.split_once(&format!(" {key}="))?;
            rest.split(' ').next()?.parse::<u64>().ok()
        });
        values.sum()
    }

    /// That a tunnel has failed once for this reason, in all ways to read it.
    fn failed_once(&self, variable: &str, reason: &str) {
        let sample =
            format!("connections_failed_total{{tunnel=\"{variable}\",reason=\"{reason}\"}}");
        eventually(&format!("{variable} fails"), || (self.metric(&sample)? == 1.0).then_some(()));
        let page = self.page.get("/").body;
        assert!(page.contains(&format!(" · {reason} 1")), "{page}");
        let (text, code) = self.status(variable);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&format!(" · {reason} 1 ")), "{text}");
        assert!(words.contains(" FAILING since ") && code == 1, "{code} {text}");
        let key = format!("count#redis-tunnel.failed.{}", reason.replace('_', "-"));
        eventually(&format!("{key} of {variable} is logged"), || {
            (self.logged(variable, &key) == 1).then_some(())
        });
    }
}

/// A port of 127.0.0.1 whose queue is full: nobody answers who connects. The streams fill it.
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

#[test]
fn each_reason_of_a_failure_is_told_on_the_page_in_metrics_by_status_and_in_the_log() {
    let server = Server::start(Front::Redis);
    let old = Server::start_with(
        Front::Redis,
        Options { protocols: Some("TLSv1.2"), ..Options::default() },
    );
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path());
    let demanding = Server::for_clients_of(&other, "TLSv1.3");
    let (_queue, _fill, full) = full_queue();
    let cut = Peer::tcp(drop);
    let silent = Peer::tcp(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let alert = Peer::tcp(|mut stream| {
        // An alert: fatal, handshake_failure (RFC 8446 section 6).
        stream.read_exact(&mut [0; 1]).unwrap();
        stream.write_all(&[21, 3, 3, 0, 2, 2, 40]).unwrap();
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let local = |port| format!("rediss://127.0.0.1:{port}");
    let cases = [
        ("DNS_URL", "dns", "rediss://no-such-host.invalid:6379".to_owned()),
        ("REFUSED_URL", "tcp_refused", local(two_free_ports())),
        ("TIMEOUT_URL", "tcp_timeout", local(full)),
        // The broadcast address has no TCP.
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
    // An outage of Redis is no reason to kill the app.
    assert_eq!(scene.page.get("/healthz").code, 200);
    scene.held.finish();
}

/// Sets a limit of a process, its soft half.
fn limit(pid: i32, what: &str, value: u64) {
    let limit = format!("--{what}={value}:");
    let set = Command::new("prlimit").args([format!("--pid={pid}"), limit]).status();
    assert!(set.expect("prlimit of util-linux").success());
}

#[test]
fn a_lack_of_descriptors_is_a_reason_of_its_own() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    scene.has_settled();
    let pid = scene.held.running.pid();
    // One is left: for the app's connection, but not for the one to Redis.
    let is_free = |number: &u64| !Path::new(&format!("/proc/{pid}/fd/{number}")).exists();
    limit(pid, "nofile", (0..).find(is_free).expect("an end") + 1);
    assert_eq!(scene.exchange("REDIS_URL"), b"");
    scene.failed_once("REDIS_URL", "descriptors");
    assert!(scene.page.get("/").body.contains("Raise the limit on open files"));
    scene.held.finish();
}

#[test]
fn status_is_told_even_when_no_descriptor_is_left() {
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
    let errors = "accept_errors_total{tunnel=\"REDIS_URL\"}";
    let failed = "connections_failed_total{tunnel=\"REDIS_URL\",reason=\"descriptors\"}";
    let count = |sample| scene.metric(sample).unwrap();
    eventually("it is counted", || (count(errors) + count(failed) > 0.0).then_some(()));
    scene.held.finish();
}

#[test]
fn a_tunnel_that_works_again_says_so_and_what_has_failed() {
    let mut server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    // The exit code is about every launcher that runs here.
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains("   WORKING\n"), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);
    let success = "last_success_timestamp_seconds{tunnel=\"REDIS_URL\"}";
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
    assert!(text.contains("   WORKING, SEE BELOW\n"), "{text}");
    assert_eq!(scene.page.get("/readyz").code, 200);
    assert!(scene.metric(success) > Some(first));
    let tunnel = &scene.json()["tunnels"][0];
    assert_eq!(tunnel["failing_since"], Value::Null);
    assert_eq!(tunnel["last_failure"]["reason"], "tcp_refused");
    scene.held.finish();
}

#[test]
fn a_redis_that_is_down_behind_what_speaks_tls_for_it_fails() {
    let server = Server::start(Front::Stunnel);
    let scene = Scene::of(&server.url());
    let success = "last_success_timestamp_seconds{tunnel=\"REDIS_URL\"}";
    // stunnel alone makes no success of it.
    let waits = "connection_wait_seconds_count{tunnel=\"REDIS_URL\"}";
    let silent = Client::open(scene.port("REDIS_URL"));
    eventually("it has TLS", || (scene.metric(waits)? == 1.0).then_some(()));
    assert_eq!(scene.metric(success), None);
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    let first = scene.metric(success);
    assert!(first.is_some());

    send_signal(server.pid(), libc::SIGKILL);
    eventually("it is gone", || TcpStream::connect(("127.0.0.1", server.port)).err());
    // One may be closed before its request is there, which says nothing.
    eventually("it fails", || {
        assert_eq!(scene.exchange("REDIS_URL"), b"");
        (scene.page.get("/readyz").code == 503).then_some(())
    });
    let (text, code) = scene.status("REDIS_URL");
    assert!(text.contains("   FAILING since ") && code == 1, "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("Redis may be down or starting behind what speaks TLS"), "{text}");
    assert_eq!(scene.json()["tunnels"][0]["last_failure"]["reason"], "unanswered");
    assert_eq!(scene.metric(success), first);
    drop(silent);
    scene.held.finish();
}

#[test]
fn bytes_count_while_they_move_and_a_connection_ends_for_one_reason() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    let tunnel = "{tunnel=\"REDIS_URL\"}";
    let moved =
        |direction: &str| scene.metric(&format!("{direction}_bytes_total{tunnel}")).unwrap();
    let open = || scene.metric(&format!("connections_open{tunnel}")).unwrap();
    let closed = |reason: &str| {
        let labels = format!("{{tunnel=\"REDIS_URL\",reason=\"{reason}\"}}");
        scene.metric(&format!("connections_closed_total{labels}")).unwrap()
    };
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
    let accepted = scene.metric(&format!("connections_accepted_total{tunnel}"));
    let all: f64 = ["closed", "idle", "app_reset", "redis_reset", "drain"].map(closed).iter().sum();
    assert_eq!(accepted, Some(all), "open, closed and failed ones are all");
    scene.held.finish();
}

#[test]
fn the_pools_connections_are_told_apart_and_so_are_handshakes() {
    let server = Server::start(Front::Redis);
    let scene =
        Scene::new(&[("REDIS_URL", server.url())], |launcher| launcher.env("STUNNEL_POOL", "on"));
    let pooled = |result: &str| {
        let labels = format!("{{tunnel=\"REDIS_URL\",result=\"{result}\"}}");
        scene.metric(&format!("pool_requests_total{labels}")).unwrap()
    };
    let upstream = |state: &str| {
        let labels = format!("{{tunnel=\"REDIS_URL\",state=\"{state}\"}}");
        scene.metric(&format!("upstream_connections{labels}")).unwrap()
    };
    let mut first = scene.client();
    assert_eq!(first.ask(&["PING"]), Reply::line("+PONG"));
    assert_eq!((pooled("new"), upstream("relaying")), (1.0, 1.0));
    drop(first);
    // As many as it takes until one has another user's connection.
    eventually("one is reused", || {
        assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
        (pooled("reused") > 0.0).then_some(())
    });
    let got = ["reused", "new"].map(pooled).iter().sum::<f64>();
    let accepted = scene.metric("connections_accepted_total{tunnel=\"REDIS_URL\"}");
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
    // Each client has sent two requests, one behind the other's reply.
    assert_eq!(tunnel["reply_wait"]["count"], 2 * accepted.unwrap() as u64);
    let ends = tunnel["certificate"]["expires"].as_i64().expect("a certificate was shown");
    let sample = "server_certificate_expiry_timestamp_seconds{tunnel=\"REDIS_URL\"}";
    assert_eq!(scene.metric(sample), Some(ends as f64));
    scene.held.finish();
}

#[test]
fn whoever_waits_for_one_of_the_limited_number_is_seen() {
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&[("REDIS_URL", server.url())], |launcher| {
        launcher.env("STUNNEL_MAX_CONNECTIONS", "1").env("STUNNEL_CONNECT_TIMEOUT", "30s")
    });
    let tunnel = "{tunnel=\"REDIS_URL\"}";
    let mut first = scene.client();
    assert_eq!(first.ask(&["PING"]), Reply::line("+PONG"));
    assert_eq!(scene.metric(&format!("upstream_connections_limit{tunnel}")), Some(1.0));
    let mut second = Client::open(scene.ports[0].1);
    second.send(&["AUTH", PASSWORD]);
    let waiting = || scene.metric(&format!("connections_waiting{tunnel}")).unwrap();
    eventually("it waits", || (waiting() == 1.0).then_some(()));
    let (text, _) = scene.status("REDIS_URL");
    assert!(text.contains("= 1 (peak 1, limit 1) · 1 connection waits for one"), "{text}");
    assert!(text.contains("> Raise STUNNEL_MAX_CONNECTIONS if Redis allows it"), "{text}");
    drop(first);
    assert_eq!(second.reply().unwrap(), Reply::line("+OK"));
    assert_eq!(waiting(), 0.0);
    scene.held.finish();
}

#[test]
fn a_redis_at_its_client_limit_is_called_that_in_the_same_words_everywhere() {
    for front in [Front::Redis, Front::Stunnel] {
        let server = Server::start(front);
        let scene = Scene::of(&server.url());
        let held: Vec<_> = (0..3).map(|_| scene.client()).collect();
        let mut direct = server.direct();
        eventually("only these are left", || (connections(&mut direct) == 3).then_some(()));
        assert_eq!(direct.ask(&["CONFIG", "SET", "maxclients", "4"]), Reply::line("+OK"));
        let errors = "max_clients_errors_total{tunnel=\"REDIS_URL\"}";
        // stunnel may lose the error to the reset that it causes.
        eventually("it is noticed", || {
            drop(scene.exchange("REDIS_URL"));
            (scene.metric(errors)? > 0.0).then_some(())
        });
        eventually("it fails", || (scene.page.get("/readyz").code == 503).then_some(()));
        let (text, _) = scene.status("REDIS_URL");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let remedy = "STUNNEL_MAX_CONNECTIONS (the plan's limit divided by your processes)";
        for said in [&words, &scene.page.get("/").body] {
            assert!(
                said.contains("Probably at Redis&#39;s client limit: ")
                    || said.contains("Probably at Redis's client limit: "),
                "{said}"
            );
            assert!(said.replace("&#39;", "'").contains(&format!("Try {remedy}")), "{said}");
        }
        if front == Front::Redis {
            let log = fs::read_to_string(scene.log.path()).unwrap();
            let hint = "probably at Redis's client limit (this launcher holds 3 other";
            assert!(log.contains(hint) && log.contains(&format!("try {remedy}")), "{log}");
        }
        drop((held, direct));
        scene.held.finish();
    }
}

#[test]
fn the_lines_for_log_drains_come_at_each_interval_and_name_the_dyno() {
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

#[test]
fn lines_of_figures_in_json_have_the_same_keys() {
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&[("REDIS_URL", server.url())], |launcher| {
        launcher.env("STUNNEL_LOG_FORMAT", "json")
    });
    assert_eq!(scene.client().ask(&["PING"]), Reply::line("+PONG"));
    eventually("the connection is counted", || {
        let log = fs::read_to_string(scene.log.path()).unwrap();
        let whole_lines = &log[..log.rfind('\n')? + 1];
        let mut lines =
            whole_lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| {
            line["at"] == "metrics"
                && line["source"] == "REDIS_URL"
                && line["count#redis-tunnel.accepted"] == 1
        })
    });
    scene.held.finish();
}

#[test]
fn the_healthcheck_of_the_docker_example_says_whether_redis_can_be_reached() {
    let dockerfile = include_str!("../examples/docker/Dockerfile");
    let check = dockerfile.lines().find_map(|line| line.strip_prefix("HEALTHCHECK ")).expect("one");
    let (_, words) = check.split_once(" CMD ").expect("its words");
    let words: Vec<String> = serde_json::from_str(words).expect("a list");
    assert_eq!(words, ["start-stunnel", "--status"]);
    // A container has a network namespace of its own, and so no launchers but its own.
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
