//! Reads a launcher's status page over HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use super::{PATIENCE, eventually, wait_until};

/// The status page of a running launcher.
#[derive(Debug, Clone, Copy)]
pub struct StatusPage {
    pub port: u16,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl StatusPage {
    /// Finds the status page of a launcher with `STUNNEL_STATUS_ADDRESS=0`. `tunnels` are the ports
    /// of the launcher's tunnels.
    pub fn of(launcher: i32, tunnels: &[u16]) -> StatusPage {
        eventually("a status page", || {
            let ports = ports_of(launcher);
            let port = ports.into_iter().find(|port| !tunnels.contains(port));
            port.map(|port| StatusPage { port })
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.get_as(path, "*/*")
    }

    pub fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"))
            .expect("an answer")
    }

    /// Sends a request. Returns `None` if the server sends no HTTP answer.
    pub fn ask(&self, request: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let code = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        Some(Answer { code, head: head.to_owned(), body: body.to_owned() })
    }

    /// The value of a sample in `/metrics`. `sample` is the metric's name with all labels.
    pub fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.get("/metrics").body;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    /// The value of the metric `start_stunnel_NAME` of the tunnel for `REDIS_URL`. `labels` has all
    /// labels after `tunnel`, such as `,state="idle"`.
    pub fn of_tunnel(&self, name: &str, labels: &str) -> Option<f64> {
        self.metric(&format!("start_stunnel_{name}{{tunnel=\"REDIS_URL\"{labels}}}"))
    }

    /// The number of connections to Redis in this state.
    pub fn upstream(&self, state: &str) -> f64 {
        self.of_tunnel("upstream_connections", &format!(",state=\"{state}\"")).unwrap()
    }

    /// Waits until all connections to Redis are idle. Returns the number of connections to Redis.
    pub fn wait_until_all_is_idle(&self) -> f64 {
        eventually("all connections are idle", || {
            let busy = self.upstream("relaying") + self.upstream("connecting");
            (busy == 0.0).then(|| self.upstream("idle"))
        })
    }

    /// Waits until this many app connections wait for a connection to Redis.
    pub fn wait_for_waiting(&self, count: usize) {
        wait_until("app connections wait", || {
            self.of_tunnel("connections_waiting", "") == Some(count as f64)
        });
    }

    /// Waits until the pool holds this many idle connections.
    pub fn wait_for_idle(&self, count: usize) {
        wait_until("connections are idle", || self.upstream("idle") == count as f64);
    }
}

/// The ports on which a process listens.
fn ports_of(pid: i32) -> Vec<u16> {
    let sockets = Command::new("ss").args(["-Hltnp"]).output().expect("ss of iproute2");
    let sockets = String::from_utf8(sockets.stdout).unwrap();
    let sockets = sockets.lines().filter(|line| line.contains(&format!("pid={pid},")));
    let address =
        |line: &str| line.split_ascii_whitespace().nth(3)?.rsplit(':').next()?.parse().ok();
    sockets.filter_map(address).collect()
}
