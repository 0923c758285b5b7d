//! Answers over HTTP/1.1: one request per connection, GET and HEAD only.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::address::StatusListener;
use super::host::HostCheck;
use super::metrics::{self, Format};
use super::words;
use super::{RedisUrls, Status, StatusReport, json, page, text};
use crate::figures::CommandState;
use crate::logging::{debug, warning};
use crate::text::printable;
use crate::tunnel::failure;

/// Connections that are served at a time. One more ends the oldest.
const MOST_CONNECTIONS: usize = 64;
/// The longest request line and headers, in bytes.
const LONGEST_HEADERS: usize = 8 * 1024;
/// A connection has this long to send its request.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);
/// A connection may last this long.
const LONGEST: Duration = Duration::from_secs(5);
/// The pause after a failed `accept`, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// The header that tells `--status` whether all tunnels work: `true` or `false`.
pub const WELL: &str = "start-stunnel-well";

/// A source of connections.
pub trait Accept {
    type Stream: Connection + 'static;

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

/// Serves the status page on `listener`, for ever.
pub async fn serve(listener: StatusListener, status: Arc<Status>) {
    let hosts = listener.host_check();
    let error = match listener {
        StatusListener::Tcp(listener, ..) => match TcpListener::from_std(listener) {
            Ok(listener) => return accept_all(listener, status, hosts).await,
            Err(error) => error,
        },
        StatusListener::Unix(listener, _) => match UnixListener::from_std(listener) {
            Ok(listener) => return accept_all(listener, status, hosts).await,
            Err(error) => error,
        },
    };
    warning!(at = "status-down", error = %error);
}

/// Serves all connections, for ever. One descriptor is held in reserve: a lack of descriptors is
/// when people look at the status most.
pub async fn accept_all(listener: impl Accept, status: Arc<Status>, hosts: HostCheck) {
    let mut served = VecDeque::new();
    let mut reserve = a_descriptor();
    loop {
        match listener.accept().await {
            Ok(stream) => {
                make_room(&mut served);
                let (status, hosts) = (status.clone(), hosts.clone());
                let serving = tokio::spawn(async move {
                    serve_connection(Box::new(stream), &status, &hosts).await;
                });
                served.push_back(serving.abort_handle());
            }
            Err(error) if failure::is_out_of_descriptors(&error) && reserve.is_some() => {
                drop(reserve.take());
                // `accept` wants a descriptor before it looks whether anybody waits. If nobody
                // does, keep the reserve: an app would take it.
                let waiting = tokio::select! {
                    biased;
                    accepted = listener.accept() => accepted.ok(),
                    () = std::future::ready(()) => None,
                };
                if let Some(stream) = waiting {
                    serve_connection(Box::new(stream), &status, &hosts).await;
                }
            }
            Err(error) => {
                debug!(at = "status-not-accepted", error = %error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
        if reserve.is_none() {
            reserve = a_descriptor();
        }
    }
}

fn a_descriptor() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Ends the oldest connection if there are too many. Whoever wants an answer gets it at once, so
/// the oldest connection is most likely silent.
fn make_room(served: &mut VecDeque<AbortHandle>) {
    served.retain(|serving| !serving.is_finished());
    if served.len() >= MOST_CONNECTIONS
        && let Some(oldest) = served.pop_front()
    {
        oldest.abort();
    }
}

/// A connection of any kind. Boxed, so that the HTTP code is compiled once.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Answers one request.
pub async fn serve_connection(stream: Box<dyn Connection>, status: &Status, hosts: &HostCheck) {
    let answer = async |request: Request<Incoming>| {
        let response = match refused(&request, hosts) {
            Some(refusal) => refusal,
            None => answered(request.uri().path(), request.headers(), status.report().await),
        };
        Ok::<_, Infallible>(response)
    };
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_header_size(LONGEST_HEADERS)
        .max_buf_size(2 * LONGEST_HEADERS)
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_SILENCE)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    match timeout(LONGEST, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(at = "status-unanswered", error = %error),
        Err(_) => debug!(at = "status-unanswered", error = "timed out"),
    }
}

type Answer = Response<Full<Bytes>>;

/// The answer to a request that is refused.
fn refused(request: &Request<Incoming>, hosts: &HostCheck) -> Option<Answer> {
    let named = request.headers().get_all(header::HOST).iter().map(HeaderValue::to_str);
    let in_target = request.uri().authority().map(|authority| Ok(authority.as_str()));
    if !named.chain(in_target).all(|host| host.is_ok_and(|host| hosts.accepts(host))) {
        let text = "this Host is not accepted here; use localhost or an IP address\n";
        return Some(plain(StatusCode::MISDIRECTED_REQUEST, text));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(refusal);
    }
    None
}

fn answered(path: &str, headers: &HeaderMap, report: StatusReport) -> Answer {
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
            with_well(response, &report)
        }
        "/status.txt" => with_well(plain(StatusCode::OK, &text::written(&report)), &report),
        "/healthz" => health(&report),
        "/readyz" => readiness(&report),
        _ => plain(
            StatusCode::NOT_FOUND,
            "paths: / /metrics /status.json /status.txt /healthz /readyz\n",
        ),
    }
}

fn with_well(mut response: Answer, report: &StatusReport) -> Answer {
    let well = HeaderValue::from_static(if report.is_well() { "true" } else { "false" });
    response.headers_mut().insert(WELL, well);
    response
}

/// An answer proves that the event loop runs. Redis's state does not count: an outage of Redis must
/// not make a platform restart every app.
fn health(report: &StatusReport) -> Answer {
    let state = report.snapshot.command.state;
    let code = match state {
        // Somebody may continue it.
        CommandState::Running | CommandState::Stopped => StatusCode::OK,
        CommandState::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    plain(code, &format!("{}\n", state.word()))
}

fn readiness(report: &StatusReport) -> Answer {
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
            &format!("failing: {}\n", printable(&failing.join(" "))),
        ),
    }
}

