//! Reads the values of all settings, and collects the mistakes.

use std::ffi::OsStr;

use openssl::x509::X509;

use super::certificates::{self, Pem};
use super::options::{self, Declaration, Setting};
use super::settings::Settings;
use super::sources::{CA_SETTINGS, ConfigError, Found, Sources};
use crate::environment::lookup;
use crate::logging::LogSettings;
use crate::names;
use crate::redis_url::UrlTlsParameters;
use crate::status::{StatusAddress, StatusSettings};
use crate::tls::pem::ClientIdentity;
use crate::tls::roots::RootsProblem;
use crate::tls::{Trust, Verify};
use crate::tunnel::ConnectionSettings;

/// The variable in which platforms assign a port to the app:
/// <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const PORT: &str = "PORT";

/// Checks that the system has CA certificates.
pub type SystemRoots = fn() -> Result<(), RootsProblem>;

/// Reads settings, and collects the mistakes. In place of a wrong value, the reader returns the
/// default, and reads on to find all mistakes. The launch does not begin if there is a mistake.
pub struct Reader<'a> {
    pub sources: Sources<'a>,
    system_roots: SystemRoots,
    /// Every mistake found so far, each once.
    pub mistakes: Vec<ConfigError>,
    /// Each file for all URLs is read only once, because it may be a pipe.
    general_ca: Option<Pem<Vec<X509>>>,
    general_identity: Option<Pem<ClientIdentity>>,
}

