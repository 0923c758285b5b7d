//! Looks up values in a copy of the launcher's environment variables.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// The names and values of environment variables, sorted by name.
pub type Environment = BTreeMap<OsString, OsString>;

/// Returns the value of the variable `name`, or `None` if the variable is unset or empty.
pub fn lookup<'a>(environment: &'a Environment, name: &str) -> Option<&'a OsStr> {
    let value = environment.get(OsStr::new(name))?;
    (!value.is_empty()).then_some(value)
}
