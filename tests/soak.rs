//! Mixes loads, faults and disconnecting apps at random, from a seed. The test checks each reply,
//! and a fault must explain each error.
//!
//! `bin/test` runs this test for some seconds, `bin/soak --minutes N` for longer. SOAK_SECONDS,
//! SOAK_SEED and SOAK_POOL (the launcher's pool mode) override the defaults.

mod support;

use std::collections::HashMap;
use std::env;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use nix::libc;
use support::launcher::{Held, Launcher, port_of, send_signal};
use support::proc::{descriptors, resident_kib, sockets_of};
use support::resp::{Client, Reply, request};
use support::servers::{Front, Options, PASSWORD, Server, connections};
use support::{eventually_within, reset};

/// Duration of a run, unless SOAK_SECONDS says otherwise.
const SECONDS: u64 = 8;
/// Apps that meet faults, and witnesses that must not notice any.
const APPS: u64 = 24;
const WITNESSES: u64 = 6;
/// The maximum number of connections to Redis for apps that meet faults. There are more apps, so
/// apps queue.
const LIMIT: &str = "16";
/// The largest value, in bytes.
const LARGEST: usize = 1024 * 1024;
/// Memory that the launcher may keep for later connections.
const KEPT_KIB: u64 = 24 * 1024;
/// With these options, a killed Redis keeps all acknowledged writes.
const DURABLE: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "100"];
/// The sockets of a launcher without connections: one listener per tunnel.
const LISTENERS: usize = 2;
/// The names of witnesses begin with this word.
const WITNESS: &str = "witness";
/// Prints both URLs and ignores forwarded signals until standard input ends.
const HOLD_TWO: &str =
    "trap '' HUP TERM USR1 USR2; echo $REDIS_URL; echo $CLEAN_URL; while read -r _; do :; done";

/// A key of database 0. An app that gets a connection in another database does not find the key.
const HOME: &str = "home";
/// A key that is set only in transactions without EXEC.
const NEVER: &str = "never";

/// Requests that an app may have sent before it leaves.
struct Unfinished {
    name: &'static str,
    requests: &'static [&'static [&'static str]],
    /// The replies that the app may read before it leaves.
    replies: u64,
}

const UNFINISHED: &[Unfinished] = &[
    Unfinished { name: "nothing", requests: &[], replies: 0 },
    Unfinished { name: "a PING", requests: &[&["PING"]], replies: 1 },
    Unfinished { name: "MULTI", requests: &[&["MULTI"], &["SET", NEVER, "1"]], replies: 2 },
    Unfinished { name: "WATCH", requests: &[&["WATCH", HOME]], replies: 1 },
    Unfinished { name: "SELECT", requests: &[&["SELECT", "7"]], replies: 1 },
    Unfinished { name: "SUBSCRIBE", requests: &[&["SUBSCRIBE", "news"]], replies: 1 },
    Unfinished { name: "BLPOP", requests: &[&["BLPOP", "empty list", "0.5"]], replies: 0 },
    Unfinished { name: "HELLO 3", requests: &[&["HELLO", "3"]], replies: 0 },
    Unfinished {
        name: "TRACKING",
        requests: &[&["HELLO", "3"], &["CLIENT", "TRACKING", "ON"], &["GET", HOME]],
        replies: 0,
    },
    Unfinished { name: "REPLY OFF", requests: &[&["CLIENT", "REPLY", "OFF"]], replies: 0 },
    Unfinished { name: "REPLY SKIP", requests: &[&["CLIENT", "REPLY", "SKIP"]], replies: 0 },
];
/// One of this many leaving apps has sent half a request.
const HALF_REQUEST_IN: u64 = 8;
const HALF_REQUEST: &str = "half a request";
/// How an app leaves.
const CLOSED: &str = "closed";
const HALF_CLOSED: &str = "half-closed";
const RESET: &str = "reset";

/// The counters.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    connections: AtomicU64,
    bytes: AtomicU64,
    /// Connections that broke for an app.
    broken: AtomicU64,
    /// Connections to Redis that a fault ended or prevented.
    ended_by_faults: AtomicU64,
    faults: Mutex<HashMap<&'static str, u64>>,
    /// How often apps left in each way, after each kind of requests.
    leavers: Mutex<HashMap<(&'static str, &'static str), u64>>,
}

