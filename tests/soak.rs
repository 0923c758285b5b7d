//! Loads and faults mixed at random, from a seed: each reply is checked, and each error has to be
//! explained by a fault.
//!
//! `bin/soak --minutes N` runs it for long; `bin/test` for a few seconds. SOAK_SECONDS and
//! SOAK_SEED say how.

mod support;

use std::collections::HashMap;
use std::env;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::libc;
use support::launcher::{Held, Launcher, port_of, send_signal};
use support::proc::{descriptors, resident_kib};
use support::resp::{Client, Reply, request};
use support::servers::{Front, Options, PASSWORD, Server};
use support::{eventually, eventually_within, reset};

/// How long a run takes when nobody says so.
const SECONDS: u64 = 8;
/// Apps that meet faults, and apps beside them that must not notice any.
const APPS: u64 = 24;
const WITNESSES: u64 = 6;
/// The connections that the apps that meet faults may have to Redis: fewer than there are of them.
const LIMIT: &str = "16";
/// The largest value, in bytes.
const LARGEST: u64 = 1024 * 1024;
/// What the launcher may have kept for the next time.
const KEPT_KIB: u64 = 24 * 1024;
/// What makes Redis keep what it has acknowledged when it is killed.
const DURABLE: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "100"];
/// Both URLs, then life until standard input ends, whatever signals are passed on.
const HOLD_TWO: &str =
    "trap '' HUP TERM USR1 USR2; echo $REDIS_URL; echo $CLEAN_URL; while read -r _; do :; done";

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same everywhere.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count as usize);
        bytes
    }
}

/// What is counted.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    connections: AtomicU64,
    bytes: AtomicU64,
    /// Connections that an app saw broken.
    broken: AtomicU64,
    /// Connections to Redis that a fault ended, or kept from being made.
    ended_by_faults: AtomicU64,
    faults: Mutex<HashMap<&'static str, u64>>,
}

impl Counts {
    fn fault(&self, name: &'static str) {
        *self.faults.lock().unwrap().entry(name).or_default() += 1;
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// What may be done to one connection between the launcher and Redis.
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
    /// Each open connection, and what is to be done to it next.
    open: Mutex<HashMap<u64, Arc<Mutex<Option<Mischief>>>>>,
    counts: Arc<Counts>,
}

impl Network {
    /// Leads to TLS port `to`, which may be away for some time.
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
                let end = pump(near, far_too, &Mutex::new(None));
                if end == PumpEnd::OfReader {
                    left.store(true, Ordering::Relaxed);
                }
                end
            });
            let down = pump(far, near_too, &orders);
            let left = left.load(Ordering::Relaxed);
            let up = up.join().unwrap();
            // Redis ended of itself if the launcher had not ended before.
            down == PumpEnd::Mischief
                || (down == PumpEnd::OfReader && (!left || up == PumpEnd::OfWriter))
        });
        self.open.lock().unwrap().remove(&id);
        if ended {
            add(&self.counts.ended_by_faults, 1);
        }
    }

    /// Does something to a connection at random, if there is any.
    fn mischief(&self, dice: &mut Dice) {
        let open = self.open.lock().unwrap();
        if open.is_empty() {
            return;
        }
        let (kind, name) = match dice.below(10) {
            0 | 1 => (Mischief::Reset, "connection reset"),
            2 => (Mischief::Close, "connection closed in the middle"),
            3 => (Mischief::Corrupt, "byte changed on the way"),
            4 | 5 => (Mischief::Drip, "replies byte by byte"),
            _ => (Mischief::Stall, "replies held back"),
        };
        let mut ids: Vec<_> = open.keys().copied().collect();
        ids.sort_unstable();
        let id = ids[dice.below(ids.len() as u64) as usize];
        *open[&id].lock().unwrap() = Some(kind);
        self.counts.fault(name);
    }
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PumpEnd {
    /// By mischief.
    Mischief,
    /// The side that was read from closed, or broke off.
    OfReader,
    /// The side that was written to was gone.
    OfWriter,
}

