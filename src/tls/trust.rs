//! What a server has to prove, and what we show it.

use super::pem::{Authorities, ClientIdentity};
use super::pin::{self, Pin};

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

/// The oldest TLS version to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinTls {
    V1_2,
    V1_3,
}

/// What decides how a tunnel's TLS connections are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub verify: Verify,
    pub min_tls: MinTls,
    /// The CAs to trust instead of the system's roots.
    pub ca: Option<Authorities>,
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

    /// Whether a server's key, of which this is the pin, is trusted: see [`pin::holds`].
    pub fn pin_holds(&self, pin: &Pin) -> bool {
        pin::holds(&self.pins, pin)
    }
}