impl Counts {
    fn fault(&self, name: &'static str) {
        *self.faults.lock().unwrap().entry(name).or_default() += 1;
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A fault of one connection between the launcher and Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mischief {
    Reset,
    Close,
    Corrupt,
    Stall,
    Drip,
}

/// The network between the launcher and Redis.
struct Network {
    port: u16,
    /// Each open connection and its next fault.
    open: Mutex<HashMap<u64, Arc<Mutex<Option<Mischief>>>>>,
    counts: Arc<Counts>,
}

impl Network {
    /// Relays to the TLS port `to`, which may be down for a while.
    fn start(to: u16, counts: &Arc<Counts>) -> Arc<Network> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let network = Arc::new(Network {
            port: listener.local_addr().unwrap().port(),
            open: Mutex::default(),
            counts: counts.clone(),
        });
        let serving = network.clone();
        thread::spawn(move || {
            for (id, near) in (0..).zip(listener.incoming()) {
                let (network, near) = (serving.clone(), near.unwrap());
                thread::spawn(move || network.relay(id, near, to));
            }
        });
        network
    }

    fn relay(&self, id: u64, near: TcpStream, to: u16) {
        let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
            add(&self.counts.ended_by_faults, 1);
            reset(&near);
            return;
        };
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let orders = Arc::new(Mutex::new(None));
        self.open.lock().unwrap().insert(id, orders.clone());
        let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let left = AtomicBool::new(false);
        let ended = thread::scope(|scope| {
            let up = scope.spawn(|| {
                let end = Pump { from: near, to: far_too }.run(&Mutex::new(None));
                if end == PumpEnd::OfReader {
                    left.store(true, Ordering::Relaxed);
                }
                end
            });
            let down = Pump { from: far, to: near_too }.run(&orders);
            let left = left.load(Ordering::Relaxed);
            let up = up.join().unwrap();
            // True unless the launcher ended the connection first. `Mischief`: the fault ended it.
            down == PumpEnd::Mischief
                || (down == PumpEnd::OfReader && (!left || up == PumpEnd::OfWriter))
        });
        self.open.lock().unwrap().remove(&id);
        if ended {
            add(&self.counts.ended_by_faults, 1);
        }
    }

