//! Reads the command line and the environment into a [`Configuration`], or reports every mistake.
//!
//! [`options`] declares the settings, with the parsers in [`values`]. [`cli`] derives the command
//! line from the declarations. [`sources`] finds a setting's value in an option or a variable.
//! [`reader`] reads the settings for all URLs, and collects the mistakes. [`trust`] reads the trust
//! settings of a URL. [`variables`] finds the Redis URLs, and plans their tunnels ([`plan`]).
//! [`spelling`] finds misspelt settings.

pub mod cli;
pub mod options;
mod plan;
mod reader;
mod sources;
mod spelling;
mod trust;
mod values;
mod variables;

use crate::environment::{Environment, lookup};
use crate::logging::{LevelFilter, LogSettings};
use crate::tls;

use cli::Invocation;
pub use plan::{Plan, Tunnelled};
pub use reader::Settings;
use reader::{Reader, SystemRoots};
pub use sources::ConfigError;
use sources::Sources;
pub use values::is_variable_name;

/// The settings, Redis URLs and planned tunnels that the launcher has read from the user's
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub settings: Settings,
    pub plan: Plan,
}

/// Reads all settings and Redis URLs. Call this only if the launcher is not disabled.
///
/// # Errors
/// Returns the list of all mistakes in the configuration, if there is at least one mistake.
pub fn read(
    invocation: &Invocation,
    environment: &Environment,
) -> Result<Configuration, Vec<ConfigError>> {
    read_on(tls::roots::check, invocation, environment)
}

fn read_on(
    system_roots: SystemRoots,
    invocation: &Invocation,
    environment: &Environment,
) -> Result<Configuration, Vec<ConfigError>> {
    let sources = Sources { invocation, environment, variable: None };
    let mut reader = Reader::new(sources, system_roots);
    for setting in options::ALL {
        reader.check_setting(setting);
    }
    reader.read_general_pem();
    let settings = reader.settings();
    let mut plan = variables::plan(&mut reader);
    plan.unused.other_urls = variables::others(&plan, environment);
    if sources.find(&options::URLS.declaration).is_none() {
        plan.unused.question = variables::question(&plan);
    }
    plan.unused.retired = retired(invocation, environment);
    spelling::check(&mut reader, &mut plan);
    match reader.mistakes.is_empty() {
        true => Ok(Configuration { settings, plan }),
        false => Err(reader.mistakes),
    }
}

/// Returns the retired options and variables that the user still sets.
fn retired(invocation: &Invocation, environment: &Environment) -> Vec<String> {
    let option = invocation.retired_option.then(|| format!("--{}", options::RETIRED_OPTION));
    let variable = lookup(environment, options::RETIRED_VARIABLE);
    option.into_iter().chain(variable.map(|_| options::RETIRED_VARIABLE.to_owned())).collect()
}

/// Returns the log settings for errors that prevent COMMAND's start. Ignores `--log-level`, so that
/// the user always sees these errors. If `--log-format` is wrong, uses the default format.
pub fn log_settings_for_errors(invocation: &Invocation, environment: &Environment) -> LogSettings {
    let sources = Sources { invocation, environment, variable: None };
    LogSettings { level: LevelFilter::ERROR, format: sources.read(&options::LOG_FORMAT) }
}

/// Returns true if `--enabled` is false. In this case, the launcher reads no other setting, except
/// `--log-format` for the error if COMMAND cannot be executed.
pub fn is_disabled(invocation: &Invocation, environment: &Environment) -> bool {
    !Sources { invocation, environment, variable: None }.read(&options::ENABLED)
}

#[cfg(test)]
pub mod tests;
