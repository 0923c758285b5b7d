//! The trust settings of a tunnel.

use openssl::ssl::SslVersion;
use openssl::x509::X509;

use super::pem::ClientIdentity;
use super::pin::Pin;

/// The setting `--verify`: the level at which to verify the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Verify nothing.
    None,
    /// Verify the chain.
    Ca,
    /// Verify the chain and the host name.
    Full,
}

impl Verify {
    /// The value of `--verify`.
    pub fn word(self) -> &'static str {
        match self {
            Verify::None => "none",
            Verify::Ca => "ca",
            Verify::Full => "full",
        }
    }
}

/// The settings for a tunnel's TLS connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub verify: Verify,
    /// The oldest TLS version to accept.
    pub min_tls: SslVersion,
    /// The CAs to trust instead of the system roots.
    pub ca: Option<Vec<X509>>,
    /// The pins of the keys that the server may have; empty if the server may have any key.
    pub pins: Vec<Pin>,
    /// The client certificate and key to use if the server requests one.
    pub identity: Option<ClientIdentity>,
    /// The name to send in SNI and to verify; `None` for the URL's host.
    pub server_name: Option<String>,
}

impl Trust {
    /// True if these settings authenticate the server.
    pub fn authenticates(&self) -> bool {
        self.verify != Verify::None || !self.pins.is_empty()
    }

    /// True if the settings allow a server whose key has this pin.
    pub fn pin_holds(&self, pin: &Pin) -> bool {
        self.pins.is_empty() || self.pins.contains(pin)
    }

    /// The default settings, which trust any server.
    #[cfg(test)]
    pub fn none() -> Trust {
        let (verify, min_tls) = (Verify::None, SslVersion::TLS1_2);
        let (ca, pins, identity, server_name) = (None, Vec::new(), None, None);
        Trust { verify, min_tls, ca, pins, identity, server_name }
    }
}
