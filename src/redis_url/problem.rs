//! The errors about a value that should be a Redis URL.

use std::fmt;

/// An error about a value that should be a Redis URL. The error shows no part of the value, because
/// any part may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The rest of a sentence that begins with the name of the variable.
    text: &'static str,
    /// The end of the message: the accepted form of a URL.
    remedy: &'static str,
}

/// The end of messages about the query, which need not repeat the form of a URL.
const QUERY: &str = "";
const FORM: &str = "; expected redis://[USER]:[PASSWORD]@HOST[:PORT][/DATABASE]";
/// The end of messages about problems that a password without percent-encoding can cause.
const PASSWORD: &str = "; expected redis://[USER]:[PASSWORD]@HOST[:PORT][/DATABASE], with the \
                        password percent-encoded: %2F for /, %3F for ?, %23 for #, %40 for @, %3A \
                        for :, %2C for a comma";

impl Problem {
    pub const NOT_UTF8: Problem =
        Problem::new("is not valid UTF-8; percent-encode characters that are not ASCII", FORM);
    pub const NOT_REDIS: Problem = Problem::new(
        "does not begin with redis://, rediss://, valkey:// or valkeys:// (is there a quote at the \
         start?)",
        FORM,
    );
    pub const UNPRINTABLE: Problem = Problem::new(
        "contains white space or a control character (a line break or a quote, copied by \
         mistake?); percent-encode it (%20 for a space) or remove it",
        FORM,
    );
    pub const NO_SLASHES: Problem = Problem::new("has no // after its scheme", FORM);
    pub const NO_HOST: Problem = Problem::new("names no host", PASSWORD);
    pub const HOST: Problem = Problem::new(
        "has a host that is neither a name (letters, digits, - . and _) nor an IP address (IPv6 in \
         brackets)",
        PASSWORD,
    );
    pub const HOST_LIST: Problem = Problem::new(
        "is a list of hosts, but a tunnel leads to one host; give each host a variable of its own \
         and list these variables in REDIS_STUNNEL_URLS, or name one host that always leads to the \
         primary",
        PASSWORD,
    );
    pub const PORT: Problem =
        Problem::new("has a port that is not a number from 1 to 65535", PASSWORD);
    pub const UNESCAPED_USERINFO: Problem = Problem::new("has an @ after its host", PASSWORD);
    pub const SEVERAL_URLS: Problem = Problem::new(
        "contains more than one URL (give each URL a variable of its own), or a :// in its \
         password",
        PASSWORD,
    );
    pub const SSL_CERT_REQS: Problem = Problem::new(
        "has an ssl_cert_reqs with a value other than required, optional and none",
        QUERY,
    );
    pub const SSL_CA_CERTS: Problem =
        Problem::new("has an ssl_ca_certs without a file name", QUERY);
    pub const SSL_TWICE: Problem =
        Problem::new("has ssl_cert_reqs or ssl_ca_certs twice, with different values", QUERY);

    const fn new(text: &'static str, remedy: &'static str) -> Problem {
        Problem { text, remedy }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, self.remedy)
    }
}
