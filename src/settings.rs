//! Options and environment -> [`Settings`]; every mistake is collected, none stops the others.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use crate::cli::{self, Invocation, Setting};
use crate::redis_url::{self, TlsWishes};
use crate::secret::{quotable, shown};
use crate::tls::pem::{self, Authorities, ClientIdentity, IdentityProblem};
use crate::tls::{self, Pin};

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

/// Every mistake found so far, each once.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<ConfigError>);

/// The proof that a mistake was added to the [`Mistakes`]: nothing else makes one, so that whoever fails for a
/// mistake cannot have forgotten to report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported(());

impl Mistakes {
    /// Adds a mistake, unless it is known already.
    pub fn report(&mut self, error: ConfigError) -> Reported {
        if !self.0.contains(&error) {
            self.0.push(error);
        }
        Reported(())
    }

    /// What `result` has, or the proof that its mistake was reported.
    ///
    /// # Errors
    /// [`Reported`], when `result` has a mistake.
    pub fn check<T>(&mut self, result: Result<T, ConfigError>) -> Result<T, Reported> {
        result.map_err(|error| self.report(error))
    }

    /// All of them, in the order in which they were found.
    pub fn all(&self) -> &[ConfigError] {
        &self.0
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

/// What to do when a local port is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortTaken {
    /// Listen on another, which COMMAND's URL then has.
    Move,
    /// Start nothing.
    Fail,
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
    /// The CAs to trust instead of the system's roots.
    pub ca: Option<Authorities>,
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
    pub port_taken: PortTaken,
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
    /// Whether the user has said how much of the certificate must hold: `none` is on purpose then.
    pub verify_chosen: bool,
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
    /// Whether the system has certificates to trust.
    system_roots: fn() -> bool,
    pub mistakes: Mistakes,
    /// What holds for all URLs is read from its files once, however many there are.
    general_ca: Option<Checked<Option<Authorities>>>,
    general_identity: Option<Checked<Option<ClientIdentity>>>,
}

/// A setting's value, unless it is wrong.
type Checked<T> = Result<T, Reported>;

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
            system_roots: tls::roots::exist,
            mistakes: Mistakes::default(),
            general_ca: None,
            general_identity: None,
        }
    }

    /// Whether there is to be a tunnel at all.
    ///
    /// # Errors
    /// When the switch itself is wrong.
    pub fn enabled(&mut self) -> Result<bool, Reported> {
        self.read(&cli::ENABLED, boolean)
    }

    /// The names of `--urls`, each once, or none: then they are discovered.
    ///
    /// # Errors
    /// When it holds anything else.
    pub fn urls(&mut self) -> Result<Option<Vec<String>>, Reported> {
        self.read(&cli::URLS, names)
    }

    /// The settings of the launcher as a whole.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn settings(&mut self) -> Result<Settings, Reported> {
        // Each is read before any `?`, so that all mistakes are found.
        let listen = self.read(&cli::LISTEN, listen);
        let listen_port = self.read(&cli::LISTEN_PORT, port_or_zero);
        let port_taken = self.read(&cli::PORT_TAKEN, port_taken);
        let connect_timeout = self.read(&cli::CONNECT_TIMEOUT, positive_duration);
        let connect_retry = self.read(&cli::CONNECT_RETRY, boolean);
        let idle_timeout = self.read(&cli::IDLE_TIMEOUT, duration);
        let spares = self.read(&cli::SPARES, spares);
        let drain_timeout = self.read(&cli::DRAIN_TIMEOUT, duration);
        let forward_signals = self.read(&cli::FORWARD_SIGNALS, forward_signals);
        let level = self.read(&cli::LOG_LEVEL, log_level);
        let format = self.read(&cli::LOG_FORMAT, log_format);
        Ok(Settings {
            listen: listen?,
            listen_port: listen_port?,
            port_taken: port_taken?,
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
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn check_general_url_settings(&mut self) -> Result<(), Reported> {
        let checked = [
            self.read(&cli::REDISS, rediss).map(drop),
            self.read(&cli::PORT_OFFSET, offset).map(drop),
            self.read(&cli::VERIFY, verify).map(drop),
            self.read(&cli::MIN_TLS, min_tls).map(drop),
            self.read(&cli::PIN, pins).map(drop),
            self.read(&cli::SERVER_NAME, server_name).map(drop),
            self.general_authorities().map(drop),
            self.general_identity().map(drop),
        ];
        checked.into_iter().collect()
    }

    /// The settings that hold for the URL in `variable`, whose query has wishes of its own.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn url_settings(
        &mut self,
        variable: &str,
        wishes: &TlsWishes,
    ) -> Result<UrlSettings, Reported> {
        let rediss = self.read_for(variable, &cli::REDISS, rediss);
        let port_offset = self.read_for(variable, &cli::PORT_OFFSET, offset);
        let verify = self.read_for(variable, &cli::VERIFY, verify);
        let min_tls = self.read(&cli::MIN_TLS, min_tls);
        let pins = self.read_for(variable, &cli::PIN, pins);
        let server_name = self.read_for(variable, &cli::SERVER_NAME, server_name);
        let ca = self.authorities_for(variable, wishes);
        let identity = self.identity_for(variable);

        let (mut verify_found, mut verify) = verify?;
        let verify_chosen = verify_found.given != Given::Default;
        if wishes.verify == Some(true) && !verify_chosen {
            verify_found.source = format!("ssl_cert_reqs in {variable}");
            verify = Verify::Full;
        }
        let ca = ca?;
        if verify != Verify::None && ca.is_none() && !(self.system_roots)() {
            return Err(self.mistakes.report(no_roots(&verify_found, verify)));
        }
        let (offset_found, value) = port_offset?;
        let own = offset_found.given == Given::ForOne;
        Ok(UrlSettings {
            rediss: rediss?.1,
            port_offset: PortOffset { own, source: offset_found.source, value },
            trust: TrustSettings {
                verify,
                min_tls: min_tls?,
                ca,
                pins: pins?.1,
                identity: identity?,
                server_name: server_name?.1,
            },
            verify_chosen,
        })
    }

    /// The CAs for one URL: its own settings replace all general ones, and these what its query says.
    fn authorities_for(
        &mut self,
        variable: &str,
        wishes: &TlsWishes,
    ) -> Checked<Option<Authorities>> {
        let settings = [&cli::CA_FILE, &cli::CA_PEM];
        let own = settings.map(|setting| self.own(variable, setting)).into_iter().flatten();
        let own: Vec<_> = own.collect();
        if !own.is_empty() {
            return self.authorities(&own);
        }
        let given =
            |setting| self.general(setting).map_or(true, |found| found.given != Given::Default);
        match &wishes.ca_file {
            Some(file) if !settings.into_iter().any(given) => {
                let source = format!("ssl_ca_certs in {variable}");
                self.authorities(&[Found { source, value: OsStr::new(file), given: Given::ForOne }])
            }
            _ => self.general_authorities(),
        }
    }

    /// The CAs for all URLs.
    fn general_authorities(&mut self) -> Checked<Option<Authorities>> {
        if let Some(known) = &self.general_ca {
            return known.clone();
        }
        let bundles = [&cli::CA_FILE, &cli::CA_PEM].map(|setting| {
            let found = self.general(setting);
            self.mistakes.check(found)
        });
        let bundles: Checked<Vec<_>> = bundles.into_iter().collect();
        let read = bundles.and_then(|bundles| self.authorities(&bundles));
        self.general_ca.insert(read).clone()
    }

    /// Reads CA bundles, one behind the other; none when none is given.
    fn authorities(&mut self, bundles: &[Found<'_>]) -> Checked<Option<Authorities>> {
        let given = bundles.iter().filter(|found| !found.value.is_empty());
        let read: Vec<Checked<Authorities>> = given
            .map(|found| {
                let read = read_pem(found).and_then(|pem| {
                    Authorities::from_pem(pem).map_err(|problem| found.wrong(problem))
                });
                self.mistakes.check(read)
            })
            .collect();
        let read: Checked<Vec<Authorities>> = read.into_iter().collect();
        Ok(read?.into_iter().reduce(Authorities::and))
    }

    /// The client certificate and key for one URL.
    fn identity_for(&mut self, variable: &str) -> Checked<Option<ClientIdentity>> {
        let own = |setting| self.own(variable, setting);
        let (certificate, key) = match (own(&cli::CLIENT_CERT), own(&cli::CLIENT_KEY)) {
            (None, None) => return self.general_identity(),
            own => own,
        };
        let certificate = certificate.map_or_else(|| self.general(&cli::CLIENT_CERT), Ok);
        let key = key.map_or_else(|| self.general(&cli::CLIENT_KEY), Ok);
        self.identity(certificate, key)
    }

    /// The client certificate and key for all URLs.
    fn general_identity(&mut self) -> Checked<Option<ClientIdentity>> {
        if let Some(known) = &self.general_identity {
            return known.clone();
        }
        let read = self.identity(self.general(&cli::CLIENT_CERT), self.general(&cli::CLIENT_KEY));
        self.general_identity.insert(read).clone()
    }

    fn identity(
        &mut self,
        certificate: Result<Found<'_>, ConfigError>,
        key: Result<Found<'_>, ConfigError>,
    ) -> Checked<Option<ClientIdentity>> {
        let (certificate, key) = (self.mistakes.check(certificate), self.mistakes.check(key));
        let (certificate, key) = (certificate?, key?);
        let missing = |found: &Found<'_>, other: &Found<'_>| {
            let other = &other.source;
            found.wrong(format!("is not set, but {other} is; a client certificate needs both"))
        };
        match (certificate.value.is_empty(), key.value.is_empty()) {
            (true, true) => return Ok(None),
            (true, false) => return Err(self.mistakes.report(missing(&certificate, &key))),
            (false, true) => return Err(self.mistakes.report(missing(&key, &certificate))),
            (false, false) => {}
        }
        let read = [&certificate, &key].map(|found| self.mistakes.check(read_pem(found)));
        let [certificate_pem, key_pem] = read;
        let identity = ClientIdentity::new(&certificate_pem?, &key_pem?);
        let identity = identity.map(Some).map_err(|problem| match problem {
            IdentityProblem::Certificate(problem) => certificate.wrong(problem),
            IdentityProblem::Key(problem) => key.wrong(problem),
        });
        self.mistakes.check(identity)
    }

    /// The value that holds for all: option, else variable, else default.
    ///
    /// # Errors
    /// When the option is given without a value: it must not undo what its variable says.
    fn general(&self, setting: &Setting) -> Result<Found<'a>, ConfigError> {
        if let Some(value) = self.invocation.option(setting) {
            let source = format!("--{}", setting.option);
            let found = Found { source, value, given: Given::Generally };
            if value.is_empty() {
                return Err(found.wrong(
                    "has an empty value (is a variable in it unset?); give it one, or leave the option out",
                ));
            }
            return Ok(found);
        }
        let source = setting.variable.to_owned();
        Ok(match lookup(self.environment, setting.variable) {
            Some(value) => Found { source, value, given: Given::Generally },
            None => Found { source, value: OsStr::new(setting.default), given: Given::Default },
        })
    }

    /// The value that one URL has for itself.
    fn own(&self, variable: &str, setting: &Setting) -> Option<Found<'a>> {
        let source = own_name(variable, setting);
        let value = lookup(self.environment, &source)?;
        Some(Found { source, value, given: Given::ForOne })
    }

    fn read<T>(&mut self, setting: &Setting, rule: Rule<T>) -> Checked<T> {
        let read = self.general(setting).and_then(|found| parse(&found, setting, rule));
        self.mistakes.check(read)
    }

    /// Like `read`, but the variable's own form comes first. Also says where the value came from.
    fn read_for<T>(
        &mut self,
        variable: &str,
        setting: &Setting,
        rule: Rule<T>,
    ) -> Checked<(Found<'a>, T)> {
        let found = self.own(variable, setting).map_or_else(|| self.general(setting), Ok);
        let read = found.and_then(|found| {
            let value = parse(&found, setting, rule)?;
            Ok((found, value))
        });
        self.mistakes.check(read)
    }
}

