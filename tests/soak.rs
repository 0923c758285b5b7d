//! Creates random loads and faults, from a seed. The apps disconnect at random, too. The test
//! checks each reply, and checks that no connection breaks without a fault.
//!
//! `bin/test` runs this test for some seconds, `bin/soak --minutes N` for longer. SOAK_SECONDS,
//! SOAK_SEED and SOAK_POOL (the launcher's pool mode) override the defaults.

mod support;

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use fastrand::Rng;
use nix::libc;
use support::launcher::{Held, Launcher, send_signal};
use support::proc::{descriptors, resident_kib, sockets_of};
use support::resp::{Client, Reply, request};
use support::servers::{Front, PASSWORD, Server, connections};
use support::{eventually_within, reset};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// The number of apps whose connections have faults.
const APPS: usize = 24;
/// The number of apps that use the second tunnel. This tunnel has no faults, so no connection of
/// these apps may break.
const WITNESSES: usize = 6;
/// The launcher may keep this much memory for later connections, in KiB.
const KEPT_KIB: u64 = 24 * 1024;
/// With these options, a killed Redis keeps all acknowledged writes.
const DURABLE: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "100"];
/// A script for COMMAND: prints both URLs, then ignores signals until its standard input ends.
const DEAF: &str =
    "trap '' HUP TERM USR1 USR2; echo $REDIS_URL; echo $OTHER_URL; while read -r _; do :; done";
/// An app may send the requests in one of these lines before the app disconnects. Most lines change
/// the connection's state, but the next app must not notice the change. The key `never` is set only
/// in transactions without EXEC.
const UNFINISHED: &[&str] = &[
    "",
    "PING",
    "MULTI; SET never 1",
    "WATCH home",
    "SELECT 7",
    "SUBSCRIBE news",
    "BLPOP empty 0.5",
    "HELLO 3",
    "HELLO 3; CLIENT TRACKING ON; GET home",
    "CLIENT REPLY OFF",
    "CLIENT REPLY SKIP",
];
/// While the network makes faults, each connection to Redis meets a fault within this time.
const FAULT_WITHIN: Duration = Duration::from_secs(4);
const ENDED_BY_FAULTS: &str = "connections to Redis that a fault ended";

/// The network between the launcher and Redis.
struct Network {
    port: u16,
    /// Redis's TLS port.
    redis: u16,
    /// True while the network makes faults.
    faulty: AtomicBool,
    open: AtomicUsize,
    /// Counts events by name.
    counts: Mutex<BTreeMap<&'static str, usize>>,
}

