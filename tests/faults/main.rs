//! The faults in the table of docs/faults.md. Each test makes a fault, then checks that other
//! connections still work and that descriptors, memory and CPU are as before.

#[path = "../support/mod.rs"]
mod support;

mod app;
mod launcher;
mod network;
mod redis;
mod tls;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use openssl::ssl::SslStream;
use support::launcher::{Held, Launcher, port_of, warned};
use support::proc::{connections_to, cpu_ticks, descriptors, resident_kib};
use support::resp::{Client, Reply};
use support::servers::{Front, PASSWORD, Server};
use support::{eventually, rest};

/// Prints both URLs, then lives until its standard input ends.
const HOLD_TWO: &str = "echo $REDIS_URL; echo $HEALTHY_URL; exec cat >/dev/null";
/// Memory that an allocator may keep after a fault.
const KEPT_KIB: u64 = 16 * 1024;
/// The most connections that a fault's apps have at once.
const MOST_AT_ONCE: usize = 202;
/// How many connections meet a fault.
const TIMES: usize = 20;

/// A row of the page's table, by its first cell.
struct Fault(&'static str);

inventory::collect!(Fault);

/// Registers the row of the table that a test covers.
macro_rules! fault {
    ($row:literal) => {
        inventory::submit! { crate::Fault($row) }
    };
}
use fault;

#[test]
fn every_fault_of_the_manual_has_a_test() {
    let page = include_str!("../../docs/faults.md");
    let (_, table) = page.split_once("<!-- faults -->\n").expect("the table's begin");
    let (table, _) = table.split_once("<!-- end of faults -->").expect("the table's end");
    let mut listed: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|cell| *cell != "fault" && !cell.starts_with("---"))
        .collect();
    let mut tested: Vec<&str> = inventory::iter::<Fault>().map(|Fault(row)| *row).collect();
    listed.sort_unstable();
    tested.sort_unstable();
    assert_eq!(tested, listed, "the tests, and the table in docs/faults.md");
}

/// The bytes that an app read until the end, and the error that ended its connection.
type Seen = (Vec<u8>, Option<ErrorKind>);

/// A launcher with a tunnel to a faulty server and one to a healthy Redis.
struct Scene {
    held: Held,
    healthy_port: u16,
    /// A connection to the healthy Redis, older than the fault.
    witness: Client,
    /// Requests of the witness.
    asked: usize,
    /// Open descriptors before the fault, except connections to Redis.
    descriptors: usize,
    /// The ports of both servers.
    upstreams: Vec<u16>,
    /// Memory before the fault.
    kib: u64,
    _healthy: Server,
}

impl Scene {
    fn new(url: &str) -> Scene {
        Scene::with(Launcher::script(HOLD_TWO), url)
    }

    /// The launcher's script must be [`HOLD_TWO`].
    fn with(launcher: Launcher, url: &str) -> Scene {
        let healthy = Server::start(Front::Redis);
        let launcher = launcher
            .redis(url)
            .env("HEALTHY_URL", healthy.url())
            .env("REDIS_STUNNEL_URLS", "REDIS_URL HEALTHY_URL")
            .env("STUNNEL_LOGLEVEL", "info");
        let mut held = launcher.start_held();
        let healthy_port = port_of(&held.running.line());
        let mut witness = Client::connect(healthy_port, PASSWORD);
        assert_eq!(witness.ask(&["PING"]), Reply::line("+PONG"));
        let pid = held.running.pid();
        let at_fault = port_of(url);
        let upstreams = vec![healthy.tls_port(), at_fault, at_fault.saturating_add(1)];
        let (descriptors, kib) = (others(pid, &upstreams), resident_kib(pid));
        let _healthy = healthy;
        Scene { held, healthy_port, witness, asked: 0, descriptors, upstreams, kib, _healthy }
    }

    fn pid(&self) -> i32 {
        self.held.running.pid()
    }

