//! Why a value is no Redis URL.

use std::fmt;

/// Why a value is no Redis URL. It never holds any part of the value: any part may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    NotUtf8,
    NotRedis,
    Unprintable,
    NoSlashes,
    NoHost,
    Host,
    HostList,
    Port,
    UnescapedUserinfo,
    SeveralUrls,
    SslCertReqs,
    SslCaCerts,
    SslTwice,
}

impl Problem {
    /// The problem, as a predicate of the variable that holds the value.
    fn text(self) -> &'static str {
        match self {
            Problem::NotUtf8 => "is not valid UTF-8; percent-encode what is not ASCII",
            Problem::NotRedis => {
                "does not begin with redis://, rediss://, valkey:// or valkeys:// (is there a \
                 quote at the start?)"
            }
            Problem::Unprintable => {
                "contains white space or a control character (a line end or a quote, copied by \
                 mistake?); percent-encode it (%20 for a space) or remove it"
            }
            Problem::NoSlashes => "has no // after its scheme",
            Problem::NoHost => "names no host",
            Problem::Host => {
                "has a host that is neither a name (letters, digits, - . and _) nor an IP address \
                 (IPv6 in brackets)"
            }
            Problem::HostList => {
                "is a list of hosts, but a tunnel leads to one host; give each host a variable of \
                 its own and list these variables in REDIS_STUNNEL_URLS, or name one host that \
                 always leads to the primary"
            }
            Problem::Port => "has a port that is not a number from 1 to 65535",
            Problem::UnescapedUserinfo => "has an @ after its host",
            Problem::SeveralUrls => {
                "contains more than one URL (give each a variable of its own), or a :// in its \
                 password"
            }
            Problem::SslCertReqs => "has an ssl_cert_reqs that is not required, optional or none",
            Problem::SslCaCerts => "has an ssl_ca_certs without a file name",
            Problem::SslTwice => "has ssl_cert_reqs or ssl_ca_certs twice, with different values",
        }
    }

    /// Whether the rest of the URL is right.
    fn is_in_query(self) -> bool {
        matches!(self, Problem::SslCertReqs | Problem::SslCaCerts | Problem::SslTwice)
    }

    /// Whether a password that is not percent-encoded can be the cause.
    fn may_be_password(self) -> bool {
        use Problem::{Host, HostList, NoHost, Port, SeveralUrls, UnescapedUserinfo};
        matches!(self, NoHost | Host | HostList | Port | UnescapedUserinfo | SeveralUrls)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())?;
        if self.is_in_query() {
            return Ok(());
        }
        f.write_str("; expected redis://[USER]:[PASSWORD]@HOST[:PORT][/DATABASE]")?;
        if self.may_be_password() {
            f.write_str(
                ", with the password percent-encoded: %2F for /, %3F for ?, %23 for #, %40 for @, \
                 %3A for :, %2C for a comma",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
