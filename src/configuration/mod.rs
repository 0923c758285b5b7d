//! Reads the command line and the environment into a [`Configuration`], or reports every mistake.
//!
//! [`options`] declares the settings, with the parsers in [`values`]. [`cli`] derives the command
//! line from them. [`sources`] finds a setting's value in an option, a variable or the default.
//! [`reader`] reads the values, and [`certificates`] the PEM files that they name. [`variables`]
//! decides what happens to each Redis URL. [`spelling`] finds misspelt settings.

mod certificates;
pub mod cli;
pub mod options;
mod reader;
mod settings;
mod sources;
mod spelling;
mod values;
mod variables;

use crate::environment::{Environment, lookup};
use crate::logging::{LevelFilter, LogSettings};
pub use crate::pool::PoolMode;
use crate::tls;

use cli::Invocation;
use reader::{Reader, SystemRoots};
pub use settings::Settings;
pub use sources::ConfigError;
use sources::Sources;
pub use values::is_variable_name;
pub use variables::{COPY_SUFFIX, Decision, RedisVariable, TunnelledUrl};

/// Everything that the user configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub settings: Settings,
    /// The Redis variables, in the user's order or with `REDIS_URL` first.
    pub variables: Vec<RedisVariable>,
    pub unused: Unused,
}

/// Variables and options without an effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused {
    /// Variables that hold a Redis URL, but are neither discovered nor listed: they stay unchanged.
    pub other_urls: Vec<String>,
    /// Variables that look like settings, but are unknown.
    pub unknown: Vec<String>,
    /// Settings for a variable that holds no Redis URL.
    pub without_url: Vec<String>,
    /// Retired options and variables.
    pub retired: Vec<String>,
}

/// The result of reading the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configured {
    /// No tunnel: the launcher becomes COMMAND, and no other setting is read.
    Disabled,
    Enabled(Box<Configuration>),
}

/// Reads the whole configuration.
///
/// # Errors
/// All mistakes, at least one.
pub fn read(
    invocation: &Invocation,
    environment: &Environment,
) -> Result<Configured, Vec<ConfigError>> {
    read_on(tls::roots::check, invocation, environment)
}

fn read_on(
    system_roots: SystemRoots,
    invocation: &Invocation,
    environment: &Environment,
) -> Result<Configured, Vec<ConfigError>> {
    let mut reader = Reader::new(Sources { invocation, environment }, system_roots);
    let configured = configure(&mut reader);
    if reader.mistakes.is_empty() { Ok(configured) } else { Err(reader.mistakes) }
}

fn configure(reader: &mut Reader<'_>) -> Configured {
    if !reader.read(&options::ENABLED) {
        return Configured::Disabled;
    }
    let settings = reader.settings();
    reader.check_for_all_urls();
    let suspects = spelling::suspects(reader.sources);
    for mistake in suspects.misspelt {
        reader.report(mistake);
    }
    let variables = variables::decide(reader);

    let holds_url = |name: &str| variables.iter().any(|variable| variable.name == name);
    let has_url = |setting: &String| spelling::owner(setting).is_some_and(holds_url);
    let unused = Unused {
        other_urls: variables::others(&variables, reader.sources.environment),
        unknown: suspects.unknown,
        without_url: suspects.for_one_url.into_iter().filter(|name| !has_url(name)).collect(),
        retired: retired(reader.sources),
    };
    Configured::Enabled(Box::new(Configuration { settings, variables, unused }))
}

/// The retired option and variable, if the user sets them.
fn retired(sources: Sources<'_>) -> Vec<String> {
    let option =
        sources.invocation.retired_option.then(|| format!("--{}", options::RETIRED_OPTION));
    let variable = lookup(sources.environment, options::RETIRED_VARIABLE);
    option.into_iter().chain(variable.map(|_| options::RETIRED_VARIABLE.to_owned())).collect()
}

/// The log settings for an error that prevents the launch. Such an error is logged at every log
/// level, and even if the log format is wrong.
pub fn log_settings_for_errors(invocation: &Invocation, environment: &Environment) -> LogSettings {
    let mut reader = Reader::new(Sources { invocation, environment }, || Ok(()));
    LogSettings { level: LevelFilter::ERROR, format: reader.read(&options::LOG_FORMAT) }
}

/// True if `--enabled` is false.
pub fn is_switched_off(invocation: &Invocation, environment: &Environment) -> bool {
    !Reader::new(Sources { invocation, environment }, || Ok(())).read(&options::ENABLED)
}

#[cfg(test)]
pub mod tests {
    use std::ffi::OsString;

    use super::*;

    /// An environment of `pairs`, for tests.
    pub fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// Reads `options` and an environment, on a system that has CA certificates, for tests.
    pub fn read(options: &[&str], environment: &Environment) -> Result<Configuration, Vec<String>> {
        let words = ["start-stunnel"].iter().chain(options).chain(&["true"]);
        let invocation =
            Invocation::parse_from(words.map(OsString::from)).expect("a good command line");
        match read_on(|| Ok(()), &invocation, environment) {
            Ok(Configured::Enabled(configuration)) => Ok(*configuration),
            Ok(Configured::Disabled) => panic!("disabled"),
            Err(mistakes) => Err(mistakes.iter().map(ConfigError::to_string).collect()),
        }
    }
}
