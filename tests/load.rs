//! Tests many connections, many requests and many launchers.

mod support;

use std::collections::HashSet;
use std::thread;

use support::launcher::{HOLD, Held, Launcher, logged};
use support::proc::{descriptors, is_alive, resident_kib};
use support::resp::{Client, Reply};
use support::servers::{Front, Server, connections};
use support::{may_open, wait_until};

/// A launcher may keep this much memory after all connections have closed, in KiB.
const KEPT_KIB: u64 = 16 * 1024;

/// Runs `job` in `threads` threads at the same time. Each thread passes its number to `job`.
fn side_by_side(threads: usize, job: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for n in 0..threads {
            let job = &job;
            scope.spawn(move || job(n));
        }
    });
}

/// Opens the first connection. With this connection, the launcher also opens some descriptors that
/// then stay open. Returns the connection and the launcher's number of descriptors.
fn at_rest(held: &Held) -> (Client, usize) {
    let mut warm = held.client();
    assert_eq!(warm.ask(&["PING"]), Reply::line("+PONG"));
    (warm, descriptors(held.running.pid()))
}

fn wait_for_descriptors(held: &Held, count: usize) {
    /// The number of connections to Redis that the pool may keep for half a minute.
    const IDLE: usize = 2;
    let pid = held.running.pid();
    wait_until("descriptors are as before", || descriptors(pid) <= count + IDLE);
}

#[test]
fn nine_thousand_connections_get_their_own_replies() {
    const CONNECTIONS: usize = 9_000;
    const PIPELINE: usize = 20;
    // The launcher needs two descriptors for each connection.
    if !may_open(2 * CONNECTIONS as u64 + 100) {
        return;
    }
    let server = Server::start(Front::Redis);
    // The shell lowers the soft limit on descriptors, so the launcher must raise this limit itself.
    let script = format!("ulimit -Sn 1024; exec {} sh -c '{HOLD}'", support::launcher::BINARY);
    let launcher = Launcher::of("sh", ["-c", &script]).redis(&server.url());
    let held = launcher.start_held();
    let (warm, before) = at_rest(&held);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| held.client()).collect();
    assert!(descriptors(held.running.pid()) >= 2 * CONNECTIONS);
    let tokens = |n: usize| -> Vec<_> {
        (0..PIPELINE).map(|request| format!("client {n} request {request}")).collect()
    };
    for (n, client) in clients.iter_mut().enumerate() {
        tokens(n).iter().for_each(|token| client.send(&["ECHO", token]));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        for token in tokens(n) {
            assert_eq!(client.reply().unwrap(), Reply::bulk(&token));
        }
    }
    drop(clients);
    wait_for_descriptors(&held, before);
    drop(warm);
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "command-ended", "connections"), [(CONNECTIONS + 1).to_string()]);
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"]);
}

#[test]
fn many_short_connections_leak_no_memory_and_no_descriptor() {
    const THREADS: usize = 4;
    // bin/soak opens 100,000 connections, which takes minutes.
    let all = std::env::var("LOAD_CONNECTIONS").map_or(20_000, |all| all.parse().unwrap());
    let connections = all / THREADS;
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let one_after_the_other = |count: usize| {
        side_by_side(THREADS, |_| {
            for _ in 0..count {
                assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
            }
        });
    };
    let (warm, before) = at_rest(&held);
    one_after_the_other(connections / 10);
    let kib = resident_kib(held.running.pid());
    one_after_the_other(connections - connections / 10);
    wait_for_descriptors(&held, before);
    let after = resident_kib(held.running.pid());
    assert!(
        after < kib + KEPT_KIB / 4,
        "{kib} KiB after a tenth of the connections, {after} KiB at the end"
    );
    drop(warm);
    let log = held.finish().stderr;
    let all = THREADS * connections;
    assert_eq!(logged(&log, "command-ended", "connections"), [(all + 1).to_string()]);
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"]);
}

#[test]
fn twenty_launchers_on_one_machine_do_not_disturb_each_other() {
    let server = Server::start(Front::Redis);
    let launchers: Vec<Held> = (0..20)
        .map(|n| {
            // Without a configured port, all launchers try the same port first.
            let url = server.url().replace("/0", &format!("/{}", n % 16));
            let launcher = Launcher::holding(&url);
            launcher.env("STUNNEL_LISTEN_PORT", "").start_held()
        })
        .collect();
    let ports: HashSet<u16> = launchers.iter().map(|held| held.port).collect();
    assert_eq!(ports.len(), 20, "each launcher has its own port");
    side_by_side(20, |n| {
        let mut clients: Vec<Client> = (0..10).map(|_| launchers[n].client()).collect();
        for round in 0..50 {
            for (at, client) in clients.iter_mut().enumerate() {
                let token = format!("launcher {n} client {at} round {round}");
                assert_eq!(client.ask(&["ECHO", &token]), Reply::bulk(&token));
            }
        }
    });
    let pids: Vec<i32> = launchers.iter().map(|held| held.running.pid()).collect();
    for held in launchers {
        assert_eq!(held.finish().code(), 0);
    }
    assert!(pids.into_iter().all(|pid| !is_alive(pid)));
    let mut direct = server.direct();
    wait_until("Redis has no other connection", || connections(&mut direct) == 0);
}
