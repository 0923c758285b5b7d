//! Answers over HTTP/1.1: one request a connection, GET and HEAD only, nothing that changes
//! anything.
//!
//! A page of another site that leads a name of its own to this address (DNS rebinding) is turned
//! away by the name: <https://owasp.org/www-community/attacks/DNS_Rebinding>.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::address::Listener;
use super::metrics::{self, Format};
use super::words::{self, harmless};
use super::{RedisUrls, Report, Status, json, page, text};
use crate::figures::CommandState;
use crate::logging::{debug, warning};
use crate::tunnel::failure;

/// Connections that are served at once; for another one, one that has not asked yet has to go.
const MOST_CONNECTIONS: usize = 64;
/// The longest request line and headers, in bytes.
const LONGEST_HEADERS: usize = 8 * 1024;
/// How long a connection may take to ask.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);
/// How long a connection may last.
const LONGEST: Duration = Duration::from_secs(5);
/// The pause after a failed `accept`, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// By what `--status` learns whether a tunnel fails, besides the text: `true` or `false`.
pub const WELL: &str = "start-stunnel-well";

/// The hosts by which browsers may ask: addresses, `localhost`, and the name that was bound, if it
/// is one.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Option<String>);

impl Hosts {
    pub fn named(name: &str) -> Hosts {
        Hosts(Some(name.to_owned()))
    }

    /// Whether a request to `authority`, a host with or without a port, is meant for this launcher.
    fn allow(&self, authority: &str) -> bool {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        bracketed.unwrap_or(host).parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.0.as_ref().is_some_and(|name| host.eq_ignore_ascii_case(name))
    }
}

/// Where connections come from.
pub trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(TcpListener::accept(self).await?.0)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

/// Serves the page at `listener`, for ever.
pub async fn serve(listener: Listener, status: Arc<Status>) {
    let hosts = listener.hosts();
    let served = match listener {
        Listener::Tcp(listener, ..) => match TcpListener::from_std(listener) {
            Ok(listener) => accept_all(listener, status, hosts).await,
            Err(error) => Err(error),
        },
        Listener::Unix(listener, _) => match UnixListener::from_std(listener) {
            Ok(listener) => accept_all(listener, status, hosts).await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = served {
        warning!(at = "status-down", error = %error);
    }
}

/// Serves whoever comes, [`MOST_CONNECTIONS`] at once.
pub async fn accept_all(
    listener: impl Accept,
    status: Arc<Status>,
    hosts: Hosts,
) -> io::Result<()> {
    let mut served = VecDeque::new();
    let reserve = Arc::new(Reserve::default());
    reserve.fill();
    loop {
        match listener.accept().await {
            Ok(stream) => {
                make_room(&mut served);
                let (visit, mut unwanted) = Visit::new();
                let asked = visit.asked.clone();
                served.push_back(visit);
                let (status, hosts, reserve) = (status.clone(), hosts.clone(), reserve.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve_visit(Box::new(stream), &status, &hosts, &asked) => {}
                        _ = &mut unwanted => {}
                    }
                    // Before anybody else has the descriptor.
                    reserve.fill();
                });
            }
            // It is tried again at once, before anybody else has it.
            Err(error) if failure::is_out_of_descriptors(&error) && reserve.give_up() => {}
            Err(error) => {
                debug!(at = "status-not-accepted", error = %error);
                sleep(ACCEPT_PAUSE).await;
                reserve.fill();
            }
        }
    }
}

/// A connection that is served, until this is dropped.
struct Visit {
    /// Whether its request is there.
    asked: Arc<AtomicBool>,
    /// Closed once it has been served.
    served: oneshot::Sender<Infallible>,
}

impl Visit {
    /// With what becomes ready when it is dropped.
    fn new() -> (Visit, oneshot::Receiver<Infallible>) {
        let (served, unwanted) = oneshot::channel();
        (Visit { asked: Arc::default(), served }, unwanted)
    }
}

/// Sees to it that another connection can be served. Whoever has said nothing for longest goes
/// first: what watches over a process must get in beside those who only connect.
fn make_room(served: &mut VecDeque<Visit>) {
    served.retain(|visit| !visit.served.is_closed());
    if served.len() >= MOST_CONNECTIONS {
        let is_silent = |visit: &Visit| !visit.asked.load(Ordering::Relaxed);
        served.remove(served.iter().position(is_silent).unwrap_or(0));
    }
}

/// A descriptor for the time when there is no other: then people ask most.
#[derive(Default)]
struct Reserve(Mutex<Option<File>>);

impl Reserve {
    fn held(&self) -> MutexGuard<'_, Option<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self) {
        let mut held = self.held();
        if held.is_none() {
            *held = File::open("/dev/null").ok();
        }
    }

    /// Says whether there was one.
    fn give_up(&self) -> bool {
        self.held().take().is_some()
    }
}

