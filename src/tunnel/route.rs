//! A route describes a tunnel: the variables whose URLs lead through the tunnel, the server, and
//! the settings.

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
    /// Returns the host for name lookup and SNI. An IPv6 address is returned without brackets.
    pub fn host_name(&self) -> String {
        redis_url::unbracketed(&self.host)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The names of the options and variables with which the user has set the tunnel's settings. A hint
/// must name the option or variable that has an effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingNames {
    /// The option or variable with which the user has set each setting, for example `--pin`. The
    /// key is the name of the setting's variable for all URLs, for example `STUNNEL_PIN`.
    pub set: BTreeMap<&'static str, String>,
    /// True if the query of the URL asks for full certificate verification.
    pub full_by_url: bool,
}

impl SettingNames {
    /// Returns the name of the option or variable that the user has set for the same setting as
    /// `variable`. Returns `variable` itself if the user has not set this setting.
    pub fn of<'a>(&'a self, variable: &'a str) -> &'a str {
        self.set.get(variable).map_or(variable, String::as_str)
    }
}

/// The server, the variables and the settings of one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The names of the variables whose URLs lead through the tunnel. There is at least one such
    /// variable, and the first variable identifies the tunnel.
    pub variables: Vec<String>,
    pub upstream: Upstream,
    pub trust: Trust,
    /// The number that is added to the URL's port to get the TLS port. `None` if the URL's scheme
    /// says that the URL's port itself speaks TLS (`rediss://`, `valkeys://`).
    pub port_offset: Option<i32>,
    /// The names of the options and variables that hints must show to the user.
    pub setting_names: SettingNames,
    /// The maximum number of connections to Redis, or `None` if there is no limit.
    pub max_connections: Option<NonZeroUsize>,
}
