//! Why the app got no connection, in words for its user.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;

use nix::errno::Errno;

use super::{Tunnel, client_limit};
use crate::figures::FailureReason;
use crate::names;
use crate::tls::{Flaw, HandshakeError};

/// How far a connection had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Before it began: other handshakes were under way.
    Turn,
    LookUp,
    Tcp,
    Tls,
    /// In TLS, where the server hung up without having sent a byte.
    Unanswered,
}

/// Why Redis could not be reached, or must not be.
#[derive(Debug)]
pub enum Failure {
    /// Redis, or the way to it, is down: the app sees its connection closed, as without a tunnel.
    Outage(Step, io::Error),
    /// Nothing will work before a setting is changed: the app is told.
    Misconfigured(HandshakeError),
    /// OpenSSL could not do its part: a lack of memory passes, and for the app it is an outage,
    /// too.
    Internal(io::Error),
    /// There is too little memory for another connection: an outage, too.
    NoRoom(io::Error),
    /// So many connections were open, and none came free in time.
    QueueTimeout(NonZeroUsize),
}

impl Failure {
    pub fn timed_out(step: Step) -> Failure {
        Failure::Outage(step, io::ErrorKind::TimedOut.into())
    }

    /// A connection that broke in the handshake. `heard`: whether the server had sent anything.
    pub fn in_handshake(error: io::Error, heard: bool) -> Failure {
        let step = if is_hang_up(&error) && !heard { Step::Unanswered } else { Step::Tls };
        Failure::Outage(step, error)
    }

    /// Whether another attempt may succeed without a setting being changed.
    pub fn is_outage(&self) -> bool {
        !matches!(self, Failure::Misconfigured(_))
    }

    /// The word after `at=` in the log.
    pub fn event(&self) -> &'static str {
        match self {
            Failure::Outage(..) | Failure::Internal(_) | Failure::NoRoom(_) => "connection-failed",
            Failure::Misconfigured(_) => "connection-refused",
            Failure::QueueTimeout(_) => "queue-timeout",
        }
    }

    /// The reason under which it is counted.
    pub fn reason(&self) -> FailureReason {
        use io::ErrorKind::{ConnectionRefused, TimedOut};
        match self {
            Failure::QueueTimeout(_) | Failure::Outage(Step::Turn, _) => {
                FailureReason::QueueTimeout
            }
            Failure::Internal(_) | Failure::NoRoom(_) => FailureReason::Internal,
            Failure::Outage(_, error) if is_out_of_descriptors(error) => FailureReason::Descriptors,
            Failure::Outage(Step::LookUp, _) => FailureReason::Dns,
            Failure::Outage(Step::Tcp, error) => match error.kind() {
                ConnectionRefused => FailureReason::TcpRefused,
                TimedOut => FailureReason::TcpTimeout,
                _ => FailureReason::TcpOther,
            },
            Failure::Outage(Step::Unanswered, _) => FailureReason::TlsEof,
            Failure::Outage(Step::Tls, error) if is_hang_up(error) => FailureReason::TlsEof,
            Failure::Outage(Step::Tls, error) if error.kind() == TimedOut => {
                FailureReason::TlsTimeout
            }
            Failure::Outage(Step::Tls, _) => FailureReason::TlsOther,
            Failure::Misconfigured(error) => match error {
                HandshakeError::NoTls => FailureReason::NoTls,
                HandshakeError::Certificate(..) => FailureReason::Certificate,
                HandshakeError::Pin(_) => FailureReason::Pin,
                HandshakeError::ClientCertificateWanted
                | HandshakeError::ClientCertificateRefused(_) => FailureReason::ClientCertificate,
                HandshakeError::NoCommonVersion => FailureReason::TlsVersion,
                HandshakeError::Internal(_) => FailureReason::Internal,
                HandshakeError::Refused(_)
                | HandshakeError::Broken(_)
                | HandshakeError::Damaged(_) => FailureReason::TlsOther,
            },
        }
    }

    /// What the user may change.
    pub fn hint(&self, tunnel: &Tunnel) -> String {
        let variable = tunnel.variable();
        let [enabled, offset, verify] = [names::ENABLED, names::PORT_OFFSET, names::VERIFY];
        let [ca, pin, name] = [names::CA_FILE, names::PIN, names::SERVER_NAME];
        let [cert, key, min_tls] = [names::CLIENT_CERT, names::CLIENT_KEY, names::MIN_TLS];
        let without_tls = if tunnel.route.port_moved {
            format!(
                "this Redis may have no TLS, or TLS on another port: set {variable}_{offset}, or \
                 {enabled}=false to go without a tunnel"
            )
        } else {
            format!("check the host and port in {variable}")
        };
        match self {
            Failure::QueueTimeout(_) => format!(
                "set {variable}_{limit} (or {limit}) higher if the plan allows more, or give the \
                 app fewer threads or a smaller pool",
                limit = names::MAX_CONNECTIONS
            ),
            Failure::Internal(_) => {
                "memory may be short; if not, this is a defect of start-stunnel or of OpenSSL"
                    .to_owned()
            }
            Failure::NoRoom(_) => {
                "raise the limit on memory (ulimit -v, vm.overcommit_memory), or open fewer \
                 connections; those that are open go on"
                    .to_owned()
            }
            Failure::Outage(_, error) if is_out_of_descriptors(error) => {
                "raise the limit on open files (ulimit -Hn)".to_owned()
            }
            Failure::Outage(Step::LookUp, _) => {
                format!("check the host in {variable} and the resolver")
            }
            Failure::Outage(Step::Tcp, error)
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                format!("nothing listens on {}; {without_tls}", tunnel.route.upstream)
            }
            Failure::Outage(Step::Tcp, _) => {
                format!("check the network and the host and port in {variable}")
            }
            Failure::Outage(Step::Turn | Step::Tls, _) => {
                format!("the server may be down or starting; {without_tls}")
            }
            // Redis at its maxclients closes a TLS connection before the handshake, and so cannot
            // say why.
            Failure::Outage(Step::Unanswered, _) => {
                format!(
                    "{}, or the server may be down or starting; {without_tls}",
                    client_limit::suspicion(tunnel.figures.open_to_server())
                )
            }
            Failure::Misconfigured(error) => match error {
                HandshakeError::NoTls
                | HandshakeError::Broken(_)
                | HandshakeError::Damaged(_)
                | HandshakeError::Internal(_) => without_tls,
                HandshakeError::Certificate(Flaw::Name, _) => {
                    format!("set {name} to a name on the certificate, or {verify}=ca")
                }
                HandshakeError::Certificate(Flaw::Date, _) => {
                    format!("renew it; until then set {verify}=none and {pin} to its key")
                }
                HandshakeError::Certificate(Flaw::Chain, _) => format!(
                    "set {ca} to its CA or {pin} to its key (start-stunnel --check shows them), or \
                     lower {verify}"
                ),
                HandshakeError::Pin(_) => {
                    format!(
                        "somebody may be in between; if the provider confirms a new key, set {pin} \
                         to it, or add it behind a ;"
                    )
                }
                HandshakeError::ClientCertificateWanted => format!("set {cert} and {key}"),
                HandshakeError::ClientCertificateRefused(_) => {
                    format!("set {cert} and {key} to what the server accepts")
                }
                HandshakeError::NoCommonVersion => {
                    format!(
                        "set {min_tls} to what the server speaks (1.2 is the oldest), or update \
                         the server"
                    )
                }
                HandshakeError::Refused(_) => format!("see {cert}, {key} and {min_tls}"),
            },
        }
    }
}

