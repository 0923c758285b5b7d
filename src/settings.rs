//! Options and environment -> [`Settings`]; every mistake is collected, none stops the others.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::time::Duration;

use crate::cli::{self, Invocation, Setting};
use crate::redis_url::TlsWishes;
use crate::secret::{Secret, quotable};
use crate::tls::Pin;
use crate::tls::pem::{self, ClientIdentity, IdentityProblem};

/// The environment as the launcher found it.
pub type Environment = BTreeMap<OsString, OsString>;

/// The value of `name`; an empty variable counts as unset.
pub fn lookup<'a>(environment: &'a Environment, name: &str) -> Option<&'a OsStr> {
    let value = environment.get(OsStr::new(name))?;
    (!value.is_empty()).then_some(value)
}

/// One mistake in the configuration. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The option (`--verify`) or variable (`STUNNEL_VERIFY`) at fault.
    pub name: String,
    /// What is wrong and what would be right, as a predicate of the name.
    pub problem: String,
}

impl ConfigError {
    pub fn new(name: &str, problem: impl ToString) -> ConfigError {
        ConfigError { name: name.to_owned(), problem: problem.to_string() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.problem)
    }
}

/// What to do with a URL that asks for TLS itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rediss {
    Tunnel,
    Passthrough,
}

/// How much of the server's certificate must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MinTls {
    V1_2,
    V1_3,
}

/// Where tunnels listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// On ports of 127.0.0.1.
    Tcp,
    /// On Unix sockets that only this user can reach.
    Unix,
}

/// Whether signals are passed on to COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardSignals {
    Auto,
    Always,
    Never,
}

/// Syslog's severities that the launcher tells apart, the most severe first. Severities above `Err`
/// silence it, since it emits nothing so severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Silent,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Logfmt,
    Json,
}

/// Where and how log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// What decides how a tunnel's TLS connections are made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustSettings {
    pub verify: Verify,
    pub min_tls: MinTls,
    /// PEM of the CAs to trust instead of the system's roots. Some bundles hold a key, too.
    pub ca: Option<Secret>,
    /// The server's key must be one of these; empty: any.
    pub pins: Vec<Pin>,
    pub identity: Option<ClientIdentity>,
    /// The name to send and to check; `None`: the URL's host.
    pub server_name: Option<String>,
}

impl TrustSettings {
    /// Whether anything proves who the server is.
    pub fn authenticates(&self) -> bool {
        self.verify != Verify::None || !self.pins.is_empty()
    }
}

/// The most connections that a tunnel keeps ready.
pub const MOST_SPARES: usize = 8;

/// How connections to Redis are made and given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// For name look-up, TCP and TLS together; more than zero.
    pub connect_timeout: Duration,
    /// Whether to keep trying until `connect_timeout`.
    pub connect_retry: bool,
    /// Connections kept ready for each tunnel, at most [`MOST_SPARES`]; 0: none.
    pub spares: usize,
    /// `None`: never.
    pub idle_timeout: Option<Duration>,
    /// After COMMAND's end; zero means not to wait.
    pub drain_timeout: Duration,
}

/// Everything that holds for the launcher as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: Listen,
    /// The first local port; 0: the kernel's pick.
    pub listen_port: u16,
    pub connection: ConnectionSettings,
    pub forward_signals: ForwardSignals,
    pub log: LogSettings,
}

/// The settings that one variable can have for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlSettings {
    pub rediss: Rediss,
    pub port_offset: PortOffset,
    pub trust: TrustSettings,
}

/// What is added to a plaintext URL's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOffset {
    pub value: i32,
    /// Whether it was set for this very URL.
    pub own: bool,
    /// The option or variable that it came from.
    pub source: String,
}

/// Reads settings from options and environment, and collects what is wrong with them.
pub struct Reader<'a> {
    invocation: &'a Invocation,
    environment: &'a Environment,
    pub errors: Vec<ConfigError>,
    /// What holds for all URLs is read from its files once, however many there are.
    general_ca: Option<Checked<Option<Secret>>>,
    general_identity: Option<Checked<Option<ClientIdentity>>>,
}

