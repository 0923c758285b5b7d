//! A setting's text, and where it was found.

use std::ffi::OsStr;

use super::mistakes::ConfigError;
use super::options::{Declaration, Setting};
use crate::secret::{hidden, shown};

/// The text of a setting, and where it was found.
pub struct Found<'a> {
    /// The option or variable.
    pub source: String,
    pub value: &'a OsStr,
    pub given: Given,
    pub declaration: &'static Declaration,
}

/// Who gave a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Nobody: it is the default.
    Default,
    /// The user, for all URLs.
    Generally,
    /// The user, for this one URL.
    ForOne,
}

impl Found<'_> {
    pub fn wrong(&self, problem: impl ToString) -> ConfigError {
        ConfigError::new(&self.source, problem)
    }

    /// Reads the text as a value of `setting`.
    ///
    /// # Errors
    /// If the text is no such value.
    pub fn parse<T>(&self, setting: &Setting<T>) -> Result<T, ConfigError> {
        self.read_by(setting.parse)
    }

    /// Checks the text, except for files that it names.
    ///
    /// # Errors
    /// If the text is no value of its setting.
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
