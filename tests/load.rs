//! Many connections, many requests, many launchers.

mod support;

use std::collections::HashSet;
use std::io::Write;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::eventually;
use support::launcher::{HOLD, Held, Launcher, logged};
use support::proc::{descriptors, is_alive, resident_kib};
use support::resp::{Client, Reply, request};
use support::servers::{Front, Server, connections};

/// Memory that a launcher may keep for later.
const KEPT_KIB: u64 = 16 * 1024;

/// Raises this process's limit on descriptors. If the hard limit is below `needed`, reports a
/// skipped test and returns `false`.
fn may_open(needed: u64) -> bool {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < needed {
        support::skip(&format!("{needed} descriptors are needed, and the hard limit is {hard}"));
        return false;
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    true
}

/// Sends a pipeline of unique requests, and compares each reply.
fn check(client: &mut Client, tokens: &[String]) {
    let batch: Vec<u8> =
        tokens.iter().flat_map(|token| request(&[b"ECHO", token.as_bytes()])).collect();
    client.stream.get_mut().write_all(&batch).unwrap();
    for token in tokens {
        assert_eq!(client.reply().unwrap(), Reply::bulk(token));
    }
}

/// Runs `job` with the numbers below `threads`, all at the same time.
fn side_by_side(threads: usize, job: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for n in 0..threads {
            let job = &job;
            scope.spawn(move || job(n));
        }
    });
}

/// A connection that stays, and the launcher's number of descriptors with it. The connection makes
/// sure that the launcher has opened all its own descriptors.
fn at_rest(held: &Held) -> (Client, usize) {
    let mut warm = held.client();
    assert_eq!(warm.ask(&["PING"]), Reply::line("+PONG"));
    (warm, descriptors(held.running.pid()))
}

fn wait_for_descriptors(held: &Held, count: usize) {
    /// Connections to Redis that the pool may keep for half a minute.
    const IDLE: usize = 2;
    let pid = held.running.pid();
    eventually("descriptors are as before", || (descriptors(pid) <= count + IDLE).then_some(()));
}

#[test]
fn nine_thousand_connections_get_their_own_replies() {
    const CONNECTIONS: usize = 9_000;
    // The launcher needs two descriptors for each connection.
    if !may_open(2 * CONNECTIONS as u64 + 100) {
        return;
    }
    let server = Server::start(Front::Redis);
    // The launcher must raise its soft limit itself.
    let script = format!("ulimit -Sn 1024; exec {} sh -c '{HOLD}'", support::launcher::BINARY);
    let launcher = Launcher::of("sh", ["-c", &script]).redis(&server.url());
    let held = launcher.start_held();
    let (warm, before) = at_rest(&held);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| held.client()).collect();
    assert!(descriptors(held.running.pid()) >= 2 * CONNECTIONS);
    for round in 0..2 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(&["ECHO", &format!("client {n} round {round}")]);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply().unwrap(), Reply::bulk(&format!("client {n} round {round}")));
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
fn a_million_requests_each_get_their_own_reply() {
    const THREADS: usize = 4;
    const CONNECTIONS: usize = 250;
    const REQUESTS: usize = 1_000;
    const PIPELINE: usize = 20;
    if !may_open(2 * (THREADS * CONNECTIONS) as u64 + 100) {
        return;
    }
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    side_by_side(THREADS, |thread| {
        let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| held.client()).collect();
        for from in (0..REQUESTS).step_by(PIPELINE) {
            for (n, client) in clients.iter_mut().enumerate() {
                let tokens: Vec<String> = (from..from + PIPELINE)
                    .map(|request| format!("thread {thread} client {n} request {request}"))
                    .collect();
                check(client, &tokens);
            }
        }
    });
    assert_eq!(logged(&held.finish().stderr, "command-ended", "failed"), ["0"]);
}

#[test]
fn many_short_connections_leak_no_memory_and_no_descriptor() {
    const THREADS: usize = 4;
    // bin/soak opens 100,000, which takes minutes.
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
    assert!(after < kib + KEPT_KIB / 4, "{kib} KiB after a tenth, {after} KiB at the end");
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
            // All launchers want the same port.
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
                check(client, &[format!("launcher {n} client {at} round {round}")]);
            }
        }
    });
    let pids: Vec<i32> = launchers.iter().map(|held| held.running.pid()).collect();
    for held in launchers {
        assert_eq!(held.finish().code(), 0);
    }
    assert!(pids.into_iter().all(|pid| !is_alive(pid)));
    let mut direct = server.direct();
    eventually("Redis has no other connection", || (connections(&mut direct) == 0).then_some(()));
}