/// A setting's value; `None` when it is wrong, which stands in [`Reader::errors`] by then.
type Checked<T> = Option<T>;

/// A value, and where it came from.
struct Found<'a> {
    source: String,
    value: &'a OsStr,
    given: Given,
}

impl Found<'_> {
    fn wrong(&self, problem: impl ToString) -> ConfigError {
        ConfigError::new(&self.source, problem)
    }
}

/// Who gave a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// Nobody: it is the default.
    Default,
    /// The user, for all URLs.
    Generally,
    /// The user, for this one URL.
    ForOne,
}

impl<'a> Reader<'a> {
    pub fn new(invocation: &'a Invocation, environment: &'a Environment) -> Reader<'a> {
        Reader {
            invocation,
            environment,
            errors: Vec::new(),
            general_ca: None,
            general_identity: None,
        }
    }

    /// Whether there is to be a tunnel at all; `None` when the switch itself is wrong.
    pub fn enabled(&mut self) -> Option<bool> {
        self.read(&cli::ENABLED, boolean)
    }

    /// The names of `--urls`, each once, or none: then they are discovered. `None` when it is wrong.
    pub fn urls(&mut self) -> Option<Option<Vec<String>>> {
        self.read(&cli::URLS, names)
    }

    /// The settings of the launcher as a whole; `None` when any of them is wrong.
    pub fn settings(&mut self) -> Option<Settings> {
        // Each is read before any `?`, so that all mistakes are found.
        let listen = self.read(&cli::LISTEN, listen);
        let listen_port = self.read(&cli::LISTEN_PORT, port_or_zero);
        let connect_timeout = self.read(&cli::CONNECT_TIMEOUT, positive_duration);
        let connect_retry = self.read(&cli::CONNECT_RETRY, boolean);
        let idle_timeout = self.read(&cli::IDLE_TIMEOUT, duration);
        let spares = self.read(&cli::SPARES, spares);
        let drain_timeout = self.read(&cli::DRAIN_TIMEOUT, duration);
        let forward_signals = self.read(&cli::FORWARD_SIGNALS, forward_signals);
        let level = self.read(&cli::LOG_LEVEL, log_level);
        let format = self.read(&cli::LOG_FORMAT, log_format);
        Some(Settings {
            listen: listen?,
            listen_port: listen_port?,
            connection: ConnectionSettings {
                connect_timeout: connect_timeout?,
                connect_retry: connect_retry?,
                spares: spares?,
                idle_timeout: idle_timeout.map(|time| (!time.is_zero()).then_some(time))?,
                drain_timeout: drain_timeout?,
            },
            forward_signals: forward_signals?,
            log: LogSettings { level: level?, format: format? },
        })
    }

    /// How to log, for errors: what is wrong here is reported elsewhere, and errors are never silent.
    pub fn log_settings_for_errors(&self) -> LogSettings {
        let mut quiet = Reader::new(self.invocation, self.environment);
        LogSettings {
            level: LogLevel::Err,
            format: quiet.read(&cli::LOG_FORMAT, log_format).unwrap_or(LogFormat::Logfmt),
        }
    }

    /// Reports every general setting that has a form for one URL, whether or not a URL uses it.
    pub fn check_general_url_settings(&mut self) {
        self.read(&cli::REDISS, rediss);
        self.read(&cli::PORT_OFFSET, offset);
        self.read(&cli::VERIFY, verify);
        self.read(&cli::MIN_TLS, min_tls);
        self.read(&cli::PIN, pins);
        self.read(&cli::SERVER_NAME, server_name);
        self.general_authorities();
        self.general_identity();
    }

    /// The settings that hold for the URL in `variable`, whose query has wishes of its own. Only
    /// mistakes in the variable's own forms are collected: those in the general ones are found by
    /// [`Reader::check_general_url_settings`].
    pub fn url_settings(&mut self, variable: &str, wishes: &TlsWishes) -> Option<UrlSettings> {
        let rediss = self.read_for(variable, &cli::REDISS, rediss);
        let port_offset = self.read_for(variable, &cli::PORT_OFFSET, offset);
        let verify = self.read_for(variable, &cli::VERIFY, verify);
        let min_tls = parse(&self.general(&cli::MIN_TLS), min_tls).ok();
        let pins = self.read_for(variable, &cli::PIN, pins);
        let server_name = self.read_for(variable, &cli::SERVER_NAME, server_name);
        let ca = self.authorities_for(variable, wishes);
        let identity = self.identity_for(variable);

        let (verify_found, verify) = verify?;
        let verify = match wishes.verify {
            Some(true) if verify_found.given == Given::Default => Verify::Full,
            _ => verify,
        };
        let (offset_found, value) = port_offset?;
        let own = offset_found.given == Given::ForOne;
        Some(UrlSettings {
            rediss: rediss?.1,
            port_offset: PortOffset { own, source: offset_found.source, value },
            trust: TrustSettings {
                verify,
                min_tls: min_tls?,
                ca: ca?,
                pins: pins?.1,
                identity: identity?,
                server_name: server_name?.1,
            },
        })
    }

    /// The CAs for one URL: its own settings replace all general ones, and these what its query says.
    fn authorities_for(&mut self, variable: &str, wishes: &TlsWishes) -> Checked<Option<Secret>> {
        let settings = [&cli::CA_FILE, &cli::CA_PEM];
        let own = settings.map(|setting| self.own(variable, setting)).into_iter().flatten();
        let own: Vec<_> = own.collect();
        if !own.is_empty() {
            return self.authorities(&own);
        }
        let given = settings.iter().any(|setting| self.general(setting).given != Given::Default);
        match &wishes.ca_file {
            Some(file) if !given => {
                let source = format!("ssl_ca_certs in {variable}");
                self.authorities(&[Found { source, value: OsStr::new(file), given: Given::ForOne }])
            }
            _ => self.general_authorities(),
        }
    }

    /// The CAs for all URLs.
    fn general_authorities(&mut self) -> Checked<Option<Secret>> {
        if self.general_ca.is_none() {
            let bundles = [self.general(&cli::CA_FILE), self.general(&cli::CA_PEM)];
            self.general_ca = Some(self.authorities(&bundles));
        }
        self.general_ca.clone()?
    }

    /// Reads CA bundles, one behind the other; `Some(None)` when none is given.
    fn authorities(&mut self, bundles: &[Found<'_>]) -> Checked<Option<Secret>> {
        let known_errors = self.errors.len();
        let mut together = String::new();
        for found in bundles.iter().filter(|found| !found.value.is_empty()) {
            let checked = read_pem(found).and_then(|pem| match pem::check_certificates(&pem) {
                Ok(()) => Ok(pem),
                Err(problem) => Err(found.wrong(problem)),
            });
            match checked {
                Ok(pem) => together += &(pem + "\n"),
                Err(error) => self.errors.push(error),
            }
        }
        let whole = self.errors.len() == known_errors;
        whole.then(|| (!together.is_empty()).then(|| Secret::new(together)))
    }

    /// The client certificate and key for one URL.
    fn identity_for(&mut self, variable: &str) -> Checked<Option<ClientIdentity>> {
        let own = |setting| self.own(variable, setting);
        let (certificate, key) = match (own(&cli::CLIENT_CERT), own(&cli::CLIENT_KEY)) {
            (None, None) => return self.general_identity(),
            own => own,
        };
        let certificate = certificate.unwrap_or_else(|| self.general(&cli::CLIENT_CERT));
        let key = key.unwrap_or_else(|| self.general(&cli::CLIENT_KEY));
        self.identity(&certificate, &key)
    }

    /// The client certificate and key for all URLs.
    fn general_identity(&mut self) -> Checked<Option<ClientIdentity>> {
        if self.general_identity.is_none() {
            let (certificate, key) =
                (self.general(&cli::CLIENT_CERT), self.general(&cli::CLIENT_KEY));
            self.general_identity = Some(self.identity(&certificate, &key));
        }
        self.general_identity.clone()?
    }

    fn identity(
        &mut self,
        certificate: &Found<'_>,
        key: &Found<'_>,
    ) -> Checked<Option<ClientIdentity>> {
        let missing = |found: &Found<'_>, other: &Found<'_>| {
            let other = &other.source;
            found.wrong(format!("is not set, but {other} is; a client certificate needs both"))
        };
        let read = match (certificate.value.is_empty(), key.value.is_empty()) {
            (true, true) => return Some(None),
            (true, false) => Err(missing(certificate, key)),
            (false, true) => Err(missing(key, certificate)),
            (false, false) => read_pem(certificate).and_then(|pem| Ok((pem, read_pem(key)?))),
        };
        let identity = read.and_then(|(certificate_pem, key_pem)| {
            ClientIdentity::new(&certificate_pem, &key_pem).map_err(|problem| match problem {
                IdentityProblem::Certificate(problem) => certificate.wrong(problem),
                IdentityProblem::Key(problem) => key.wrong(problem),
            })
        });
        identity.map(Some).map_err(|error| self.errors.push(error)).ok()
    }

    /// The value that holds for all: option, else variable, else default.
    fn general(&self, setting: &Setting) -> Found<'a> {
        if let Some(value) = self.invocation.option(setting) {
            return Found {
                source: format!("--{}", setting.option),
                value,
                given: Given::Generally,
            };
        }
        let source = setting.variable.to_owned();
        match lookup(self.environment, setting.variable) {
            Some(value) => Found { source, value, given: Given::Generally },
            None => Found { source, value: OsStr::new(setting.default), given: Given::Default },
        }
    }

    /// The value that one URL has for itself.
    fn own(&self, variable: &str, setting: &Setting) -> Option<Found<'a>> {
        let source = own_name(variable, setting);
        let value = lookup(self.environment, &source)?;
        Some(Found { source, value, given: Given::ForOne })
    }

    fn read<T>(&mut self, setting: &Setting, rule: Rule<T>) -> Option<T> {
        parse(&self.general(setting), rule).map_err(|error| self.errors.push(error)).ok()
    }

    /// Like `read`, but the variable's own form comes first. Also says where the value came from.
    fn read_for<T>(
        &mut self,
        variable: &str,
        setting: &Setting,
        rule: Rule<T>,
    ) -> Option<(Found<'a>, T)> {
        let (found, parsed) = match self.own(variable, setting) {
            Some(found) => {
                let parsed = parse(&found, rule).map_err(|error| self.errors.push(error)).ok()?;
                (found, parsed)
            }
            None => {
                let found = self.general(setting);
                let parsed = parse(&found, rule).ok()?;
                (found, parsed)
            }
        };
        Some((found, parsed))
    }
}