    /// Gives a random open connection a random fault.
    fn mischief(&self, dice: &mut Rng) {
        let open = self.open.lock().unwrap();
        if open.is_empty() {
            return;
        }
        let (kind, name) = match dice.u64(..10) {
            0 | 1 => (Mischief::Reset, "connection reset"),
            2 => (Mischief::Close, "connection closed in the middle"),
            3 => (Mischief::Corrupt, "byte changed on the way"),
            4 | 5 => (Mischief::Drip, "replies byte by byte"),
            _ => (Mischief::Stall, "replies held back"),
        };
        let mut ids: Vec<_> = open.keys().copied().collect();
        ids.sort_unstable();
        let id = ids[dice.usize(..ids.len())];
        *open[&id].lock().unwrap() = Some(kind);
        self.counts.fault(name);
    }
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PumpEnd {
    /// By a fault.
    Mischief,
    /// The reading side was closed or reset.
    OfReader,
    /// The writing side had disappeared.
    OfWriter,
}

/// One direction of a connection.
struct Pump {
    from: TcpStream,
    to: TcpStream,
}

impl Pump {
    /// Moves bytes until the end, and makes the ordered faults.
    fn run(mut self, orders: &Mutex<Option<Mischief>>) -> PumpEnd {
        let mut buffer = vec![0; 32 * 1024];
        self.from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        loop {
            let read = match self.from.read(&mut buffer) {
                Ok(0) => {
                    let _ = self.to.shutdown(Shutdown::Write);
                    return PumpEnd::OfReader;
                }
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return self.reset_both(PumpEnd::OfReader),
            };
            match order(read, orders) {
                Some(Mischief::Reset) => return self.reset_both(PumpEnd::Mischief),
                Some(Mischief::Close) => {
                    // The reader sees an end, perhaps within a reply, and cannot send any more.
                    let _ = self.to.write_all(&buffer[..read / 2]);
                    let _ = self.to.shutdown(Shutdown::Both);
                    let _ = self.from.shutdown(Shutdown::Both);
                    return PumpEnd::Mischief;
                }
                Some(Mischief::Corrupt) => {
                    buffer[read / 2] ^= 0x20;
                    // TLS detects the change and ends the connection.
                    let _ = self.to.write_all(&buffer[..read]);
                    let _ = self.from.read(&mut buffer);
                    return self.reset_both(PumpEnd::Mischief);
                }
                Some(Mischief::Stall) => thread::sleep(Duration::from_millis(300)),
                Some(Mischief::Drip) => {
                    if buffer[..read].iter().any(|byte| self.to.write_all(&[*byte]).is_err()) {
                        return self.reset_both(PumpEnd::OfWriter);
                    }
                    continue;
                }
                None => {}
            }
            if self.to.write_all(&buffer[..read]).is_err() {
                return self.reset_both(PumpEnd::OfWriter);
            }
        }
    }

    /// Resets both connections, and wakes the thread of the other direction.
    fn reset_both(&self, end: PumpEnd) -> PumpEnd {
        for stream in [&self.from, &self.to] {
            reset(stream);
            // The socket may be dead already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        end
    }
}

/// The next fault, after `read` bytes. Without bytes, only a reset or a close is possible.
fn order(read: usize, orders: &Mutex<Option<Mischief>>) -> Option<Mischief> {
    let mut orders = orders.lock().unwrap();
    let needs_bytes = !matches!(*orders, Some(Mischief::Reset | Mischief::Close));
    if read == 0 && needs_bytes { None } else { orders.take() }
}

/// The next reply; an error if it reports an outage.
fn reply(client: &mut Client) -> Result<Reply, Broken> {
    match client.reply()? {
        Reply::Line(line) if line.starts_with("-LOADING") => Err(ErrorKind::WouldBlock.into()),
        // A corrupted handshake may fail for any reason.
        Reply::Line(line) if line.starts_with("-ERR start-stunnel") => {
            Err(ErrorKind::ConnectionRefused.into())
        }
        reply => Ok(reply),
    }
}

/// An app, and the state of its own list in Redis.
struct App {
    name: String,
    dice: Rng,
    port: u16,
    counts: Arc<Counts>,
    /// Elements that Redis has acknowledged.
    acknowledged: u64,
    /// Elements that it has sent, acknowledged or not.
    sent: u64,
    /// True if it meets faults.
    disturbed: bool,
}

type Broken = std::io::Error;

impl App {
    fn new(name: String, dice: &mut Rng, port: u16, counts: &Arc<Counts>) -> App {
        let disturbed = !name.starts_with(WITNESS);
        let (dice, counts) = (dice.fork(), counts.clone());
        App { name, dice, port, counts, acknowledged: 0, sent: 0, disturbed }
    }

    /// Uses connection after connection until the end.
    fn run(&mut self, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            add(&self.counts.connections, 1);
            match self.use_a_connection(over) {
                Ok(()) => {}
                // Redis is still loading its data.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(_) => add(&self.counts.broken, 1),
            }
        }
    }

