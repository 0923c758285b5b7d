//! The faults in the table of docs/faults.md. Each test causes a fault. Then the test checks that
//! other connections still work, and that descriptors, memory and CPU have returned to their
//! earlier values.

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
use support::launcher::{HOLD_TWO, Held, Launcher, port_of, warned};
use support::proc::{connections_to, cpu_ticks, descriptors, resident_kib};
use support::resp::{Client, Reply};
use support::servers::{Front, PASSWORD, Server};
use support::{rest, wait_until};

/// The launcher's allocator may keep this much memory after a fault, in KiB.
const KEPT_KIB: u64 = 16 * 1024;
/// The apps of a test have at most this many connections at the same time.
const MOST_AT_ONCE: usize = 202;
/// The number of app connections that each test exposes to its fault.
const TIMES: usize = 20;

/// The first cell of a row of the table in docs/faults.md.
struct Fault(&'static str);

inventory::collect!(Fault);

/// Registers the row of docs/faults.md that a test covers.
macro_rules! fault {
    ($row:literal) => {
        inventory::submit! { crate::Fault($row) }
    };
}
use fault;

#[test]
fn every_fault_of_the_manual_has_a_test() {
    let page = include_str!("../../docs/faults.md");
    let (_, table) = page.split_once("<!-- faults -->\n").expect("the beginning of the table");
    let (table, _) = table.split_once("<!-- end of faults -->").expect("the end of the table");
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

/// All bytes that an app has read, and the error that ended the app's connection.
type Seen = (Vec<u8>, Option<ErrorKind>);

/// A launcher with one tunnel to a faulty server, and one tunnel to a healthy Redis.
struct Scene {
    held: Held,
    healthy_port: u16,
    /// A connection to the healthy Redis, opened before the fault.
    witness: Client,
    /// The number of open descriptors before the fault, not counting connections to the servers.
    descriptors: usize,
    /// The ports of both servers.
    upstreams: Vec<u16>,
    /// The launcher's memory before the fault, in KiB.
    kib: u64,
    _healthy: Server,
}

impl Scene {
    fn new(url: &str) -> Scene {
        Scene::with(Launcher::script(HOLD_TWO), url)
    }

    /// Like `new`, for any launcher whose COMMAND runs the script [`HOLD_TWO`].
    fn with(launcher: Launcher, url: &str) -> Scene {
        let healthy = Server::start(Front::Redis);
        let launcher = launcher.env("STUNNEL_LOGLEVEL", "info");
        let (held, healthy_port) = launcher.start_two(url, &healthy.url());
        let mut witness = Client::connect(healthy_port, PASSWORD);
        assert_eq!(witness.ask(&["PING"]), Reply::line("+PONG"));
        let pid = held.running.pid();
        let at_fault = port_of(url);
        let upstreams = vec![healthy.tls_port(), at_fault, at_fault.saturating_add(1)];
        let (descriptors, kib) = (others(pid, &upstreams), resident_kib(pid));
        let _healthy = healthy;
        Scene { held, healthy_port, witness, descriptors, upstreams, kib, _healthy }
    }

    fn pid(&self) -> i32 {
        self.held.running.pid()
    }

    /// Connects an app to the tunnel with the faulty server.
    fn open(&self) -> TcpStream {
        self.held.tcp()
    }

    /// Connects an app, which sends `request` and reads to the end of the stream.
    fn exchange(&self, request: &[u8]) -> Seen {
        let mut app = self.open();
        // If the launcher closes the connection first, sending the request fails. Return this
        // error, not the error of the read that follows.
        let unsent = app.write_all(request).err().map(|error| error.kind());
        let (said, error) = rest(&mut app);
        (said, unsent.or(error))
    }

    /// Connects [`TIMES`] apps, one after the other. Each app sends a PING and reads to the end of
    /// the stream.
    fn one_by_one(&self) -> Vec<Seen> {
        (0..TIMES).map(|_| self.exchange(b"PING\r\n")).collect()
    }

    /// Connects [`TIMES`] apps at the same time. Each app sends a PING and reads to the end of the
    /// stream.
    fn all_at_once(&self) -> Vec<Seen> {
        let mut apps: Vec<_> = (0..TIMES).map(|_| self.open()).collect();
        apps.iter_mut().for_each(|app| app.write_all(b"PING\r\n").unwrap());
        apps.iter_mut().map(rest).collect()
    }

    /// Connects an app, which reads the bytes that the server sends in [`half_a_reply`].
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
        assert_eq!(self.witness.ask(&["PING"]), Reply::line("+PONG"));
    }

    /// True if the launcher has closed every app connection. The pool may keep at most
    /// [`MOST_AT_ONCE`] connections to Redis.
    fn is_closed(&self) -> bool {
        let kept = connections_to(self.pid(), &self.upstreams);
        others(self.pid(), &self.upstreams) <= self.descriptors && kept <= MOST_AT_ONCE
    }

    /// Checks that descriptors, memory and CPU have returned to their earlier values. Returns the
    /// log.
    fn aftermath(mut self) -> String {
        self.others_go_on();
        let mut new = Client::connect(self.healthy_port, PASSWORD);
        assert_eq!(new.ask(&["PING"]), Reply::line("+PONG"));
        drop((new, self.open()));
        let pid = self.pid();
        wait_until("descriptors are as before", || self.is_closed());
        let kib = resident_kib(pid);
        assert!(
            kib < self.kib + KEPT_KIB,
            "the launcher's memory grew from {} to {kib} KiB",
            self.kib
        );
        wait_until("the launcher is at rest", || {
            let before = cpu_ticks(pid);
            thread::sleep(Duration::from_millis(200)); // A busy loop would use CPU time meanwhile.
            cpu_ticks(pid) - before <= 2
        });
        drop(self.witness);
        let ended = self.held.finish();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
        ended.stderr
    }
}

/// The number of a process's open descriptors, not counting connections to the ports `upstreams`.
fn others(pid: i32, upstreams: &[u16]) -> usize {
    descriptors(pid).saturating_sub(connections_to(pid, upstreams))
}

/// Reads a request of four bytes, and sends the first half of a reply of 100 bytes.
fn half_a_reply(tls: &mut SslStream<TcpStream>) {
    tls.read_exact(&mut [0; 4]).unwrap();
    tls.write_all(&half()).unwrap();
}

fn half() -> Vec<u8> {
    [&b"$100\r\n"[..], &[b'x'; 50]].concat()
}

/// Checks that the apps' connections were closed without an answer.
#[track_caller]
fn closed(seen: &[Seen]) {
    assert!(seen.iter().all(|(said, _)| said.is_empty()), "{seen:?}");
}

/// Checks that the log contains this text for each of the [`TIMES`] app connections.
#[track_caller]
fn all_logged(log: &str, event: &str, key: &str, text: &str) {
    let values = warned(log, event, key);
    let right = values.iter().filter(|value| value.contains(text)).count();
    assert!(right >= TIMES, "{text}: {values:?}");
}
