//! The fuzz targets. Each target checks properties that must hold for any input. To run a target:
//! `cargo +nightly fuzz run TARGET`. tests/fuzz_corpus.rs runs all targets over the committed
//! corpus.

pub mod ledger_model;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use ledger_model::{Direction, Model};
use start_stunnel::command_line;
use start_stunnel::configuration;
use start_stunnel::configuration::cli::Invocation;
use start_stunnel::environment::Environment;
use start_stunnel::figures::{FailureReason, Figures, TunnelLabels};
use start_stunnel::pool::{Ledger, commands};
use start_stunnel::redis_url::{Local, RedisUrl};
use start_stunnel::status::{HostCheck, Status, serve_connection};
use start_stunnel::tls::Pin as KeyPin;
use start_stunnel::tls::pem::{self, ClientIdentity};
use start_stunnel::tunnel::relay::{App, Relay, RelayEnd, Side, Upstream};
use start_stunnel::tunnel::tap::NoTap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::time::Instant;

/// The password in all inputs. No message may contain this password.
const PASSWORD: &str = "hunter2";

/// Parses a URL. No message may show the URL's password. The URL's local URL must be valid, too.
pub fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for value in [text.to_owned(), format!("redis://user:{PASSWORD}{text}")] {
        match RedisUrl::parse(&value) {
            Ok(url) => {
                // The input may contain the password's text as well, for example as host name.
                let public = format!("{}{}", url.host, text).contains(PASSWORD);
                assert!(public || !format!("{url} {url:?}").contains(PASSWORD));
                let _ = (url.tls_parameters(), url.credentials());
                let local = url.local(&Local::Port(6371)).whole.expose().to_owned();
                let again = RedisUrl::parse(&local).expect("the local URL is valid");
                assert_eq!((again.host.to_string(), again.port), ("127.0.0.1".to_owned(), 6371));
                assert_eq!(again.local(&Local::Port(6371)).whole.expose(), local, "stays the same");
                let socket = url.local(&Local::Socket("/run/x y/redis0.sock".into())).whole;
                let socket = socket.expose();
                assert!(socket.starts_with("unix://") && socket.contains("/run/x%20y/redis0.sock"));
            }
            Err(problem) => assert!(!problem.contains(PASSWORD)),
        }
    }
}

/// Reads a command line and an environment. A line of the input that contains `=` and does not
/// begin with a dash is an environment variable. Any other line is a word of the command line.
pub fn settings(data: &[u8]) {
    // A value may be the path of a file. Some files in /dev and /proc never end, so skip them.
    if data.windows(4).any(|window| window == b"/dev" || window == b"/pro") {
        return;
    }
    let mut words = vec![OsString::from("start-stunnel")];
    let mut environment: Environment = BTreeMap::new();
    for line in data.split(|byte| *byte == b'\n').filter(|line| !line.contains(&0)) {
        match line.iter().position(|byte| *byte == b'=') {
            Some(at) if !line.starts_with(b"-") => {
                let (name, value) = (line[..at].to_vec(), line[at + 1..].to_vec());
                environment.insert(OsString::from_vec(name), OsString::from_vec(value));
            }
            _ => words.push(OsString::from_vec(line.to_vec())),
        }
    }
    let password = format!("redis://u:{PASSWORD}@h:1/2?password={PASSWORD}");
    environment.insert("HEROKU_REDIS_SECRET_URL".into(), password.clone().into());
    let invocation = match Invocation::parse_from(words) {
        Ok(invocation) => invocation,
        Err(error) => return drop(error.to_string()),
    };
    if configuration::is_disabled(&invocation, &environment) {
        return;
    }
    let configuration = match configuration::read(&invocation, &environment) {
        Ok(configuration) => configuration,
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "an error must name at least one mistake");
            for mistake in mistakes {
                assert!(!mistake.name.is_empty() && !mistake.problem.is_empty(), "{mistake:?}");
                let about_secret = mistake.name == "HEROKU_REDIS_SECRET_URL";
                assert!(!about_secret || !mistake.problem.contains(PASSWORD), "{mistake:?}");
            }
            return;
        }
    };
    assert!(!format!("{configuration:?}").contains(&password), "debug output shows no password");
    let plan = configuration.plan;
    let locals: Vec<Local> = (1..).map(Local::Port).take(plan.routes.len()).collect();
    for line in plan.describe(&locals) {
        assert!(!line.starts_with("HEROKU_REDIS_SECRET_URL") || !line.contains(PASSWORD), "{line}");
    }
    plan.changes(&locals).for_each(drop);
    command_line::rewrite(&plan, invocation.command.clone(), &locals);
}

