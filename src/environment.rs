//! Copies the launcher's environment variables, and looks up values in the copy.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};

/// The names and values of environment variables, sorted by name.
pub type Environment = BTreeMap<OsString, OsString>;

/// Returns a copy of the launcher's environment. If a variable occurs several times, the copy
/// contains the first value, because getenv(3) returns the first value to COMMAND.
pub fn of_launcher() -> Environment {
    let mut environment = Environment::new();
    for (name, value) in env::vars_os() {
        environment.entry(name).or_insert(value);
    }
    environment
}

/// Returns the value of the variable `name`, or `None` if the variable is unset or empty.
pub fn lookup<'a>(environment: &'a Environment, name: &str) -> Option<&'a OsStr> {
    let value = environment.get(OsStr::new(name))?;
    (!value.is_empty()).then_some(value)
}