    fn use_a_connection(&mut self, over: &AtomicBool) -> Result<(), Broken> {
        let mut client = Client::open(self.port);
        assert_eq!(self.ask(&mut client, &[b"AUTH", PASSWORD.as_bytes()])?, Reply::line("+OK"));
        assert_eq!(self.ask(&mut client, &[b"GET", HOME.as_bytes()])?, Reply::bulk(HOME));
        // Half of the connections are short, so that many users follow each other.
        let longest = if self.dice.bool() { 2 } else { 40 };
        for _ in 0..self.dice.u64(..longest) {
            if over.load(Ordering::Relaxed) {
                break;
            }
            match self.dice.u64(..12) {
                0..=3 => self.echo(&mut client, 1)?,
                4..=5 => {
                    let count = self.dice.u64(1..=200);
                    self.echo(&mut client, count)?;
                }
                6..=7 => self.push(&mut client)?,
                8 => self.value(&mut client)?,
                9 => thread::sleep(Duration::from_millis(self.dice.u64(..50))),
                10 => self.wait_for_nothing(&mut client)?,
                _ => self.read_slowly(&mut client)?,
            }
        }
        self.leave(client)
    }

    /// Leaves a connection in one of many ways. The next user checks every reply, and must see
    /// no effect of this app's requests.
    fn leave(&mut self, mut client: Client) -> Result<(), Broken> {
        let begun = if self.dice.u64(..HALF_REQUEST_IN) == 0 {
            // If another user's bytes completed it, `lost` would find an unknown element.
            let list = format!("list of {}", self.name);
            let request = request(&[b"RPUSH", list.as_bytes(), b"not an element"]);
            let half = self.dice.usize(1..request.len());
            client.stream.get_mut().write_all(&request[..half])?;
            HALF_REQUEST
        } else {
            let begun = &UNFINISHED[self.dice.usize(..UNFINISHED.len())];
            for words in begun.requests {
                let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
                client.stream.get_mut().write_all(&request(&words))?;
            }
            for _ in 0..self.dice.u64(..=begun.replies) {
                reply(&mut client)?;
            }
            begun.name
        };
        let way = match self.dice.u64(..3) {
            0 => CLOSED,
            1 => {
                reset(client.stream.get_ref());
                RESET
            }
            _ => {
                client.stream.get_ref().shutdown(Shutdown::Write)?;
                let ended = client.stream.read_to_end(&mut Vec::new());
                // A fault may end the connection. It does not count as broken, as the app has left.
                if !self.disturbed {
                    ended?;
                }
                HALF_CLOSED
            }
        };
        *self.counts.leavers.lock().unwrap().entry((way, begun)).or_default() += 1;
        Ok(())
    }

    fn ask(&mut self, client: &mut Client, words: &[&[u8]]) -> Result<Reply, Broken> {
        let request = request(words);
        client.stream.get_mut().write_all(&request)?;
        let reply = reply(client)?;
        add(&self.counts.requests, 1);
        add(&self.counts.bytes, request.len() as u64);
        Ok(reply)
    }

    fn echo(&mut self, client: &mut Client, count: u64) -> Result<(), Broken> {
        let tokens: Vec<String> =
            (0..count).map(|_| format!("{} {:x}", self.name, self.dice.u64(..))).collect();
        let batch: Vec<u8> =
            tokens.iter().flat_map(|token| request(&[b"ECHO", token.as_bytes()])).collect();
        client.stream.get_mut().write_all(&batch)?;
        for token in &tokens {
            assert_eq!(reply(client)?, Reply::bulk(token), "{}", self.name);
        }
        add(&self.counts.requests, count);
        add(&self.counts.bytes, batch.len() as u64);
        Ok(())
    }

    /// Appends to the app's own list, whose length later shows whether a write was lost.
    fn push(&mut self, client: &mut Client) -> Result<(), Broken> {
        let list = format!("list of {}", self.name);
        self.sent += 1;
        let element = self.sent.to_string();
        let reply = self.ask(client, &[b"RPUSH", list.as_bytes(), element.as_bytes()])?;
        assert!(matches!(&reply, Reply::Line(line) if line.starts_with(':')), "{reply:?}");
        self.acknowledged += 1;
        Ok(())
    }