/// Passes a connection's bytes to a ledger, piece by piece. The byte 0x01 begins a piece from the
/// app, and 0x02 begins a piece from Redis. After each piece, two ledgers must agree with the
/// model: one gets whole pieces, the other gets single bytes.
pub fn ledger(data: &[u8]) {
    let must_fail = |name: &[u8], argument: Option<&[u8]>| {
        commands::effect(name, argument).map(|effect| effect == commands::Effect::NoneIfRefused)
    };
    let (mut ledger, mut by_bytes) = (Ledger::default(), Ledger::default());
    let mut model = Model::new(&must_fail);
    let mut rest = data;
    let mut direction = Direction::Sent;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, 1 | 2)).unwrap_or(rest.len());
        let piece = &rest[..end];
        match direction {
            Direction::Sent => {
                ledger.sent(piece);
                piece.chunks(1).for_each(|byte| by_bytes.sent(byte));
            }
            Direction::Received => {
                ledger.received(piece);
                piece.chunks(1).for_each(|byte| by_bytes.received(byte));
            }
        }
        model.step(direction, piece);
        for ledger in [&ledger, &by_bytes] {
            let known = (ledger.is_spoiled(), ledger.is_reusable());
            assert_eq!(known, (model.is_spoiled, model.is_reusable), "{model:?}");
        }
        if let Some(mark) = rest.get(end) {
            direction = if *mark == 1 { Direction::Sent } else { Direction::Received };
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
}

/// Parses certificates and keys in PEM format, and pins. The parsers must not panic.
pub fn pem(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = KeyPin::parse_all(text);
    let whole = pem::with_line_ends(text);
    let _ = pem::certificates(&whole);
    let (certificate, key) = whole.split_once("\n\n").unwrap_or((&whole, &whole));
    if let Ok(chain) = pem::client_chain(certificate) {
        let _ = ClientIdentity::new(chain, key);
    }
}

/// A name in a server's certificate that would inject HTML if the page did not escape it.
const HOSTILE: &str = "</title><script>\u{1b}[2J\"'&";

/// Sends the input to the status page. The answer is HTTP or empty, the server closes the
/// connection, and the page escapes the server's name.
pub fn http(data: &[u8]) {
    let labels = TunnelLabels {
        variables: vec!["REDIS_URL".to_owned()],
        upstream: "redis.example:6379".to_owned(),
        verify: "none",
        pinned: false,
        limit: None,
    };
    let figures = Figures::new(vec![labels], 7);
    let tunnel = &figures.tunnels()[0];
    tunnel.saw_certificate(HOSTILE.to_owned(), 0);
    let reason = FailureReason::Certificate;
    tunnel.accept(Instant::now()).failed(reason, HOSTILE.to_owned(), HOSTILE.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let answer = runtime.block_on(async {
        let (mut visitor, server) = duplex(1 << 20);
        let status = Status::new(figures.into(), true);
        let hosts = HostCheck::Named("status.example".to_owned());
        let visit = async {
            // The server may close the connection early.
            let _ = visitor.write_all(data).await;
            let mut answer = Vec::new();
            visitor.read_to_end(&mut answer).await.expect("a pipe in memory");
            answer
        };
        tokio::join!(serve_connection(Box::new(server), &status, &hosts), visit).1
    });
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{answer}");
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let is_markup = head.contains("text/html");
    assert!(!is_markup || (!answer.contains("<script") && head.contains("default-src 'none'")));
}

/// The result of one call to a [`Mock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The call reads or writes at most this many bytes.
    Move(usize),
    /// The call returns `Pending`, and wakes the task at once.
    Later,
    /// This call and all later calls return `Pending`.
    Never,
    /// The call returns an error.
    Fail,
    /// A read finds the end of the stream. A write writes zero bytes.
    End,
}

impl Step {
    fn of(byte: u8) -> Step {
        match byte {
            0..=199 => Step::Move(1 + usize::from(byte) * usize::from(byte) * 5),
            200..=229 => Step::Later,
            230..=239 => Step::End,
            240..=249 => Step::Fail,
            250..=255 => Step::Never,
        }
    }
}

/// An in-memory stream at one end of a relay, whose calls follow a script.
struct Mock {
    reads: VecDeque<Step>,
    writes: VecDeque<Step>,
    /// The number of bytes that the relay has read from this stream.
    given: usize,
    /// The bytes that the relay has written to this stream.
    taken: Vec<u8>,
    read_failed: bool,
    write_failed: bool,
    /// True after a read that found the end of the stream, or that failed.
    ended: bool,
    shut_down: bool,
    /// True after a call that returned `Pending` and never wakes the task.
    stuck: bool,
}

/// The length of the byte pattern that a mock repeats.
const PERIOD: usize = 65_536;

/// The byte pattern, twice: [`PERIOD`] bytes from any position in the first half are one slice.
fn pattern() -> &'static [u8] {
    static PATTERN: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..2 * PERIOD).map(|n| (n ^ (n >> 8)) as u8).collect());
    &PATTERN
}