/// A demand on the certificate that nothing can meet.
fn no_roots(found: &Found<'_>, verify: Verify) -> ConfigError {
    found.wrong(format!(
        "asks for {}, but this system has no CA certificates to check against: install the package \
         ca-certificates, or set {} or {}",
        verify.word(),
        cli::CA_FILE.variable,
        cli::CA_PEM.variable
    ))
}

/// The longest file of PEM that is read, in bytes: many times the bundle of all public CAs.
const LONGEST_PEM: u64 = 16 << 20;

/// PEM that is given as text, or as the name of a file.
fn read_pem(found: &Found<'_>) -> Result<String, ConfigError> {
    if let Some(text) = found.value.to_str().filter(|text| pem::is_pem(text)) {
        return Ok(pem::with_line_ends(text));
    }
    let mut text = String::new();
    let read = File::open(found.value)
        .and_then(|file| file.take(LONGEST_PEM + 1).read_to_string(&mut text));
    let problem = match read {
        Ok(length) if length as u64 <= LONGEST_PEM => return Ok(text),
        Ok(_) => format!("a file of more than {LONGEST_PEM} bytes"),
        Err(error) => format!("a file that cannot be read ({error})"),
    };
    let path = path_shown(&found.value.to_string_lossy());
    Err(found.wrong(format!(
        "is {path}, {problem}; expected the path of a PEM file, or PEM text with -----BEGIN in it"
    )))
}

