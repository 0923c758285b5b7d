//! Finds misspelt and unknown settings, because a typo must never weaken security.

use std::ffi::OsStr;

use strsim::osa_distance;

use super::certificates;
use super::options::{self, Declaration};
use super::sources::{ConfigError, Found, Sources};
use crate::names;

/// The largest edit distance between a misspelt name and the setting's name.
const MOST_EDITS: usize = 2;
/// The prefix of the settings for all URLs.
const PREFIX: &str = "STUNNEL_";
/// The text between `<VAR>` and the setting in a name such as `<VAR>_STUNNEL_POOL`.
const INFIX: &str = "_STUNNEL_";

/// Variables that look like settings, but are no settings for all URLs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Misspelt settings, each with the intended name.
    pub misspelt: Vec<ConfigError>,
    /// Unknown names.
    pub unknown: Vec<String>,
    /// Settings for one URL.
    pub for_one_url: Vec<String>,
}

/// Finds the suspects in the environment.
pub fn suspects(sources: Sources<'_>) -> Suspects {
    let mut suspects = Suspects::default();
    let set = sources.environment.iter().filter(|(_, value)| !value.is_empty());
    for (name, value) in set.filter_map(|(name, value)| Some((name.to_str()?, value))) {
        if !looks_like_setting(name) || is_general(name) {
            continue;
        }
        if owner(name).is_some() {
            suspects.for_one_url.push(name.to_owned());
        } else if let Some(intended) = intended(name, value, sources) {
            let problem = format!(
                "is not a setting, and looks like a misspelling of {intended}; rename it to \
                 {intended}, or unset it"
            );
            suspects.misspelt.push(ConfigError::new(name, problem));
        } else {
            suspects.unknown.push(name.to_owned());
        }
    }
    suspects
}

fn looks_like_setting(name: &str) -> bool {
    name.starts_with(PREFIX) || name.contains(INFIX) || is_close(name, names::URLS)
}

/// True if `name` is a current or retired setting for all URLs.
fn is_general(name: &str) -> bool {
    let is_name_of = |setting: &&Declaration| {
        setting.variable == name || setting.old_variable.is_some_and(|old| old == name)
    };
    options::ALL.iter().any(is_name_of) || name == options::RETIRED_VARIABLE
}

/// `<VAR>`, if `name` is a setting for the URL in `<VAR>` alone, such as `<VAR>_STUNNEL_VERIFY`.
pub fn owner(name: &str) -> Option<&str> {
    let owner = |setting: &Declaration| name.strip_suffix(setting.variable)?.strip_suffix('_');
    options::for_one_url().find_map(owner).filter(|owner| !owner.is_empty())
}

/// A name of a setting.
struct Spelling {
    setting: &'static Declaration,
    name: String,
    /// The name to recommend: the current one, if `name` is an old name.
    current: String,
}

/// The name of the closest unset setting for which `value` would be valid.
fn intended(name: &str, value: &OsStr, sources: Sources<'_>) -> Option<String> {
    let spellings = spellings(name, sources).into_iter();
    let fitting =
        spellings.filter(|known| is_close(name, &known.name) && is_valid(known.setting, value));
    let closest = fitting.min_by_key(|known| osa_distance(name, &known.name));
    closest.map(|known| known.current)
}

/// The names of all unset settings, including those for the URL in `<VAR>` if `name` begins with
/// `<VAR>_STUNNEL_`.
fn spellings(name: &str, sources: Sources<'_>) -> Vec<Spelling> {
    let mut spellings = Vec::new();
    for setting in options::ALL.iter().filter(|setting| !sources.is_given(setting)) {
        for name in [Some(setting.variable), setting.old_variable].into_iter().flatten() {
            let (name, current) = (name.to_owned(), setting.variable.to_owned());
            spellings.push(Spelling { setting, name, current });
        }
    }
    if let Some((variable, _)) = name.rsplit_once(INFIX) {
        let unset = |setting: &&'static Declaration| sources.per_url(variable, setting).is_none();
        for setting in options::for_one_url().filter(unset) {
            let name = setting.for_one(variable);
            spellings.push(Spelling { setting, current: name.clone(), name });
        }
    }
    spellings
}