fn plain(code: StatusCode, text: &str) -> Answer {
    typed(code, "text/plain; charset=utf-8", text.to_owned())
}

fn typed(code: StatusCode, content_type: &'static str, text: String) -> Answer {
    let mut response = Response::new(Full::from(text));
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::mpsc;

    /// The answer to the bytes of a request.
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
            serve_connection(
                Box::new(server),
                &status,
                &HostCheck::Named("status.example".to_owned()),
            )
            .await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        })
    }

    fn get(path: &str) -> String {
        asked(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    #[test]
    fn each_path_has_its_own_content() {
        for (path, code, begin) in [
            ("/", "200 OK", "<!doctype html>"),
            ("/metrics", "200 OK", "# HELP start_stunnel_connections_open "),
            ("/status.json", "200 OK", "{"),
            ("/status.txt", "200 OK", "REDIS_URL → "),
            ("/healthz", "200 OK", "running\n"),
            ("/readyz", "503 Service Unavailable", "failing: CACHE_URL\n"),
            ("/readyz?verbose", "503 Service Unavailable", "failing: CACHE_URL\n"),
            ("/other", "404 Not Found", "paths: / "),
            ("//", "404 Not Found", "paths: / "),
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
    fn a_host_of_another_site_is_refused() {
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
        // A browser always sends a Host.
        assert!(asked("GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    }

    #[test]
    fn only_get_and_head_are_answered() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE"] {
            let target = if method == "CONNECT" { "localhost:80" } else { "/" };
            let answer = asked(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
            assert!(answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
        }
    }

    #[test]
    fn long_or_incomplete_requests_are_cut_off() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(LONGEST_HEADERS));
        assert!(asked(&long).starts_with("HTTP/1.1 431 "), "{}", asked(&long));
        // The test's clock jumps to the timeout.
        assert_eq!(asked(""), "");
        assert_eq!(asked("GET / HTTP/1.1\r\nHost: local"), "");
        assert!(asked("\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn the_manual_states_the_limits() {
        let security = include_str!("../../SECURITY.md");
        let manual = include_str!("../../docs/operation.md");
        let [seconds, silence] = [LONGEST, LONGEST_SILENCE].map(|limit| limit.as_secs());
        assert_eq!(silence, 1, "the manual says: one second");
        for (page, sentence) in [
            (security, format!("at most {MOST_CONNECTIONS} at a time")),
            (manual, format!("at most {MOST_CONNECTIONS} connections at a time")),
            (manual, format!("{} KiB of headers, one second", LONGEST_HEADERS / 1024)),
            (manual, format!("and {seconds} seconds in all")),
        ] {
            let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(page.contains(&sentence), "not said: {sentence}");
        }
    }

    /// Connections made by a test.
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
    async fn a_hundred_silent_connections_delay_no_answer() {
        let (visitors, made) = mpsc::unbounded_channel();
        let status = Status::new(crate::status::tests::figures(), RedisUrls::Found);
        let made = Made(tokio::sync::Mutex::new(made));
        tokio::spawn(accept_all(made, status, HostCheck::Off));
        let visit = || {
            let (client, server) = duplex(1 << 20);
            visitors.send(server).unwrap();
            client
        };
        let started = tokio::time::Instant::now();
        let mut silent: Vec<_> = (0..100).map(|_| visit()).collect();
        let mut asks = visit();
        asks.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        // More silent connections come before the request is read.
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
