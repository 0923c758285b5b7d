//! Finds the value of a setting: in an option, a variable, or the default.

use std::ffi::OsStr;
use std::fmt;

use super::cli::Invocation;
use super::options::{self, Declaration, Setting};
use crate::environment::{Environment, lookup};
use crate::secret::{hidden, shown};
use crate::tunnel::SettingNames;

/// The two settings for CA bundles.
pub const CA_SETTINGS: [&Declaration; 2] =
    [&options::CA_FILE.declaration, &options::CA_PEM.declaration];

/// One mistake in the configuration. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The option (`--verify`) or variable (`STUNNEL_VERIFY`) at fault.
    pub name: String,
    /// The problem and its solution: a predicate whose subject is the name.
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

/// The text of a setting, and where it was found.
pub struct Found<'a> {
    /// The option or variable.
    pub source: String,
    pub value: &'a OsStr,
    pub declaration: &'static Declaration,
}

impl Found<'_> {
    pub fn wrong(&self, problem: impl ToString) -> ConfigError {
        ConfigError::new(&self.source, problem)
    }

    /// Reads the text as a value of `setting`.
    ///
    /// # Errors
    /// If the text is no valid value.
    pub fn parse<T>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        self.read_by(setting.parse)
    }

    /// Checks the text, except for files that it names.
    ///
    /// # Errors
    /// If the text is no valid value.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.read_by(self.declaration.check)
    }

    fn read_by<T>(&self, parse: fn(&str) -> Result<T, &'static str>) -> Result<T, ConfigError> {
        let text = self.value.to_str().ok_or_else(|| self.wrong("is not valid UTF-8"))?;
        parse(text).map_err(|expected| {
            let value = if self.declaration.is_secret { hidden(text) } else { shown(text) };
            self.wrong(format!("is {value}; expected {expected}"))
        })
    }
}

/// The command line and the environment.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub invocation: &'a Invocation,
    pub environment: &'a Environment,
}

impl<'a> Sources<'a> {
    /// The names under which the settings for the URL in `variable`, or for all URLs, are set.
    pub fn names(&self, variable: Option<&str>) -> SettingNames {
        let mut names = SettingNames::default();
        for setting in options::ALL {
            if let Some(variable) = variable.filter(|variable| self.replaces(variable, setting)) {
                names.override_with(setting.variable, setting.for_one(variable));
            } else if let Some(option) = setting.option
                && self.invocation.option(setting).is_some()
            {
                names.override_with(setting.variable, format!("--{option}"));
            }
        }
        names
    }

    /// True if a setting for the URL in `variable` replaces the general `setting`.
    fn replaces(&self, variable: &str, setting: &'static Declaration) -> bool {
        match CA_SETTINGS.iter().any(|known| known.variable == setting.variable) {
            // If one of the two CA settings is set for this URL, it replaces both general CA
            // settings.
            true => CA_SETTINGS.iter().any(|known| self.per_url(variable, known).is_some()),
            false => self.per_url(variable, setting).is_some(),
        }
    }

    /// True if the user sets `setting` for all URLs, by its option or a variable.
    pub fn is_given(&self, setting: &'static Declaration) -> bool {
        self.option(setting).is_some() || !self.variables(setting).is_empty()
    }

    /// The value for the URL in `variable`: the value that is set for this URL, or else the value
    /// for all URLs.
    ///
    /// # Errors
    /// If the option has an empty value.
    pub fn for_url(
        &self,
        variable: &str,
        setting: &'static Declaration,
    ) -> Result<Found<'a>, ConfigError> {
        self.per_url(variable, setting).map_or_else(|| self.general(setting), Ok)
    }

    /// The value that applies to all URLs: option, else variable, else default.
    ///
    /// # Errors
    /// If the option has an empty value.
    pub fn general(&self, setting: &'static Declaration) -> Result<Found<'a>, ConfigError> {
        if let Some(found) = self.option(setting) {
            return found;
        }
        let variable = self.variables(setting).into_iter().next();
        Ok(variable.unwrap_or_else(|| Found {
            source: setting.variable.to_owned(),
            value: OsStr::new(setting.default),
            declaration: setting,
        }))
    }

    /// The value of the option.
    ///
    /// # Errors
    /// If the value is empty: it must not silently override the variable.
    pub fn option(&self, setting: &'static Declaration) -> Option<Result<Found<'a>, ConfigError>> {
        let value = self.invocation.option(setting)?;
        let source = format!("--{}", setting.option.unwrap_or_default());
        let found = Found { source, value, declaration: setting };
        Some(match value.is_empty() {
            false => Ok(found),
            true => Err(found.wrong(
                "has an empty value (is a variable unset?); give the option a value, or remove the \
                 option",
            )),
        })
    }

    /// The values of the setting's variable and of the variable's old name, if they are set.
    pub fn variables(&self, setting: &'static Declaration) -> Vec<Found<'a>> {
        let names = [Some(setting.variable), setting.old_variable].into_iter().flatten();
        names.filter_map(|name| self.variable(name.to_owned(), setting)).collect()
    }

    /// The value for the URL in `variable` alone.
    pub fn per_url(&self, variable: &str, setting: &'static Declaration) -> Option<Found<'a>> {
        self.variable(setting.for_one(variable), setting).filter(|_| setting.is_per_url)
    }

    fn variable(&self, name: String, setting: &'static Declaration) -> Option<Found<'a>> {
        let value = lookup(self.environment, &name)?;
        Some(Found { source: name, value, declaration: setting })
    }
}
