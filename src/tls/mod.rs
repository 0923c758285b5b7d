//! Makes TLS connections that obey a tunnel's trust settings.

mod bounds;
mod certificate;
mod connector;
mod handshake;
pub mod pem;
mod pin;
mod raw;
pub mod roots;
mod session;
mod stream;
mod trust;

pub use certificate::{Certificate, SOON, days_until};
pub use connector::Connector;
pub use handshake::{Flaw, HandshakeError, Misconfiguration, is_own_failure, is_unannounced_close};
pub use pin::Pin;
pub use roots::late_files;
pub use session::Sessions;
pub use stream::TlsStream;
pub use trust::{Trust, Verify};

/// Returns the name and version of OpenSSL at run time, such as `OpenSSL 3.5.5`.
pub fn openssl_version() -> String {
    let words: Vec<_> = openssl::version::version().split(' ').take(2).collect();
    words.join(" ")
}
