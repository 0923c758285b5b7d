//! Why the app got no connection, in words for its user.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::Tunnel;
use crate::cli;
use crate::tls::HandshakeError;

/// How far a connection had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    LookUp,
    Tcp,
    Tls,
}

/// Why Redis could not be reached, or must not be.
#[derive(Debug)]
pub enum Failure {
    /// Redis, or the way to it, is down: the app sees its connection closed, as without a tunnel.
    Outage(Step, io::Error),
    /// Nothing will work before a setting is changed: the app is told.
    Misconfigured(HandshakeError),
    /// OpenSSL could not be set up.
    Internal(io::Error),
}

impl Failure {
    pub fn timed_out(step: Step) -> Failure {
        Failure::Outage(step, io::ErrorKind::TimedOut.into())
    }

    pub fn is_outage(&self) -> bool {
        matches!(self, Failure::Outage(..))
    }

    /// The word after `at=` in the log.
    pub fn event(&self) -> &'static str {
        match self {
            Failure::Outage(..) => "connection-failed",
            Failure::Misconfigured(_) => "connection-refused",
            Failure::Internal(_) => "connection-failed",
        }
    }

    /// What the user may change.
    pub fn hint(&self, tunnel: &Tunnel) -> String {
        let variable = tunnel.variable();
        let offset = cli::PORT_OFFSET.variable;
        let without_tls = if tunnel.plan.port_moved {
            format!(
                "this Redis may have no TLS, or TLS on another port: set {variable}_{offset}, or \
                 {}=false to go without a tunnel",
                cli::ENABLED.variable
            )
        } else {
            format!("check the host and port in {variable}")
        };
        match self {
            Failure::Internal(_) => {
                "this is a defect of start-stunnel or of the system's OpenSSL".to_owned()
            }
            Failure::Outage(..) if self.is_out_of_descriptors() => {
                "raise the limit on open files (ulimit -Hn)".to_owned()
            }
            Failure::Outage(Step::LookUp, _) => {
                format!("check the host in {variable} and the resolver")
            }
            Failure::Outage(Step::Tcp, error)
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                format!("nothing listens on {}; {without_tls}", tunnel.plan.upstream)
            }
            Failure::Outage(Step::Tcp, _) => {
                format!("check the network and the host and port in {variable}")
            }
            Failure::Outage(Step::Tls, _) => {
                format!("the server may be down or starting; {without_tls}")
            }
            Failure::Misconfigured(HandshakeError::Certificate(_)) => {
                format!(
                    "set {0} or {variable}_{0} to what this server can prove (none, ca or full)",
                    cli::VERIFY.variable
                )
            }
            Failure::Misconfigured(HandshakeError::Refused(_)) => {
                format!(
                    "check {} and what the server accepts",
                    cli::MIN_TLS.variable
                )
            }
            Failure::Misconfigured(_) => without_tls,
        }
    }

    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self, Failure::Outage(_, error) if is_out_of_descriptors(error))
    }
}

/// Whether the process (EMFILE) or the system (ENFILE) has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::EMFILE as i32) || code == Some(Errno::ENFILE as i32)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Outage(step, error) => {
                let what = match step {
                    Step::LookUp => "name look-up failed",
                    Step::Tcp => "TCP connection failed",
                    Step::Tls => "TLS handshake broke off",
                };
                write!(f, "{what}: {}", in_words(error))
            }
            Failure::Internal(error) => write!(f, "TLS could not be set up: {error}"),
            Failure::Misconfigured(error) => match error {
                HandshakeError::NoTls => f.write_str("the server speaks no TLS"),
                HandshakeError::Certificate(reason) => {
                    write!(f, "certificate check failed: {reason}")
                }
                HandshakeError::Refused(reason) => write!(f, "TLS handshake failed: {reason}"),
                HandshakeError::Broken(error) => write!(f, "TLS handshake broke off: {error}"),
            },
        }
    }
}

/// An error without the parts that mean nothing to a user.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by the server".to_owned(),
        _ => {
            let text = error.to_string();
            let text = text
                .strip_prefix("failed to lookup address information: ")
                .unwrap_or(&text);
            match text.find(" (os error") {
                Some(end) => text[..end].to_owned(),
                None => text.to_owned(),
            }
        }
    }
}
