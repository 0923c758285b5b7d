//! Declares every setting once, with its option, variable, default, help text and parser. The
//! command line, `--help`, the man page, the reader, the settings for one URL and the table in
//! `docs/configuration.md` are derived from these declarations.

use std::num::NonZeroUsize;
use std::time::Duration;

use openssl::ssl::SslVersion;

use super::values::{self, Rediss, one_of};
use crate::logging::{LevelFilter, LogFormat};
use crate::names;
use crate::pool::PoolMode;
use crate::sandbox::SandboxMode;
use crate::status::StatusAddress;
use crate::supervisor::ForwardSignals;
use crate::tls::{Pin, Verify};
use crate::tunnel::{Listen, PortTaken};

/// The parts of a setting's declaration that do not depend on the type of the setting's value.
#[derive(Debug)]
pub struct Declaration {
    /// The environment variable that sets the same value as the option.
    pub variable: &'static str,
    /// The name that the variable had in Heroku's retired Redis buildpack. The launcher still
    /// accepts this old name.
    pub old_variable: Option<&'static str>,
    /// The default, as a user would write it. Empty if the setting is unset by default.
    pub default: &'static str,
    /// The text that the help shows as the default, if `default` cannot describe it.
    default_shown: Option<&'static str>,
    /// The name that the help shows for the option's value, for example `PORT`. Empty if the
    /// setting has no option.
    pub value_name: &'static str,
    pub help: &'static str,
    /// The heading under which `--help` shows the option.
    pub heading: &'static str,
    /// True if the short help, which `-h` prints, lists the option.
    pub is_common: bool,
    /// True if the user can also set the setting for a single URL. A variable with the prefix
    /// `<VAR>_` applies only to the URL in `<VAR>`.
    pub is_per_url: bool,
    /// True if the setting's value is PEM text, or the path of a PEM file.
    pub is_pem: bool,
    /// A function that checks a value, but does not read a file that the value names. The
    /// function's error lists the accepted forms.
    pub check: fn(&str) -> Result<(), &'static str>,
}

/// The declaration of a setting, with the parser for the setting's value. The parser's error lists
/// the accepted forms.
#[derive(Debug)]
pub struct Setting<T> {
    pub declaration: Declaration,
    pub parse: fn(&str) -> Result<T, &'static str>,
}

impl<T> Setting<T> {
    /// Returns the parsed default.
    pub fn default(&self) -> T {
        (self.parse)(self.declaration.default).expect("the default is valid")
    }
}