/// A path as an error may repeat it. A key is sometimes pasted in its place, without the lines around it: base64, which
/// has no dot, and which begins with `M` for every key's DER. The shortest key's has 64 characters (RFC 8410).
fn path_shown(path: &str) -> String {
    const SHORTER_THAN_A_KEY: usize = 60;
    let is_path = path.starts_with(['/', '~']) || path.contains('.');
    match is_path || path.len() < SHORTER_THAN_A_KEY {
        true => shown(path),
        false => quotable(path),
    }
}

/// `CACHE_URL` and `STUNNEL_VERIFY` make `CACHE_URL_STUNNEL_VERIFY`.
fn own_name(variable: &str, setting: &Setting) -> String {
    format!("{variable}_{}", setting.variable)
}

/// Turns text into a value, or says what would have been right.
type Rule<T> = fn(&str) -> Result<T, &'static str>;

fn parse<T>(found: &Found<'_>, setting: &Setting, rule: Rule<T>) -> Result<T, ConfigError> {
    let text = found.value.to_str().ok_or_else(|| found.wrong("is not valid UTF-8"))?;
    let repeated = if setting.is_public { shown(text) } else { quotable(text) };
    rule(text).map_err(|expected| found.wrong(format!("is {repeated}; expected {expected}")))
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
    let version = one_of(text, &[("1.2", MinTls::V1_2), ("1.3", MinTls::V1_3)], "1.2 or 1.3")?;
    // Every OpenSSL that this can be built with has 1.2, and asking it costs start-up time.
    let spoken = version == MinTls::V1_2 || tls::speaks(version);
    spoken.then_some(version).ok_or("1.2, as this machine's OpenSSL speaks no newer one")
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
    let host = redis_url::parse_host(text);
    host.map(|host| Some(redis_url::unbracketed(&host)))
        .ok_or("a host name, or an IP address (IPv6 in brackets)")
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
    const MOST: i32 = u16::MAX as i32 - 1;
    let value: i32 = text.parse().map_err(|_| EXPECTED)?;
    (-MOST..=MOST).contains(&value).then_some(value).ok_or(EXPECTED)
}

