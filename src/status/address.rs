//! The address of the status page. The launcher binds the address before COMMAND starts, and serves
//! the page after COMMAND's start.

use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::Path;

use socket2::Socket;

use super::host::HostCheck;

/// The value of `--status-address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusAddress {
    /// A host name or an IP address of this machine, and a port. With port 0, the kernel chooses a
    /// free port.
    Tcp(String, u16),
    /// A Unix socket in the folder where `--listen unix` puts its sockets.
    Unix,
}

impl StatusAddress {
    /// Parses an address of the form `unix`, `PORT` (a port on 127.0.0.1) or `HOST:PORT`.
    pub fn parse(text: &str) -> Option<StatusAddress> {
        if text.eq_ignore_ascii_case("unix") {
            return Some(StatusAddress::Unix);
        }
        let is_port = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        let (host, port) = match is_port(text) {
            true => ("127.0.0.1", text),
            false => text.rsplit_once(':').filter(|(_, port)| is_port(port))?,
        };
        let port = port.parse().ok()?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bracketed.unwrap_or(host).parse::<IpAddr>() {
            Ok(address) => Some(StatusAddress::Tcp(address.to_string(), port)),
            Err(_) if host.is_empty() || !host.chars().all(is_name) => None,
            Err(_) => Some(StatusAddress::Tcp(host.to_owned(), port)),
        }
    }

    /// Returns the port. Returns `None` if the kernel will choose the port, or if the address is a
    /// Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            StatusAddress::Tcp(_, port) => Some(*port).filter(|port| *port != 0),
            StatusAddress::Unix => None,
        }
    }
}

impl fmt::Display for StatusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StatusAddress::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            StatusAddress::Tcp(host, port) => write!(f, "{host}:{port}"),
            StatusAddress::Unix => f.write_str("unix"),
        }
    }
}

/// The socket that serves the status page, already bound to its address.
#[derive(Debug)]
pub struct StatusListener {
    pub socket: Socket,
    /// The URL of the status page, or the path of its Unix socket.
    pub address: String,
    /// True if other machines can reach the status page.
    pub is_exposed: bool,
    pub hosts: HostCheck,
}

impl StatusListener {
    /// Binds a TCP port. `host` is a host name or an IP address of this machine.
    ///
    /// # Errors
    /// If the name lookup or bind(2) fails.
    pub fn bind(host: &str, port: u16) -> io::Result<StatusListener> {
        let listener = TcpListener::bind((host, port))?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        let is_exposed = !bound.ip().to_canonical().is_loopback();
        Ok(StatusListener {
            socket: listener.into(),
            address: format!("http://{bound}/"),
            is_exposed,
            hosts: if is_exposed { HostCheck::Off } else { HostCheck::Named(host.to_owned()) },
        })
    }

    /// Makes a listener from a Unix socket that is already bound to `path`.
    pub fn unix(socket: Socket, path: &Path) -> StatusListener {
        // Browsers cannot connect to a Unix socket, so any `Host` header is harmless.
        let (address, hosts) = (path.display().to_string(), HostCheck::Off);
        StatusListener { socket, address, is_exposed: false, hosts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_address_is_unix_or_a_port_with_or_without_a_host() {
        for (text, expected) in [
            ("9121", "127.0.0.1:9121"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:9121", "[::1]:9121"),
            ("::1:9121", "[::1]:9121"),
            ("localhost:1", "localhost:1"),
            ("my-host.example:65535", "my-host.example:65535"),
            ("unix", "unix"),
            ("UNIX", "unix"),
        ] {
            let parsed = StatusAddress::parse(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), Some(expected), "{text}");
        }
        for text in ["", ":9121", "65536", "h:", "h:x", "h:+1", "a b:1", "[x]:1", "http://h:1", "h"]
        {
            assert_eq!(StatusAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_a_page_on_loopback_checks_host_names() {
        for (host, checks) in
            [("127.0.0.1", true), ("127.3.2.1", true), ("localhost", true), ("0.0.0.0", false)]
        {
            let listener = StatusListener::bind(host, 0).unwrap();
            assert_eq!(listener.is_exposed, !checks, "{host}");
            assert_eq!(listener.hosts.accepts("evil.example"), !checks, "{host}");
            assert!(listener.hosts.accepts("localhost:9121"), "{host}");
        }
    }
}
