//! Reads the values of settings, and collects the mistakes in them.

use std::ffi::OsStr;

use openssl::x509::X509;

use super::certificates;
use super::cli::Invocation;
use super::found::{Found, Given};
use super::mistakes::{ConfigError, Mistakes, Reported};
use super::options::{self, Declaration, Setting};
use super::settings::{PortOffset, Rediss, ReuseSettings, Settings, UrlSettings};
use super::sources::Sources;
use crate::environment::{Environment, lookup};
use crate::logging::LogSettings;
use crate::names;
use crate::redis_url::UrlTlsParameters;
use crate::status::{StatusAddress, StatusSettings};
use crate::tls::pem::ClientIdentity;
use crate::tls::roots::RootsProblem;
use crate::tls::{Trust, Verify};
use crate::tunnel::ConnectionSettings;

/// Where platforms say which port the app is to listen on:
/// <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const PORT: &str = "PORT";

/// Checks that the system has CA certificates.
pub type SystemRoots = fn() -> Result<(), RootsProblem>;

/// Reads every setting of a struct before any mistake ends it, so that all mistakes are found. The
/// fields after `..` were read before.
macro_rules! read_all {
    (
        $reader:ident,
        $struct:ident { $($field:ident: $option:ident),* $(, ..$($known:ident),+)? $(,)? }
    ) => {{
        $(let $field = $reader.read(&options::$option);)*
        (|| Ok($struct { $($field: $field?,)* $($($known: $known?,)+)? }))()
    }};
}

/// Reads settings from options and environment, and collects the mistakes in them.
pub struct Reader<'a> {
    pub sources: Sources<'a>,
    system_roots: SystemRoots,
    pub mistakes: Mistakes,
    /// The files for all URLs are read once, however many URLs there are.
    general_ca: Option<Checked<Option<Vec<X509>>>>,
    general_identity: Option<Checked<Option<ClientIdentity>>>,
}

/// A setting's value, unless it is wrong.
type Checked<T> = Result<T, Reported>;

