//! Parses the values of settings. The error of each parser lists the accepted forms, so that the
//! caller can write a message such as "is 'x'; expected LIST". The list never contains the user's
//! text.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::logging::{LEVELS, LevelFilter};
use crate::redis_url;
use crate::status::StatusAddress;
use crate::tls::Pin;

/// The value of `--rediss`, which decides how the launcher treats `rediss://` and `valkeys://`
/// URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rediss {
    Tunnel,
    Passthrough,
}

pub fn text(text: &str) -> Result<String, &'static str> {
    Ok(text.to_owned())
}

/// Parses `text` with `parse`, but returns `None` for empty text, which means that the setting is
/// unset.
fn optional<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<Option<T>, &'static str> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

/// Finds `text` among the words in `expected`, for example "off, on or auto", and returns the
/// word's value. Ignores upper and lower case. `values` are the values of the words, in the same
/// order.
pub fn one_of<T>(
    text: &str,
    expected: &'static str,
    values: impl IntoIterator<Item = T>,
) -> Result<T, &'static str> {
    let words = expected.split(", ").flat_map(|words| words.split(" or "));
    let found = words.zip(values).find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| value).ok_or(expected)
}

pub fn boolean(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("1, true, yes or on; or 0, false, no or off"),
    }
}

pub fn at_least_one(text: &str) -> Result<Option<NonZeroUsize>, &'static str> {
    optional(text, |text| text.parse().map_err(|_| "a whole number, 1 or more"))
}

pub fn pins(text: &str) -> Result<Vec<Pin>, &'static str> {
    const EXPECTED: &str = "sha256// and the base64 of 32 bytes; separate several pins with \
                            semicolons (start-stunnel --check prints the server's pin)";
    let pins = optional(text, |text| Pin::parse_all(text).ok_or(EXPECTED));
    pins.map(Option::unwrap_or_default)
}

pub fn server_name(text: &str) -> Result<Option<String>, &'static str> {
    const EXPECTED: &str = "a host name, or an IP address (IPv6 in brackets)";
    let host = optional(text, |text| redis_url::parse_host(text).ok_or(EXPECTED))?;
    Ok(host.as_ref().map(redis_url::unbracketed))
}

pub fn log_level(text: &str) -> Result<LevelFilter, &'static str> {
    const EXPECTED: &str = "emerg, alert, crit, err, warning, notice, info or debug, or 0 to 7";
    match text.as_bytes() {
        [digit @ b'0'..=b'7'] => Ok(LEVELS[usize::from(digit - b'0')].1),
        _ => one_of(text, EXPECTED, LEVELS.map(|(_, level)| level)),
    }
}

pub fn offset(text: &str) -> Result<i32, &'static str> {
    const EXPECTED: &str = "a whole number from -65534 to 65534";
    const MOST: i32 = u16::MAX as i32 - 1;
    let value: i32 = text.parse().map_err(|_| EXPECTED)?;
    (-MOST..=MOST).contains(&value).then_some(value).ok_or(EXPECTED)
}

pub fn port_or_zero(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "a port from 1 to 65535, or 0 to let the kernel choose a port")
}

pub fn status_address(text: &str) -> Result<Option<StatusAddress>, &'static str> {
    const EXPECTED: &str = "HOST:PORT (such as 0.0.0.0:9121, for every interface), a port on \
                            127.0.0.1 (such as 9121), or unix (for a Unix socket)";
    optional(text, |text| StatusAddress::parse(text).ok_or(EXPECTED))
}

/// Parses the time between two metrics lines: 0 or at least one second. A shorter time would fill
/// the log.
pub fn interval(text: &str) -> Result<Option<Duration>, &'static str> {
    const EXPECTED: &str = "a time of at least 1s, such as 60s, or 0 to log no metrics";
    let is_long = |interval: Duration| interval >= Duration::from_secs(1);
    duration_or_never(text).ok().filter(|interval| interval.is_none_or(is_long)).ok_or(EXPECTED)
}

pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a time such as 500ms, 10s, 5m, 24h, or a bare number of seconds";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds_each: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(EXPECTED),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    number.checked_mul(milliseconds_each).map(Duration::from_millis).ok_or(EXPECTED)
}

pub fn duration_or_never(text: &str) -> Result<Option<Duration>, &'static str> {
    duration(text).map(|time| (!time.is_zero()).then_some(time))
}

pub fn positive_duration(text: &str) -> Result<Duration, &'static str> {
    duration_or_never(text)?
        .ok_or("a time of more than zero, such as 500ms, 10s, 5m, 24h, or a bare number of seconds")
}

/// Returns true if `--urls` accepts `name` as the name of a variable.
pub fn is_variable_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

pub fn names(text: &str) -> Result<Option<Vec<String>>, &'static str> {
    optional(text, |text| {
        let mut names: Vec<String> = Vec::new();
        for name in text.split([' ', ',', '\t', '\n', '\r']).filter(|name| !name.is_empty()) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        let are_names = !names.is_empty() && names.iter().all(|name| is_variable_name(name));
        are_names.then_some(names).ok_or("names of variables, such as \"REDIS_URL CACHE_URL\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typo_in_a_boolean_is_an_error() {
        for (text, value) in [("Off", false), ("0", false), ("YES", true)] {
            assert_eq!(boolean(text), Ok(value), "{text}");
        }
        for text in ["flase", "2", "disabled", " false", ""] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_offset_out_of_range_is_an_error() {
        for (text, value) in [("0", 0), ("-65534", -65534), ("65534", 65534), ("+1", 1)] {
            assert_eq!(offset(text), Ok(value), "{text}");
        }
        for text in ["65535", "-65535", "-2147483648", "2147483647", "-2147483649", "", "1.0"] {
            assert!(offset(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_documented_forms_of_durations_are_accepted() {
        let good = [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7", 7_000),
            ("0", 0),
        ];
        for (text, milliseconds) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "",
            "s",
            "1.5s",
            "-1",
            "+1",
            "10 s",
            "10S",
            "1d",
            "99999999999999999999",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn log_levels_are_syslogs_names_or_numbers() {
        for (text, level) in [
            ("emerg", LevelFilter::OFF),
            ("0", LevelFilter::OFF),
            ("3", LevelFilter::ERROR),
            ("ERR", LevelFilter::ERROR),
            ("5", LevelFilter::INFO),
            ("Debug", LevelFilter::TRACE),
            ("7", LevelFilter::TRACE),
        ] {
            assert_eq!(log_level(text), Ok(level), "{text}");
        }
        for text in ["warn", "error", "8", "-1", "55", "trace"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_variables_are_separated_by_spaces_or_commas() {
        let some = |names: &[&str]| Ok(Some(names.iter().map(|name| name.to_string()).collect()));
        assert_eq!(names(""), Ok(None));
        assert_eq!(names("A"), some(&["A"]));
        assert_eq!(names("A B,C, D  E,"), some(&["A", "B", "C", "D", "E"]));
        assert_eq!(names("A B A"), some(&["A", "B"]));
        for text in [" ", ",", "A=B", "redis://h"] {
            assert!(names(text).is_err(), "{text}");
        }
    }
}
