//! Keeps passwords and keys out of logs and errors.

use std::fmt;

/// The text that is shown in place of a secret.
pub const MASK: &str = "***";

/// A secret text. `Debug` and `Display` show [`MASK`] instead of the text, so that no log, error or
/// panic can print the text by mistake. An empty text is not masked.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Returns the secret text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { MASK })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns the text that errors show in place of the secret `value`. The text contains only the
/// value's length.
pub fn hidden(value: &str) -> String {
    format!("a value of {length} bytes, not shown", length = value.len())
}

/// Returns the text that an error shows for `value`, which is normally public, such as a path or a
/// pin. Control characters are escaped, so that users see a line end at the end of a value. If the
/// value looks like PEM text, a key, a URL (even if it is percent-encoded or lacks a slash) or a
/// connection string, or has several lines, the user probably set the wrong variable, so the error
/// does not show the value.
pub fn shown(value: &str) -> String {
    const LONGEST: usize = 255;
    const SHORTEST_KEY: usize = 40;
    let misplaced = ["BEGIN ", "://", ":/:", "@", "%"].iter().any(|mark| value.contains(mark));
    // A connection string, such as `host:6380,password=…`. In base64, `=` is only at the end.
    let is_padding = |rest: &str| rest.is_empty() || rest.starts_with([';', ',', ' ', '\n', '\r']);
    let has_fields = value.split('=').skip(1).any(|rest| !is_padding(rest));
    // The shortest private key is an Ed25519 key in PKCS#8. Its base64 text has 64 characters
    // (RFC 8410). Absolute paths and pins (`sha256//…`) may be as long, and no key begins with `/`.
    let is_key = !value.trim_start().starts_with('/')
        && value
            .split(|c: char| !c.is_ascii_alphanumeric() && !"+/".contains(c))
            .any(|run| run.len() >= SHORTEST_KEY && !run.starts_with("sha"));
    if misplaced
        || has_fields
        || is_key
        || value.len() > LONGEST
        || value.trim().contains(['\n', '\r'])
    {
        return hidden(value);
    }
    let escape =
        |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    format!("'{escaped}'", escaped = value.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_printed_as_a_mask() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(Secret::default().to_string(), "");
    }

    #[test]
    fn error_shows_paths_and_pins_but_no_misplaced_secret() {
        for public in [
            "/srv/my-app/releases/20270101120000/config/redis/ca.pem",
            "/etc/ssl/my ca.pem",
            "sha256//x=",
            "sha1//x;y",
            "sha256:AB:CD",
        ] {
            assert_eq!(shown(public), format!("'{public}'"));
        }
        for (value, escaped) in [
            ("full\n", "'full\\n'"),
            ("\r\nca\r\n", "'\\r\\nca\\r\\n'"),
            ("a\tb\u{1b}", "'a\\tb\\u{1b}'"),
        ] {
            assert_eq!(shown(value), escaped);
        }
        for hidden in [
            "redis://:pw@h",
            "user:pw@h",
            "redis%3A%2F%2F%3Apw%40h",
            "h:6380,password=pw,ssl=True",
            "h:6380,password=$pw",
            "-----BEGIN PRIVATE KEY-----",
            "/a\nb",
            "\nMC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u\n",
            "key=\"MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u\"",
            "/".repeat(256).as_str(),
        ] {
            assert!(shown(hidden).ends_with("not shown"), "{hidden}");
        }
    }
}
