//! Text that must not be printed.

use std::fmt;

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// A piece of text that shows as [`MASK`] in `Debug` and `Display`, so that no log, error or panic
/// can print it by mistake. An empty one shows as empty: there is nothing to hide.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for those who must pass it on.
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

/// That there is a value, and no more.
pub fn hidden(value: &str) -> String {
    format!("a value of {} bytes, not shown", value.len())
}

/// A setting's value that is no secret, such as a path or a pin, as an error message may repeat it:
/// as it is, unless it is PEM or a URL, which were then pasted into the wrong place.
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
    fn a_secret_is_printed_as_a_mask_only() {
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
