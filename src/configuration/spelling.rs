//! Finds settings with misspelt or unknown names, because a typing error must never weaken
//! security.

use std::ffi::OsStr;

use strsim::osa_distance;

use super::options::{self, Declaration};
use super::plan::Plan;
use super::reader::Reader;
use super::sources::{ConfigError, Found, Sources};
use super::trust;
use crate::environment::lookup;
use crate::names;

/// The maximum edit distance at which a name counts as a misspelling of another name.
const MOST_EDITS: usize = 2;
/// The prefix of every variable that applies to all URLs.
const PREFIX: &str = "STUNNEL_";
/// The text between `<VAR>` and the setting's name in a variable such as `<VAR>_STUNNEL_POOL`.
const INFIX: &str = "_STUNNEL_";

/// Reports misspelt settings, and adds settings without an effect to `plan.unused`.
pub fn check(reader: &mut Reader<'_>, plan: &mut Plan) {
    let sources = reader.sources;
    let set = sources.environment.iter().filter(|(_, value)| !value.is_empty());
    for (name, value) in set.filter_map(|(name, value)| Some((name.to_str()?, value))) {
        if !looks_like_setting(name) || is_general(name) || plan.contains(name) {
            continue;
        }
        if let Some(owner) = owner(name) {
            if !plan.contains(owner) {
                plan.unused.without_url.push(name.to_owned());
            }
        } else if let Some(intended) = intended(name, value, sources) {
            reader.report(ConfigError::new(
                name,
                format!(
                    "is not a setting, but looks like a misspelling of {intended}; rename the \
                     variable to {intended}, or unset the variable"
                ),
            ));
        } else {
            plan.unused.unknown.push(name.to_owned());
        }
    }
}

fn looks_like_setting(name: &str) -> bool {
    name.starts_with(PREFIX) || name.contains(INFIX) || is_close(name, names::URLS)
}

fn is_general(name: &str) -> bool {
    let mut current = options::ALL.iter().flat_map(|setting| setting.variables());
    current.any(|known| known == name) || name == options::RETIRED_VARIABLE
}

/// Returns `<VAR>` if `name` is a setting for a single URL, such as `<VAR>_STUNNEL_VERIFY`.
fn owner(name: &str) -> Option<&str> {
    let owner = |setting: &Declaration| name.strip_suffix(setting.variable)?.strip_suffix('_');
    options::for_one_url().find_map(owner).filter(|owner| !owner.is_empty())
}

/// Returns the setting that the user probably means by `name`: the setting with the most similar
/// name. Ignores settings that the user has set, and settings for which `value` would be invalid.
/// If the most similar name is a setting's old name, returns the setting's current name. Returns
/// `None` if no name is similar enough.
fn intended(name: &str, value: &OsStr, sources: Sources<'_>) -> Option<String> {
    let unset = options::ALL.iter().filter(|setting| sources.find(setting).is_none());
    let general = unset.flat_map(|setting| {
        setting.variables().map(|name| (*setting, name.to_owned(), setting.variable.to_owned()))
    });
    let variable = name.rsplit_once(INFIX).map(|(variable, _)| variable);
    let own = variable.into_iter().flat_map(|variable| {
        let names = options::for_one_url().map(|setting| (setting, setting.for_one(variable)));
        let unset = names.filter(|(_, name)| lookup(sources.environment, name).is_none());
        unset.map(|(setting, name)| (setting, name.clone(), name))
    });
    general
        .chain(own)
        .filter(|(setting, known, _)| is_close(name, known) && is_valid(setting, value))
        .min_by_key(|(_, known, _)| osa_distance(name, known))
        .map(|(_, _, current)| current)
}

/// Returns true if `name` is probably a misspelling of `known`.
pub fn is_close(name: &str, known: &str) -> bool {
    name.len().abs_diff(known.len()) <= MOST_EDITS && osa_distance(name, known) <= MOST_EDITS
}