/// Whether `bytes` equal the first bytes that a mock returns.
fn is_in_order(bytes: &[u8]) -> bool {
    bytes.chunks(PERIOD).all(|chunk| *chunk == pattern()[..chunk.len()])
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (given, taken) = (self.given, self.taken.len());
        let Mock { reads, writes, read_failed, write_failed, ended, shut_down, stuck, .. } = self;
        write!(f, "given {given}, taken {taken}, left to do {reads:?} {writes:?}, ")?;
        write!(f, "read failed {read_failed}, write failed {write_failed}, ended {ended}, ")?;
        write!(f, "shut down {shut_down}, stuck {stuck}")
    }
}

impl Mock {
    fn new(reads: &[u8], writes: &[u8]) -> Mock {
        let steps = |script: &[u8]| script.iter().map(|byte| Step::of(*byte)).collect();
        Mock {
            reads: steps(reads),
            writes: steps(writes),
            given: 0,
            taken: Vec::new(),
            read_failed: false,
            write_failed: false,
            ended: false,
            shut_down: false,
            stuck: false,
        }
    }
}

impl AsyncRead for Mock {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(!self.ended, "the relay read after the end");
        match self.reads.pop_front().unwrap_or(Step::End) {
            Step::Move(most) => {
                let count = most.min(buffer.remaining()).min(PERIOD);
                buffer.put_slice(&pattern()[self.given % PERIOD..][..count]);
                self.given += count;
                Poll::Ready(Ok(()))
            }
            Step::Later => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Step::Never => {
                self.reads.push_front(Step::Never);
                self.stuck = true;
                Poll::Pending
            }
            Step::Fail => {
                self.ended = true;
                self.read_failed = true;
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            Step::End => {
                self.ended = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Mock {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!self.shut_down, "the relay wrote after shutdown");
        assert!(!self.write_failed, "the relay wrote after a failure");
        match self.writes.pop_front().unwrap_or(Step::Move(usize::MAX)) {
            Step::Move(most) => {
                let count = most.min(bytes.len());
                self.taken.extend_from_slice(&bytes[..count]);
                Poll::Ready(Ok(count))
            }
            Step::Later => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Step::Never => {
                self.writes.push_front(Step::Never);
                self.stuck = true;
                Poll::Pending
            }
            Step::Fail => {
                self.write_failed = true;
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            Step::End => {
                self.write_failed = true;
                Poll::Ready(Ok(0))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down = true;
        Poll::Ready(Ok(()))
    }
}

impl App for Mock {
    fn broken_off(&mut self) -> Option<io::Error> {
        None
    }
}

impl Upstream for Mock {
    fn note_end(&mut self) {}
}

/// Relays between two mocks. The input consists of four scripts, separated by `|`: the reads and
/// the writes of the app, then the reads and the writes of Redis. The relay must deliver all bytes
/// that the relay reads, in order, or reset the connection. The relay must never lose bytes
/// silently.
pub fn relay(data: &[u8]) {
    let mut scripts = data.split(|byte| *byte == b'|').chain(std::iter::repeat(&b""[..]));
    let mut script = || scripts.next().expect("endless");
    let mut app = Mock::new(script(), script());
    let mut redis = Mock::new(script(), script());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let timeout = Duration::from_secs(3600);
    let (end, progress) = runtime.block_on(async {
        let mut tap = NoTap;
        let mut relay = Relay::new(&mut app, &mut redis, &mut tap, Some(timeout));
        ((&mut relay).await, relay.progress())
    });

    for (from, to) in [(&app, &redis), (&redis, &app)] {
        assert!(to.taken.len() <= from.given, "the relay adds no bytes");
        assert!(is_in_order(&to.taken), "the bytes keep their order");
    }
    let delivered = (redis.taken.len() as u64, app.taken.len() as u64);
    assert_eq!((progress.sent, progress.received), delivered);
    let (all_up, all_down) = (redis.taken.len() == app.given, app.taken.len() == redis.given);
    match end {
        RelayEnd::Closed => {
            assert!(
                all_up && app.ended && !app.read_failed && redis.shut_down,
                "{app:?} {redis:?}"
            );
            // An app may close cleanly before it has read every reply.
            assert!(app.write_failed || (all_down && redis.ended && app.shut_down));
            assert!(!redis.write_failed);
        }
        RelayEnd::Idle => {
            assert!(all_up && (all_down || app.write_failed), "{app:?} {redis:?}");
            assert!(app.stuck || redis.stuck);
        }
        RelayEnd::Reset(Side::App, _) => {
            // An app that has closed its side and then accepts no reply no longer exists.
            let is_gone = app.ended && app.write_failed;
            assert!(app.read_failed || app.stuck || is_gone, "{app:?} {redis:?}");
            assert!(!app.read_failed || all_up || redis.write_failed || redis.stuck);
        }
        RelayEnd::Reset(Side::Redis, _) => {
            assert!(redis.read_failed || redis.write_failed || redis.stuck, "{app:?} {redis:?}");
            assert!(
                !redis.read_failed || all_down || app.write_failed || app.stuck,
                "Redis's last replies must reach the app: {app:?} {redis:?}"
            );
        }
        RelayEnd::Kept(_) => panic!("NoTap never keeps an upstream"),
    }
}