    fn value(&mut self, client: &mut Client) -> Result<(), Broken> {
        // A new key: Redis may still execute a request of an earlier, broken connection.
        let key = format!("value of {} {:x}", self.name, self.dice.u64(..));
        let mut value = vec![0; self.dice.usize(..LARGEST)];
        self.dice.fill(&mut value);
        assert_eq!(
            self.ask(client, &[b"SET", key.as_bytes(), &value, b"EX", b"30"])?,
            Reply::line("+OK")
        );
        let stored = self.ask(client, &[b"GET", key.as_bytes()])?;
        assert!(stored == Reply::Bulk(value), "{}: the value differs", self.name);
        Ok(())
    }

    fn wait_for_nothing(&mut self, client: &mut Client) -> Result<(), Broken> {
        let list = format!("nothing for {}", self.name);
        assert_eq!(self.ask(client, &[b"BLPOP", list.as_bytes(), b"0.02"])?, Reply::Nil);
        Ok(())
    }

    fn read_slowly(&mut self, client: &mut Client) -> Result<(), Broken> {
        let list = format!("list of {}", self.name);
        let tokens: Vec<String> = (0..50).map(|_| format!("{:x}", self.dice.u64(..))).collect();
        for token in &tokens {
            client.stream.get_mut().write_all(&request(&[b"ECHO", token.as_bytes()]))?;
        }
        client.stream.get_mut().write_all(&request(&[
            b"LRANGE",
            list.as_bytes(),
            b"-1000",
            b"-1",
        ]))?;
        thread::sleep(Duration::from_millis(self.dice.u64(..100)));
        for token in &tokens {
            assert_eq!(reply(client)?, Reply::bulk(token), "{}", self.name);
        }
        assert!(matches!(reply(client)?, Reply::Array(_)), "{}", self.name);
        add(&self.counts.requests, 51);
        Ok(())
    }