/// A connection of any kind: the HTTP behind it is there once.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Answers one request, within [`LONGEST`].
pub async fn serve_connection(stream: Box<dyn Connection>, status: &Status, hosts: &Hosts) {
    serve_visit(stream, status, hosts, &AtomicBool::new(false)).await;
}

/// As [`serve_connection`]; `asked` is set once the request is there.
async fn serve_visit(
    stream: Box<dyn Connection>,
    status: &Status,
    hosts: &Hosts,
    asked: &AtomicBool,
) {
    let answer = async |request: Request<hyper::body::Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let (head, _) = request.into_parts();
        let response = match refused(&head.method, &head.uri, &head.headers, hosts) {
            Some(refusal) => refusal,
            None => answered(head.uri.path(), &head.headers, status.report().await),
        };
        Ok::<_, Infallible>(response)
    };
    let mut server = http1::Builder::new();
    server
        .keep_alive(false)
        .max_header_size(LONGEST_HEADERS)
        .max_buf_size(2 * LONGEST_HEADERS)
        .half_close(true);
    let served = server.serve_connection(Stream(stream), service_fn(answer));
    let too_long = async {
        sleep(LONGEST_SILENCE).await;
        if asked.load(Ordering::Relaxed) {
            sleep(LONGEST - LONGEST_SILENCE).await;
        }
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            debug!(at = "status-unanswered", error = %error);
        },
        () = too_long => debug!(at = "status-unanswered", error = "timed out"),
    }
}

/// What is said to a request that is not answered.
fn refused(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    hosts: &Hosts,
) -> Option<Response<Text>> {
    let named = headers.get_all(header::HOST).iter().map(HeaderValue::to_str);
    let mut named = named.chain(uri.authority().map(|authority| Ok(authority.as_str())));
    if !named.all(|host| host.is_ok_and(|host| hosts.allow(host))) {
        let text = "the name in Host leads elsewhere; ask by localhost or by an address\n";
        return Some(plain(StatusCode::MISDIRECTED_REQUEST, text));
    }
    if ![Method::GET, Method::HEAD].contains(method) {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(refusal);
    }
    None
}

fn answered(path: &str, headers: &HeaderMap, report: Report) -> Response<Text> {
    match path {
        "/" => {
            let page = page::written(&report);
            let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", page);
            let policy = HeaderValue::from_static(page::security_policy());
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
            response
        }
        "/metrics" => {
            let accept = headers.get_all(header::ACCEPT).iter().filter_map(|one| one.to_str().ok());
            let format = Format::wanted(&accept.collect::<Vec<_>>().join(","));
            typed(StatusCode::OK, format.content_type(), metrics::written(report, format))
        }
        "/status.json" => {
            let json = json::written(&report).to_string() + "\n";
            let response = typed(StatusCode::OK, "application/json", json);
            with_verdict(response, &report)
        }
        "/status.txt" => with_verdict(plain(StatusCode::OK, &text::written(&report)), &report),
        "/healthz" => health(&report),
        "/readyz" => readiness(&report),
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are: / /metrics /status.json /status.txt /healthz /readyz\n",
        ),
    }
}

fn with_verdict(mut response: Response<Text>, report: &Report) -> Response<Text> {
    let well = HeaderValue::from_static(if report.is_well() { "true" } else { "false" });
    response.headers_mut().insert(WELL, well);
    response
}

/// That this is answered at all says that the loop is alive. Redis's state does not count: else an
/// outage of Redis would have a platform kill every app.
fn health(report: &Report) -> Response<Text> {
    let state = report.snapshot.command.state;
    let code = match state {
        // It may be continued.
        CommandState::Running | CommandState::Stopped => StatusCode::OK,
        CommandState::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    plain(code, &format!("{}\n", state.word()))
}

fn readiness(report: &Report) -> Response<Text> {
    let state = report.snapshot.command.state;
    if state == CommandState::Draining {
        return plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", state.word()));
    }
    let failing: Vec<_> = report
        .snapshot
        .tunnels
        .iter()
        .filter(|tunnel| tunnel.failing_since.is_some())
        .map(|tunnel| tunnel.variable())
        .collect();
    match failing.is_empty() {
        true if report.urls == RedisUrls::Missing => {
            plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", words::NO_URL))
        }
        true => plain(StatusCode::OK, "ready\n"),
        false => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("failing: {}\n", harmless(&failing.join(" "))),
        ),
    }
}

fn plain(code: StatusCode, text: &str) -> Response<Text> {
    typed(code, "text/plain; charset=utf-8", text.to_owned())
}

