//! Text that must not be printed.

use std::fmt;

/// The text shown in place of a secret.
pub const MASK: &str = "***";

/// Text that `Debug` and `Display` show as [`MASK`], so that no log, error or panic can print it by
/// mistake. Empty text is shown as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, to pass it on.
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

/// Describes a value without showing it.
pub fn hidden(value: &str) -> String {
    format!("a value of {} bytes, not shown", value.len())
}

/// Shows a value that should be no secret, such as a path or a pin, in an error message. A value
/// that looks like PEM, a key or a URL was pasted into the wrong place, and is not shown.
pub fn shown(value: &str) -> String {
    const LONGEST: usize = 255;
    const SHORTEST_KEY: usize = 40;
    let misplaced = ["-----BEGIN", "://", "@"].iter().any(|mark| value.contains(mark));
    // Base64 of a key's DER; the shortest, Ed25519's in PKCS#8, has 64 characters (RFC 8410).
    let is_key = value.starts_with('M') && value.len() >= SHORTEST_KEY && !value.contains('.');
    if misplaced || is_key || value.len() > LONGEST || value.chars().any(char::is_control) {
        hidden(value)
    } else {
        format!("'{value}'")
    }
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
    fn paths_and_pins_are_shown_but_misplaced_secrets_are_not() {
        for public in ["/etc/ssl/my ca.pem", "sha256//x=", "sha1//x;y", "sha256:AB:CD"] {
            assert_eq!(shown(public), format!("'{public}'"));
        }
        for hidden in [
            "redis://:pw@h",
            "user:pw@h",
            "-----BEGIN PRIVATE KEY-----",
            "/a\nb",
            "/".repeat(256).as_str(),
        ] {
            assert!(shown(hidden).ends_with("not shown"), "{hidden}");
        }
    }
}