/// PEM that is given as text, or as the name of a file.
fn read_pem(found: &Found<'_>) -> Result<String, ConfigError> {
    if let Some(text) = found.value.to_str().filter(|text| pem::is_pem(text)) {
        return Ok(pem::with_line_ends(text));
    }
    std::fs::read_to_string(found.value).map_err(|error| {
        found.wrong(format!(
            "names a file that cannot be read ({error}); expected a PEM file, or PEM text with \
             -----BEGIN in it"
        ))
    })
}

/// `CACHE_URL` and `STUNNEL_VERIFY` make `CACHE_URL_STUNNEL_VERIFY`.
fn own_name(variable: &str, setting: &Setting) -> String {
    format!("{variable}_{}", setting.variable)
}

/// Turns text into a value, or says what would have been right.
type Rule<T> = fn(&str) -> Result<T, &'static str>;

fn parse<T>(found: &Found<'_>, rule: Rule<T>) -> Result<T, ConfigError> {
    let text = found.value.to_str().ok_or_else(|| found.wrong("is not valid UTF-8"))?;
    let wrong = |expected| found.wrong(format!("is {}; expected {expected}", quotable(text)));
    rule(text).map_err(wrong)
}

/// One of `words`, in any case.
fn one_of<T: Copy>(
    text: &str,
    words: &[(&str, T)],
    expected: &'static str,
) -> Result<T, &'static str> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or(expected)
}