impl<'a> Reader<'a> {
    pub fn new(
        invocation: &'a Invocation,
        environment: &'a Environment,
        system_roots: SystemRoots,
    ) -> Reader<'a> {
        Reader {
            sources: Sources { invocation, environment },
            system_roots,
            mistakes: Mistakes::default(),
            general_ca: None,
            general_identity: None,
        }
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
                idle_timeout: IDLE_TIMEOUT,
                drain_timeout: DRAIN_TIMEOUT,
            }
        );
        let status = self.status_settings();
        let log = read_all!(self, LogSettings { level: LOG_LEVEL, format: LOG_FORMAT });
        let names = Ok::<_, Reported>(self.sources.names(None));
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

    /// Must differ from the port that the platform gave the app.
    fn status_address(&mut self) -> Checked<Option<StatusAddress>> {
        let address = self.read(&options::STATUS_ADDRESS)?;
        let port = address.as_ref().and_then(StatusAddress::port);
        // The app reads PORT, so it may be written in any way.
        let wanted = lookup(self.sources.environment, PORT).and_then(|wanted| wanted.to_str());
        let wanted = wanted.and_then(|wanted| wanted.trim().parse::<u16>().ok());
        match port.filter(|port| Some(*port) == wanted) {
            None => Ok(address),
            Some(port) => {
                let found = self.sources.general(&options::STATUS_ADDRESS.declaration);
                let problem = format!("is port {port}, which {PORT} gives to the app; set another");
                let found = self.mistakes.check(found)?;
                Err(self.mistakes.report(found.wrong(problem)))
            }
        }
    }

    /// Reports every mistake in the general form of the settings that one URL can have for itself,
    /// whether or not any URL uses the general form.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn for_all_urls(&mut self) -> Result<(), Reported> {
        let mut checked = Ok(());
        for declaration in options::for_one_url() {
            checked = self.check(declaration).and(checked);
        }
        let authorities = self.general_authorities().map(drop);
        let identity = self.general_identity().map(drop);
        checked.and(authorities).and(identity)
    }

    /// How to handle the URL in `variable` if it asks for TLS itself.
    ///
    /// # Errors
    /// When the setting is wrong.
    pub fn rediss_for(&mut self, variable: &str) -> Result<Rediss, Reported> {
        self.read_for(variable, &options::REDISS).map(|(_, rediss)| rediss)
    }

    /// Reports every mistake in the settings for the URL in `variable` alone, although no tunnel
    /// uses them.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn check_for(&mut self, variable: &str) -> Result<(), Reported> {
        let mut checked = Ok(());
        for declaration in options::for_one_url() {
            if let Some(found) = self.sources.per_url(variable, declaration) {
                checked = self.mistakes.check(found.check()).and(checked);
            }
        }
        checked
    }

    /// The settings for the URL in `variable`, whose query may contain TLS parameters.
    ///
    /// # Errors
    /// When any of them is wrong.
    pub fn url_settings(
        &mut self,
        variable: &str,
        in_url: &UrlTlsParameters,
    ) -> Result<UrlSettings, Reported> {
        let port_offset = self.read_for(variable, &options::PORT_OFFSET);
        let pool = self.read_for(variable, &options::POOL);
        let max_connections = self.read_for(variable, &options::MAX_CONNECTIONS);
        let trust = self.trust_for(variable, in_url);

        let (trust, chosen_by) = trust?;
        let mut names = self.sources.names(Some(variable));
        names.full_by_url = chosen_by == VerifyChosenBy::Url;
        let (offset_found, value) = port_offset?;
        let per_url = offset_found.given == Given::ForOne;
        Ok(UrlSettings {
            port_offset: PortOffset { per_url, source: offset_found.source, value },
            trust,
            verify_chosen: chosen_by == VerifyChosenBy::Setting,
            reuse: ReuseSettings { pool: pool?.1 },
            max_connections: max_connections?.1,
            names,
        })
    }

    /// How to trust the server of the URL in `variable`.
    fn trust_for(
        &mut self,
        variable: &str,
        in_url: &UrlTlsParameters,
    ) -> Checked<(Trust, VerifyChosenBy)> {
        let verify = self.read_for(variable, &options::VERIFY);
        let min_tls = self.read(&options::MIN_TLS);
        let pins = self.read_for(variable, &options::PIN);
        let server_name = self.read_for(variable, &options::SERVER_NAME);
        let ca = self.authorities_for(variable, in_url);
        let identity = self.identity_for(variable);

        let (mut found, mut verify) = verify?;
        let mut chosen_by = match found.given {
            Given::Default => VerifyChosenBy::Nobody,
            Given::Generally | Given::ForOne => VerifyChosenBy::Setting,
        };
        if in_url.verify == Some(true) && chosen_by == VerifyChosenBy::Nobody {
            chosen_by = VerifyChosenBy::Url;
            found.source = format!("ssl_cert_reqs in {variable}");
            verify = Verify::Full;
        }
        let ca = ca?;
        if verify != Verify::None && ca.is_none() {
            let roots = (self.system_roots)().map_err(|problem| no_roots(&found, verify, problem));
            self.mistakes.check(roots)?;
        }
        let trust = Trust {
            verify,
            min_tls: min_tls?,
            ca,
            pins: pins?.1,
            identity: identity?,
            server_name: server_name?.1,
        };
        Ok((trust, chosen_by))
    }

    /// The CAs for one URL: the URL's own settings replace all general ones, and any setting
    /// replaces the CA that the URL's query names.
    fn authorities_for(
        &mut self,
        variable: &str,
        in_url: &UrlTlsParameters,
    ) -> Checked<Option<Vec<X509>>> {
        let settings = [&options::CA_FILE.declaration, &options::CA_PEM.declaration];
        let per_url =
            settings.map(|setting| self.sources.per_url(variable, setting)).into_iter().flatten();
        let per_url: Vec<_> = per_url.collect();
        if !per_url.is_empty() {
            return certificates::authorities(&per_url, &mut self.mistakes);
        }
        let is_given = |setting| {
            self.sources.general(setting).map_or(true, |found| found.given != Given::Default)
        };
        match &in_url.ca_file {
            Some(file) if !settings.into_iter().any(is_given) => {
                let named = Found {
                    source: format!("ssl_ca_certs in {variable}"),
                    value: OsStr::new(file),
                    given: Given::ForOne,
                    declaration: &options::CA_FILE.declaration,
                };
                certificates::authorities(&[named], &mut self.mistakes)
            }
            _ => self.general_authorities(),
        }
    }

    /// The CAs for all URLs.
    fn general_authorities(&mut self) -> Checked<Option<Vec<X509>>> {
        if let Some(known) = &self.general_ca {
            return known.clone();
        }
        let bundles =
            [&options::CA_FILE.declaration, &options::CA_PEM.declaration].map(|setting| {
                let found = self.sources.general(setting);
                self.mistakes.check(found)
            });
        let bundles: Checked<Vec<_>> = bundles.into_iter().collect();
        let read =
            bundles.and_then(|bundles| certificates::authorities(&bundles, &mut self.mistakes));
        self.general_ca.insert(read).clone()
    }

    /// The client certificate and key for one URL.
    fn identity_for(&mut self, variable: &str) -> Checked<Option<ClientIdentity>> {
        let [cert, key] = [&options::CLIENT_CERT.declaration, &options::CLIENT_KEY.declaration];
        match (self.sources.per_url(variable, cert), self.sources.per_url(variable, key)) {
            (None, None) => self.general_identity(),
            (own_cert, own_key) => {
                let certificate = own_cert.map_or_else(|| self.sources.general(cert), Ok);
                let key = own_key.map_or_else(|| self.sources.general(key), Ok);
                self.identity(certificate, key)
            }
        }
    }

    /// The client certificate and key for all URLs.
    fn general_identity(&mut self) -> Checked<Option<ClientIdentity>> {
        if let Some(known) = &self.general_identity {
            return known.clone();
        }
        let certificate = self.sources.general(&options::CLIENT_CERT.declaration);
        let key = self.sources.general(&options::CLIENT_KEY.declaration);
        let read = self.identity(certificate, key);
        self.general_identity.insert(read).clone()
    }

    fn identity(
        &mut self,
        certificate: Result<Found<'_>, ConfigError>,
        key: Result<Found<'_>, ConfigError>,
    ) -> Checked<Option<ClientIdentity>> {
        let (certificate, key) = (self.mistakes.check(certificate), self.mistakes.check(key));
        certificates::identity(&certificate?, &key?, &mut self.mistakes)
    }

    /// Reports every mistake in a setting for all URLs. A valid option hides its variable.
    fn check(&mut self, setting: &'static Declaration) -> Checked<()> {
        let option =
            self.sources.option(setting).map(|found| found.and_then(|found| found.check()));
        if option == Some(Ok(())) {
            return Ok(());
        }
        let mut checked = option.map_or(Ok(()), |option| self.mistakes.check(option));
        let variables = self.sources.variables(setting);
        for variable in &variables {
            checked = self.mistakes.check(variable.check()).and(checked);
        }
        if let [variable, old] = &variables[..]
            && variable.value != old.value
        {
            let (name, old_name) = (&variable.source, &old.source);
            let problem = format!(
                "and {old_name} are two names of one setting, and have different values; unset \
                 {old_name}"
            );
            return Err(self.mistakes.report(ConfigError::new(name, problem)));
        }
        checked
    }

    /// The value of a setting for all URLs.
    ///
    /// # Errors
    /// When it is wrong.
    pub fn read<T>(&mut self, setting: &'static Setting<T>) -> Result<T, Reported> {
        self.check(&setting.declaration)?;
        let found = self.sources.general(&setting.declaration);
        let read = found.and_then(|found| found.parse(setting));
        self.mistakes.check(read)
    }

    /// Like `read`, but the form for one URL comes first. Also says where the value came from.
    fn read_for<T>(
        &mut self,
        variable: &str,
        setting: &'static Setting<T>,
    ) -> Checked<(Found<'a>, T)> {
        let declaration = &setting.declaration;
        let found = self
            .sources
            .per_url(variable, declaration)
            .map_or_else(|| self.sources.general(declaration), Ok);
        let read = found.and_then(|found| {
            let value = found.parse(setting)?;
            Ok((found, value))
        });
        self.mistakes.check(read)
    }
}

/// Who chose the verification level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VerifyChosenBy {
    Nobody,
    /// An option or a variable.
    Setting,
    /// The query of the URL.
    Url,
}

/// `verify` needs system roots, and the system has none that can be used.
fn no_roots(found: &Found<'_>, verify: Verify, problem: RootsProblem) -> ConfigError {
    match problem {
        RootsProblem::Unreadable { variable, problem } => ConfigError::new(variable, problem),
        RootsProblem::None => found.wrong(format!(
            "is {}, but this system has no CA certificates to verify against: install the package \
             ca-certificates, or set {} or {}",
            verify.word(),
            names::CA_FILE,
            names::CA_PEM
        )),
    }
}

#[cfg(test)]
mod tests;
