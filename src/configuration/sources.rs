//! Finds the value of a setting in a variable for a single URL, in an option, or in the variable
//! for all URLs.

use std::ffi::OsStr;
use std::fmt;

use super::cli::Invocation;
use super::options::{self, Declaration, Setting};
use crate::environment::{Environment, lookup};
use crate::secret::shown;
use crate::tunnel::SettingNames;

/// The declarations of the two settings that can contain a CA bundle.
pub const CA_SETTINGS: [&Declaration; 2] =
    [&options::CA_FILE.declaration, &options::CA_PEM.declaration];

/// A mistake that the user made in the configuration. The text of the mistake contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The name of the option or variable with the mistake, for example `--verify` or
    /// `STUNNEL_VERIFY`.
    pub name: String,
    /// The rest of a sentence that begins with `name`. The sentence explains the problem and its
    /// solution.
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

/// A value that the user has set for a setting.
pub struct Found<'a> {
    /// The name of the option or variable that holds the value.
    pub name: String,
    pub value: &'a OsStr,
    pub setting: &'static Declaration,
}

impl Found<'_> {
    pub fn wrong(&self, problem: impl ToString) -> ConfigError {
        ConfigError::new(&self.name, problem)
    }

    /// Checks the value, but does not read a file that the value names.
    ///
    /// # Errors
    /// Returns an error if the value is invalid.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.parse(self.setting.check)
    }

    /// Parses the value.
    ///
    /// # Errors
    /// Returns an error if the value is invalid. An option with an empty value is also an error,
    /// because the empty value would silently override the variable.
    pub fn parse<T>(&self, parse: fn(&str) -> Result<T, &'static str>) -> Result<T, ConfigError> {
        if self.value.is_empty() && self.name.starts_with("--") {
            return Err(self.wrong(
                "has an empty value (is a variable unset?); give the option a value, or remove the \
                 option",
            ));
        }
        let text = self.value.to_string_lossy();
        // Paths may contain any bytes, and so may PEM text outside its blocks (RFC 7468 section 2).
        if self.value.to_str().is_none() && !self.setting.is_pem {
            return Err(self.wrong("is not valid UTF-8"));
        }
        parse(&text)
            .map_err(|expected| self.wrong(format!("is {}; expected {expected}", shown(&text))))
    }
}

/// The command line and the environment, from which the launcher reads the settings for one URL or
/// for all URLs.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub invocation: &'a Invocation,
    pub environment: &'a Environment,
    /// The variable that holds the URL whose settings the launcher reads. `None` if the launcher
    /// reads the settings for all URLs.
    pub variable: Option<&'a str>,
}

impl<'a> Sources<'a> {
    /// Returns the same sources, but for reading the settings of the URL in `variable`.
    pub fn for_url<'b>(self, variable: &'b str) -> Sources<'b>
    where
        'a: 'b,
    {
        Sources { variable: Some(variable), ..self }
    }

    /// Returns the value of `setting`, or the default if the value is unset or wrong.
    pub fn read<T>(&self, setting: &'static Setting<T>) -> T {
        let read =
            self.find(&setting.declaration).and_then(|found| found.parse(setting.parse).ok());
        read.unwrap_or_else(|| setting.default())
    }

    /// Returns the value that the user has set for `setting`. A value for a single URL takes
    /// precedence over the option, and the option takes precedence over the variable for all URLs.
    pub fn find(&self, setting: &'static Declaration) -> Option<Found<'a>> {
        let found = self.own(setting).or_else(|| self.option(setting));
        found.or_else(|| self.variables(setting).into_iter().next())
    }

    /// Returns the value that the user has set for only the URL in `self.variable`. If the user has
    /// set one of the two CA settings for this URL, the general values of both CA settings do not
    /// apply to this URL. So this function returns an empty value for the other CA setting.
    pub fn own(&self, setting: &'static Declaration) -> Option<Found<'a>> {
        let variable = self.variable.filter(|_| setting.is_per_url)?;
        let of = |setting: &Declaration| lookup(self.environment, &setting.for_one(variable));
        let is_ca = CA_SETTINGS.iter().any(|ca| ca.variable == setting.variable);
        let is_replaced = is_ca && CA_SETTINGS.iter().any(|ca| of(ca).is_some());
        let value = of(setting).or(is_replaced.then_some(OsStr::new("")))?;
        Some(Found { name: setting.for_one(variable), value, setting })
    }

    pub fn option(&self, setting: &'static Declaration) -> Option<Found<'a>> {
        let value = self.invocation.option(setting)?;
        Some(Found { name: format!("--{}", setting.option()?), value, setting })
    }

    /// Returns the values of the setting's variable and of the variable with the setting's old
    /// name, without unset variables.
    pub fn variables(&self, setting: &'static Declaration) -> Vec<Found<'a>> {
        let found = |name: &str| {
            Some(Found { name: name.to_owned(), value: lookup(self.environment, name)?, setting })
        };
        setting.variables().filter_map(found).collect()
    }

    /// Returns the names of the options and variables that set the values which [`Sources::find`]
    /// finds.
    pub fn names(&self) -> SettingNames {
        let set = options::ALL.iter().filter_map(|setting| self.find(setting));
        SettingNames {
            set: set.map(|found| (found.setting.variable, found.name)).collect(),
            full_by_url: false,
        }
    }
}