fn boolean(text: &str) -> Result<bool, &'static str> {
    let words = [
        ("1", true),
        ("true", true),
        ("yes", true),
        ("on", true),
        ("0", false),
        ("false", false),
        ("no", false),
        ("off", false),
    ];
    one_of(text, &words, "1, true, yes or on; or 0, false, no or off")
}

fn listen(text: &str) -> Result<Listen, &'static str> {
    one_of(text, &[("tcp", Listen::Tcp), ("unix", Listen::Unix)], "tcp or unix")
}

fn rediss(text: &str) -> Result<Rediss, &'static str> {
    let words = [("tunnel", Rediss::Tunnel), ("passthrough", Rediss::Passthrough)];
    one_of(text, &words, "tunnel or passthrough")
}

fn verify(text: &str) -> Result<Verify, &'static str> {
    let words = [("none", Verify::None), ("ca", Verify::Ca), ("full", Verify::Full)];
    one_of(text, &words, "none, ca or full")
}

fn min_tls(text: &str) -> Result<MinTls, &'static str> {
    one_of(text, &[("1.2", MinTls::V1_2), ("1.3", MinTls::V1_3)], "1.2 or 1.3")
}

fn pins(text: &str) -> Result<Vec<Pin>, &'static str> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Pin::parse_all(text).ok_or(
        "sha256// and the base64 of 32 bytes, several joined by ; (start-stunnel --check prints the \
         server's)",
    )
}

