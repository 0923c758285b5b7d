//! Where a tunnel leads, and for whom.

use std::fmt;
use std::num::NonZeroUsize;

use url::Host;

use crate::redis_url;
use crate::tls::Trust;

/// The server at the other end of a tunnel, where TLS is spoken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub host: Host<String>,
    pub port: u16,
}

impl Upstream {
    /// The host without the brackets of an IPv6 address: for look-up and SNI.
    pub fn host_name(&self) -> String {
        redis_url::unbracketed(&self.host)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One tunnel, as it was planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The variables that share it, the first one first; never empty.
    pub variables: Vec<String>,
    pub upstream: Upstream,
    pub trust: Trust,
    /// Whether TLS goes to another port than the URL's.
    pub port_moved: bool,
    /// Whether each of its URLs has a password, which clients send on every connection.
    pub all_have_passwords: bool,
    /// The most connections to it; `None`: as many as the app makes.
    pub max_connections: Option<NonZeroUsize>,
}
