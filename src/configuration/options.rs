//! Every setting, declared once: option, variable, default, scope, help and how its text is read.
//! The command line, `--help`, the man page, the reader, one URL's own settings and the table in
//! `docs/configuration.md` follow from here.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::reader::Reader;
use super::values;
use super::{Rediss, Reported};
use crate::environment::Environment;
use crate::logging::{LogFormat, LogLevel};
use crate::names;
use crate::pool::PoolMode;
use crate::sandbox::SandboxMode;
use crate::status::StatusAddress;
use crate::supervisor::ForwardSignals;
use crate::tls::{MinTls, Pin, Verify};
use crate::tunnel::{Listen, PortTaken};

/// What a setting holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The launcher, or all URLs alike.
    All,
    /// All URLs; `<VAR>_` before its variable's name makes it that of the URL in `<VAR>` alone.
    OneUrlToo,
}

/// What is said of a setting, whatever its type.
#[derive(Debug)]
pub struct Declaration {
    /// The option's long name, without dashes; `None` when there is a variable only.
    pub option: Option<&'static str>,
    /// The environment variable that says the same.
    pub variable: &'static str,
    /// What holds when neither is given, in the form in which a user would write it. Empty:
    /// nothing.
    pub default: &'static str,
    /// How the help shows what holds then, where that is no literal value.
    default_shown: Option<&'static str>,
    pub value_name: &'static str,
    pub help: &'static str,
    pub scope: Scope,
    /// Whether an error may repeat any value: it is no secret, as paths and pins are none.
    pub is_public: bool,
}

/// A setting, and how its text becomes a value; the error says what would have been right.
#[derive(Debug)]
pub struct Setting<T> {
    pub declaration: Declaration,
    pub parse: fn(&str) -> Result<T, &'static str>,
}

