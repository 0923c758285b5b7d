//! Describes for users why there is no connection to Redis. [`super::hints`] tells users what to
//! change.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;

use nix::errno::Errno;

use super::warnings::{UpstreamEvent, Warning};
use crate::figures::FailureReason;
use crate::tls::HandshakeError;

/// The step in which an attempt to connect failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    LookUp,
    Tcp,
    Tls,
    /// TLS, if the server closed the connection before it sent a byte.
    Unanswered,
}

/// The reason why there is no connection to Redis.
#[derive(Debug)]
pub enum Failure {
    /// Redis, or the network, is down. The app's connection is closed, as without a tunnel.
    Outage(Step, io::Error),
    /// A setting is wrong. The app gets an error.
    Misconfigured(HandshakeError),
    /// OpenSSL failed, for example because memory was short. This may be temporary, so the app sees
    /// an outage.
    Internal(io::Error),
    /// All connections that this limit allows were in use until the connect timeout.
    QueueTimeout(NonZeroUsize),
}

impl Failure {
    pub fn timed_out(step: Step) -> Failure {
        Failure::Outage(step, io::ErrorKind::TimedOut.into())
    }

    /// A connection that broke in the handshake. `heard`: whether the server had sent a byte.
    pub fn in_handshake(error: io::Error, heard: bool) -> Failure {
        let step = if is_hang_up(&error) && !heard { Step::Unanswered } else { Step::Tls };
        Failure::Outage(step, error)
    }

    /// True if another attempt may succeed without a change of settings.
    pub fn is_outage(&self) -> bool {
        !matches!(self, Failure::Misconfigured(_))
    }

    /// The server has cut the handshake before it sent a byte, like a Redis at its client limit.
    pub fn is_cut(&self) -> bool {
        matches!(self, Failure::Outage(Step::Unanswered, _))
    }

    /// The launcher has no free descriptor.
    pub fn is_out_of_descriptors(&self) -> bool {
        self.reason() == FailureReason::Descriptors
    }

    /// The warning about this failure.
    pub fn warning(&self, hint: String) -> Warning {
        let event = match self {
            Failure::Outage(..) | Failure::Internal(_) => UpstreamEvent::Failed,
            Failure::Misconfigured(_) => UpstreamEvent::Refused,
            Failure::QueueTimeout(_) => UpstreamEvent::QueueTimeout,
        };
        let reason = Some(self.reason().word());
        Warning::Upstream { event, reason, error: self.to_string(), hint }
    }

    /// The reason in the metrics.
    pub fn reason(&self) -> FailureReason {
        use io::ErrorKind::{ConnectionRefused, TimedOut};
        match self {
            Failure::QueueTimeout(_) => FailureReason::QueueTimeout,
            Failure::Internal(error) | Failure::Outage(Step::LookUp, error)
                if is_out_of_threads(error) =>
            {
                FailureReason::Threads
            }
            Failure::Internal(_) => FailureReason::Internal,
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
                HandshakeError::UnknownName
                | HandshakeError::Refused(_)
                | HandshakeError::Broken(_)
                | HandshakeError::Damaged(_) => FailureReason::TlsOther,
            },
        }
    }
}

/// True if the other side closed or reset the connection.
pub fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// True if the process (EMFILE) or the system (ENFILE) has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::EMFILE as i32) || code == Some(Errno::ENFILE as i32)
}

/// True if the system refuses to start a thread: see [`crate::threads`].
pub fn is_out_of_threads(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EAGAIN as i32)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Internal(error) | Failure::Outage(Step::LookUp, error)
                if is_out_of_threads(error) =>
            {
                write!(f, "no thread is free for the name lookup: {}", in_words(error))
            }
            Failure::Outage(step, error) => {
                let what = match step {
                    Step::LookUp => "name look-up failed",
                    Step::Tcp => "TCP connection failed",
                    Step::Tls | Step::Unanswered => "TLS handshake broke off",
                };
                write!(f, "{what}: {}", in_words(error))
            }
            Failure::Internal(error) => write!(f, "OpenSSL failed: {error}"),
            Failure::QueueTimeout(limit) => write!(
                f,
                "all {limit} connections that the tunnel's limit allows were in use until the \
                 connect timeout"
            ),
            Failure::Misconfigured(error) => match error {
                HandshakeError::NoTls => f.write_str("the server speaks no TLS"),
                HandshakeError::Certificate(_, reason) => {
                    write!(f, "certificate check failed: {reason}")
                }
                HandshakeError::Pin(pin) => {
                    write!(f, "the server's key differs from the pin: its pin is {pin}")
                }
                HandshakeError::ClientCertificateWanted => {
                    f.write_str("the server requires a client certificate")
                }
                HandshakeError::ClientCertificateRefused(reason) => {
                    write!(f, "the server refuses the client certificate: {reason}")
                }
                HandshakeError::UnknownName => {
                    f.write_str("the server does not accept the server name (SNI)")
                }
                HandshakeError::NoCommonVersion => {
                    f.write_str("the server supports none of the allowed TLS versions")
                }
                HandshakeError::Refused(reason) => write!(f, "TLS handshake refused: {reason}"),
                HandshakeError::Internal(error) => write!(f, "OpenSSL failed: {error}"),
                HandshakeError::Broken(error) | HandshakeError::Damaged(error) => {
                    write!(f, "TLS handshake broke off: {}", in_words(error))
                }
            },
        }
    }
}

/// An error in words for users, without codes.
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