fn port_taken(text: &str) -> Result<PortTaken, &'static str> {
    one_of(text, &[("move", PortTaken::Move), ("fail", PortTaken::Fail)], "move or fail")
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

/// Whether `--urls` takes `name`.
pub fn is_variable_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Names of variables; an error never repeats one, since a URL is sometimes put here.
fn names(text: &str) -> Result<Option<Vec<String>>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut names: Vec<String> = Vec::new();
    for name in text.split([' ', ',', '\t', '\n', '\r']).filter(|name| !name.is_empty()) {
        if !is_variable_name(name) {
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

    /// A reader on a system that has CA certificates, for tests.
    pub fn reader<'a>(invocation: &'a Invocation, environment: &'a Environment) -> Reader<'a> {
        Reader { system_roots: || true, ..Reader::new(invocation, environment) }
    }

    fn settings(
        options: &[&str],
        pairs: &[(&str, &str)],
    ) -> Result<(Settings, UrlSettings), Vec<String>> {
        let (invocation, environment) = (invocation(options), environment(pairs));
        let mut reader = reader(&invocation, &environment);
        let (enabled, urls) = (reader.enabled(), reader.urls());
        let settings = reader.settings();
        let general = reader.check_general_url_settings();
        let url_settings = reader.url_settings("CACHE_URL", &TlsWishes::default());
        match (settings, url_settings, enabled, urls, general) {
            (Ok(settings), Ok(url_settings), Ok(_), Ok(_), Ok(())) => Ok((settings, url_settings)),
            _ => Err(reader.mistakes.all().iter().map(ConfigError::to_string).collect()),
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
    fn an_offset_is_smaller_than_the_number_of_ports() {
        for (text, value) in [("0", 0), ("-65534", -65534), ("65534", 65534), ("+1", 1)] {
            assert_eq!(offset(text), Ok(value), "{text}");
        }
        for text in ["65535", "-65535", "-2147483648", "2147483647", "-2147483649", "", "1.0"] {
            assert!(offset(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_is_shown_and_a_key_in_its_place_is_not() {
        for path in ["/etc/ssl/ca", "ca.pem", "certs/ca.pem", "~/ca", "ca"] {
            assert_eq!(path_shown(path), format!("'{path}'"));
        }
        let key = "MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u";
        for hidden in [key, "-----BEGIN PRIVATE KEY-----", "redis://:pw@h.example", "a/b\n."] {
            assert!(path_shown(hidden).ends_with("not shown"), "{hidden}");
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
        let mut reader = reader(&invocation, &environment);
        assert!(reader.check_general_url_settings().is_err());
        let mistakes = reader.mistakes.all();
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].to_string(), "STUNNEL_VERIFY is not valid UTF-8");
    }
}
