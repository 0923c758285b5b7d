//! Configuration errors, collected so that the launcher reports all of them together.

use std::fmt;

/// One mistake in the configuration. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The option (`--verify`) or variable (`STUNNEL_VERIFY`) at fault.
    pub name: String,
    /// The problem and its solution, as a predicate of the name.
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

/// Every mistake found so far, each once.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<ConfigError>);

/// The proof that a mistake was reported. Only [`Mistakes::report`] makes one, so no code can fail
/// because of a mistake and forget to report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported(());

impl Mistakes {
    /// Adds a mistake, unless it is known already.
    pub fn report(&mut self, error: ConfigError) -> Reported {
        if !self.0.contains(&error) {
            self.0.push(error);
        }
        Reported(())
    }

    /// Reports the mistake in `result`, if there is one.
    ///
    /// # Errors
    /// [`Reported`], when `result` has a mistake.
    pub fn check<T>(&mut self, result: Result<T, ConfigError>) -> Result<T, Reported> {
        result.map_err(|error| self.report(error))
    }

    /// All mistakes, in the order in which they were found.
    pub fn into_all(self) -> Vec<ConfigError> {
        self.0
    }
}
