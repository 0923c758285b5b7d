//! Reads a launcher's status page over HTTP.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;

use super::{PATIENCE, eventually};

/// The status page of a launcher.
#[derive(Debug, Clone, Copy)]
pub struct StatusPage {
    pub port: u16,
}

/// An HTTP answer of the status page.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl StatusPage {
    /// Finds the status page of a launcher with `STUNNEL_STATUS_ADDRESS=0`. `tunnels` are the ports
    /// of its tunnels.
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

    /// Sends a request. Returns `None` without an HTTP answer.
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

    /// The value of a sample on `/metrics`. `sample` is its name with its labels.
    pub fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.get("/metrics").body;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    /// The value of a metric of the tunnel for `REDIS_URL`. `name` lacks `start_stunnel_`; `labels`
    /// are further labels such as `,state="idle"`.
    pub fn of_tunnel(&self, name: &str, labels: &str) -> Option<f64> {
        self.metric(&format!("start_stunnel_{name}{{tunnel=\"REDIS_URL\"{labels}}}"))
    }

    /// The number of connections to Redis in this state.
    pub fn upstream(&self, state: &str) -> f64 {
        self.of_tunnel("upstream_connections", &format!(",state=\"{state}\"")).unwrap()
    }

    /// Waits until all connections to Redis are idle. Returns their number.
    pub fn wait_until_all_is_idle(&self) -> f64 {
        eventually("all connections are idle", || {
            let busy = self.upstream("relaying") + self.upstream("connecting");
            (busy == 0.0).then(|| self.upstream("idle"))
        })
    }

    /// Waits until the pool holds this many idle connections.
    pub fn wait_for_idle(&self, count: usize) {
        eventually("connections are idle", || {
            (self.upstream("idle") == count as f64).then_some(())
        });
    }
}

/// The IPv4 ports on which a process listens, in ascending order (proc_net(5)).
fn ports_of(pid: i32) -> Vec<u16> {
    const LISTENS: &str = "0A";
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let inodes: Vec<String> = descriptors
        .filter_map(|descriptor| {
            Some(fs::metadata(descriptor.ok()?.path()).ok()?.ino().to_string())
        })
        .collect();
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut ports: Vec<u16> = sockets
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let is_theirs = fields[3] == LISTENS && inodes.iter().any(|inode| inode == fields[9]);
            let port = fields[1].split_once(':')?.1;
            is_theirs.then(|| u16::from_str_radix(port, 16).ok()).flatten()
        })
        .collect();
    ports.sort();
    ports
}