    /// Counts the acknowledged elements that Redis has lost. Checks that no element is there twice.
    fn lost(&self, redis: &mut Client) -> u64 {
        let list = format!("list of {}", self.name);
        let Reply::Array(elements) = redis.ask(&["LRANGE", &list, "0", "-1"]) else {
            panic!("no list")
        };
        let mut seen: Vec<u64> = elements
            .iter()
            .map(|element| match element {
                Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).parse().unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        let stored = seen.len() as u64;
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len() as u64, stored, "{}: something was stored twice", self.name);
        assert!(seen.last().is_none_or(|last| *last <= self.sent), "{}", self.name);
        self.acknowledged.saturating_sub(stored)
    }
}

/// The launcher's pool mode in this run.
fn pool() -> String {
    env::var("SOAK_POOL").unwrap_or_else(|_| "auto".to_owned())
}

fn from_environment(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

/// Runs the apps until `work` is done.
fn run_apps(apps: &mut [App], work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for app in apps {
            scope.spawn(|| app.run(&over));
        }
        // The apps must end even if the work panics.
        let worked = catch_unwind(AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        worked.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// A launcher with a tunnel through the network of faults, and a clean one.
struct Stage {
    redis: Server,
    network: Arc<Network>,
    clean: Server,
    held: Held,
    clean_port: u16,
    /// Of the apps that meet faults, and of the witnesses.
    counts: [Arc<Counts>; 2],
}

impl Stage {
    fn set_up() -> Stage {
        let counts = [Arc::default(), Arc::default()];
        let options = Options { words: DURABLE, ..Options::default() };
        let redis = Server::start_with(Front::Redis, options);
        let network = Network::start(redis.tls_port(), &counts[0]);
        let clean = Server::start(Front::Redis);
        for server in [&redis, &clean] {
            assert_eq!(server.direct().ask(&["SET", HOME, HOME]), Reply::line("+OK"));
        }
        let launcher = Launcher::script(HOLD_TWO)
            .redis(&format!("rediss://127.0.0.1:{}", network.port))
            .env("CLEAN_URL", clean.url())
            .env("REDIS_STUNNEL_URLS", "REDIS_URL CLEAN_URL")
            .env("REDIS_URL_STUNNEL_MAX_CONNECTIONS", LIMIT)
            // On a busy machine, apps wait for longer than the default connect timeout.
            .env("STUNNEL_CONNECT_TIMEOUT", "20s")
            .env("STUNNEL_POOL", pool());
        let mut held = launcher.start_held();
        let clean_port = port_of(&held.running.line());
        Stage { redis, network, clean, held, clean_port, counts }
    }

    /// Apps that meet faults.
    fn apps(&self, dice: &mut Rng) -> Vec<App> {
        (0..APPS)
            .map(|n| App::new(format!("app {n}"), dice, self.held.port, &self.counts[0]))
            .collect()
    }

    /// Apps that must not notice any fault.
    fn witnesses(&self, dice: &mut Rng) -> Vec<App> {
        let counts = &self.counts[1];
        (0..WITNESSES)
            .map(|n| App::new(format!("{WITNESS} {n}"), dice, self.clean_port, counts))
            .collect()
    }

    /// Waits until the launcher has no connection; returns its memory in KiB and descriptors then.
    fn at_rest(&self) -> (u64, usize) {
        let pid = self.held.running.pid();
        let mut direct = self.clean.direct();
        // The pool keeps idle connections for half a minute.
        eventually_within(Duration::from_secs(120), "every connection is gone", || {
            let open = self.network.open.lock().unwrap().len() + connections(&mut direct);
            (open == 0 && sockets_of(pid).len() == LISTENERS).then_some(())
        });
        (resident_kib(pid), descriptors(pid))
    }

    /// Makes faults at random until the end.
    fn disturb(&mut self, dice: &mut Rng, until: Instant) {
        let launcher = self.held.running.pid();
        let stop_for_a_while = |dice: &mut Rng, pid: i32| {
            send_signal(pid, libc::SIGSTOP);
            thread::sleep(Duration::from_millis(dice.u64(..1000)));
            send_signal(pid, libc::SIGCONT);
        };
        while Instant::now() < until {
            thread::sleep(Duration::from_millis(dice.u64(5..65)));
            match dice.u64(..400) {
                0..=1 => {
                    self.counts[0].fault("Redis killed and started again");
                    self.redis.restart(Duration::from_millis(dice.u64(..800)));
                }
                2..=5 => {
                    self.counts[0].fault("Redis stopped for up to a second");
                    stop_for_a_while(dice, self.redis.pid());
                }
                6..=9 => {
                    self.counts[0].fault("launcher stopped for up to a second");
                    stop_for_a_while(dice, launcher);
                }
                10..=20 => {
                    self.counts[0].fault("signal sent to the launcher");
                    let signals = [libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
                    send_signal(launcher, signals[dice.usize(..signals.len())]);
                }
                _ => self.network.mischief(dice),
            }
        }
    }

    /// The acknowledged writes that Redis has lost.
    fn lost(&self, apps: &[App]) -> u64 {
        let mut redis = Client::connect(apps[0].port, PASSWORD);
        assert_eq!(redis.ask(&["GET", NEVER]), Reply::Nil, "a transaction without EXEC ran");
        apps.iter().map(|app| app.lost(&mut redis)).sum()
    }
}

/// The results of a run.
struct Summary<'a> {
    /// Of the apps that met faults, and of the witnesses.
    counts: [&'a Counts; 2],
    /// Connections that broke while there were faults.
    broken: u64,
    /// Connections that broke although there were no faults.
    unexplained: u64,
    lost: u64,
    /// Memory in KiB and descriptors at rest.
    before: (u64, usize),
    after: (u64, usize),
}

impl Summary<'_> {
    fn sum(&self, counter: impl Fn(&Counts) -> u64) -> u64 {
        self.counts.iter().map(|counts| counter(counts)).sum()
    }

    fn print(&self) {
        let row = |what: &str, count: &dyn std::fmt::Display| println!("| {what} | {count} |");
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        row("requests, each reply checked", &self.sum(|counts| count(&counts.requests)));
        row("connections", &self.sum(|counts| count(&counts.connections)));
        row("MiB sent", &(self.sum(|counts| count(&counts.bytes)) / (1024 * 1024)));
        let mut faults: Vec<_> =
            self.counts[0].faults.lock().unwrap().clone().into_iter().collect();
        faults.sort_unstable();
        for (name, count) in &faults {
            row(&format!("fault: {name}"), count);
        }
        for begun in UNFINISHED.iter().map(|begun| begun.name).chain([HALF_REQUEST]) {
            let ways = [CLOSED, HALF_CLOSED, RESET].map(|way| self.left(way, begun).to_string());
            row(&format!("closed, half-closed, reset after {begun}"), &ways.join(", "));
        }
        row("connections to Redis that a fault ended", &count(&self.counts[0].ended_by_faults));
        row("of these, seen as broken by an app", &self.broken);
        row("broken without a fault, or beside one", &self.unexplained);
        row("acknowledged writes lost", &self.lost);
        let (before, after) = (self.before, self.after);
        row("memory at rest, KiB, before and after", &format!("{}, {}", before.0, after.0));
        row("descriptors at rest, before and after", &format!("{}, {}", before.1, after.1));
    }

    /// How many apps left in this way.
    fn left(&self, way: &'static str, begun: &'static str) -> u64 {
        self.sum(|counts| {
            counts.leavers.lock().unwrap().get(&(way, begun)).copied().unwrap_or_default()
        })
    }

    fn check(&self) {
        let ended_by_faults = self.counts[0].ended_by_faults.load(Ordering::Relaxed);
        assert!(self.broken <= ended_by_faults, "a fault explains every broken connection");
        assert_eq!(self.unexplained, 0, "no fault, nothing broken");
        assert_eq!(self.lost, 0);
        assert_eq!(self.after.1, self.before.1, "descriptors");
        assert!(self.after.0 < self.before.0 + KEPT_KIB, "memory");
    }
}

#[test]
fn random_loads_and_faults_lose_no_reply() {
    let seconds = from_environment("SOAK_SECONDS", SECONDS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = from_environment("SOAK_SEED", now);
    println!("seed {seed}, {seconds} s, pool {}", pool());
    let mut dice = Rng::with_seed(seed);
    let mut stage = Stage::set_up();
    let [counts, witness_counts] = stage.counts.clone();
    let broken = || counts.broken.load(Ordering::Relaxed);
    let mut apps = stage.apps(&mut dice);
    let mut witnesses = stage.witnesses(&mut dice);

    // Before we measure, let the launcher allocate the memory that it keeps.
    let warm = Duration::from_secs(seconds / 10 + 2);
    run_apps(&mut apps, || thread::sleep(warm));
    assert_eq!(broken(), 0, "without faults");
    let before = stage.at_rest();

    let until = Instant::now() + Duration::from_secs(seconds);
    run_apps(&mut witnesses, || run_apps(&mut apps, || stage.disturb(&mut dice, until)));

    // Without faults, nothing breaks any more.
    assert!(stage.redis.answers());
    let broken_by_faults = broken();
    run_apps(&mut apps, || thread::sleep(warm));
    let after = stage.at_rest();
    let summary = Summary {
        counts: [&counts, &witness_counts],
        broken: broken_by_faults,
        unexplained: broken() - broken_by_faults + witness_counts.broken.load(Ordering::Relaxed),
        lost: stage.lost(&apps) + stage.lost(&witnesses),
        before,
        after,
    };
    println!("| what | count |\n| --- | --- |");
    println!("| seconds, seed, pool | {seconds}, {seed}, {} |", pool());
    summary.print();
    summary.check();
    let ended = stage.held.finish();
    assert_eq!(ended.code(), 0);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}