/// Returns true if `value` would be valid for `setting`. If `value` names a file, the file's
/// contents must be valid, too.
fn is_valid(setting: &'static Declaration, value: &OsStr) -> bool {
    let found = Found { name: String::new(), value, setting };
    found.check().is_ok() && (!setting.is_pem || trust::read_pem(&found).is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::plan::Unused;
    use super::super::tests::{environment, read};

    /// Returns the variables among `pairs` that have no effect, or the errors about misspelt
    /// settings.
    fn unused(options: &[&str], pairs: &[(&str, &str)]) -> Result<Unused, Vec<String>> {
        read(options, &environment(pairs)).map(|configuration| configuration.plan.unused)
    }

    #[test]
    fn misspelt_setting_is_reported_with_the_intended_one() {
        for (name, value, intended) in [
            ("STUNNEL_VERFIY", "full", "STUNNEL_VERIFY"),
            ("STUNNEL_VERIFIY", "full", "STUNNEL_VERIFY"),
            ("STUNNEL_VERIY", "ca", "STUNNEL_VERIFY"),
            ("STUNNEL_ENABLE", "false", "STUNNEL_ENABLED"),
            ("STUNNEL_LOGLEVL", "debug", "STUNNEL_LOG_LEVEL"),
            ("STUNNEL_CONECTION_RETRY", "yes", "STUNNEL_CONNECT_RETRY"),
            ("STUNNEL_CAFILE", "/etc/hostname", "STUNNEL_CA_FILE"),
            ("REDIS_STUNNEL_URL", "REDIS_URL", "REDIS_STUNNEL_URLS"),
            ("REDIS_STUNEL_URLS", "A B", "REDIS_STUNNEL_URLS"),
            ("REDIS_URL_STUNNEL_VERFIY", "full", "REDIS_URL_STUNNEL_VERIFY"),
            ("A_STUNNEL_B_STUNNEL_POL", "on", "A_STUNNEL_B_STUNNEL_POOL"),
        ] {
            let errors = unused(&[], &[(name, value)]).expect_err(name);
            let expected = format!("{name} is not a setting, but looks like a misspelling of");
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].starts_with(&format!("{expected} {intended};")), "{errors:?}");
        }
    }

    #[test]
    fn unknown_name_without_a_similar_setting_is_no_error() {
        for (options, pairs) in [
            // No setting's name is within two edits of this name.
            (&[][..], &[("STUNNEL_VRFY_IT", "full")][..]),
            // The value would be invalid for the setting with the most similar name.
            (&[], &[("STUNNEL_PORT", "tcp://10.0.0.1:6379")]),
            (&[], &[("STUNNEL_PINS", "hunter2")]),
            (&[], &[("STUNNEL_CAFILE", "/no/such")]),
            (&[], &[("REDIS_STUNNEL_URL", "redis://h")]),
            // The user has also set the setting with a similar name, STUNNEL_VERIFY.
            (&[], &[("STUNNEL_VERFIY", "full"), ("STUNNEL_VERIFY", "ca")]),
            (&[], &[("STUNNEL_LOGLEVL", "info"), ("STUNNEL_LOGLEVEL", "debug")]),
            (&["--verify", "ca"], &[("STUNNEL_VERFIY", "full")]),
            // The setting STUNNEL_LISTEN_PORT cannot be set for a single URL.
            (&[], &[("REDIS_URL_STUNNEL_LISTEN_PORT", "1")]),
        ] {
            let unused = unused(options, pairs).unwrap();
            assert_eq!(unused.unknown, [pairs[0].0], "{pairs:?}");
            assert!(unused.without_url.is_empty());
        }
    }

    #[test]
    fn correct_settings_and_other_variables_cause_no_error() {
        let unused = unused(
            &[],
            &[
                ("STUNNEL_VERIFY", "full"),
                ("STUNNEL_LOGLEVEL", "info"),
                ("STUNNEL_SPARES", "1"),
                ("REDIS_STUNNEL_URLS", "REDIS_URL"),
                ("REDIS_URL", "redis://h"),
                ("CACHE_URL_STUNNEL_VERIFY", "full"),
                ("CACHE_URL_STUNNEL", "redis://127.0.0.1:1"),
                ("STUNNEL_VERFIY", ""),
                ("STUNNEL", "x"),
                ("MYSTUNNEL_X", "x"),
            ],
        );
        let unused = unused.unwrap();
        assert_eq!(
            (unused.unknown, unused.without_url),
            (vec![], vec!["CACHE_URL_STUNNEL_VERIFY".to_owned()])
        );
    }
}