/// Moves bytes until the end.
fn pump(mut from: TcpStream, mut to: TcpStream, orders: &Mutex<Option<Mischief>>) -> PumpEnd {
    let mut buffer = vec![0; 32 * 1024];
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let give_up = |from: &TcpStream, to: &TcpStream| {
        for stream in [from, to] {
            reset(stream);
            // The other thread is to notice; a socket that is dead already says so.
            let _ = stream.shutdown(Shutdown::Both);
        }
    };
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return PumpEnd::OfReader;
            }
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => {
                give_up(&from, &to);
                return PumpEnd::OfReader;
            }
        };
        let order = if read == 0 {
            // What needs bytes waits for them.
            let mut orders = orders.lock().unwrap();
            match *orders {
                Some(Mischief::Reset | Mischief::Close) => orders.take(),
                _ => None,
            }
        } else {
            orders.lock().unwrap().take()
        };
        match order {
            Some(Mischief::Reset) => {
                give_up(&from, &to);
                return PumpEnd::Mischief;
            }
            Some(Mischief::Close) => {
                // Whoever reads sees an end, in the middle of a reply perhaps; what it sends is
                // lost.
                let _ = to.write_all(&buffer[..read / 2]);
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
                return PumpEnd::Mischief;
            }
            Some(Mischief::Corrupt) => {
                buffer[read / 2] ^= 0x20;
                // TLS notices: the connection is done for.
                let _ = to.write_all(&buffer[..read]);
                let _ = from.read(&mut buffer);
                give_up(&from, &to);
                return PumpEnd::Mischief;
            }
            Some(Mischief::Stall) => thread::sleep(Duration::from_millis(300)),
            Some(Mischief::Drip) => {
                for byte in &buffer[..read] {
                    if to.write_all(&[*byte]).is_err() {
                        give_up(&from, &to);
                        return PumpEnd::OfWriter;
                    }
                }
                continue;
            }
            None => {}
        }
        if to.write_all(&buffer[..read]).is_err() {
            give_up(&from, &to);
            return PumpEnd::OfWriter;
        }
    }
}

/// The next reply, unless it says that something is wrong with Redis or on the way to it.
fn reply(client: &mut Client) -> Result<Reply, Broken> {
    match client.reply()? {
        Reply::Line(line) if line.starts_with("-LOADING") => Err(ErrorKind::WouldBlock.into()),
        // A handshake that was tampered with may fail for any reason.
        Reply::Line(line) if line.starts_with("-ERR start-stunnel") => {
            Err(ErrorKind::ConnectionRefused.into())
        }
        reply => Ok(reply),
    }
}

/// What an app knows: its own keys, and what it was told about them.
struct App {
    name: String,
    dice: Dice,
    port: u16,
    counts: Arc<Counts>,
    /// Elements that Redis has acknowledged.
    acknowledged: u64,
    /// Elements that were sent, acknowledged or not.
    sent: u64,
    over: Arc<AtomicBool>,
}

type Broken = std::io::Error;

impl App {
    /// Uses connection after connection until the end; returns how many of them broke.
    fn run(&mut self) -> u64 {
        let mut broken = 0;
        while !self.over.load(Ordering::Relaxed) {
            add(&self.counts.connections, 1);
            match self.use_a_connection() {
                Ok(()) => {}
                // Redis says that it has just started.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(_) => broken += 1,
            }
        }
        broken
    }

    fn use_a_connection(&mut self) -> Result<(), Broken> {
        let mut client = Client::open(self.port);
        assert_eq!(self.ask(&mut client, &[b"AUTH", PASSWORD.as_bytes()])?, Reply::line("+OK"));
        for _ in 0..=self.dice.below(40) {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            match self.dice.below(12) {
                0..=3 => self.echo(&mut client, 1)?,
                4..=5 => {
                    let count = 1 + self.dice.below(200);
                    self.echo(&mut client, count)?;
                }
                6..=7 => self.push(&mut client)?,
                8 => self.value(&mut client)?,
                9 => thread::sleep(Duration::from_millis(self.dice.below(50))),
                10 => self.wait_for_nothing(&mut client)?,
                _ => self.read_slowly(&mut client)?,
            }
        }
        match self.dice.below(4) {
            // Closed with a question open, as by an app that has changed its mind: nobody waits for
            // what becomes of it.
            0 => drop(client.stream.get_mut().write_all(&request(&[b"PING"]))),
            1 => reset(client.stream.get_ref()),
            _ => {}
        }
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
            (0..count).map(|_| format!("{} {:x}", self.name, self.dice.next())).collect();
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

    /// Appends to a list of its own, whose length tells later whether anything was lost.
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
        // A key of its own: a request of an earlier connection that broke may still be on its way.
        let key = format!("value of {} {:x}", self.name, self.dice.next());
        let size = self.dice.below(LARGEST);
        let value = self.dice.bytes(size);
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
        let tokens: Vec<String> = (0..50).map(|_| format!("{:x}", self.dice.next())).collect();
        for token in &tokens {
            client.stream.get_mut().write_all(&request(&[b"ECHO", token.as_bytes()]))?;
        }
        client.stream.get_mut().write_all(&request(&[
            b"LRANGE",
            list.as_bytes(),
            b"-1000",
            b"-1",
        ]))?;
        thread::sleep(Duration::from_millis(self.dice.below(100)));
        for token in &tokens {
            assert_eq!(reply(client)?, Reply::bulk(token), "{}", self.name);
        }
        assert!(matches!(reply(client)?, Reply::Array(_)), "{}", self.name);
        add(&self.counts.requests, 51);
        Ok(())
    }

