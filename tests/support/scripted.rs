//! A server that parses requests. Each test decides on the replies.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex};

use openssl::ssl::SslVersion;

use super::peer::{Peer, acceptor};

/// Reads the words of the next request. Returns `None` at the end of the stream.
fn next_request(stream: &mut impl BufRead) -> Option<Vec<String>> {
    let count = number(stream)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream)? + 2];
        stream.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).unwrap());
    }
    Some(words)
}

/// Reads the next line. Returns the number after the line's first character.
fn number(stream: &mut impl BufRead) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    line.get(1..)?.trim_end().parse().ok()
}

/// Answers requests with `answer` until `answer` returns `None` or the stream ends.
pub fn converse<S: Read + Write>(stream: S, mut answer: impl FnMut(&[String]) -> Option<String>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = next_request(&mut stream) {
        let Some(answer) = answer(&request) else { return };
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The requests that a server has received. Each request begins with the number of its connection,
/// as in `0 PING`.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// The number of requests with this connection number and this text.
    pub fn count(&self, request: &str) -> usize {
        self.all().iter().filter(|line| *line == request).count()
    }

    /// The number of requests with this text on any connection.
    pub fn count_all(&self, request: &str) -> usize {
        self.all().iter().filter(|line| line.split_once(' ').unwrap().1 == request).count()
    }

    pub fn add(&self, name: &str, request: &[String]) {
        self.0.lock().unwrap().push(format!("{name} {}", request.join(" ")));
    }
}

/// A TLS server that calls `answer` for each request, with the connection's number and the
/// request's words. The server sends the reply that `answer` returns. If `answer` returns `None`,
/// the server closes the connection.
pub fn scripted(
    answer: impl Fn(usize, &[String]) -> Option<String> + Send + Sync + Clone + 'static,
) -> (Peer<()>, Heard) {
    let (heard, acceptor) = (Heard::default(), acceptor(SslVersion::TLS1_3));
    let hears = heard.clone();
    let peer = Peer::numbered(move |number, stream| {
        let stream = acceptor.accept(stream).expect("handshake");
        converse(stream, |request| {
            hears.add(&number.to_string(), request);
            answer(number, request)
        });
    });
    (peer, heard)
}

/// The reply that a Redis without a password sends to a request.
pub fn redis(request: &[String]) -> String {
    match request[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        "RESET" => "+RESET\r\n".to_owned(),
        "GET" => "$5\r\nvalue\r\n".to_owned(),
        _ => "+OK\r\n".to_owned(),
    }
}
