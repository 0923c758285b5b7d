//! The launcher's environment variables.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Names and values, sorted by name.
pub type Environment = BTreeMap<OsString, OsString>;

/// The value of the variable `name`; `None` if the variable is unset or empty.
pub fn lookup<'a>(environment: &'a Environment, name: &str) -> Option<&'a OsStr> {
    let value = environment.get(OsStr::new(name))?;
    (!value.is_empty()).then_some(value)
}
