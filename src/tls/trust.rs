//! The trust settings of a tunnel.

use openssl::ssl::SslVersion;
use openssl::x509::X509;

use super::pem::ClientIdentity;
use super::pin::Pin;

/// The setting `--verify`: the level at which to verify the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// The launcher does not verify the server's certificate.
    None,
    /// The launcher verifies the certificate's chain.
    Ca,
    /// The launcher verifies the certificate's chain and the host name.
    Full,
}

impl Verify {
    /// Returns the value of `--verify` that selects this level.
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
    /// The pins of the keys that the server may have. Empty if the server may have any key.
    pub pins: Vec<Pin>,
    /// The client certificate and key to use if the server requests one.
    pub identity: Option<ClientIdentity>,
    /// The name that the launcher sends in SNI and verifies in the certificate. `None` if this name
    /// is the URL's host.
    pub server_name: Option<String>,
}

impl Trust {
    /// True if these settings authenticate the server.
    pub fn authenticates(&self) -> bool {
        self.verify != Verify::None || self.is_pinned()
    }

    pub fn is_pinned(&self) -> bool {
        !self.pins.is_empty()
    }

    /// True if the settings allow a server whose key has this pin.
    pub fn pin_holds(&self, pin: &Pin) -> bool {
        !self.is_pinned() || self.pins.contains(pin)
    }

    /// Returns the default settings, which trust any server.
    #[cfg(test)]
    pub fn none() -> Trust {
        let (verify, min_tls) = (Verify::None, SslVersion::TLS1_2);
        let (ca, pins, identity, server_name) = (None, Vec::new(), None, None);
        Trust { verify, min_tls, ca, pins, identity, server_name }
    }
}