fn server_name(text: &str) -> Result<Option<String>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    match url::Host::parse(text) {
        Ok(url::Host::Domain(name)) => Ok(Some(name)),
        Ok(url::Host::Ipv4(address)) => Ok(Some(address.to_string())),
        Ok(url::Host::Ipv6(address)) => Ok(Some(address.to_string())),
        Err(_) => Err("a host name, or an IP address (IPv6 in brackets)"),
    }
}

fn forward_signals(text: &str) -> Result<ForwardSignals, &'static str> {
    let words = [
        ("auto", ForwardSignals::Auto),
        ("always", ForwardSignals::Always),
        ("never", ForwardSignals::Never),
    ];
    one_of(text, &words, "auto, always or never")
}

fn log_level(text: &str) -> Result<LogLevel, &'static str> {
    let words = [
        ("emerg", LogLevel::Silent),
        ("alert", LogLevel::Silent),
        ("crit", LogLevel::Silent),
        ("err", LogLevel::Err),
        ("warning", LogLevel::Warning),
        ("notice", LogLevel::Notice),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
    ];
    const EXPECTED: &str = "emerg, alert, crit, err, warning, notice, info or debug, or 0 to 7";
    match text.as_bytes() {
        [digit @ b'0'..=b'7'] => Ok(words[usize::from(digit - b'0')].1),
        _ => one_of(text, &words, EXPECTED),
    }
}

fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    one_of(text, &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)], "logfmt or json")
}

fn offset(text: &str) -> Result<i32, &'static str> {
    const EXPECTED: &str = "a whole number from -65534 to 65534";
    let value: i32 = text.parse().map_err(|_| EXPECTED)?;
    (value.abs() < i32::from(u16::MAX)).then_some(value).ok_or(EXPECTED)
}

fn port_or_zero(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "a port from 1 to 65535, or 0 for the kernel's pick")
}

fn spares(text: &str) -> Result<usize, &'static str> {
    let known = text.parse().ok().filter(|number| *number <= MOST_SPARES);
    known.ok_or("a whole number from 0 to 8")
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a time such as 500ms, 10s, 5m, 24h, or a bare number of seconds";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds_each: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(EXPECTED),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    number.checked_mul(milliseconds_each).map(Duration::from_millis).ok_or(EXPECTED)
}

fn positive_duration(text: &str) -> Result<Duration, &'static str> {
    let time = duration(text)?;
    (!time.is_zero())
        .then_some(time)
        .ok_or("a time of more than zero such as 500ms, 10s, 5m, 24h, or a bare number of seconds")
}