/// Declares a constant for each setting, and the list `ALL` of all settings. The settings are
/// grouped under the headings of `--help`.
macro_rules! settings {
    ($(
        [$heading:ident]
        $(
            $(#[$doc:meta])*
            $name:ident: $type:ty = $parse:expr, { $($field:ident: $value:expr),+ $(,)? }
        )+
    )+) => {
        $($(
            $(#[$doc])*
            pub const $name: Setting<$type> = Setting {
                declaration: Declaration {
                    $($field: $value,)+
                    heading: stringify!($heading),
                    check: |text| {
                        let parse: fn(&str) -> Result<$type, &'static str> = $parse;
                        parse(text).map(drop)
                    },
                    ..plain(concat!("STUNNEL_", stringify!($name)))
                },
                parse: $parse,
            };
        )+)+

        /// All settings, in the order in which `--help` shows them.
        pub const ALL: &[&Declaration] = &[$($(&$name.declaration),+),+];
    };
}

/// Returns a declaration with default values for the fields that a setting's declaration does not
/// mention.
const fn plain(variable: &'static str) -> Declaration {
    Declaration {
        variable,
        old_variable: None,
        default: "",
        default_shown: None,
        value_name: "",
        help: "",
        heading: "",
        is_common: false,
        is_per_url: false,
        is_pem: false,
        check: |_| Ok(()),
    }
}

/// The variables in which the launcher looks for Redis URLs by default.
pub const DISCOVERED: &str = "REDIS_URL HEROKU_REDIS_* REDIS_ENDPOINT_*_URL";

/// The name of an option that no longer exists. For one release, the launcher warns about the
/// option and its variable instead of refusing to start.
pub const RETIRED_OPTION: &str = "spares";
pub const RETIRED_VARIABLE: &str = "STUNNEL_SPARES";

settings! {
    [Options]
    ENABLED: bool = values::boolean, {
        default: "true",
        value_name: "yes|no",
        help: "Enable the tunnels: 1/true/yes/on or 0/false/no/off, in any case. If false, \
               start-stunnel replaces itself with COMMAND (exec, same pid, same environment)",
    }
    FORWARD_SIGNALS: ForwardSignals = |text| {
        use ForwardSignals::{Always, Auto, Never};
        one_of(text, "auto, always or never", [Auto, Always, Never])
    }, {
        default: "auto",
        value_name: "WHEN",
        help: "When to forward signals to COMMAND: always, never, or auto (all except SIGTERM on \
               a Heroku dyno, which sends SIGTERM to every process)",
    }
    SANDBOX: SandboxMode = |text| {
        use SandboxMode::{Auto, Off, Require};
        one_of(text, "auto, off or require", [Auto, Off, Require])
    }, {
        default: "auto",
        value_name: "MODE",
        help: "Restrict the launcher with Landlock once COMMAND runs: auto (as far as the kernel \
               allows), off, or require (exit with code 78 if Landlock does not work)",
    }

    [Tunnel]
    URLS: Option<Vec<String>> = values::names, {
        variable: names::URLS,
        default_shown: Some(DISCOVERED),
        value_name: "NAMES",
        help: "Names of the variables that hold Redis URLs, separated by spaces or commas",
        is_common: true,
    }
    REDISS: Rediss =
        |text| one_of(text, "tunnel or passthrough", [Rediss::Tunnel, Rediss::Passthrough]), {
        default: "tunnel",
        value_name: "MODE",
        help: "How to handle rediss:// and valkeys:// URLs: tunnel, or passthrough (leave the \
               variable unchanged; the app does its own TLS)",
        is_per_url: true,
    }
    PORT_OFFSET: i32 = values::offset, {
        default: "1",
        value_name: "N",
        help: "For redis:// and valkey:// URLs: the TLS port is the URL's port plus this number",
        is_per_url: true,
    }
    LISTEN_PORT: u16 = values::port_or_zero, {
        default: "6371",
        value_name: "PORT",
        help: "First local port; each further tunnel uses the next port. 0: let the kernel choose \
               a port",
    }
    PORT_TAKEN: PortTaken =
        |text| one_of(text, "move or fail", [PortTaken::Move, PortTaken::Fail]), {
        default: "move",
        value_name: "WHAT",
        help: "If a local port is taken: move (use a port chosen by the kernel; logged), or fail \
               (exit with code 78; for ports that other programs rely on)",
    }
    LISTEN: Listen = |text| one_of(text, "tcp or unix", [Listen::Tcp, Listen::Unix]), {
        default: "tcp",
        value_name: "WHERE",
        help: "Kind of local address: tcp (a port on 127.0.0.1), or unix (a socket that only this \
               user can open; the URL becomes unix://, which not every client supports)",
    }

    [Trust]
    VERIFY: Verify =
        |text| one_of(text, "none, ca or full", [Verify::None, Verify::Ca, Verify::Full]), {
        default: "none",
        value_name: "LEVEL",
        help: "How to verify the server: none, ca (verify the certificate chain), or full (verify \
               the chain and the host name)",
        is_common: true,
        is_per_url: true,
    }
    CA_FILE: String = values::text, {
        default_shown: Some("system roots"),
        value_name: "FILE",
        help: "PEM bundle to use instead of the system roots. STUNNEL_CA_PEM holds the PEM text \
               itself. If both are set, both bundles are trusted",
        is_common: true,
        is_per_url: true,
        is_pem: true,
    }
    /// The setting `CA_PEM` has no option, because a CA bundle is too long for a command line.
    CA_PEM: String = values::text, {
        is_per_url: true,
        is_pem: true,
    }
    PIN: Vec<Pin> = values::pins, {
        value_name: "PINS",
        help: "sha256//BASE64 hash of the server key's SubjectPublicKeyInfo, like curl's \
               --pinnedpubkey; separate several by semicolons. Applies at every --verify level",
        is_common: true,
        is_per_url: true,
    }
    CLIENT_CERT: String = values::text, {
        value_name: "PEM",
        help: "Client certificate: a PEM file, or the PEM text itself",
        is_per_url: true,
        is_pem: true,
    }
    CLIENT_KEY: String = values::text, {
        value_name: "PEM",
        help: "Key of the client certificate: a PEM file, or the PEM text itself",
        is_per_url: true,
        is_pem: true,
    }
    SERVER_NAME: Option<String> = values::server_name, {
        default_shown: Some("the URL's host"),
        value_name: "NAME",
        help: "Server name to send in SNI, and to verify under --verify full",
        is_per_url: true,
    }
    MIN_TLS: SslVersion =
        |text| one_of(text, "1.2 or 1.3", [SslVersion::TLS1_2, SslVersion::TLS1_3]), {
        default: "1.2",
        value_name: "VERSION",
        help: "Oldest TLS version to accept: 1.2 or 1.3",
    }

    [Connections]
    CONNECT_TIMEOUT: Duration = values::positive_duration, {
        default: "10s",
        value_name: "DURATION",
        help: "Time limit for connecting to Redis: queueing, name lookup, TCP connection and TLS \
               handshake together",
    }
    CONNECT_RETRY: bool = values::boolean, {
        old_variable: Some("STUNNEL_CONNECTION_RETRY"),
        default: "no",
        value_name: "yes|no",
        help: "If Redis is unreachable, retry until the connect timeout instead of failing at once",
    }
    IDLE_TIMEOUT: Option<Duration> = values::duration_or_never, {
        default: "24h",
        value_name: "DURATION",
        help: "Close a connection after this long without traffic; 0: never",
    }
    DRAIN_TIMEOUT: Duration = values::duration, {
        default: "5s",
        value_name: "DURATION",
        help: "Time limit for the drain: sending the bytes that COMMAND wrote before it exited",
    }
    POOL: PoolMode =
        |text| one_of(text, "off, on or auto", [PoolMode::Off, PoolMode::On, PoolMode::Auto]), {
        default: "auto",
        value_name: "MODE",
        help: "When the app closes a connection, reuse the connection to Redis for the app's next \
               one, after a RESET: off, on, or auto (on while the app reconnects often)",
        is_common: true,
        is_per_url: true,
    }
    MAX_CONNECTIONS: Option<NonZeroUsize> = values::at_least_one, {
        value_name: "N",
        help: "Maximum number of connections to Redis per tunnel; further app connections wait in \
               a queue, at most for the connect timeout",
        is_common: true,
        is_per_url: true,
    }

    [Status]
    STATUS_ADDRESS: Option<StatusAddress> = values::status_address, {
        value_name: "ADDRESS",
        help: "Address for the status page, metrics and health checks: HOST:PORT, a port on \
               127.0.0.1, or unix (a socket that only this user can open)",
    }
    METRICS_INTERVAL: Option<Duration> = values::interval, {
        default: "0",
        value_name: "DURATION",
        help: "Log one metrics line per tunnel at this interval, in Heroku's l2met format; 0: off",
    }

    [Log]
    LOG_LEVEL: LevelFilter = values::log_level, {
        old_variable: Some("STUNNEL_LOGLEVEL"),
        default: "notice",
        value_name: "LEVEL",
        help: "Lowest severity to log: emerg alert crit err warning notice info debug (syslog's \
               names), or 0 to 7 as in stunnel",
        is_common: true,
    }
    LOG_FORMAT: LogFormat =
        |text| one_of(text, "logfmt or json", [LogFormat::Logfmt, LogFormat::Json]), {
        default: "logfmt",
        value_name: "FORMAT",
        help: "Format of the log lines: logfmt or json",
    }
}

/// Returns every setting that has an option, with the option's name, in the order in which `--help`
/// shows them.
pub fn with_option() -> impl Iterator<Item = (String, &'static Declaration)> {
    ALL.iter().filter_map(|declaration| Some((declaration.option()?, *declaration)))
}

/// Returns every setting that the user can set for a single URL.
pub fn for_one_url() -> impl Iterator<Item = &'static Declaration> {
    ALL.iter().copied().filter(|declaration| declaration.is_per_url)
}

impl Declaration {
    /// Returns the option's name without dashes, for example `port-offset` for
    /// `STUNNEL_PORT_OFFSET`. Returns `None` if the setting has no option.
    pub fn option(&self) -> Option<String> {
        let (_, name) = self.variable.split_once("STUNNEL_")?;
        (!self.value_name.is_empty()).then(|| name.to_ascii_lowercase().replace('_', "-"))
    }

    /// Returns the default as the help shows it. Returns `None` if the setting is unset by default.
    pub fn default_shown(&self) -> Option<&'static str> {
        self.default_shown.or((!self.default.is_empty()).then_some(self.default))
    }

    /// Returns the variable that sets this setting for all URLs, and the variable's old name if
    /// there is one.
    pub fn variables(&self) -> impl Iterator<Item = &'static str> + use<> {
        [Some(self.variable), self.old_variable].into_iter().flatten()
    }

    /// Returns the variable that applies this setting only to the URL in `variable`. For example,
    /// if `variable` is `CACHE_URL`, the variable for `--verify` is `CACHE_URL_STUNNEL_VERIFY`.
    pub fn for_one(&self, variable: &str) -> String {
        format!("{variable}_{}", self.variable)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_settings_have_the_same_name() {
        let names: Vec<_> = ALL.iter().flat_map(|declaration| declaration.variables()).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        let options: HashSet<_> = with_option().map(|(option, _)| option).collect();
        assert_eq!(options.len(), with_option().count());
    }

    #[test]
    fn messages_name_only_declared_settings() {
        let strings = include_str!("../names.rs").split('"').skip(1).step_by(2);
        let is_variable = |text: &&str| !text.contains([' ', '-']);
        for name in strings.filter(is_variable) {
            assert!(ALL.iter().any(|declaration| declaration.variable == name), "{name}");
        }
    }

    #[test]
    fn every_default_is_a_valid_value() {
        for declaration in ALL {
            assert_eq!((declaration.check)(declaration.default), Ok(()), "{declaration:?}");
        }
    }
}
