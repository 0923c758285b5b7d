//! Reads the settings that apply to the launcher or to all URLs, and collects the user's mistakes.

use std::time::Duration;

use openssl::x509::X509;

use super::options::{self, Declaration, Setting};
use super::sources::{ConfigError, Sources};
use crate::environment::lookup;
use crate::logging::LogSettings;
use crate::sandbox::SandboxMode;
use crate::status::StatusAddress;
use crate::supervisor::ForwardSignals;
use crate::tls::pem::ClientIdentity;
use crate::tls::roots::RootsProblem;
use crate::tunnel::{ConnectionSettings, Listen, PortTaken, SettingNames};

/// The variable that contains the port on which Heroku and other platforms expect the app to
/// listen: <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const PORT: &str = "PORT";

/// The values of the settings that apply to the launcher or to all URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: Listen,
    /// The local port of the first tunnel. If the value is 0, the kernel chooses the ports of all
    /// tunnels.
    pub listen_port: u16,
    pub port_taken: PortTaken,
    pub connection: ConnectionSettings,
    pub status_address: Option<StatusAddress>,
    /// The interval at which the launcher logs metrics. `None` if the launcher logs no metrics.
    pub metrics_interval: Option<Duration>,
    pub forward_signals: ForwardSignals,
    pub sandbox: SandboxMode,
    pub log: LogSettings,
    /// The names of the options and variables that the user has set. Error messages contain these
    /// names.
    names: SettingNames,
}

impl Settings {
    /// Returns the name of the option or variable that an error about `setting` mentions.
    pub fn name_of<T>(&self, setting: &'static Setting<T>) -> &str {
        self.names.of(setting.declaration.variable)
    }

    pub fn wrong<T>(&self, setting: &'static Setting<T>, problem: impl ToString) -> ConfigError {
        ConfigError::new(self.name_of(setting), problem)
    }
}

/// The type of a function that checks whether the system has CA certificates.
pub type SystemRoots = fn() -> Result<(), RootsProblem>;

/// Reads settings, and collects the mistakes in the configuration. After a wrong value, the reader
/// continues with the setting's default, so that the reader finds all mistakes. If there is a
/// mistake, the launcher does not start COMMAND.
pub struct Reader<'a> {
    pub sources: Sources<'a>,
    pub system_roots: SystemRoots,
    pub mistakes: Vec<ConfigError>,
    pub general_ca: Option<Vec<X509>>,
    pub general_identity: Option<ClientIdentity>,
}

impl<'a> Reader<'a> {
    pub fn new(sources: Sources<'a>, system_roots: SystemRoots) -> Reader<'a> {
        let (general_ca, general_identity) = (None, None);
        Reader { sources, system_roots, mistakes: Vec::new(), general_ca, general_identity }
    }

    /// Adds `mistake` to the list of mistakes, unless the list already contains this mistake.
    pub fn report(&mut self, mistake: ConfigError) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Returns the value in `result`. If `result` is a mistake, reports the mistake and returns
    /// `None`.
    pub fn check<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|mistake| self.report(mistake)).ok()
    }

    /// Reports each mistake in the option and in the variables that set `setting` for all URLs.
    /// Does not read the variables if the option is valid.
    pub fn check_setting(&mut self, setting: &'static Declaration) {
        let option = self.sources.option(setting).map(|option| self.check(option.check()));
        if option == Some(Some(())) {
            return;
        }
        let variables = self.sources.variables(setting);
        for variable in &variables {
            self.check(variable.check());
        }
        if let [variable, old] = &variables[..]
            && variable.value != old.value
        {
            let old = &old.name;
            self.report(variable.wrong(format!(
                "and {old} name the same setting, but have different values; unset {old}"
            )));
        }
    }

    pub fn settings(&mut self) -> Settings {
        self.check_status_port();
        let sources = self.sources;
        Settings {
            connection: ConnectionSettings {
                connect_timeout: sources.read(&options::CONNECT_TIMEOUT),
                connect_retry: sources.read(&options::CONNECT_RETRY),
                idle_timeout: sources.read(&options::IDLE_TIMEOUT),
                drain_timeout: sources.read(&options::DRAIN_TIMEOUT),
            },
            status_address: sources.read(&options::STATUS_ADDRESS),
            metrics_interval: sources.read(&options::METRICS_INTERVAL),
            log: LogSettings {
                level: sources.read(&options::LOG_LEVEL),
                format: sources.read(&options::LOG_FORMAT),
            },
            listen: sources.read(&options::LISTEN),
            listen_port: sources.read(&options::LISTEN_PORT),
            port_taken: sources.read(&options::PORT_TAKEN),
            forward_signals: sources.read(&options::FORWARD_SIGNALS),
            sandbox: sources.read(&options::SANDBOX),
            names: sources.names(),
        }
    }

    /// Reports a mistake if the launcher's status page would use the port on which the app listens.
    fn check_status_port(&mut self) {
        let address = &options::STATUS_ADDRESS;
        let page = self.sources.read(address).as_ref().and_then(StatusAddress::port);
        // Only the app uses PORT, so the launcher ignores a PORT that is not a number.
        let app = lookup(self.sources.environment, PORT)
            .and_then(|port| port.to_str()?.trim().parse::<u16>().ok());
        if let Some(port) = page.filter(|_| page == app)
            && let Some(found) = self.sources.find(&address.declaration)
        {
            let problem =
                format!("is port {port}, which {PORT} reserves for the app; set another port");
            self.report(found.wrong(problem));
        }
    }
}
