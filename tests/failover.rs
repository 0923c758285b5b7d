//! After a fail-over, the pool sends no more requests to the old server than an app without a
//! tunnel would send.
//!
//! The servers listen on two addresses of this machine. The launcher sees a file of the test as
//! /etc/hosts.

mod support;

use std::fs;
use std::io::{BufRead, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::launcher::{Held, Launcher, logged, with_hosts};
use support::peer::Peer;
use support::resp::{Client, Reply};
use support::scripted::{Heard, converse, redis};
use support::servers::{Front, Options, PASSWORD, Server, accepted, connections};
use support::{eventually, rest, two_free_ports, wait_until};
use tempfile::TempDir;

const OLD: &str = "127.0.0.2";
const NEW: &str = "127.0.0.3";

const POOL_ON: &[(&str, &str)] = &[("STUNNEL_POOL", "on"), ("STUNNEL_STATUS_ADDRESS", "0")];

fn hold(url: &str) -> Held {
    Launcher::holding(url).settings(POOL_ON).start_held()
}

/// The file that a launcher sees as /etc/hosts.
struct Hosts {
    folder: TempDir,
}

impl Hosts {
    fn new() -> Hosts {
        Hosts { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// A launcher for which redis.test has this address. Returns `None` if mount namespaces are not
    /// allowed.
    fn launcher(&self, address: &str) -> Option<Launcher> {
        let launcher = with_hosts(&self.path(), &Hosts::content(&[address]))?;
        Some(launcher.settings(POOL_ON).env("STUNNEL_LOG_LEVEL", "debug"))
    }

    /// Gives redis.test these addresses. The launcher connects to the first address first.
    fn name(&self, addresses: &[&str]) {
        fs::write(self.path(), Hosts::content(addresses)).unwrap();
    }

    fn content(addresses: &[&str]) -> String {
        addresses.iter().map(|address| format!("{address} redis.test\n")).collect()
    }
}

/// Two Redis servers on the same port of two addresses, and a launcher with a tunnel to the first
/// server.
struct Scene {
    hosts: Hosts,
    old: Server,
    new: Server,
    held: Held,
}

impl Scene {
    fn new() -> Option<Scene> {
        let hosts = Hosts::new();
        let launcher = hosts.launcher(OLD)?;
        let (old, new) = eventually("two servers start", || {
            let port = two_free_ports();
            let on = |address| {
                let options = Options { address: Some(address), ..Options::default() };
                Server::try_start(Front::Redis, port, options)
            };
            Some((on(OLD)?, on(NEW)?))
        });
        let url = format!("redis://default:{PASSWORD}@redis.test:{}/0", old.port);
        let held = launcher.redis(&url).start_held();
        Some(Scene { hosts, old, new, held })
    }

    /// Connects `count` apps at the same time. Each app sends a SET request. Returns the replies.
    fn writers(&self, count: usize) -> Vec<Reply> {
        let mut apps: Vec<Client> = (0..count).map(|_| self.held.client()).collect();
        apps.iter_mut().map(|app| app.ask(&["SET", "key", "value"])).collect()
    }
}

/// Makes the server a replica of a primary that does not exist.
fn make_replica(direct: &mut Client) {
    assert_eq!(direct.ask(&["REPLICAOF", "127.0.0.1", "1"]), Reply::line("+OK"));
}

/// Waits until Redis has only `count` connections through TLS. The role change must be the reason:
/// without a role change, the pool closes idle connections after 30 seconds.
fn closed_early(direct: &mut Client, count: usize) {
    let began = Instant::now();
    wait_until("the connections are closed", || connections(direct) == count);
    assert!(began.elapsed() < Duration::from_secs(20), "only the idle limit closed them");
}

fn is_error(reply: &Reply, code: &str) -> bool {
    matches!(reply, Reply::Line(line) if line.starts_with(&format!("-{code} ")))
}

#[test]
fn after_a_fail_over_no_write_reaches_the_old_primary() {
    let Some(scene) = Scene::new() else { return };
    let mut old = scene.old.direct();
    let mut new = scene.new.direct();
    assert_eq!(scene.writers(5), vec![Reply::line("+OK"); 5]);
    scene.held.page().wait_until_all_is_idle();
    make_replica(&mut old);
    scene.hosts.name(&[NEW]);
    for _ in 0..50 {
        assert_eq!(scene.writers(1), [Reply::line("+OK")], "no app gets READONLY");
    }
    assert_eq!(connections(&mut old), 0, "connections to the old primary are closed");
    assert_eq!(new.ask(&["GET", "key"]), Reply::bulk("value"));
    let log = scene.held.finish().stderr;
    assert!(log.contains(" at=kept-outdated "), "{log}");
}

#[test]
fn connections_made_before_a_role_change_are_not_reused() {
    let requests: [(&[&str], &str); 2] =
        [(&["SET", "key", "value"], "READONLY"), (&["GET", "key"], "MASTERDOWN")];
    for (request, code) in requests {
        let server = Server::start(Front::Redis);
        let mut direct = server.direct();
        let held = hold(&server.url());
        let page = held.page();
        // The pool reuses the connection that becomes idle last.
        let older = held.client();
        let newer = held.client();
        for (kept, app) in [(1, older), (2, newer)] {
            drop(app);
            page.wait_for_idle(kept);
        }
        direct.ask(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
        make_replica(&mut direct);
        let before = accepted(&mut direct);
        let mut app = held.client();
        assert!(is_error(&app.ask(request), code), "{code}");
        assert_eq!(accepted(&mut direct), before, "the app got an old connection");
        closed_early(&mut direct, 1);
        drop(app);
        closed_early(&mut direct, 0);
    }
}

#[test]
fn a_role_change_on_any_connection_closes_older_idle_ones() {
    // Each row has requests after which a connection is not reused.
    let many = "*1\r\n$4\r\nPING\r\n".repeat(1_001);
    for requests in [
        "*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n",
        "PING\r\n",
        "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n",
        &many,
    ] {
        let server = Server::start(Front::Redis);
        let mut direct = server.direct();
        let held = hold(&server.url());
        let (older, mut app) = (held.client(), held.client());
        drop(older);
        held.page().wait_for_idle(1);
        make_replica(&mut direct);
        app.stream.get_mut().write_all(requests.as_bytes()).unwrap();
        app.send(&["SET", "key", "value"]);
        let mut line = String::new();
        while !line.starts_with("-READONLY ") {
            line.clear();
            assert_ne!(app.stream.read_line(&mut line).unwrap(), 0, "the error must come");
        }
        closed_early(&mut direct, 1);
        drop(app);
        closed_early(&mut direct, 0);
    }
}

#[test]
fn connections_to_a_read_only_endpoint_are_reused() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    make_replica(&mut direct);
    let held = hold(&server.url());
    assert!(is_error(&held.client().ask(&["SET", "key", "value"]), "READONLY"));
    wait_until("the connection is closed", || connections(&mut direct) == 0);
    let before = accepted(&mut direct);
    for _ in 0..10 {
        assert_eq!(held.client().ask(&["GET", "key"]), Reply::Nil);
        held.page().wait_for_idle(1);
    }
    assert_eq!(accepted(&mut direct) - before, 1);
}

/// A server that answers GET with `name`, and records every request in `heard`.
fn named(listener: TcpListener, name: &'static str, heard: &Heard) -> Peer<()> {
    let heard = heard.clone();
    Peer::tls_on(listener, move |stream| {
        converse(stream, |request| {
            heard.add(name, request);
            Some(if request[0] == "GET" { format!("+{name}\r\n") } else { redis(request) })
        });
    })
}

/// Starts two servers on the same port of two addresses, and a launcher. Also returns the requests
/// that the servers receive.
fn two_names(hosts: &Hosts) -> Option<(Peer<()>, Peer<()>, Heard, Held)> {
    let launcher = hosts.launcher(OLD)?;
    let old = TcpListener::bind((OLD, 0)).unwrap();
    let port = old.local_addr().unwrap().port();
    let new = TcpListener::bind((NEW, port)).unwrap();
    let heard = Heard::default();
    let (old, new) = (named(old, "old", &heard), named(new, "new", &heard));
    let held = launcher.redis(&format!("rediss://redis.test:{port}")).start_held();
    Some((old, new, heard, held))
}

fn who(held: &Held) -> Reply {
    held.open().ask(&["GET", "name"])
}

#[test]
fn connections_are_reused_while_the_name_keeps_their_address() {
    let hosts = Hosts::new();
    let Some((old, _new, _heard, held)) = two_names(&hosts) else { return };
    assert_eq!(who(&held), Reply::line("+old"));
    held.page().wait_for_idle(1);
    hosts.name(&[NEW, OLD]);
    assert_eq!(who(&held), Reply::line("+old"));
    assert_eq!(old.accepted(), 1);
    held.page().wait_for_idle(1);
    hosts.name(&[NEW]);
    for _ in 0..3 {
        assert_eq!(who(&held), Reply::line("+new"));
    }
    old.result();
}

#[test]
fn a_failed_lookup_refuses_the_app_but_keeps_idle_connections() {
    let hosts = Hosts::new();
    let Some((old, _new, _heard, held)) = two_names(&hosts) else { return };
    assert_eq!(who(&held), Reply::line("+old"));
    held.page().wait_for_idle(1);
    hosts.name(&[]);
    assert_eq!(rest(held.open().stream.get_mut()), (vec![], None));
    hosts.name(&[OLD]);
    assert_eq!(who(&held), Reply::line("+old"));
    assert_eq!(old.accepted(), 1);
    let log = held.finish().stderr;
    let errors = logged(&log, "connection-failed", "error");
    assert!(errors.len() == 1 && errors[0].contains("name lookup failed"), "{log}");
}

#[test]
fn pool_repeats_its_trial_if_the_name_loses_an_address() {
    let hosts = Hosts::new();
    let Some((_old, _new, heard, held)) = two_names(&hosts) else { return };
    let mut first = held.open();
    assert_eq!(first.ask(&["GET", "name"]), Reply::line("+old"));
    hosts.name(&[NEW, OLD]);
    let mut second = held.open();
    assert_eq!(second.ask(&["GET", "name"]), Reply::line("+new"));
    drop((first, second));
    held.page().wait_for_idle(2);
    hosts.name(&[OLD]);
    let before = heard.all().len();
    assert_eq!(who(&held), Reply::line("+old"));
    let later = &heard.all()[before..];
    assert_eq!(later[0], "old PING", "a trial begins with PING: {later:?}");
}