/// Declares the settings, and all that has to name each of them.
macro_rules! settings {
    ($(
        $(#[$doc:meta])*
        $name:ident: $type:ty = $parse:expr, { $($field:ident: $value:expr),+ $(,)? }
    )+) => {
        $(
            $(#[$doc])*
            pub const $name: Setting<$type> = Setting {
                declaration: Declaration { $($field: $value,)+ ..PLAIN },
                parse: $parse,
            };
        )+

        /// Every setting, in the order of `--help`.
        pub const ALL: &[&Declaration] = &[$(&$name.declaration),+];

        /// Reads every setting that one URL can have for itself, as it is for all URLs.
        ///
        /// # Errors
        /// When any of them is wrong.
        pub fn read_for_all_urls(reader: &mut Reader<'_>) -> Result<(), Reported> {
            let mut read = Ok(());
            $(
                if $name.declaration.scope == Scope::OneUrlToo {
                    read = reader.read(&$name).map(drop).and(read);
                }
            )+
            read
        }
    };
}

/// What a declaration has that says nothing else.
const PLAIN: Declaration = Declaration {
    option: None,
    variable: "",
    default: "",
    default_shown: None,
    value_name: "",
    help: "",
    scope: Scope::All,
    is_public: false,
};

settings! {
    ENABLED: bool = values::boolean, {
        option: Some("enabled"),
        variable: names::ENABLED,
        default: "true",
        value_name: "BOOL",
        help: "1/true/yes/on or 0/false/no/off. When false, start-stunnel becomes COMMAND: no \
               tunnel, environment untouched",
    }
    URLS: Option<Vec<String>> = values::names, {
        option: Some("urls"),
        variable: "REDIS_STUNNEL_URLS",
        default_shown: Some("REDIS_URL HEROKU_REDIS_* REDIS_ENDPOINT_*_URL"),
        value_name: "NAMES",
        help: "Names of the variables that hold Redis URLs, separated by spaces or commas",
    }
    REDISS: Rediss = values::rediss, {
        option: Some("rediss"),
        variable: "STUNNEL_REDISS",
        default: "tunnel",
        value_name: "MODE",
        help: "For rediss:// and valkeys:// URLs: tunnel, or passthrough (the app does its own \
               TLS)",
        scope: Scope::OneUrlToo,
    }
    PORT_OFFSET: i32 = values::offset, {
        option: Some("port-offset"),
        variable: names::PORT_OFFSET,
        default: "1",
        value_name: "N",
        help: "TLS port = URL port + N, for redis:// and valkey:// URLs",
        scope: Scope::OneUrlToo,
    }
    LISTEN: Listen = values::listen, {
        option: Some("listen"),
        variable: "STUNNEL_LISTEN",
        default: "tcp",
        value_name: "WHERE",
        help: "tcp (a port of 127.0.0.1, open to every user of this machine), or unix (a socket \
               for this user alone; the URL becomes unix://, which not every client takes)",
    }
    LISTEN_PORT: u16 = values::port_or_zero, {
        option: Some("listen-port"),
        variable: "STUNNEL_LISTEN_PORT",
        default: "6371",
        value_name: "PORT",
        help: "First local port; the next tunnel takes the next one. 0: always the kernel's pick",
    }
    PORT_TAKEN: PortTaken = values::port_taken, {
        option: Some("port-taken"),
        variable: "STUNNEL_PORT_TAKEN",
        default: "move",
        value_name: "WHAT",
        help: "When a local port is taken: move (to one that the kernel picks; COMMAND's URL has \
               it), or fail (exit 78), for a port that others know",
    }
    VERIFY: Verify = values::verify, {
        option: Some("verify"),
        variable: names::VERIFY,
        default: "none",
        value_name: "LEVEL",
        help: "none; ca (the certificate's chain); full (chain and host name)",
        scope: Scope::OneUrlToo,
    }
    CA_FILE: String = values::text, {
        option: Some("ca-file"),
        variable: names::CA_FILE,
        default_shown: Some("system roots"),
        value_name: "FILE",
        help: "PEM bundle of the CAs to trust instead of the system's roots. STUNNEL_CA_PEM holds \
               the PEM text itself; both together: both are trusted",
        scope: Scope::OneUrlToo,
        is_public: true,
    }
    /// Has no option: a command line is no place for a bundle.
    CA_PEM: String = values::text, {
        variable: "STUNNEL_CA_PEM",
        scope: Scope::OneUrlToo,
    }
    PIN: Vec<Pin> = values::pins, {
        option: Some("pin"),
        variable: names::PIN,
        value_name: "PINS",
        help: "sha256//BASE64 of the server key's SubjectPublicKeyInfo, as curl's --pinnedpubkey; \
               several joined by ;. Holds under every --verify",
        scope: Scope::OneUrlToo,
        is_public: true,
    }
    CLIENT_CERT: String = values::text, {
        option: Some("client-cert"),
        variable: names::CLIENT_CERT,
        value_name: "PEM",
        help: "Client certificate for servers that ask for one: a PEM file, or the PEM text itself",
        scope: Scope::OneUrlToo,
        is_public: true,
    }
    CLIENT_KEY: String = values::text, {
        option: Some("client-key"),
        variable: names::CLIENT_KEY,
        value_name: "PEM",
        help: "The client certificate's key in PKCS#8: a PEM file, or the PEM text itself",
        scope: Scope::OneUrlToo,
    }
    SERVER_NAME: Option<String> = values::server_name, {
        option: Some("server-name"),
        variable: names::SERVER_NAME,
        default_shown: Some("the URL's host"),
        value_name: "NAME",
        help: "The name sent in SNI and checked under full",
        scope: Scope::OneUrlToo,
        is_public: true,
    }
    MIN_TLS: MinTls = values::min_tls, {
        option: Some("min-tls"),
        variable: names::MIN_TLS,
        default: "1.2",
        value_name: "VERSION",
        help: "Oldest TLS version to accept: 1.2 or 1.3",
    }
    CONNECT_TIMEOUT: Duration = values::positive_duration, {
        option: Some("connect-timeout"),
        variable: "STUNNEL_CONNECT_TIMEOUT",
        default: "10s",
        value_name: "DURATION",
        help: "For waiting in turn, name look-up, TCP and TLS handshake together",
    }
    CONNECT_RETRY: bool = values::boolean, {
        option: Some("connect-retry"),
        variable: "STUNNEL_CONNECTION_RETRY",
        default: "no",
        value_name: "BOOL",
        help: "When Redis cannot be reached, keep trying until the connect timeout instead of \
               failing at once",
    }
    IDLE_TIMEOUT: Option<Duration> = values::duration_or_never, {
        option: Some("idle-timeout"),
        variable: "STUNNEL_IDLE_TIMEOUT",
        default: "24h",
        value_name: "DURATION",
        help: "Close a connection on which nothing moved for so long; 0: never",
    }
    DRAIN_TIMEOUT: Duration = values::duration, {
        option: Some("drain-timeout"),
        variable: "STUNNEL_DRAIN_TIMEOUT",
        default: "5s",
        value_name: "DURATION",
        help: "After COMMAND has ended, how long bytes that it had already written may take to \
               reach Redis",
    }
    SPARES: usize = values::spares, {
        option: Some("spares"),
        variable: names::SPARES,
        default: "1",
        value_name: "N",
        help: "Connections per tunnel, 0 to 8, that are made beforehand while an app connects \
               again and again; up to 8 when it does so fast. 0: none",
    }
    POOL: PoolMode = values::pool, {
        option: Some("pool"),
        variable: "STUNNEL_POOL",
        default: "auto",
        value_name: "MODE",
        help: "auto (a connection that the app closed in good order is reset and given to its next \
               one, where Redis can do that), or off",
    }
    MAX_CONNECTIONS: Option<NonZeroUsize> = values::at_least_one, {
        option: Some("max-connections"),
        variable: names::MAX_CONNECTIONS,
        value_name: "N",
        help: "At most so many connections of a tunnel to Redis; others of the app's wait in \
               order, at most the connect timeout",
        scope: Scope::OneUrlToo,
    }
    STATUS_ADDRESS: Option<StatusAddress> = values::status_address, {
        option: Some("status-address"),
        variable: "STUNNEL_STATUS_ADDRESS",
        value_name: "ADDRESS",
        help: "Where the status page, metrics and health checks are served: HOST:PORT, a port of \
               127.0.0.1, or unix",
    }
    METRICS_INTERVAL: Option<Duration> = values::interval, {
        option: Some("metrics-interval"),
        variable: "STUNNEL_METRICS_INTERVAL",
        default: "0",
        value_name: "DURATION",
        help: "Log a line of figures for each tunnel so often, as log drains of Heroku's read it; \
               0: none",
    }
    FORWARD_SIGNALS: ForwardSignals = values::forward_signals, {
        option: Some("forward-signals"),
        variable: "STUNNEL_FORWARD_SIGNALS",
        default: "auto",
        value_name: "WHEN",
        help: "auto (all; on a Heroku dyno all but SIGTERM, which the dyno manager itself sends to \
               every process), always, never",
    }
    SANDBOX: SandboxMode = values::sandbox, {
        option: Some("sandbox"),
        variable: "STUNNEL_SANDBOX",
        default: "auto",
        value_name: "MODE",
        help: "Restrict the launcher with Landlock once COMMAND runs: auto (as far as the kernel \
               supports it), off, require (exit 78 if a trial before COMMAND's start fails)",
    }
    LOG_LEVEL: LogLevel = values::log_level, {
        option: Some("log-level"),
        variable: "STUNNEL_LOGLEVEL",
        default: "notice",
        value_name: "LEVEL",
        help: "emerg alert crit err warning notice info debug, or 0 to 7",
    }
    LOG_FORMAT: LogFormat = values::log_format, {
        option: Some("log-format"),
        variable: "STUNNEL_LOG_FORMAT",
        default: "logfmt",
        value_name: "FORMAT",
        help: "logfmt or json",
    }
}

/// Every setting that has an option, with that, in the order of `--help`.
pub fn with_option() -> impl Iterator<Item = (&'static str, &'static Declaration)> {
    ALL.iter().filter_map(|declaration| Some((declaration.option?, *declaration)))
}

/// The endings that make a variable's name that of one of its URL's own settings: `_STUNNEL_VERIFY`
/// and so on.
pub fn one_url_suffixes() -> impl Iterator<Item = String> {
    let settings = ALL.iter().filter(|declaration| declaration.scope == Scope::OneUrlToo);
    settings.map(|declaration| format!("_{}", declaration.variable))
}

/// The variables of `environment` that are named as settings are, but as none that there is.
pub fn unknown(environment: &Environment) -> Vec<String> {
    let one_url: Vec<String> = one_url_suffixes().collect();
    let is_unknown = |name: &str| match name.split_once("STUNNEL_") {
        Some(("", _)) => ALL.iter().all(|declaration| declaration.variable != name),
        Some((before, _)) if before.ends_with('_') => {
            let is_setting = ALL.iter().any(|declaration| declaration.variable == name);
            !is_setting && !one_url.iter().any(|suffix| name.ends_with(suffix.as_str()))
        }
        _ => false,
    };
    let names = environment.keys().filter_map(|name| name.to_str());
    names.filter(|name| is_unknown(name)).map(str::to_owned).collect()
}

impl Declaration {
    /// What holds when neither option nor variable is given, as the help shows it.
    pub fn default_shown(&self) -> &'static str {
        match (self.default_shown, self.default) {
            (Some(shown), _) => shown,
            (None, "") => "none",
            (None, default) => default,
        }
    }

    /// The variable that says it for the URL in `variable` alone: `CACHE_URL` and `STUNNEL_VERIFY`
    /// make `CACHE_URL_STUNNEL_VERIFY`.
    pub fn for_one(&self, variable: &str) -> String {
        format!("{variable}_{}", self.variable)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_misspelt_setting_is_told_from_others() {
        let names = [
            "STUNNEL_VERIFY",
            "REDIS_STUNNEL_URLS",
            "CACHE_URL_STUNNEL_VERIFY",
            "CACHE_URL_STUNNEL",
            "STUNNEL",
            "MYSTUNNEL_X",
            "STUNNEL_VERIFIY",
            "REDIS_URL_STUNNEL_VERFY",
            "REDIS_URL_STUNNEL_LISTEN_PORT",
            "REDIS_STUNNEL_URL",
        ];
        let environment = names.map(|name| (name.into(), "x".into())).into_iter().collect();
        let expected = [
            "REDIS_STUNNEL_URL",
            "REDIS_URL_STUNNEL_LISTEN_PORT",
            "REDIS_URL_STUNNEL_VERFY",
            "STUNNEL_VERIFIY",
        ];
        assert_eq!(unknown(&environment), expected);
    }

    #[test]
    fn no_two_settings_have_the_same_name() {
        let variables: HashSet<_> = ALL.iter().map(|declaration| declaration.variable).collect();
        assert_eq!(variables.len(), ALL.len());
        let options: HashSet<_> = with_option().map(|(option, _)| option).collect();
        assert_eq!(options.len(), with_option().count());
    }
}
