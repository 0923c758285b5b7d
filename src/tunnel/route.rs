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

/// The names by which settings take effect, where these are not those of the general variables: an
/// option's, or that of one URL's own variable. A hint that names another would change nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingNames {
    /// General variables, and what overrides each.
    overridden: Vec<(&'static str, String)>,
    /// Whether it is the URL's own query that asks for `full`.
    pub full_by_url: bool,
}

impl SettingNames {
    pub fn override_with(&mut self, variable: &'static str, name: String) {
        self.overridden.push((variable, name));
    }

    /// What to set in place of the general `variable`: that itself, unless something overrides it.
    pub fn of<'a>(&'a self, variable: &'a str) -> &'a str {
        let mut overridden = self.overridden.iter();
        let found = overridden.find(|(known, _)| *known == variable);
        found.map_or(variable, |(_, name)| name)
    }
}

/// One tunnel, as it was planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The variables that share it, the first one first; never empty.
    pub variables: Vec<String>,
    pub upstream: Upstream,
    pub trust: Trust,
    /// What was added to the URL's port; 0: TLS is spoken on that itself.
    pub port_offset: i32,
    /// What its settings are called, for hints.
    pub setting_names: SettingNames,
    /// The most connections to it; `None`: as many as the app makes.
    pub max_connections: Option<NonZeroUsize>,
}