impl Network {
    fn start(redis: u16, mut dice: Rng) -> Arc<Network> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let network = Arc::new(Network {
            port: listener.local_addr().unwrap().port(),
            redis,
            faulty: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            counts: Mutex::default(),
        });
        let serving = network.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    let (near, _) = listener.accept().await.unwrap();
                    let (network, dice) = (serving.clone(), dice.fork());
                    tokio::spawn(async move {
                        network.open.fetch_add(1, Ordering::SeqCst);
                        network.relay(near, dice).await;
                        network.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            })
        });
        network
    }

    fn count(&self, name: &'static str, count: usize) {
        *self.counts.lock().unwrap().entry(name).or_default() += count;
    }

    /// Relays a connection of the launcher to Redis until one side closes or a fault happens. Redis
    /// may be down.
    async fn relay(&self, mut near: TcpStream, mut dice: Rng) {
        near.set_nodelay(true).unwrap();
        let Ok(mut far) = TcpStream::connect(("127.0.0.1", self.redis)).await else {
            return self.count(ENDED_BY_FAULTS, 1);
        };
        far.set_nodelay(true).unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => return,
            () = self.fault(&mut dice) => {}
        }
        let fault = match dice.u8(..3) {
            0 => {
                near.set_zero_linger().unwrap();
                "fault: connection reset"
            }
            1 => {
                // The launcher may have closed the connection already.
                let _ = near.try_write(&[dice.u8(..); 100]);
                "fault: bytes changed on the way"
            }
            _ => "fault: connection closed in the middle",
        };
        self.count(fault, 1);
        self.count(ENDED_BY_FAULTS, 1);
    }

    /// Waits until the time of this connection's fault. Waits forever if the network makes no
    /// faults.
    async fn fault(&self, dice: &mut Rng) {
        tokio::time::sleep(FAULT_WITHIN.mul_f64(dice.f64())).await;
        if !self.faulty.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

struct App {
    name: String,
    dice: Rng,
    port: u16,
    network: Arc<Network>,
    /// The number of connections that broke.
    broken: usize,
    /// The number of writes that the app has sent.
    sent: usize,
    /// The number of these writes that Redis has acknowledged.
    acknowledged: usize,
}

impl App {
    /// Uses connection after connection.
    fn run_until(&mut self, end: Instant) {
        while Instant::now() < end {
            self.network.count("connections", 1);
            match self.use_a_connection(end) {
                Ok(()) => {}
                // Redis is still loading its data.
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(_) => self.broken += 1,
            }
        }
    }

    fn use_a_connection(&mut self, end: Instant) -> Result<()> {
        let mut client = Client::open(self.port);
        // The connection must be as good as a new one: nobody is logged in, the protocol is RESP2
        // (RESP3 has another reply for a missing key), and the database is 0.
        let like_new = [
            (words("GET home"), Reply::line("-NOAUTH Authentication required.")),
            (words(&format!("AUTH {PASSWORD}")), Reply::line("+OK")),
            (words("GET never"), Reply::Nil),
            (words("GET home"), Reply::bulk("home")),
        ];
        self.exchange(&mut client, &like_new)?;
        // Half of the connections are short, so that many apps use one connection in turn.
        let longest = if self.dice.bool() { 2 } else { 40 };
        for _ in 0..self.dice.u64(..longest) {
            if Instant::now() > end {
                break;
            }
            match self.dice.u64(..8) {
                0..=4 => {
                    let count = if self.dice.bool() { 1 } else { self.dice.u64(1..=200) };
                    let echoes: Vec<_> = (0..count).map(|_| self.echo()).collect();
                    self.exchange(&mut client, &echoes)?;
                }
                5..=6 => {
                    // The value 2 would show that a write was repeated.
                    self.sent += 1;
                    let write = words(&format!("HINCRBY {} {} 1", self.name, self.sent));
                    self.exchange(&mut client, &[(write, Reply::line(":1"))])?;
                    self.acknowledged += 1;
                }
                _ => {
                    let value = self.value();
                    self.exchange(&mut client, &value)?;
                }
            }
        }
        self.disconnect(client)
    }

    /// An ECHO request with a unique text, and the expected reply.
    fn echo(&mut self) -> (Vec<u8>, Reply) {
        let token = format!("{} {:x}", self.name, self.dice.u64(..));
        (request(&[b"ECHO", token.as_bytes()]), Reply::Bulk(token.into_bytes()))
    }

    /// Requests that write and read a large value, and the expected replies.
    fn value(&mut self) -> [(Vec<u8>, Reply); 2] {
        // The key is new, because Redis may still execute a request of an earlier, broken
        // connection.
        let key = format!("value of {} {:x}", self.name, self.dice.u64(..));
        let mut value = vec![0; self.dice.usize(..1 << 20)];
        self.dice.fill(&mut value);
        let set = request(&[b"SET", key.as_bytes(), &value, b"EX", b"30"]);
        let get = request(&[b"GET", key.as_bytes()]);
        [(set, Reply::line("+OK")), (get, Reply::Bulk(value))]
    }

    /// Sends all requests, and sometimes pauses. Then checks that the replies are as expected.
    fn exchange(&mut self, client: &mut Client, dialogue: &[(Vec<u8>, Reply)]) -> Result<()> {
        let batch: Vec<&[u8]> = dialogue.iter().map(|(request, _)| request.as_slice()).collect();
        client.stream.get_mut().write_all(&batch.concat())?;
        if self.dice.u64(..8) == 0 {
            thread::sleep(Duration::from_millis(self.dice.u64(..100)));
        }
        for (_, expected) in dialogue {
            let reply = self.reply(client)?;
            assert!(reply == *expected, "{}: {:.200}", self.name, format!("{reply:?}"));
        }
        self.network.count("requests, each reply checked", dialogue.len());
        Ok(())
    }

    /// Reads the next reply. Returns an error if the reply reports an outage.
    fn reply(&self, client: &mut Client) -> Result<Reply> {
        match client.reply() {
            Ok(Reply::Line(line)) if line.starts_with("-LOADING") => {
                Err(ErrorKind::ResourceBusy.into())
            }
            // A corrupted handshake may fail for any reason.
            Ok(Reply::Line(line)) if line.starts_with("-ERR start-stunnel") => {
                Err(Error::other(line))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("{}: a connection is stuck", self.name)
            }
            result => result,
        }
    }

    /// Disconnects in one of many ways. The next app checks every reply, and must see no effect of
    /// this app's requests.
    fn disconnect(&mut self, mut client: Client) -> Result<()> {
        if self.dice.u64(..8) == 0 {
            // If another app's bytes completed this request, the hash would contain the value 2.
            let request = words(&format!("HSET {} field 2", self.name));
            let half = self.dice.usize(1..request.len());
            client.stream.get_mut().write_all(&request[..half])?;
        } else {
            let unfinished = UNFINISHED[self.dice.usize(..UNFINISHED.len())];
            for request in unfinished.split("; ").filter(|request| !request.is_empty()) {
                client.stream.get_mut().write_all(&words(request))?;
            }
        }
        if self.dice.bool() {
            // Read the replies that arrive within 20 ms.
            client.stream.get_ref().set_read_timeout(Some(Duration::from_millis(20)))?;
            match client.stream.read_to_end(&mut Vec::new()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(ErrorKind::UnexpectedEof.into()),
            }
        }
        match self.dice.u64(..3) {
            0 => {}
            1 => reset(client.stream.get_ref()),
            _ => {
                client.stream.get_ref().set_read_timeout(Some(support::PATIENCE))?;
                client.stream.get_ref().shutdown(Shutdown::Write)?;
                client.stream.read_to_end(&mut Vec::new())?;
            }
        }
        Ok(())
    }

    /// Counts the acknowledged writes that Redis has lost. Checks that no write was repeated.
    fn lost(&self) -> usize {
        let mut redis = Client::connect(self.port, PASSWORD);
        assert_eq!(redis.ask(&["GET", "never"]), Reply::Nil, "a transaction without EXEC ran");
        let Reply::Array(fields) = redis.ask(&["HVALS", &self.name]) else { panic!("no hash") };
        assert!(fields.iter().all(|field| *field == Reply::bulk("1")), "{}: {fields:?}", self.name);
        assert!(fields.len() <= self.sent, "{}", self.name);
        self.acknowledged.saturating_sub(fields.len())
    }
}

/// A request with these words, which are separated by spaces.
fn words(text: &str) -> Vec<u8> {
    request(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

/// A launcher with two tunnels. Only one tunnel leads through the network that makes faults.
struct Stage {
    redis: Server,
    clean: Server,
    network: Arc<Network>,
    held: Held,
    /// The apps whose connections have faults, followed by the apps without faults.
    apps: Vec<App>,
}

impl Stage {
    fn set_up(pool: &str, dice: &mut Rng) -> Stage {
        let redis = Server::with_words(DURABLE);
        let clean = Server::start(Front::Redis);
        for server in [&redis, &clean] {
            // Only database 0 contains this key.
            assert_eq!(server.direct().ask(&["SET", "home", "home"]), Reply::line("+OK"));
        }
        let network = Network::start(redis.tls_port(), dice.fork());
        let launcher = Launcher::script(DEAF)
            // The number of apps is larger than this limit, so some apps must wait.
            .env("REDIS_URL_STUNNEL_MAX_CONNECTIONS", "16")
            // On a busy machine, apps wait for longer than the default connect timeout.
            .env("STUNNEL_CONNECT_TIMEOUT", "20s")
            .env("STUNNEL_POOL", pool);
        let faulty = format!("rediss://127.0.0.1:{}", network.port);
        let (held, clean_port) = launcher.start_two(&faulty, &clean.url());
        let app = |n| App {
            name: format!("app-{n}"),
            dice: dice.fork(),
            port: if n < APPS { held.port } else { clean_port },
            network: network.clone(),
            broken: 0,
            sent: 0,
            acknowledged: 0,
        };
        let apps = (0..APPS + WITNESSES).map(app).collect();
        Stage { redis, clean, network, held, apps }
    }

    /// Runs all apps for this time, with faults if `faults` is given. Returns two numbers of
    /// connections that have broken since the start of the test. The first number is for the apps
    /// with faults, the second number for the apps without faults.
    fn run(&mut self, time: Duration, faults: Option<&mut Rng>) -> (usize, usize) {
        let end = Instant::now() + time;
        let mut apps = std::mem::take(&mut self.apps);
        thread::scope(|scope| {
            for app in &mut apps {
                scope.spawn(|| app.run_until(end));
            }
            if let Some(dice) = faults {
                self.disturb_until(end, dice);
            }
        });
        self.apps = apps;
        let broken = |apps: &[App]| apps.iter().map(|app| app.broken).sum();
        (broken(&self.apps[..APPS]), broken(&self.apps[APPS..]))
    }

    /// Waits until the launcher has no connection. Returns the launcher's memory in KiB, and the
    /// numbers of its descriptors and threads.
    fn at_rest(&self) -> (u64, [usize; 2]) {
        let pid = self.held.running.pid();
        let mut direct = self.clean.direct();
        // The pool keeps idle connections for half a minute.
        eventually_within(Duration::from_secs(120), "every connection is closed", || {
            let open = self.network.open.load(Ordering::SeqCst) + connections(&mut direct);
            // Each of the two tunnels has a listener.
            (open == 0 && sockets_of(pid).len() == 2).then_some(())
        });
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        (resident_kib(pid), [descriptors(pid), threads])
    }

    /// Makes faults at random.
    fn disturb_until(&mut self, end: Instant, dice: &mut Rng) {
        let launcher = self.held.running.pid();
        let network = self.network.clone();
        network.faulty.store(true, Ordering::SeqCst);
        while Instant::now() < end {
            let pause = Duration::from_millis(dice.u64(..1000));
            thread::sleep(pause);
            let fault = match dice.u64(..20) {
                0..=1 => {
                    self.redis.stop();
                    network.count(ENDED_BY_FAULTS, network.open.load(Ordering::SeqCst));
                    thread::sleep(pause);
                    self.redis.start_again();
                    "fault: Redis killed and started again"
                }
                2..=5 => {
                    stop_for(self.redis.pid(), pause);
                    "fault: Redis stopped for up to a second"
                }
                6..=9 => {
                    stop_for(launcher, pause);
                    "fault: launcher stopped for up to a second"
                }
                _ => {
                    let signals = [libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
                    send_signal(launcher, signals[dice.usize(..signals.len())]);
                    "fault: signal sent to the launcher"
                }
            };
            network.count(fault, 1);
        }
        network.faulty.store(false, Ordering::SeqCst);
    }
}

fn stop_for(pid: i32, time: Duration) {
    send_signal(pid, libc::SIGSTOP);
    thread::sleep(time);
    send_signal(pid, libc::SIGCONT);
}

fn from_environment(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect(name))
}

#[test]
fn random_loads_and_faults_cause_no_wrong_reply() {
    let seconds = from_environment("SOAK_SECONDS", 8);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = from_environment("SOAK_SEED", now);
    let pool = env::var("SOAK_POOL").unwrap_or_else(|_| "auto".to_owned());
    println!("| what | count |\n| --- | --- |");
    println!("| seconds, seed, pool | {seconds}, {seed}, {pool} |");
    let mut dice = Rng::with_seed(seed);
    let mut stage = Stage::set_up(&pool, &mut dice);

    // Run the apps before the first measurement, so that the launcher has allocated the memory that
    // it keeps.
    let warm = Duration::from_secs(seconds / 10 + 2);
    assert_eq!(stage.run(warm, None), (0, 0), "connections broken without faults");
    let (memory_before, open_before) = stage.at_rest();
    let (broken, beside) = stage.run(Duration::from_secs(seconds), Some(&mut dice));
    let after_faults = stage.run(warm, None);
    let (memory, open) = stage.at_rest();
    let lost: usize = stage.apps.iter().map(App::lost).sum();

    let mut counts = stage.network.counts.lock().unwrap().clone();
    counts.insert("connections that broke for an app", broken);
    counts.insert("acknowledged writes lost", lost);
    for (name, count) in &counts {
        println!("| {name} | {count} |");
    }
    println!("| memory at rest, KiB, before and after | {memory_before}, {memory} |");
    println!("| descriptors, threads at rest, before and after | {open_before:?}, {open:?} |");
    let ended_by_faults = counts.get(ENDED_BY_FAULTS).copied().unwrap_or_default();
    assert!(broken <= ended_by_faults, "a fault explains every broken connection");
    assert_eq!((beside, after_faults), (0, (broken, 0)), "connections broken without a fault");
    assert_eq!(lost, 0, "Redis lost acknowledged writes");
    assert_eq!(open, open_before, "the launcher leaks descriptors or threads");
    assert!(memory < memory_before + KEPT_KIB, "the launcher leaks memory");
    let ended = stage.held.finish();
    assert_eq!(ended.code(), 0);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}