impl<'a> Reader<'a> {
    pub fn new(sources: Sources<'a>, system_roots: SystemRoots) -> Reader<'a> {
        Reader {
            sources,
            system_roots,
            mistakes: Vec::new(),
            general_ca: None,
            general_identity: None,
        }
    }

    /// Adds a mistake, unless it is known already.
    pub fn report(&mut self, mistake: ConfigError) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// The value in `result`. If `result` is a mistake, reports the mistake and returns `None`.
    pub fn check<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|mistake| self.report(mistake)).ok()
    }

    fn check_pem<T>(&mut self, pem: Pem<T>) -> Option<T> {
        pem.unwrap_or_else(|mistakes| {
            mistakes.into_iter().for_each(|mistake| self.report(mistake));
            None
        })
    }

    /// The settings that apply to the launcher or to all URLs.
    pub fn settings(&mut self) -> Settings {
        Settings {
            connection: ConnectionSettings {
                connect_timeout: self.read(&options::CONNECT_TIMEOUT),
                connect_retry: self.read(&options::CONNECT_RETRY),
                idle_timeout: self.read(&options::IDLE_TIMEOUT),
                drain_timeout: self.read(&options::DRAIN_TIMEOUT),
            },
            status: StatusSettings {
                address: self.status_address(),
                metrics_interval: self.read(&options::METRICS_INTERVAL),
            },
            log: LogSettings {
                level: self.read(&options::LOG_LEVEL),
                format: self.read(&options::LOG_FORMAT),
            },
            listen: self.read(&options::LISTEN),
            listen_port: self.read(&options::LISTEN_PORT),
            port_taken: self.read(&options::PORT_TAKEN),
            forward_signals: self.read(&options::FORWARD_SIGNALS),
            sandbox: self.read(&options::SANDBOX),
            names: self.sources.names(None),
        }
    }

    /// The address of the status page. Its port must differ from the app's.
    fn status_address(&mut self) -> Option<StatusAddress> {
        let address = self.read(&options::STATUS_ADDRESS);
        let port = address.as_ref().and_then(StatusAddress::port);
        // The app interprets PORT, so its form is not checked here.
        let apps = lookup(self.sources.environment, PORT).and_then(|port| port.to_str());
        let apps: Option<u16> = apps.and_then(|port| port.trim().parse().ok());
        if let Some(port) = port.filter(|port| Some(*port) == apps)
            && let Ok(found) = self.sources.general(&options::STATUS_ADDRESS.declaration)
        {
            let problem =
                format!("is port {port}, which {PORT} reserves for the app; set another port");
            self.report(found.wrong(problem));
        }
        address
    }

    /// Checks the general values of all settings that can also be set for a single URL. Reports
    /// every mistake, even if no URL uses the general value.
    pub fn check_for_all_urls(&mut self) {
        for setting in options::for_one_url() {
            self.check_general(setting);
        }
        let (ca, identity) = (self.general_authorities(), self.general_identity());
        self.check_pem(ca);
        self.check_pem(identity);
    }

    /// Reports every mistake in the settings for the URL in `variable` alone, which no tunnel uses.
    pub fn check_for(&mut self, variable: &str) {
        for setting in options::for_one_url() {
            if let Some(found) = self.sources.per_url(variable, setting) {
                self.check(found.check());
            }
        }
    }

    /// The trust settings for the server of the URL in `variable`. `full_by_url`: the URL's query
    /// demands verification, and no setting overrides the query.
    pub fn trust(&mut self, variable: &str, in_url: &UrlTlsParameters, full_by_url: bool) -> Trust {
        let verify = match full_by_url {
            true => Verify::Full,
            false => self.read_for(variable, &options::VERIFY),
        };
        let min_tls = self.read(&options::MIN_TLS);
        let pins = self.read_for(variable, &options::PIN);
        let server_name = self.read_for(variable, &options::SERVER_NAME);
        let ca = self.authorities_for(variable, in_url);
        let identity = self.identity_for(variable);
        if verify != Verify::None
            && ca == Ok(None)
            && let Err(problem) = (self.system_roots)()
        {
            let source = match self.sources.for_url(variable, &options::VERIFY.declaration) {
                Ok(found) if !full_by_url => found.source,
                _ => format!("ssl_cert_reqs in {variable}"),
            };
            self.report(no_roots(&source, verify, problem));
        }
        let (ca, identity) = (self.check_pem(ca), self.check_pem(identity));
        Trust { verify, min_tls, ca, pins, identity, server_name }
    }

    /// The CAs for one URL. Settings for this URL replace the general settings. Any setting
    /// replaces the CA file in the URL's query.
    fn authorities_for(&mut self, variable: &str, in_url: &UrlTlsParameters) -> Pem<Vec<X509>> {
        let per_url = CA_SETTINGS.map(|setting| self.sources.per_url(variable, setting));
        if per_url.iter().any(Option::is_some) {
            return certificates::authorities(per_url.into_iter().flatten().map(Ok));
        }
        match &in_url.ca_file {
            Some(file) if !CA_SETTINGS.iter().any(|setting| self.sources.is_given(setting)) => {
                certificates::authorities([Ok(Found {
                    source: format!("ssl_ca_certs in {variable}"),
                    value: OsStr::new(file),
                    declaration: &options::CA_FILE.declaration,
                })])
            }
            _ => self.general_authorities(),
        }
    }

    /// The CAs for all URLs.
    fn general_authorities(&mut self) -> Pem<Vec<X509>> {
        let sources = self.sources;
        let read =
            || certificates::authorities(CA_SETTINGS.map(|setting| sources.general(setting)));
        self.general_ca.get_or_insert_with(read).clone()
    }

    /// The client certificate and key for one URL.
    fn identity_for(&mut self, variable: &str) -> Pem<ClientIdentity> {
        let settings = [&options::CLIENT_CERT.declaration, &options::CLIENT_KEY.declaration];
        if settings.iter().all(|setting| self.sources.per_url(variable, setting).is_none()) {
            return self.general_identity();
        }
        let [certificate, key] = settings.map(|setting| self.sources.for_url(variable, setting));
        certificates::identity(certificate, key)
    }

    /// The client certificate and key for all URLs.
    fn general_identity(&mut self) -> Pem<ClientIdentity> {
        let certificate = self.sources.general(&options::CLIENT_CERT.declaration);
        let key = self.sources.general(&options::CLIENT_KEY.declaration);
        let read = || certificates::identity(certificate, key);
        self.general_identity.get_or_insert_with(read).clone()
    }

    /// Reports every mistake in a setting for all URLs. If the option is valid, the variables are
    /// not read.
    fn check_general(&mut self, setting: &'static Declaration) {
        let option = self.sources.option(setting);
        let option = option.map(|found| found.and_then(|found| found.check()));
        if option == Some(Ok(())) {
            return;
        }
        self.check(option.unwrap_or(Ok(())));
        let variables = self.sources.variables(setting);
        for variable in &variables {
            self.check(variable.check());
        }
        if let [variable, old] = &variables[..]
            && variable.value != old.value
        {
            let old_name = &old.source;
            self.report(variable.wrong(format!(
                "and {old_name} are two names of one setting, and have different values; unset \
                 {old_name}"
            )));
        }
    }

    /// The value of a setting for all URLs; the default if the value is wrong.
    pub fn read<T>(&mut self, setting: &'static Setting<T>) -> T {
        self.try_read(setting).unwrap_or_else(|| setting.default())
    }

    /// The value of a setting for all URLs; `None` if the value is wrong.
    pub fn try_read<T>(&mut self, setting: &'static Setting<T>) -> Option<T> {
        self.check_general(&setting.declaration);
        let found = self.sources.general(&setting.declaration);
        self.check(found.and_then(|found| found.parse(setting)))
    }

    /// The value of a setting for the URL in `variable`; the default if the value is wrong.
    pub fn read_for<T>(&mut self, variable: &str, setting: &'static Setting<T>) -> T {
        let found = self.sources.for_url(variable, &setting.declaration);
        let read = self.check(found.and_then(|found| found.parse(setting)));
        read.unwrap_or_else(|| setting.default())
    }
}

/// `verify` needs the system's roots, but none are usable.
fn no_roots(source: &str, verify: Verify, problem: RootsProblem) -> ConfigError {
    match problem {
        RootsProblem::Unreadable { variable, problem } => ConfigError::new(variable, problem),
        RootsProblem::None => {
            let problem = format!(
                "is {}, but this system has no CA certificates to verify against: install the \
                 package ca-certificates, or set {} or {}",
                verify.word(),
                names::CA_FILE,
                names::CA_PEM
            );
            ConfigError::new(source, problem)
        }
    }
}

#[cfg(test)]
mod tests;
