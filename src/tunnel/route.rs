//! A tunnel's plan: its variables, its server and its settings.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;

use url::Host;

use crate::redis_url;
use crate::tls::Trust;

/// The TLS server to which a tunnel leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub host: Host<String>,
    pub port: u16,
}

impl Upstream {
    /// The host without the brackets of an IPv6 address, for lookup and SNI.
    pub fn host_name(&self) -> String {
        redis_url::unbracketed(&self.host)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The options and variables in which the user has set the tunnel's settings. A hint must name the
/// setting that has an effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingNames {
    /// The option or variable in which each setting is set, by the variable that sets it for all
    /// URLs.
    pub set: BTreeMap<&'static str, String>,
    /// True if the URL's query demands `full`.
    pub full_by_url: bool,
}

impl SettingNames {
    /// The option or variable that sets `variable`'s setting; `variable` itself if none does.
    pub fn of<'a>(&'a self, variable: &'a str) -> &'a str {
        self.set.get(variable).map_or(variable, String::as_str)
    }
}

/// The plan of one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The variables whose URLs lead through the tunnel, at least one. The first variable names the
    /// tunnel.
    pub variables: Vec<String>,
    pub upstream: Upstream,
    pub trust: Trust,
    /// The difference between the TLS port and the URL's port; 0: the URL's port speaks TLS.
    pub port_offset: i32,
    /// The names of the tunnel's settings, for hints.
    pub setting_names: SettingNames,
    /// The maximum number of connections to Redis; `None`: no limit.
    pub max_connections: Option<NonZeroUsize>,
}