    /// A connection to the tunnel at fault.
    fn open(&self) -> TcpStream {
        self.held.tcp()
    }

    /// Sends `request` and reads to the end.
    fn exchange(&self, request: &[u8]) -> Seen {
        let mut app = self.open();
        // The connection may end before the request is sent; then reading finds the end only.
        let unsent = app.write_all(request).err().map(|error| error.kind());
        let (said, error) = rest(&mut app);
        (said, unsent.or(error))
    }

    /// Apps send a PING and read to the end, one after the other.
    fn one_by_one(&self) -> Vec<Seen> {
        (0..TIMES).map(|_| self.exchange(b"PING\r\n")).collect()
    }

    /// Apps send a PING and read to the end, all at the same time.
    fn all_at_once(&self) -> Vec<Seen> {
        let mut apps: Vec<_> = (0..TIMES).map(|_| self.open()).collect();
        apps.iter_mut().for_each(|app| app.write_all(b"PING\r\n").unwrap());
        apps.iter_mut().map(rest).collect()
    }

    /// An app that has read the bytes that [`half_a_reply`] sends.
    fn app_with_half_a_reply(&self) -> TcpStream {
        let mut app = self.open();
        app.write_all(b"ask!").unwrap();
        let mut got = vec![0; half().len()];
        app.read_exact(&mut got).unwrap();
        assert_eq!(got, half());
        app
    }

    /// Checks that the connection to the healthy Redis still works.
    fn others_go_on(&mut self) {
        self.asked += 1;
        let count = format!(":{}", self.asked);
        assert_eq!(self.witness.ask(&["INCR", "witness"]), Reply::Line(count));
    }

    /// True if the launcher has closed every app's connection. It keeps connections to Redis for
    /// later apps, but never more than there were apps at once.
    fn is_closed(&self) -> bool {
        let kept = connections_to(self.pid(), &self.upstreams);
        others(self.pid(), &self.upstreams) <= self.descriptors && kept <= MOST_AT_ONCE
    }

    /// Checks that the fault has left nothing behind; returns the log.
    fn aftermath(mut self) -> String {
        self.others_go_on();
        let mut new = Client::connect(self.healthy_port, PASSWORD);
        assert_eq!(new.ask(&["PING"]), Reply::line("+PONG"));
        drop((new, self.open()));
        let pid = self.pid();
        eventually("descriptors are as before", || self.is_closed().then_some(()));
        let kib = resident_kib(pid);
        assert!(kib < self.kib + KEPT_KIB, "{} KiB have become {kib}", self.kib);
        eventually("the launcher is at rest", || {
            let before = cpu_ticks(pid);
            thread::sleep(Duration::from_millis(200)); // The time over which spinning would show.
            (cpu_ticks(pid) - before <= 2).then_some(())
        });
        drop(self.witness);
        let ended = self.held.finish();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
        ended.stderr
    }
}

/// Descriptors of a process, except connections to Redis.
fn others(pid: i32, upstreams: &[u16]) -> usize {
    descriptors(pid).saturating_sub(connections_to(pid, upstreams))
}

/// Answers a request of four bytes with half a reply of 100.
fn half_a_reply(tls: &mut SslStream<TcpStream>) {
    tls.read_exact(&mut [0; 4]).unwrap();
    tls.write_all(&half()).unwrap();
}

fn half() -> Vec<u8> {
    [&b"$100\r\n"[..], &[b'x'; 50]].concat()
}

/// The apps' connections were closed without an answer.
#[track_caller]
fn closed(seen: &[Seen]) {
    assert!(seen.iter().all(|(said, _)| said.is_empty()), "{seen:?}");
}

/// The log has this text for each of the apps.
#[track_caller]
fn all_logged(log: &str, event: &str, key: &str, text: &str) {
    let values = warned(log, event, key);
    let right = values.iter().filter(|value| value.contains(text)).count();
    assert!(right >= TIMES, "{text}: {values:?}");
}
