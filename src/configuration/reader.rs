//! Which of several values of a setting counts, where it came from, and what is wrong with it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;

use super::options::{self, Declaration, Scope, Setting};
use super::{ConfigError, Rediss, Settings};
use crate::environment::{Environment, lookup};
use crate::logging::LogSettings;
use crate::redis_url::UrlTlsParameters;
use crate::secret::{hidden, quotable, shown};
use crate::status::{StatusAddress, StatusSettings};
use crate::tls::pem::{self, Authorities, ClientIdentity, IdentityProblem};
use crate::tls::{Trust, Verify};
use crate::tunnel::{ConnectionSettings, SettingNames};

use super::cli::Invocation;

/// Where platforms say which port the app is to listen on:
/// <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const PORT: &str = "PORT";

/// Every mistake found so far, each once.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<ConfigError>);

/// The proof that a mistake was added to the [`Mistakes`]: nothing else makes one.
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
    pub fn into_all(self) -> Vec<ConfigError> {
        self.0
    }
}

/// The settings that one variable can have for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlSettings {
    pub rediss: Rediss,
    pub port_offset: PortOffset,
    pub trust: Trust,
    /// Whether the user has said how much of the certificate must hold: `none` is on purpose then.
    pub verify_chosen: bool,
    pub max_connections: Option<NonZeroUsize>,
    pub names: SettingNames,
}

/// What is added to a plaintext URL's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOffset {
    pub value: i32,
    /// Whether it was set for this very URL.
    pub per_url: bool,
    /// The option or variable that it came from.
    pub source: String,
}

