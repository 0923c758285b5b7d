//! The HTTP/1.1 server of the status page. The server answers one GET or HEAD request per
//! connection.

use std::collections::VecDeque;
use std::convert::Infallible;
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
use nix::unistd::geteuid;
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::address::StatusListener;
use super::host::HostCheck;
use super::{Status, StatusReport, json, metrics, page, text};
use crate::figures::CommandState;
use crate::logging::{debug, warning};
use crate::names;
use crate::system::socket::watch;
use crate::system::stream;
use crate::text::printable;
use crate::tunnel::failure;

/// The maximum number of open connections to the status page. When a further connection arrives,
/// the server closes the oldest connection.
const MAX_CONNECTIONS: usize = 64;
/// The maximum size of a request's first line and headers together, in bytes.
const MAX_HEADER_BYTES: usize = 8 * 1024;
/// The time within which a request's first line and headers must arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest time that a connection to the status page may stay open.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed accept(2). Without the pause, a lack of descriptors would cause a busy
/// loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// The name of the HTTP header that tells `--status` whether all tunnels work. The header's value
/// is `true` or `false`.
pub const WELL: &str = "start-stunnel-well";

/// Accepts a connection to the status page. Over a Unix socket, only this user and root may
/// connect. If another user has connected, this function closes the connection and returns `None`.
fn accept(listener: &Socket) -> io::Result<Option<Box<dyn Connection>>> {
    let (socket, address) = listener.accept()?;
    socket.set_nonblocking(true)?;
    if !address.is_unix() {
        return Ok(Some(Box::new(TcpStream::from_std(socket.into())?)));
    }
    let stream = UnixStream::from_std(socket.into())?;
    let allowed = [0, geteuid().as_raw()];
    let is_allowed = stream.peer_cred().is_ok_and(|peer| allowed.contains(&peer.uid()));
    Ok(is_allowed.then(|| Box::new(stream) as Box<dyn Connection>))
}

