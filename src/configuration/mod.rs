//! Command line and environment -> [`Configuration`], or every mistake at once.
//!
//! [`options`] declares the settings, [`cli`] has the command line made of them, [`reader`] knows
//! which of several values counts, [`values`] reads one, and [`variables`] decides about each Redis
//! URL.

pub mod cli;
pub mod options;
mod reader;
mod values;
mod variables;

use std::fmt;

use crate::environment::Environment;
use crate::logging::{LogFormat, LogLevel, LogSettings};
use crate::sandbox::SandboxMode;
use crate::status::StatusSettings;
use crate::supervisor::ForwardSignals;
use crate::tls;
use crate::tunnel::{ConnectionSettings, Listen, PortTaken, SettingNames};

use cli::Invocation;
use reader::Reader;
pub use values::is_variable_name;
pub use variables::{COPY_SUFFIX, Decision, RedisVariable, TunnelledUrl};

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

/// The proof that a mistake was reported: only [`reader::Mistakes`] makes one, so that whoever
/// fails for a mistake cannot have forgotten to report it.
pub use reader::Reported;

/// What to do with a URL that asks for TLS itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rediss {
    Tunnel,
    Passthrough,
}

/// Everything that holds for the launcher as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: Listen,
    /// The first local port; 0: the kernel's pick.
    pub listen_port: u16,
    pub port_taken: PortTaken,
    pub connection: ConnectionSettings,
    pub status: StatusSettings,
    pub forward_signals: ForwardSignals,
    pub sandbox: SandboxMode,
    pub log: LogSettings,
    /// What they are called, for errors.
    pub names: SettingNames,
}

/// All that the user has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub settings: Settings,
    /// Each Redis variable, and what becomes of it; `REDIS_URL` first, or in the order in which
    /// they are listed.
    pub variables: Vec<RedisVariable>,
    /// The variables with a Redis URL that stay as they are, since nobody names them.
    pub others: Vec<String>,
    /// The variables that look like settings and are none: misspelt, most often.
    pub unknown: Vec<String>,
}

/// What the switch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configured {
    /// No tunnel: the launcher becomes COMMAND, and nothing else is read.
    Disabled,
    Enabled(Box<Configuration>),
}

/// Reads everything that the user has said.
///
/// # Errors
/// Every mistake in it, at least one.
pub fn read(
    invocation: &Invocation,
    environment: &Environment,
) -> Result<Configured, Vec<ConfigError>> {
    read_on(tls::roots::exist, invocation, environment)
}

/// `system_roots`: whether the system has certificates to trust.
fn read_on(
    system_roots: fn() -> bool,
    invocation: &Invocation,
    environment: &Environment,
) -> Result<Configured, Vec<ConfigError>> {
    let mut reader = Reader::new(invocation, environment, system_roots);
    let configured = configure(&mut reader);
    configured.map_err(|_| reader.mistakes.into_all())
}

fn configure(reader: &mut Reader<'_>) -> Result<Configured, Reported> {
    let enabled = reader.read(&options::ENABLED);
    if enabled == Ok(false) {
        return Ok(Configured::Disabled);
    }
    // Each is read before any `?`, so that all mistakes are found.
    let settings = reader.settings();
    let for_all_urls = reader.for_all_urls();
    let listed = reader.read(&options::URLS);
    let variables = listed.and_then(|listed| variables::decide(listed, reader));
    enabled?;
    for_all_urls?;
    let (settings, variables) = (settings?, variables?);
    let others = variables::others(&variables, reader.environment());
    let unknown = options::unknown(reader.environment());
    Ok(Configured::Enabled(Box::new(Configuration { settings, variables, others, unknown })))
}

/// How to log what ends the launch before it has begun: such errors are never silent, and what is
/// wrong with the format is one of them.
pub fn log_settings_for_errors(invocation: &Invocation, environment: &Environment) -> LogSettings {
    let mut reader = Reader::new(invocation, environment, || true);
    let format = reader.read(&options::LOG_FORMAT).unwrap_or(LogFormat::Logfmt);
    LogSettings { level: LogLevel::Err, format }
}

/// Whether the switch says that there is to be no launcher.
pub fn is_switched_off(invocation: &Invocation, environment: &Environment) -> bool {
    let mut reader = Reader::new(invocation, environment, || true);
    reader.read(&options::ENABLED) == Ok(false)
}

#[cfg(test)]
pub mod tests {
    use std::ffi::OsString;

    use super::*;

    /// An environment of `pairs`, for tests.
    pub fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// What is read of `options` and an environment, on a system that has CA certificates, for
    /// tests.
    pub fn read(options: &[&str], environment: &Environment) -> Result<Configuration, Vec<String>> {
        let words = ["start-stunnel"].iter().chain(options).chain(&["true"]);
        let invocation =
            Invocation::parse_from(words.map(OsString::from)).expect("a good command line");
        match read_on(|| true, &invocation, environment) {
            Ok(Configured::Enabled(configuration)) => Ok(*configuration),
            Ok(Configured::Disabled) => panic!("disabled"),
            Err(mistakes) => Err(mistakes.iter().map(ConfigError::to_string).collect()),
        }
    }
}
