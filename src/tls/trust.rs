//! What a server has to prove, and what we show it.

use openssl::ssl::SslVersion;
use openssl::x509::X509;

use super::pem::ClientIdentity;
use super::pin::Pin;

/// How much of the server's certificate must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Nothing.
    None,
    /// Its chain.
    Ca,
    /// Its chain and its name.
    Full,
}

impl Verify {
    /// The word by which users know it.
    pub fn word(self) -> &'static str {
        match self {
            Verify::None => "none",
            Verify::Ca => "ca",
            Verify::Full => "full",
        }
    }
}

/// What decides how a tunnel's TLS connections are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub verify: Verify,
    /// The oldest version to accept.
    pub min_tls: SslVersion,
    /// The CAs to trust instead of the system's roots.
    pub ca: Option<Vec<X509>>,
    /// The server's key must be one of these; empty: any.
    pub pins: Vec<Pin>,
    /// Shown to servers that ask for a client certificate.
    pub identity: Option<ClientIdentity>,
    /// The name to send and to check; `None`: the URL's host.
    pub server_name: Option<String>,
}

impl Trust {
    /// Whether anything proves who the server is.
    pub fn authenticates(&self) -> bool {
        self.verify != Verify::None || !self.pins.is_empty()
    }

    /// Whether a server's key, of which this is the pin, is one of the pinned; any is when none is.
    pub fn pin_holds(&self, pin: &Pin) -> bool {
        self.pins.is_empty() || self.pins.contains(pin)
    }

    /// Trusts any server, with defaults for the rest.
    #[cfg(test)]
    pub fn none() -> Trust {
        let (verify, min_tls) = (Verify::None, SslVersion::TLS1_2);
        let (ca, pins, identity, server_name) = (None, Vec::new(), None, None);
        Trust { verify, min_tls, ca, pins, identity, server_name }
    }
}