/// Whether the other side closed or reset a connection.
pub fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
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
                    Step::Turn => "it waited for other connections that were being made",
                    Step::LookUp => "name look-up failed",
                    Step::Tcp => "TCP connection failed",
                    Step::Tls | Step::Unanswered => "TLS handshake broke off",
                };
                write!(f, "{what}: {}", in_words(error))
            }
            Failure::Internal(error) => write!(f, "OpenSSL failed: {error}"),
            Failure::NoRoom(error) => write!(f, "memory is short: {}", in_words(error)),
            Failure::QueueTimeout(limit) => write!(
                f,
                "all {limit} connections that the tunnel may have were in use until the connect \
                 timeout"
            ),
            Failure::Misconfigured(error) => match error {
                HandshakeError::NoTls => f.write_str("the server speaks no TLS"),
                HandshakeError::Certificate(_, reason) => {
                    write!(f, "certificate check failed: {reason}")
                }
                HandshakeError::Pin(pin) => {
                    write!(f, "the server's key differs from the pin: it is {pin}")
                }
                HandshakeError::ClientCertificateWanted => {
                    f.write_str("the server wants a client certificate")
                }
                HandshakeError::ClientCertificateRefused(reason) => {
                    write!(f, "the server refuses the client certificate: {reason}")
                }
                HandshakeError::NoCommonVersion => f.write_str("no common TLS version"),
                HandshakeError::Refused(reason) => write!(f, "TLS handshake refused: {reason}"),
                HandshakeError::Internal(error) => write!(f, "OpenSSL failed: {error}"),
                HandshakeError::Broken(error) | HandshakeError::Damaged(error) => {
                    write!(f, "TLS handshake broke off: {}", in_words(error))
                }
            },
        }
    }
}

/// An error without the parts that mean nothing to a user.
pub fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by the server".to_owned(),
        _ => {
            let text = error.to_string();
            let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
            match text.find(" (os error") {
                Some(end) => text[..end].to_owned(),
                None => text.to_owned(),
            }
        }
    }
}