/// Names of variables; an error never repeats one, since a URL is sometimes put here.
fn names(text: &str) -> Result<Option<Vec<String>>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut names: Vec<String> = Vec::new();
    for name in text.split([' ', ',', '\t', '\n', '\r']).filter(|name| !name.is_empty()) {
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(EXPECTED_NAMES);
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() { Err(EXPECTED_NAMES) } else { Ok(Some(names)) }
}

const EXPECTED_NAMES: &str = "names of variables, such as \"REDIS_URL CACHE_URL\"";

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An environment of `pairs`, for tests.
    pub fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// A command line of `options` and a COMMAND, for tests.
    pub fn invocation(options: &[&str]) -> Invocation {
        let words = ["start-stunnel"].iter().chain(options).chain(&["true"]);
        Invocation::parse_from(words.map(OsString::from)).expect("a good command line")
    }

    fn settings(
        options: &[&str],
        pairs: &[(&str, &str)],
    ) -> Result<(Settings, UrlSettings), Vec<String>> {
        let (invocation, environment) = (invocation(options), environment(pairs));
        let mut reader = Reader::new(&invocation, &environment);
        reader.enabled();
        reader.urls();
        let settings = reader.settings();
        reader.check_general_url_settings();
        let url_settings = reader.url_settings("CACHE_URL", &TlsWishes::default());
        match (settings, url_settings) {
            (Some(settings), Some(url_settings)) if reader.errors.is_empty() => {
                Ok((settings, url_settings))
            }
            _ => Err(reader.errors.into_iter().map(|error| error.to_string()).collect()),
        }
    }

    #[test]
    fn every_default_is_a_value_that_its_setting_accepts() {
        let (settings, url) = settings(&[], &[]).unwrap();
        assert_eq!(settings.listen_port, 6371);
        assert_eq!(settings.connection.connect_timeout, Duration::from_secs(10));
        assert!(!settings.connection.connect_retry);
        assert_eq!(settings.connection.idle_timeout, Some(Duration::from_secs(86_400)));
        assert_eq!(settings.connection.drain_timeout, Duration::from_secs(5));
        assert_eq!(settings.forward_signals, ForwardSignals::Auto);
        assert_eq!(settings.log.level, LogLevel::Notice);
        assert_eq!(settings.log.format, LogFormat::Logfmt);
        assert_eq!(url.rediss, Rediss::Tunnel);
        assert_eq!((url.port_offset.value, url.port_offset.own), (1, false));
        let plain = TrustSettings {
            verify: Verify::None,
            min_tls: MinTls::V1_2,
            ca: None,
            pins: vec![],
            identity: None,
            server_name: None,
        };
        assert_eq!(url.trust, plain);
        assert!(!url.trust.authenticates());
    }

    #[test]
    fn option_beats_variable_beats_default_and_empty_counts_as_unset() {
        let verify = |options: &[&str], pairs: &[(&str, &str)]| {
            settings(options, pairs).unwrap().1.trust.verify
        };
        assert_eq!(verify(&[], &[("STUNNEL_VERIFY", "ca")]), Verify::Ca);
        assert_eq!(verify(&[], &[("STUNNEL_VERIFY", "")]), Verify::None);
        assert_eq!(verify(&["--verify", "full"], &[("STUNNEL_VERIFY", "ca")]), Verify::Full);
        assert_eq!(verify(&["--verify", "full"], &[("STUNNEL_VERIFY", "bogus")]), Verify::Full);
        assert_eq!(
            verify(&["--verify", "ca"], &[("CACHE_URL_STUNNEL_VERIFY", "full")]),
            Verify::Full
        );
        assert_eq!(verify(&["--verify", "ca"], &[("CACHE_URL_STUNNEL_VERIFY", "")]), Verify::Ca);
        assert_eq!(verify(&[], &[("OTHER_URL_STUNNEL_VERIFY", "full")]), Verify::None);
    }

    #[test]
    fn every_wrong_value_is_reported_at_once_with_its_name_and_what_is_right() {
        let wrong = [
            ("STUNNEL_ENABLED", "flase", "'flase'; expected 1, true, yes or on"),
            ("REDIS_STUNNEL_URLS", "redis://:pw@h", "not shown; expected names of variables"),
            ("STUNNEL_REDISS", "tunel", "'tunel'; expected tunnel or passthrough"),
            ("STUNNEL_PORT_OFFSET", "one", "'one'; expected a whole number"),
            ("STUNNEL_LISTEN_PORT", "65536", "'65536'; expected a port"),
            ("STUNNEL_VERIFY", "fulll", "'fulll'; expected none, ca or full"),
            ("STUNNEL_MIN_TLS", "1.1", "'1.1'; expected 1.2 or 1.3"),
            ("STUNNEL_CONNECT_TIMEOUT", "0", "'0'; expected a time of more than zero"),
            ("STUNNEL_CONNECTION_RETRY", "maybe", "'maybe'; expected 1, true"),
            ("STUNNEL_IDLE_TIMEOUT", "1d", "'1d'; expected a time such as 500ms"),
            ("STUNNEL_DRAIN_TIMEOUT", "-1", "'-1'; expected a time such as 500ms"),
            ("STUNNEL_SPARES", "9", "'9'; expected a whole number from 0 to 8"),
            ("STUNNEL_FORWARD_SIGNALS", "some", "'some'; expected auto, always or never"),
            ("STUNNEL_LOGLEVEL", "8", "'8'; expected emerg, alert"),
            ("STUNNEL_LOG_FORMAT", "xml", "'xml'; expected logfmt or json"),
            ("CACHE_URL_STUNNEL_VERIFY", "x", "'x'; expected none, ca or full"),
            ("CACHE_URL_STUNNEL_PORT_OFFSET", "99999", "'99999'; expected a whole number"),
            ("CACHE_URL_STUNNEL_REDISS", "x", "'x'; expected tunnel or passthrough"),
        ];
        let pairs = wrong.map(|(name, value, _)| (name, value));
        let errors = settings(&[], &pairs).unwrap_err();
        assert_eq!(errors.len(), wrong.len(), "{errors:#?}");
        for (name, _, expected) in wrong {
            let mut matching =
                errors.iter().filter(|error| error.starts_with(&format!("{name} is ")));
            let error = matching.next_back().unwrap_or_else(|| panic!("{name} in {errors:#?}"));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn durations_take_the_documented_forms_only() {
        let good = [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7", 7_000),
            ("0", 0),
        ];
        for (text, milliseconds) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "",
            "s",
            "1.5s",
            "-1",
            "+1",
            "10 s",
            "10S",
            "1d",
            "99999999999999999999",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn levels_are_syslogs_names_in_any_case_or_its_numbers() {
        for (text, level) in [
            ("emerg", LogLevel::Silent),
            ("0", LogLevel::Silent),
            ("3", LogLevel::Err),
            ("ERR", LogLevel::Err),
            ("5", LogLevel::Notice),
            ("Debug", LogLevel::Debug),
            ("7", LogLevel::Debug),
        ] {
            assert_eq!(log_level(text), Ok(level), "{text}");
        }
        for text in ["warn", "error", "8", "-1", "55", "trace"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_variables_are_separated_by_spaces_or_commas() {
        let some = |names: &[&str]| Ok(Some(names.iter().map(|name| name.to_string()).collect()));
        assert_eq!(names(""), Ok(None));
        assert_eq!(names("A"), some(&["A"]));
        assert_eq!(names("A B,C, D  E,"), some(&["A", "B", "C", "D", "E"]));
        assert_eq!(names("A B A"), some(&["A", "B"]));
        for text in [" ", ",", "A=B", "redis://h"] {
            assert!(names(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_that_is_not_utf8_is_an_error_that_does_not_repeat_it() {
        use std::os::unix::ffi::OsStringExt;
        let invocation = invocation(&[]);
        let mut environment = environment(&[]);
        environment.insert("STUNNEL_VERIFY".into(), OsString::from_vec(vec![0xff, 0xfe]));
        let mut reader = Reader::new(&invocation, &environment);
        reader.check_general_url_settings();
        assert_eq!(reader.errors.len(), 1);
        assert_eq!(reader.errors[0].to_string(), "STUNNEL_VERIFY is not valid UTF-8");
    }
}