/// Serves the status page until the launcher ends.
///
/// The server keeps one file descriptor in reserve, so that people can read the status page even if
/// the launcher has no other free descriptor.
pub async fn serve(page: StatusListener, status: Arc<Status>) {
    let hosts = page.hosts;
    let listener = match watch(page.socket) {
        Ok(listener) => listener,
        Err(error) => return warning!(at = "status-down", error = %error),
    };
    let mut served = VecDeque::new();
    let mut reserve = stream::reserve().ok();
    loop {
        match listener.async_io(Interest::READABLE, accept).await {
            Ok(None) => {}
            Ok(Some(stream)) => {
                end_oldest_if_full(&mut served);
                let (status, hosts) = (status.clone(), hosts.clone());
                let serving = tokio::spawn(async move {
                    serve_connection(stream, &status, &hosts).await;
                });
                served.push_back(serving.abort_handle());
            }
            Err(error) if failure::is_out_of_descriptors(&error) && reserve.is_some() => {
                drop(reserve.take());
                // Without a free descriptor, accept(2) fails even if no client is connecting. So
                // this call must not wait for a client. If the call waited, an app connection
                // could take the free descriptor before the loop opens the reserve again.
                let waiting = listener.try_io(Interest::READABLE, accept);
                if let Ok(Some(stream)) = waiting {
                    serve_connection(stream, &status, &hosts).await;
                }
            }
            Err(error) => {
                debug!(at = "status-not-accepted", error = %error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
        if reserve.is_none() {
            reserve = stream::reserve().ok();
        }
    }
}

/// Closes the oldest connection if [`MAX_CONNECTIONS`] connections are open. The client of the
/// oldest connection has probably sent no request, because the server answers requests at once.
fn end_oldest_if_full(served: &mut VecDeque<AbortHandle>) {
    served.retain(|serving| !serving.is_finished());
    if served.len() >= MAX_CONNECTIONS
        && let Some(oldest) = served.pop_front()
    {
        oldest.abort();
    }
}

/// A TCP or Unix connection. The server handles both kinds as trait objects, so that the compiler
/// does not generate the HTTP code twice.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Reads one request from `stream`, and answers the request.
pub async fn serve_connection(stream: Box<dyn Connection>, status: &Status, hosts: &HostCheck) {
    let answer = async |request: Request<Incoming>| {
        if let Some(refusal) = refusal(&request, hosts) {
            return Ok::<_, Infallible>(response(refusal));
        }
        let report = status.report().await;
        let mut answer = response(content(request.uri().path(), request.headers(), &report));
        let well = HeaderValue::from_static(if report.is_well() { "true" } else { "false" });
        answer.headers_mut().insert(WELL, well);
        Ok(answer)
    };
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(2 * MAX_HEADER_BYTES)
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    match timeout(TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(at = "status-unanswered", error = %error),
        Err(_) => debug!(at = "status-unanswered", error = "timed out"),
    }
}

/// The status code, the content type and the body of an HTTP answer.
type Content = (StatusCode, &'static str, String);

const PLAIN: &str = "text/plain; charset=utf-8";

/// Returns the answer to a request that the server refuses. Returns `None` if the server accepts
/// the request.
fn refusal(request: &Request<Incoming>, hosts: &HostCheck) -> Option<Content> {
    let named = request.headers().get_all(header::HOST).iter().map(HeaderValue::to_str);
    let in_target = request.uri().authority().map(|authority| Ok(authority.as_str()));
    if !named.chain(in_target).all(|host| host.is_ok_and(|host| hosts.accepts(host))) {
        let text = "this server does not accept the Host header of the request; use localhost or \
                    an IP address";
        return Some(plain(StatusCode::MISDIRECTED_REQUEST, text));
    }
    let is_allowed = [Method::GET, Method::HEAD].contains(request.method());
    let text = "only GET and HEAD are allowed";
    (!is_allowed).then(|| plain(StatusCode::METHOD_NOT_ALLOWED, text))
}

fn content(path: &str, headers: &HeaderMap, report: &StatusReport) -> Content {
    match path {
        "/" => (StatusCode::OK, "text/html; charset=utf-8", page::render(report)),
        "/metrics" => {
            let accept = headers.get_all(header::ACCEPT).iter().filter_map(|one| one.to_str().ok());
            let accept = accept.collect::<Vec<_>>().join(",");
            let (content_type, metrics) = metrics::render(report, &accept);
            (StatusCode::OK, content_type, metrics)
        }
        "/status.json" => {
            (StatusCode::OK, "application/json", json::render(report).to_string() + "\n")
        }
        "/status.txt" => (StatusCode::OK, PLAIN, text::render(report)),
        "/healthz" => verdict(draining(report), report.command.state.word()),
        "/readyz" => verdict(draining(report).or_else(|| not_ready(report)), "ready"),
        _ => plain(
            StatusCode::NOT_FOUND,
            "not found; the paths are / /metrics /status.json /status.txt /healthz /readyz",
        ),
    }
}

/// Returns the only reason why `/healthz` fails: COMMAND has exited. `/healthz` ignores Redis's
/// state, because an outage of Redis must not make a platform restart every app. `/healthz`
/// succeeds while COMMAND is stopped, because COMMAND may run again later.
fn draining(report: &StatusReport) -> Option<String> {
    let state = report.command.state;
    (state == CommandState::Draining).then(|| state.word().to_owned())
}

/// Returns the reason why `/readyz` fails although COMMAND has not exited.
fn not_ready(report: &StatusReport) -> Option<String> {
    let tunnels = report.tunnels.iter();
    let failing = tunnels.filter(|tunnel| tunnel.failing_since.is_some());
    let failing: Vec<_> = failing.map(|tunnel| printable(tunnel.variable())).collect();
    if !failing.is_empty() {
        return Some(format!("failing: {}", failing.join(" ")));
    }
    (!report.found_urls).then(|| names::NO_URL.to_owned())
}

fn verdict(problem: Option<String>, success: &str) -> Content {
    match problem {
        Some(problem) => plain(StatusCode::SERVICE_UNAVAILABLE, &problem),
        None => plain(StatusCode::OK, success),
    }
}

fn plain(code: StatusCode, line: &str) -> Content {
    (code, PLAIN, line.to_owned() + "\n")
}

fn response((code, content_type, body): Content) -> Response<Full<Bytes>> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ALLOW, "GET, HEAD")
        .header(header::CACHE_CONTROL, "no-store")
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::REFERRER_POLICY, "no-referrer")
        .header(header::CONTENT_SECURITY_POLICY, page::security_policy())
        .body(Full::from(body))
        .expect("the headers are printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    /// Returns the server's answer to `request`, the bytes of an HTTP request.
    fn asked(request: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut client, server) = duplex(1 << 20);
            client.write_all(request.as_bytes()).await.unwrap();
            let status = Status::new(crate::status::tests::figures(), true);
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
        const TEXT: &str = "text/plain; charset=utf-8";
        const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
        for (path, code, kind, begin) in [
            ("/", "200 OK", "text/html; charset=utf-8", "<!doctype html>"),
            ("/metrics", "200 OK", METRICS, "# HELP start_stunnel_connections_open "),
            ("/status.json", "200 OK", "application/json", "{"),
            ("/status.txt", "200 OK", TEXT, "REDIS_URL → "),
            ("/healthz", "200 OK", TEXT, "running\n"),
            ("/readyz", "503 Service Unavailable", TEXT, "failing: CACHE_URL\n"),
            ("/readyz?verbose", "503 Service Unavailable", TEXT, "failing: CACHE_URL\n"),
            ("/other", "404 Not Found", TEXT, "not found; the paths are / "),
            ("//", "404 Not Found", TEXT, "not found; the paths are / "),
        ] {
            let answer = get(path);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {code}\r\n")), "{path}: {head}");
            assert!(head.contains(&format!("\r\ncontent-type: {kind}\r\n")), "{path}: {head}");
            assert!(body.starts_with(begin), "{path}: {body}");
            assert!(head.contains("\r\ncontent-security-policy: default-src 'none'; "), "{head}");
        }
        let head = asked("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn a_host_header_with_a_foreign_name_gets_421() {
        for (host, code) in [
            ("localhost", 200),
            ("LOCALHOST:9121", 200),
            ("127.0.0.1:9121", 200),
            ("10.0.0.7", 200),
            ("[::1]:9121", 200),
            ("[::1]", 200),
            ("Status.example:9121", 200),
            ("evil.example", 421),
            ("evil.example@127.0.0.1", 421),
            ("evil.example@localhost", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example:9121", 421),
            ("", 421),
        ] {
            let answer = asked(&format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{host}: {answer}");
        }
        let absolute = "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert!(asked(absolute).starts_with("HTTP/1.1 421 "));
        let twice = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n";
        assert!(asked(twice).starts_with("HTTP/1.1 421 "));
        // Browsers always send a Host header, so a request without a Host header is no attack.
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
    fn too_long_and_incomplete_requests_get_no_page() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEADER_BYTES));
        assert!(asked(&long).starts_with("HTTP/1.1 431 "), "{}", asked(&long));
        // The test does not wait, because tokio's paused clock jumps to the timeout at once.
        assert_eq!(asked(""), "");
        assert_eq!(asked("GET / HTTP/1.1\r\nHost: local"), "");
        assert!(asked("\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn the_manual_has_the_limits_of_the_server() {
        let security = include_str!("../../SECURITY.md");
        let manual = include_str!("../../docs/operation.md");
        let [seconds, silence] = [TIMEOUT, HEADER_TIMEOUT].map(|limit| limit.as_secs());
        assert_eq!(silence, 1, "the manual says: one second");
        for (page, sentence) in [
            (security, format!("at most {MAX_CONNECTIONS} open connections at a time")),
            (manual, format!("at most {MAX_CONNECTIONS} connections at the same time")),
            (manual, format!("at most {} KiB, and must arrive", MAX_HEADER_BYTES / 1024)),
            (manual, "within one second".to_owned()),
            (manual, format!("may last at most {seconds} seconds")),
        ] {
            let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(page.contains(&sentence), "not said: {sentence}");
        }
    }
}
