//! The environment in which the launcher started.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Names and values, sorted by name.
pub type Environment = BTreeMap<OsString, OsString>;

/// The value of `name`; an empty variable counts as unset.
pub fn lookup<'a>(environment: &'a Environment, name: &str) -> Option<&'a OsStr> {
    let value = environment.get(OsStr::new(name))?;
    (!value.is_empty()).then_some(value)
}
