//! The address of the status page. The launcher binds the address before COMMAND starts, and serves
//! the page later.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::host::HostCheck;

/// The value of `--status-address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusAddress {
    /// A name or an address of this machine, and a port. 0: let the kernel choose.
    Tcp(String, u16),
    /// A Unix socket, in the folder of the sockets of `--listen unix`.
    Unix,
}

impl StatusAddress {
    /// Parses `unix`, a port on 127.0.0.1, or a host and a port.
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

    /// The port, if it is known before binding.
    pub fn port(&self) -> Option<u16> {
        match self {
            StatusAddress::Tcp(_, port) => Some(*port).filter(|port| *port != 0),
            StatusAddress::Unix => None,
        }
    }

    /// Binds the address.
    ///
    /// # Errors
    /// Those of bind(2), or of the name lookup.
    ///
    /// # Panics
    /// For [`StatusAddress::Unix`], which `listen` binds in the folder of the sockets.
    pub fn bind(&self) -> io::Result<StatusListener> {
        let StatusAddress::Tcp(host, port) = self else {
            unreachable!("`listen` binds Unix sockets")
        };
        let listener = TcpListener::bind((host.as_str(), *port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(StatusListener::Tcp(listener, address, host.clone()))
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

/// A bound address of the status page.
#[derive(Debug)]
pub enum StatusListener {
    /// With its address, and the host in the user's setting.
    Tcp(TcpListener, SocketAddr, String),
    /// With its path.
    Unix(UnixListener, PathBuf),
}

impl StatusListener {
    /// True if other machines can reach this address.
    pub fn is_exposed(&self) -> bool {
        match self {
            StatusListener::Tcp(_, address, _) => !address.ip().to_canonical().is_loopback(),
            StatusListener::Unix(..) => false,
        }
    }

    pub fn host_check(&self) -> HostCheck {
        match self {
            StatusListener::Tcp(_, address, name) => HostCheck::new(*address, name),
            // Browsers cannot connect to a Unix socket.
            StatusListener::Unix(..) => HostCheck::Off,
        }
    }
}

impl fmt::Display for StatusListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StatusListener::Tcp(_, address, _) => write!(f, "http://{address}/"),
            StatusListener::Unix(_, path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_a_host_with_a_port_or_unix() {
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
}