    /// That Redis has every acknowledged element, each at most once, and none that was never sent.
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

/// Makes faults at random until the end.
fn disturb(
    dice: &mut Dice,
    network: &Network,
    redis: &mut Server,
    launcher: i32,
    until: Instant,
    counts: &Counts,
) {
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(5 + dice.below(60)));
        match dice.below(400) {
            0..=1 => {
                counts.fault("Redis killed and started again");
                redis.restart(Duration::from_millis(dice.below(800)));
            }
            2..=5 => {
                counts.fault("Redis stopped for up to a second");
                send_signal(redis.pid(), libc::SIGSTOP);
                thread::sleep(Duration::from_millis(dice.below(1000)));
                send_signal(redis.pid(), libc::SIGCONT);
            }
            6..=9 => {
                counts.fault("launcher stopped for up to a second");
                send_signal(launcher, libc::SIGSTOP);
                thread::sleep(Duration::from_millis(dice.below(1000)));
                send_signal(launcher, libc::SIGCONT);
            }
            10..=20 => {
                counts.fault("signal sent to the launcher");
                let signals = [libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
                send_signal(launcher, signals[dice.below(4) as usize]);
            }
            _ => network.mischief(dice),
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn run_apps(apps: &mut [App], counts: &Counts, while_they_run: impl FnOnce()) {
    let over = apps[0].over.clone();
    over.store(false, Ordering::Relaxed);
    thread::scope(|scope| {
        for app in apps.iter_mut() {
            scope.spawn(|| add(&counts.broken, app.run()));
        }
        while_they_run();
        over.store(true, Ordering::Relaxed);
    });
}

/// The launcher's memory and descriptors when nobody is connected.
fn at_rest(held: &Held, network: &Network) -> (u64, usize) {
    let pid = held.running.pid();
    // Those that are kept go half a minute later.
    eventually_within(Duration::from_secs(120), "every connection is gone", || {
        network.open.lock().unwrap().is_empty().then_some(())
    });
    // Descriptors of the last connections are closed a moment later.
    let mut last = 0;
    let count = eventually("descriptors are at rest", || {
        thread::sleep(Duration::from_millis(100));
        let before = std::mem::replace(&mut last, descriptors(pid));
        (before == last).then_some(last)
    });
    (resident_kib(pid), count)
}

#[test]
fn loads_and_faults_at_random_lose_nothing_and_leave_nothing() {
    let seconds = from_environment("SOAK_SECONDS", SECONDS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = from_environment("SOAK_SEED", now);
    println!("seed {seed}, {seconds} s");
    let mut dice = Dice(seed);
    let counts = Arc::new(Counts::default());

    let options = Options { words: DURABLE, ..Options::default() };
    let mut redis = Server::start_with(Front::Redis, options);
    let network = Network::start(redis.tls_port(), &counts);
    let clean = Server::start(Front::Redis);
    let launcher = Launcher::script(HOLD_TWO)
        .redis(&format!("rediss://127.0.0.1:{}", network.port))
        .env("CLEAN_URL", clean.url())
        .env("REDIS_STUNNEL_URLS", "REDIS_URL CLEAN_URL")
        .env("REDIS_URL_STUNNEL_MAX_CONNECTIONS", LIMIT);
    let mut held = launcher.start_held();
    let clean_url = held.running.line();
    let clean_port = port_of(&clean_url);
    let pid = held.running.pid();

    let over = Arc::new(AtomicBool::new(false));
    let mut app = |kind: &str, n: u64, port, counts: &Arc<Counts>| App {
        name: format!("{kind} {n}"),
        dice: Dice(dice.next()),
        port,
        counts: counts.clone(),
        acknowledged: 0,
        sent: 0,
        over: over.clone(),
    };
    let mut apps: Vec<App> = (0..APPS).map(|n| app("app", n, held.port, &counts)).collect();
    let witness_counts = Arc::new(Counts::default());
    let mut witnesses: Vec<App> =
        (0..WITNESSES).map(|n| app("witness", n, clean_port, &witness_counts)).collect();
    let witnesses_over = Arc::new(AtomicBool::new(false));
    witnesses.iter_mut().for_each(|witness| witness.over = witnesses_over.clone());

    // What is kept for the next time is there before it is measured.
    let warm = Duration::from_secs(seconds / 10 + 2);
    run_apps(&mut apps, &counts, || thread::sleep(warm));
    assert_eq!(counts.broken.load(Ordering::Relaxed), 0, "without faults");
    let before = at_rest(&held, &network);

    let witnessing = {
        let counts = witness_counts.clone();
        thread::spawn(move || {
            let broken: Vec<u64> = thread::scope(|scope| {
                let running: Vec<_> =
                    witnesses.iter_mut().map(|witness| scope.spawn(|| witness.run())).collect();
                running.into_iter().map(|app| app.join().expect("a witness")).collect()
            });
            add(&counts.broken, broken.iter().sum());
            witnesses
        })
    };
    let until = Instant::now() + Duration::from_secs(seconds);
    run_apps(&mut apps, &counts, || disturb(&mut dice, &network, &mut redis, pid, until, &counts));
    witnesses_over.store(true, Ordering::Relaxed);
    let witnesses = witnessing.join().unwrap();

    // It is over: nothing breaks any more.
    assert!(redis.answers());
    let broken = counts.broken.load(Ordering::Relaxed);
    run_apps(&mut apps, &counts, || thread::sleep(warm));
    let broken_later = counts.broken.load(Ordering::Relaxed) - broken;
    let after = at_rest(&held, &network);

    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut through = Client::connect(held.port, PASSWORD);
    let lost: u64 = apps.iter().map(|app| app.lost(&mut through)).sum();
    let mut through_clean = Client::connect(clean_port, PASSWORD);
    let lost_by_witnesses: u64 = witnesses.iter().map(|app| app.lost(&mut through_clean)).sum();
    let mut faults: Vec<_> =
        counts.faults.lock().unwrap().iter().map(|(name, count)| (*name, *count)).collect();
    faults.sort_unstable();
    let ended_by_faults = count(&counts.ended_by_faults);
    let witness_broken = count(&witness_counts.broken);

    println!("| what | count |\n| --- | --- |");
    let row = |what: &str, count: &dyn std::fmt::Display| println!("| {what} | {count} |");
    row("seconds, seed", &format!("{seconds}, {seed}"));
    row(
        "requests, each reply checked",
        &(count(&counts.requests) + count(&witness_counts.requests)),
    );
    row("connections", &(count(&counts.connections) + count(&witness_counts.connections)));
    row("MiB sent", &((count(&counts.bytes) + count(&witness_counts.bytes)) / (1024 * 1024)));
    for (name, count) in &faults {
        row(&format!("fault: {name}"), count);
    }
    row("connections to Redis that a fault ended", &ended_by_faults);
    row("of these, seen as broken by an app", &broken);
    row("broken without a fault, or beside one", &(broken_later + witness_broken));
    row("acknowledged writes lost", &(lost + lost_by_witnesses));
    row("memory at rest, KiB, before and after", &format!("{}, {}", before.0, after.0));
    row("descriptors at rest, before and after", &format!("{}, {}", before.1, after.1));

    assert!(broken <= ended_by_faults, "every broken connection is explained by a fault");
    assert_eq!((broken_later, witness_broken), (0, 0), "no fault, nothing broken");
    assert_eq!(lost + lost_by_witnesses, 0);
    assert_eq!(after.1, before.1, "descriptors");
    assert!(after.0 < before.0 + KEPT_KIB, "memory");
    drop((through, through_clean));
    let ended = held.finish();
    assert_eq!(ended.code(), 0);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}
