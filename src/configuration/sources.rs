//! Where the value of a setting comes from: an option, a variable, or a default.

use std::ffi::OsStr;

use super::cli::Invocation;
use super::found::{Found, Given};
use super::mistakes::ConfigError;
use super::options::{self, Declaration, Scope};
use crate::environment::{Environment, lookup};
use crate::names;
use crate::tunnel::SettingNames;

/// The command line and the environment.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub invocation: &'a Invocation,
    pub environment: &'a Environment,
}

impl<'a> Sources<'a> {
    /// The names of the settings in effect for the URL in `variable`, or for all.
    pub fn names(&self, variable: Option<&str>) -> SettingNames {
        let mut names = SettingNames::default();
        for setting in options::ALL {
            let per_url = variable.filter(|_| setting.scope == Scope::OneUrlToo);
            let is_per_url = |variable: &&str| {
                // Either CA setting of one URL replaces both general ones.
                self.per_url(variable, setting).is_some()
                    || setting.variable == names::CA_FILE
                        && self.per_url(variable, &options::CA_PEM.declaration).is_some()
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

    /// Whether the option or a variable of a setting for all URLs is given.
    pub fn is_given(&self, setting: &'static Declaration) -> bool {
        self.option(setting).is_some() || !self.variables(setting).is_empty()
    }

    /// The value that applies to all URLs: option, else variable, else default.
    ///
    /// # Errors
    /// When the option has an empty value.
    pub fn general(&self, setting: &'static Declaration) -> Result<Found<'a>, ConfigError> {
        if let Some(found) = self.option(setting) {
            return found;
        }
        let variable = self.variables(setting).into_iter().next();
        Ok(variable.unwrap_or_else(|| Found {
            source: setting.variable.to_owned(),
            value: OsStr::new(setting.default),
            given: Given::Default,
            declaration: setting,
        }))
    }

    /// The value of the option.
    ///
    /// # Errors
    /// When it is empty: that must not silently undo what the variable says.
    pub fn option(&self, setting: &'static Declaration) -> Option<Result<Found<'a>, ConfigError>> {
        let value = self.invocation.option(setting)?;
        let source = format!("--{}", setting.option.unwrap_or_default());
        let found = Found { source, value, given: Given::Generally, declaration: setting };
        Some(match value.is_empty() {
            false => Ok(found),
            true => Err(found.wrong(
                "has an empty value (is a variable in it unset?); give it a value, or leave the \
                 option out",
            )),
        })
    }

    /// The values of the variable, and of its old name, as far as they are set.
    pub fn variables(&self, setting: &'static Declaration) -> Vec<Found<'a>> {
        let names = [Some(setting.variable), setting.old_variable].into_iter().flatten();
        let found = names.filter_map(|name| {
            let value = lookup(self.environment, name)?;
            let source = name.to_owned();
            Some(Found { source, value, given: Given::Generally, declaration: setting })
        });
        found.collect()
    }

    /// The value that one URL has for itself.
    pub fn per_url(&self, variable: &str, setting: &'static Declaration) -> Option<Found<'a>> {
        let source = setting.for_one(variable);
        let value = lookup(self.environment, &source)?;
        Some(Found { source, value, given: Given::ForOne, declaration: setting })
    }
}