/// Reads every setting of a struct before any mistake ends it, so that all mistakes are found;
/// behind `..` stand fields that were read before.
macro_rules! read_all {
    (
        $reader:ident,
        $struct:ident { $($field:ident: $option:ident),* $(, ..$($known:ident),+)? $(,)? }
    ) => {{
        $(let $field = $reader.read(&options::$option);)*
        (|| Ok($struct { $($field: $field?,)* $($($known: $known?,)+)? }))()
    }};
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
    /// See [`Declaration::is_public`].
    is_public: bool,
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
    pub fn new(
        invocation: &'a Invocation,
        environment: &'a Environment,
        system_roots: fn() -> bool,
    ) -> Reader<'a> {
        Reader {
            invocation,
            environment,
            system_roots,
            mistakes: Mistakes::default(),
            general_ca: None,
            general_identity: None,
        }
    }

    pub fn environment(&self) -> &'a Environment {
        self.environment
    }

    /// The settings of the launcher as a whole.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn settings(&mut self) -> Result<Settings, Reported> {
        let connection = read_all!(
            self,
            ConnectionSettings {
                connect_timeout: CONNECT_TIMEOUT,
                connect_retry: CONNECT_RETRY,
                spares: SPARES,
                pool: POOL,
                idle_timeout: IDLE_TIMEOUT,
                drain_timeout: DRAIN_TIMEOUT,
            }
        );
        let status = self.status_settings();
        let log = read_all!(self, LogSettings { level: LOG_LEVEL, format: LOG_FORMAT });
        let names = Ok::<_, Reported>(self.names(None));
        read_all!(self, Settings {
            listen: LISTEN,
            listen_port: LISTEN_PORT,
            port_taken: PORT_TAKEN,
            forward_signals: FORWARD_SIGNALS,
            sandbox: SANDBOX,
            ..connection, status, log, names
        })
    }

    fn status_settings(&mut self) -> Checked<StatusSettings> {
        let address = self.status_address();
        let metrics_interval = self.read(&options::METRICS_INTERVAL);
        Ok(StatusSettings { address: address?, metrics_interval: metrics_interval? })
    }

    /// Not the port that the platform wants the app to have.
    fn status_address(&mut self) -> Checked<Option<StatusAddress>> {
        let address = self.read(&options::STATUS_ADDRESS)?;
        let port = address.as_ref().and_then(StatusAddress::port);
        let wanted = lookup(self.environment, PORT).and_then(|wanted| wanted.to_str());
        // However it is written: it is the app that reads it.
        match (port, wanted.and_then(|wanted| wanted.trim().parse::<u16>().ok())) {
            (Some(port), Some(wanted)) if wanted == port => {
                let found = self.general(&options::STATUS_ADDRESS.declaration);
                let mistake = found.map_or_else(
                    |mistake| mistake,
                    |found| {
                        found.wrong(format!(
                            "is port {port}, which {PORT} says is the app's; set another"
                        ))
                    },
                );
                Err(self.mistakes.report(mistake))
            }
            _ => Ok(address),
        }
    }

    /// Reports every setting of all URLs that has a form for one URL, whether or not a URL uses it.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn for_all_urls(&mut self) -> Result<(), Reported> {
        let read = options::read_for_all_urls(self);
        let authorities = self.general_authorities().map(drop);
        let identity = self.general_identity().map(drop);
        read.and(authorities).and(identity)
    }

    /// The settings that hold for the URL in `variable`, whose query may ask something of TLS, too.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn url_settings(
        &mut self,
        variable: &str,
        asked: &UrlTlsParameters,
    ) -> Result<UrlSettings, Reported> {
        let rediss = self.read_for(variable, &options::REDISS);
        let port_offset = self.read_for(variable, &options::PORT_OFFSET);
        let verify = self.read_for(variable, &options::VERIFY);
        let min_tls = self.read(&options::MIN_TLS);
        let pins = self.read_for(variable, &options::PIN);
        let server_name = self.read_for(variable, &options::SERVER_NAME);
        let max_connections = self.read_for(variable, &options::MAX_CONNECTIONS);
        let ca = self.authorities_for(variable, asked);
        let identity = self.identity_for(variable);

        let (mut verify_found, mut verify) = verify?;
        let verify_chosen = verify_found.given != Given::Default;
        let mut names = self.names(Some(variable));
        if asked.verify == Some(true) && !verify_chosen {
            names.full_by_url = true;
            verify_found.source = format!("ssl_cert_reqs in {variable}");
            verify = Verify::Full;
        }
        let ca = ca?;
        if verify != Verify::None && ca.is_none() && !(self.system_roots)() {
            return Err(self.mistakes.report(no_roots(&verify_found, verify)));
        }
        let (offset_found, value) = port_offset?;
        let per_url = offset_found.given == Given::ForOne;
        Ok(UrlSettings {
            rediss: rediss?.1,
            port_offset: PortOffset { per_url, source: offset_found.source, value },
            trust: Trust {
                verify,
                min_tls: min_tls?,
                ca,
                pins: pins?.1,
                identity: identity?,
                server_name: server_name?.1,
            },
            verify_chosen,
            max_connections: max_connections?.1,
            names,
        })
    }

    /// The CAs for one URL: its own settings replace all general ones, and these what its query
    /// says.
    fn authorities_for(
        &mut self,
        variable: &str,
        asked: &UrlTlsParameters,
    ) -> Checked<Option<Authorities>> {
        let settings = [&options::CA_FILE.declaration, &options::CA_PEM.declaration];
        let per_url = settings.map(|setting| self.per_url(variable, setting)).into_iter().flatten();
        let per_url: Vec<_> = per_url.collect();
        if !per_url.is_empty() {
            return self.authorities(&per_url);
        }
        let given =
            |setting| self.general(setting).map_or(true, |found| found.given != Given::Default);
        match &asked.ca_file {
            Some(file) if !settings.into_iter().any(given) => {
                let source = format!("ssl_ca_certs in {variable}");
                self.authorities(&[Found {
                    source,
                    value: OsStr::new(file),
                    given: Given::ForOne,
                    is_public: true,
                }])
            }
            _ => self.general_authorities(),
        }
    }

    /// The CAs for all URLs.
    fn general_authorities(&mut self) -> Checked<Option<Authorities>> {
        if let Some(known) = &self.general_ca {
            return known.clone();
        }
        let bundles =
            [&options::CA_FILE.declaration, &options::CA_PEM.declaration].map(|setting| {
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
        let per_url = |setting| self.per_url(variable, setting);
        let (certificate, key) = match (
            per_url(&options::CLIENT_CERT.declaration),
            per_url(&options::CLIENT_KEY.declaration),
        ) {
            (None, None) => return self.general_identity(),
            found => found,
        };
        let certificate =
            certificate.map_or_else(|| self.general(&options::CLIENT_CERT.declaration), Ok);
        let key = key.map_or_else(|| self.general(&options::CLIENT_KEY.declaration), Ok);
        self.identity(certificate, key)
    }

    /// The client certificate and key for all URLs.
    fn general_identity(&mut self) -> Checked<Option<ClientIdentity>> {
        if let Some(known) = &self.general_identity {
            return known.clone();
        }
        let read = self.identity(
            self.general(&options::CLIENT_CERT.declaration),
            self.general(&options::CLIENT_KEY.declaration),
        );
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

    /// What settings are called for the URL in `variable`, or for all.
    fn names(&self, variable: Option<&str>) -> SettingNames {
        let mut names = SettingNames::default();
        let [file, pem] = [&options::CA_FILE.declaration, &options::CA_PEM.declaration];
        for setting in options::ALL {
            let per_url = variable.filter(|_| setting.scope == Scope::OneUrlToo);
            let is_per_url = |variable: &&str| {
                // One of the two for one URL replaces both for all.
                let replaced = setting.variable == file.variable;
                self.per_url(variable, setting).is_some()
                    || replaced && self.per_url(variable, pem).is_some()
            };
            if let Some(variable) = per_url.filter(is_per_url) {
                names.override_with(setting.variable, setting.for_one(variable));
            } else if let Some(option) = setting.option
                && self.invocation.option(setting).is_some()
            {
                names.override_with(setting.variable, format!("--{option}"));
            }
        }
        names
    }

    /// The value that holds for all: option, else variable, else default.
    ///
    /// # Errors
    /// When the option is given without a value: it must not undo what its variable says.
    fn general(&self, setting: &Declaration) -> Result<Found<'a>, ConfigError> {
        let is_public = setting.is_public;
        if let Some(value) = self.invocation.option(setting) {
            let source = format!("--{}", setting.option.unwrap_or_default());
            let found = Found { source, value, given: Given::Generally, is_public };
            if value.is_empty() {
                return Err(found.wrong(
                    "has an empty value (is a variable in it unset?); give it one, or leave the \
                     option out",
                ));
            }
            return Ok(found);
        }
        let source = setting.variable.to_owned();
        Ok(match lookup(self.environment, setting.variable) {
            Some(value) => Found { source, value, given: Given::Generally, is_public },
            None => {
                let value = OsStr::new(setting.default);
                Found { source, value, given: Given::Default, is_public }
            }
        })
    }

    /// The value that one URL has for itself.
    fn per_url(&self, variable: &str, setting: &Declaration) -> Option<Found<'a>> {
        let source = setting.for_one(variable);
        let value = lookup(self.environment, &source)?;
        Some(Found { source, value, given: Given::ForOne, is_public: setting.is_public })
    }

    /// The value of a setting for all.
    ///
    /// # Errors
    /// When it is wrong.
    pub fn read<T>(&mut self, setting: &Setting<T>) -> Result<T, Reported> {
        let found = self.general(&setting.declaration);
        let read = found.and_then(|found| parse(&found, setting));
        self.mistakes.check(read)
    }

    /// Like `read`, but the variable's own form comes first. Also says where the value came from.
    fn read_for<T>(&mut self, variable: &str, setting: &Setting<T>) -> Checked<(Found<'a>, T)> {
        let declaration = &setting.declaration;
        let found =
            self.per_url(variable, declaration).map_or_else(|| self.general(declaration), Ok);
        let read = found.and_then(|found| {
            let value = parse(&found, setting)?;
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
        options::CA_FILE.declaration.variable,
        options::CA_PEM.declaration.variable
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
    let path = path_shown(&found.value.to_string_lossy(), found.is_public);
    Err(found.wrong(format!(
        "is {path}, {problem}; expected the path of a PEM file, or PEM text with -----BEGIN in it"
    )))
}

/// A path as an error may repeat it. A key is sometimes pasted in its place, without the lines
/// around it: base64, which has no dot and begins with `M`, as every key's DER does. Where a key
/// belongs (not `is_public`) only what is a path beyond doubt is repeated.
fn path_shown(path: &str, is_public: bool) -> String {
    match is_public || path.starts_with(['/', '~', '.']) {
        true => shown(path),
        false => hidden(path),
    }
}

/// The value that `found` has for `setting`.
fn parse<T>(found: &Found<'_>, setting: &Setting<T>) -> Result<T, ConfigError> {
    let text = found.value.to_str().ok_or_else(|| found.wrong("is not valid UTF-8"))?;
    let repeated = if setting.declaration.is_public { shown(text) } else { quotable(text) };
    (setting.parse)(text)
        .map_err(|expected| found.wrong(format!("is {repeated}; expected {expected}")))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    use super::super::tests::{environment, read};
    use super::super::{Configuration, Decision};
    use super::*;
    use crate::logging::{LogFormat, LogLevel};
    use crate::supervisor::ForwardSignals;
    use crate::tls::MinTls;

    /// What is read for one URL in `CACHE_URL`.
    fn settings(
        options: &[&str],
        pairs: &[(&str, &str)],
    ) -> Result<(Configuration, Trust), Vec<String>> {
        let url = [("REDIS_STUNNEL_URLS", "CACHE_URL"), ("CACHE_URL", "redis://h")];
        let configuration = read(options, &environment(&[&url[..], pairs].concat()))?;
        let Decision::Tunnel(url) = &configuration.variables[0].decision else {
            panic!("not tunnelled: {configuration:?}");
        };
        let trust = url.trust.clone();
        Ok((configuration, trust))
    }

    #[test]
    fn every_default_is_a_value_that_its_setting_accepts() {
        let (configuration, trust) = settings(&[], &[]).unwrap();
        let settings = configuration.settings;
        assert_eq!(settings.listen_port, 6371);
        assert_eq!(settings.connection.connect_timeout, Duration::from_secs(10));
        assert!(!settings.connection.connect_retry);
        assert_eq!(settings.connection.idle_timeout, Some(Duration::from_secs(86_400)));
        assert_eq!(settings.connection.drain_timeout, Duration::from_secs(5));
        assert_eq!(settings.forward_signals, ForwardSignals::Auto);
        assert_eq!(settings.log.level, LogLevel::Notice);
        assert_eq!(settings.log.format, LogFormat::Logfmt);
        let plain = Trust {
            verify: Verify::None,
            min_tls: MinTls::V1_2,
            ca: None,
            pins: vec![],
            identity: None,
            server_name: None,
        };
        assert_eq!(trust, plain);
        assert!(!trust.authenticates());
    }

    #[test]
    fn option_beats_variable_beats_default_and_empty_counts_as_unset() {
        let verify =
            |options: &[&str], pairs: &[(&str, &str)]| settings(options, pairs).unwrap().1.verify;
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
    fn a_url_in_place_of_the_names_of_variables_is_not_shown() {
        let mistakes = settings(&["--urls", "redis://:pw@h"], &[]).unwrap_err();
        assert!(
            mistakes[0].starts_with("--urls is a value of 13 bytes, not shown; expected names")
        );
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    }

    #[test]
    fn a_value_that_is_not_utf8_is_an_error_that_does_not_repeat_it() {
        let mut environment = environment(&[]);
        environment.insert("STUNNEL_VERIFY".into(), OsString::from_vec(vec![0xff, 0xfe]));
        let mistakes = read(&[], &environment).unwrap_err();
        assert_eq!(mistakes, ["STUNNEL_VERIFY is not valid UTF-8"]);
    }

    #[test]
    fn a_path_is_shown_and_a_key_in_its_place_is_not() {
        for path in ["/etc/ssl/ca", "./ca.pem", "../certs/ca.pem", "~/ca"] {
            assert_eq!(path_shown(path, true), format!("'{path}'"));
            assert_eq!(path_shown(path, false), format!("'{path}'"));
        }
        for path in ["ca.pem", "certs/ca", "ca"] {
            assert_eq!(path_shown(path, true), format!("'{path}'"));
            assert!(path_shown(path, false).ends_with("not shown"), "{path}");
        }
        let key = "MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u";
        for hidden in [key, "-----BEGIN PRIVATE KEY-----", "redis://:pw@h.example", "a/b\n."] {
            assert!(path_shown(hidden, true).ends_with("not shown"), "{hidden}");
        }
    }
}
