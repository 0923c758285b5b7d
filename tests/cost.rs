//! Tests what a connection costs, with numbers that do not depend on the machine's speed.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::libc;
use support::Process;
use support::launcher::{Launcher, send_signal};
use support::peer::Peer;
use support::proc::resident_kib;
use support::resp::Reply;
use support::servers::{Front, Server};

const ROUND_TRIPS: usize = 500;
/// The number of system calls per round trip: two waits, two reads and two writes.
const CALLS: usize = 6;
/// The number of system calls that a test tolerates beyond the expected calls, for example for
/// timers. If the launcher made one more call per round trip, it would exceed this number by far.
const OTHERS: usize = 300;

/// The total number of calls in a table of `strace -c`.
fn total_calls(table: &str) -> Option<usize> {
    let total = table.lines().find(|line| line.ends_with(" total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

#[test]
fn a_round_trip_takes_six_system_calls() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let mut client = held.client();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));

    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-p", &held.running.pid().to_string(), "-o"]).arg(&table);
    let strace = strace.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut strace = Process(strace.expect("strace (see bin/setup test)"));
    let mut said = String::new();
    let mut stderr = BufReader::new(strace.0.stderr.take().unwrap());
    stderr.read_line(&mut said).unwrap();
    if !said.contains("attached") {
        assert!(said.contains("not permitted"), "{said}");
        support::skip("strace may not attach to a process here");
        return;
    }
    for _ in 0..ROUND_TRIPS {
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    }
    send_signal(strace.pid(), libc::SIGINT);
    strace.wait();
    let table = fs::read_to_string(table).unwrap();
    let calls = total_calls(&table).unwrap_or_else(|| panic!("{table}"));
    assert!(calls >= ROUND_TRIPS * 4, "strace missed calls: {table}");
    assert!(calls <= ROUND_TRIPS * CALLS + OTHERS, "{table}");
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    const CONNECTIONS: u64 = 300;
    /// OpenSSL and the runtime need at most this much memory per connection, in KiB. A buffer of
    /// the relay would add 64 KiB.
    const KIB_EACH: u64 = 48;
    let server = Server::start(Front::Redis);
    let held = Launcher::holding(&server.url()).start_held();
    let big = "x".repeat(300_000);
    let mut warm = held.client();
    warm.ask(&["SET", "big", &big]);
    let idle = |count: u64| -> Vec<_> {
        (0..count)
            .map(|_| {
                let mut client = held.client();
                assert_eq!(client.ask(&["GET", "big"]), Reply::bulk(&big));
                client
            })
            .collect()
    };
    let _first = idle(20);
    let before = resident_kib(held.running.pid());
    let _others = idle(CONNECTIONS);
    let grown = resident_kib(held.running.pid()).saturating_sub(before);
    assert!(grown <= CONNECTIONS * KIB_EACH, "{} KiB each", grown / CONNECTIONS);
}

/// Writes until the other side stops reading.
fn push(stream: &mut impl Write) {
    // No buffer's size in the launcher is a multiple of the chunk size. So a part of a chunk
    // remains in each buffer, and the launcher cannot free the buffer.
    let chunk = [b'x'; 10_000];
    let error = loop {
        if let Err(error) = stream.write_all(&chunk) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
}

#[test]
fn a_stalled_connection_needs_no_more_memory_than_documented() {
    const CONNECTIONS: u64 = 40;
    const LONG: Duration = Duration::from_secs(1);
    let sentence = include_str!("../SECURITY.md");
    let (_, most) = sentence.split_once("costs at most ").expect("the sentence");
    let most: u64 = most.split(' ').next().unwrap().parse().expect("KiB");
    let peer = Peer::tls(|mut tls| {
        tls.get_ref().set_write_timeout(Some(LONG)).unwrap();
        push(&mut tls);
        tls
    });
    let held = Launcher::hold(&peer.url());
    let stall = |count: u64| -> Vec<_> {
        let apps: Vec<_> = (0..count)
            .map(|_| {
                let mut app = held.tcp();
                app.set_write_timeout(Some(LONG)).unwrap();
                thread::spawn(move || {
                    push(&mut app);
                    app
                })
            })
            .collect();
        let apps = apps.into_iter().map(|app| app.join().unwrap());
        apps.map(|app| (app, peer.result())).collect()
    };
    let _first = stall(2);
    let before = resident_kib(held.running.pid());
    let _others = stall(CONNECTIONS);
    let grown = resident_kib(held.running.pid()).saturating_sub(before);
    assert!(grown <= CONNECTIONS * most, "{} KiB each", grown / CONNECTIONS);
}