fn typed(code: StatusCode, content_type: &'static str, text: String) -> Response<Text> {
    let mut response = Response::new(Text::new(text));
    *response.status_mut() = code;
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A body that is there as a whole.
struct Text(Option<Bytes>);

impl Text {
    fn new(text: String) -> Text {
        Text((!text.is_empty()).then(|| text.into()))
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |text| text.len() as u64))
    }
}

/// A stream of tokio's as hyper takes it.
struct Stream(Box<dyn Connection>);

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        let most = buffer.remaining().min(bytes.len());
        let mut read = ReadBuf::new(&mut bytes[..most]);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::mpsc;

    /// What a launcher answers to the bytes of a request.
    fn asked(request: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut client, server) = duplex(1 << 20);
            client.write_all(request.as_bytes()).await.unwrap();
            let status = Status::new(crate::status::tests::figures(), RedisUrls::Found);
            serve_connection(Box::new(server), &status, &Hosts::named("status.example")).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        })
    }

    fn get(path: &str) -> String {
        asked(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    #[test]
    fn each_path_answers_in_its_own_form() {
        for (path, code, begin) in [
            ("/", "200 OK", "<!doctype html>"),
            ("/metrics", "200 OK", "# HELP start_stunnel_connections_open "),
            ("/status.json", "200 OK", "{"),
            ("/status.txt", "200 OK", "REDIS_URL → "),
            ("/healthz", "200 OK", "running\n"),
            ("/readyz", "503 Service Unavailable", "failing: CACHE_URL\n"),
            ("/readyz?verbose", "503 Service Unavailable", "failing: CACHE_URL\n"),
            ("/other", "404 Not Found", "there are: / "),
            ("//", "404 Not Found", "there are: / "),
        ] {
            let answer = get(path);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {code}\r\n")), "{path}: {head}");
            assert!(body.starts_with(begin), "{path}: {body}");
            assert!(head.contains("\r\ncontent-security-policy: default-src 'none'; "), "{head}");
        }
        let head = asked("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn a_name_that_leads_here_from_elsewhere_is_refused() {
        for (host, code) in [
            ("localhost", 200),
            ("LOCALHOST:9121", 200),
            ("127.0.0.1:9121", 200),
            ("10.0.0.7", 200),
            ("[::1]:9121", 200),
            ("[::1]", 200),
            ("Status.example:9121", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example:9121", 421),
            ("", 421),
            ("localhost:x", 421),
        ] {
            let answer = asked(&format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{host}: {answer}");
        }
        let absolute = "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert!(asked(absolute).starts_with("HTTP/1.1 421 "));
        let twice = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n";
        assert!(asked(twice).starts_with("HTTP/1.1 421 "));
        // Browsers always say whom they ask.
        assert!(asked("GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    }

    #[test]
    fn nothing_but_a_look_is_answered() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE"] {
            let target = if method == "CONNECT" { "localhost:80" } else { "/" };
            let answer = asked(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
            assert!(answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
        }
    }

    #[test]
    fn whoever_sends_too_much_or_nothing_at_all_does_not_hold_the_launcher() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(LONGEST_HEADERS));
        assert!(asked(&long).starts_with("HTTP/1.1 431 "), "{}", asked(&long));
        // The clock stands still but for what waits: the time is up.
        assert_eq!(asked(""), "");
        assert_eq!(asked("GET / HTTP/1.1\r\nHost: local"), "");
        assert!(asked("\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    /// Connections that a test makes.
    struct Made(tokio::sync::Mutex<mpsc::UnboundedReceiver<DuplexStream>>);

    impl Accept for Made {
        type Stream = DuplexStream;

        async fn accept(&self) -> io::Result<DuplexStream> {
            match self.0.lock().await.recv().await {
                Some(stream) => Ok(stream),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_who_say_nothing_keep_nobody_waiting() {
        let (visitors, made) = mpsc::unbounded_channel();
        let status = Status::new(crate::status::tests::figures(), RedisUrls::Found);
        let made = Made(tokio::sync::Mutex::new(made));
        tokio::spawn(accept_all(made, status, Hosts::default()));
        let visit = || {
            let (client, server) = duplex(1 << 20);
            visitors.send(server).unwrap();
            client
        };
        let started = tokio::time::Instant::now();
        let mut silent: Vec<_> = (0..100).map(|_| visit()).collect();
        let mut asks = visit();
        asks.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        // More of them come before it is read.
        silent.extend((0..MOST_CONNECTIONS / 2).map(|_| visit()));
        let mut answer = String::new();
        asks.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(started.elapsed(), Duration::ZERO);
        for mut silent in silent {
            assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "closed, and nothing said");
        }
        assert!(started.elapsed() <= LONGEST_SILENCE + Duration::from_millis(10));
    }
}
