//! Lists the reasons why connecting to Redis fails. [`super::hints`] describes these reasons for
//! users.

use std::io;
use std::num::NonZeroUsize;

use nix::errno::Errno;

use super::read_ahead::Heard;
use crate::tls::{HandshakeError, Misconfiguration};

/// The step at which an attempt to connect to Redis failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    LookUp,
    Tcp,
    Tls,
    /// The TLS handshake failed because the server closed the connection before sending a byte.
    Unanswered,
}

/// The reason why connecting to Redis failed.
#[derive(Debug)]
pub enum Failure {
    /// Redis or the network is down. The launcher closes the app's connection without a Redis
    /// error, because the app would not get such an error without a tunnel either.
    Outage(Step, io::Error),
    /// A setting is wrong. The launcher answers the app's requests with a Redis error.
    Misconfigured(Misconfiguration),
    /// OpenSSL failed, for example because memory was short. The launcher closes the app's
    /// connection without a Redis error, because the failure may be temporary.
    Internal(io::Error),
    /// All connections that this limit allows were in use until the connect timeout expired.
    QueueTimeout(NonZeroUsize),
}

impl Failure {
    pub fn timed_out(step: Step) -> Failure {
        Failure::Outage(step, io::ErrorKind::TimedOut.into())
    }

    /// Converts a handshake error to a failure. `heard` tells whether the server has sent a byte.
    pub fn in_handshake(error: HandshakeError, heard: &Heard) -> Failure {
        match error {
            HandshakeError::Broken(error) if is_hang_up(&error) && !heard.anything() => {
                Failure::Outage(Step::Unanswered, error)
            }
            HandshakeError::Broken(error) | HandshakeError::Damaged(error) => {
                Failure::Outage(Step::Tls, error)
            }
            HandshakeError::Internal(error) => Failure::Internal(error),
            HandshakeError::Misconfigured(what) => Failure::Misconfigured(what),
        }
    }

    /// True if another attempt may succeed without a change of settings.
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Failure::Misconfigured(_))
    }

    /// True if the server closed the connection during the handshake before it sent a byte, as
    /// Redis does at its client limit.
    pub fn is_cut(&self) -> bool {
        matches!(self, Failure::Outage(Step::Unanswered, _))
    }

    /// True if connecting failed because the launcher has no free file descriptor.
    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self, Failure::Outage(_, error) if is_out_of_descriptors(error))
    }
}

/// True if the error shows that the other side closed or reset the connection.
pub fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// True if the error shows that the process (EMFILE) or the system (ENFILE) has no free file
/// descriptor.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::EMFILE as i32) || code == Some(Errno::ENFILE as i32)
}

/// True if the error shows that the system refused to start a thread, as [`crate::threads`]
/// describes.
pub fn is_out_of_threads(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EAGAIN as i32)
}

/// Describes an error for users, without error codes.
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