fn is_close(name: &str, setting: &str) -> bool {
    name.len().abs_diff(setting.len()) <= MOST_EDITS && osa_distance(name, setting) <= MOST_EDITS
}

/// True if `value` would be valid for `setting`, including the file that it names.
fn is_valid(setting: &'static Declaration, value: &OsStr) -> bool {
    let found = Found { source: String::new(), value, declaration: setting };
    found.check().is_ok() && (!setting.is_pem || certificates::read_pem(&found).is_ok())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::cli::Invocation;
    use super::super::tests::environment;
    use super::*;

    /// The misspelt, the unknown and the settings for one URL among `pairs`.
    fn found(options: &[&str], pairs: &[(&str, &str)]) -> [Vec<String>; 3] {
        let words = ["start-stunnel"].iter().chain(options).chain(&["true"]);
        let invocation = Invocation::parse_from(words.map(OsString::from)).unwrap();
        let environment = environment(pairs);
        let sources = Sources { invocation: &invocation, environment: &environment };
        let suspects = suspects(sources);
        let misspelt = suspects.misspelt.iter().map(ConfigError::to_string).collect();
        [misspelt, suspects.unknown, suspects.for_one_url]
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
            let [misspelt, unknown, for_one] = found(&[], &[(name, value)]);
            let expected = format!("{name} is not a setting, and looks like a misspelling of");
            assert_eq!(misspelt.len(), 1, "{name}: {unknown:?}");
            assert!(misspelt[0].starts_with(&format!("{expected} {intended};")), "{misspelt:?}");
            assert!(unknown.is_empty() && for_one.is_empty());
        }
    }

    #[test]
    fn unknown_name_without_a_similar_setting_is_no_error() {
        for (options, pairs) in [
            // Not within two edits.
            (&[][..], &[("STUNNEL_VRFY_IT", "full")][..]),
            // Not a value of the setting.
            (&[], &[("STUNNEL_PORT", "tcp://10.0.0.1:6379")]),
            (&[], &[("STUNNEL_PINS", "hunter2")]),
            (&[], &[("STUNNEL_CAFILE", "/no/such")]),
            (&[], &[("REDIS_STUNNEL_URL", "redis://h")]),
            // The intended setting is set.
            (&[], &[("STUNNEL_VERFIY", "full"), ("STUNNEL_VERIFY", "ca")]),
            (&[], &[("STUNNEL_LOGLEVL", "info"), ("STUNNEL_LOGLEVEL", "debug")]),
            (&["--verify", "ca"], &[("STUNNEL_VERFIY", "full")]),
            // A setting for all URLs only.
            (&[], &[("REDIS_URL_STUNNEL_LISTEN_PORT", "1")]),
        ] {
            let [misspelt, unknown, for_one] = found(options, pairs);
            assert_eq!((misspelt, unknown), (vec![], vec![pairs[0].0.to_owned()]), "{pairs:?}");
            assert!(for_one.is_empty());
        }
    }

    #[test]
    fn known_settings_and_other_variables_are_not_suspected() {
        let [misspelt, unknown, for_one] = found(
            &[],
            &[
                ("STUNNEL_VERIFY", "full"),
                ("STUNNEL_LOGLEVEL", "info"),
                ("STUNNEL_SPARES", "1"),
                ("REDIS_STUNNEL_URLS", "A"),
                ("REDIS_URL", "redis://h"),
                ("CACHE_URL_STUNNEL_VERIFY", "full"),
                ("CACHE_URL_STUNNEL", "redis://127.0.0.1:1"),
                ("STUNNEL_VERFIY", ""),
                ("STUNNEL", "x"),
                ("MYSTUNNEL_X", "x"),
            ],
        );
        assert!(misspelt.is_empty() && unknown.is_empty(), "{misspelt:?} {unknown:?}");
        assert_eq!(for_one, ["CACHE_URL_STUNNEL_VERIFY"]);
    }
}
