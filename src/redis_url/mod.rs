//! Parses a Redis URL, shows it with masked passwords, and builds the URL of its tunnel.
//!
//! User, password, path and query stay as the user wrote them, including percent-encoding. Only the
//! host and the port are decoded, because the tunnel needs the host and the port.

mod query;

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::secret::{MASK, Secret};
pub use query::UrlTlsParameters;
use query::{key_of, without_tls_parameters};

/// The port of a Redis URL that contains no port:
/// <https://www.iana.org/assignments/uri-schemes/prov/redis>.
pub const DEFAULT_PORT: u16 = 6379;

/// The maximum length of a host name in bytes, including its final dot (RFC 1035 section 3.1).
const LONGEST_NAME: usize = 254;

/// The scheme of a URL that leads to a Unix socket, as in redis-py, go-redis and ioredis:
/// <https://redis.readthedocs.io/en/stable/connections.html>.
pub const UNIX: &str = "unix";
/// The query parameter that contains the number of the database in a URL that leads to a Unix
/// socket.
const DATABASE: &str = "db";
/// The form of URL that the launcher accepts, as errors describe it.
pub const FORM: &str = "redis://[USER]:[PASSWORD]@HOST[:PORT][/DATABASE], with the password \
                        percent-encoded: %2F for /, %3F for ?, %23 for #, %40 for @, %3A for :, \
                        %2C for a comma";

const WRONG_HOST: &str = "has a host that is neither a name (letters, digits, - . and _) nor an IP \
                          address (IPv6 in brackets)";
const WRONG_PORT: &str = "has a port that is not a number from 1 to 65535";

/// The address at which a tunnel accepts app connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// The tunnel accepts connections on this port of 127.0.0.1.
    Port(u16),
    Socket(PathBuf),
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Local::Port(port) => write!(f, "{}:{port}", std::net::Ipv4Addr::LOCALHOST),
            Local::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The schemes of Redis URLs, each with the scheme of the same URL without TLS.
const SCHEMES: [(&str, &str); 4] =
    [("redis", "redis"), ("rediss", "redis"), ("valkey", "valkey"), ("valkeys", "valkey")];

/// Returns the scheme at the start of `value`, and the scheme of the same URL without TLS. Returns
/// `None` if `value` is not a Redis URL. Ignores the case of letters, and white space before the
/// scheme.
fn schemes_of(value: &str) -> Option<(&'static str, &'static str)> {
    let (word, _) = value.trim_start().split_once(':')?;
    SCHEMES.into_iter().find(|(scheme, _)| scheme.eq_ignore_ascii_case(word))
}

/// Returns true if `value` begins with the scheme of a Redis URL.
pub fn has_scheme(value: &str) -> bool {
    schemes_of(value).is_some()
}

/// The percent-decoded user and password of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: Option<Secret>,
    pub password: Secret,
}

/// The text of a URL in two forms, with and without its secrets.
#[derive(Debug, Clone)]
pub struct UrlText {
    /// The whole URL, with its secrets.
    pub whole: Secret,
    /// The URL with a mask in place of the user, the password, the fragment and most of the query.
    pub shown: String,
}

/// A parsed Redis URL. `Debug` and `Display` mask user, password, fragment, and the parameters of
/// the query that may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    scheme: &'static str,
    /// The scheme that this URL would have without TLS.
    plaintext: &'static str,
    /// The part of the URL with user, password and `@`, as the user wrote this part. May be empty.
    userinfo: Secret,
    pub host: Host<String>,
    pub port: u16,
    /// The URL's path, including its leading slash, as the user wrote it. May be empty.
    path: String,
    /// The URL's query, including the `?`, as the user wrote it. May be empty.
    query: Secret,
    /// The URL's fragment, including the `#`, as the user wrote it. May be empty.
    fragment: Secret,
}

impl RedisUrl {
    /// Parses `value` as a URL with the syntax of RFC 3986 section 3.
    ///
    /// # Errors
    /// Returns an error if `value` is not a valid Redis URL. The error is the rest of a sentence
    /// that begins with the name of the variable. The error contains no part of `value`, because
    /// any part may be a password.
    pub fn parse(value: &str) -> Result<RedisUrl, &'static str> {
        let (scheme, plaintext) = schemes_of(value).ok_or(
            "does not begin with redis://, rediss://, valkey:// or valkeys:// (is there a quote at \
             the start?)",
        )?;
        if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(
                "contains white space or a control character (is it a line break, copied by \
                 mistake?); percent-encode it (%20 for a space) or remove it",
            );
        }
        let rest = value[scheme.len()..].strip_prefix("://").ok_or("has no // after its scheme")?;

        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (userinfo, host_and_port) =
            authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        // If the user did not percent-encode the password, a character such as / in the password
        // ends the URL's authority too early. The checks below detect such URLs.
        let behind = userinfo.split_once('@').map_or("", |(_, behind)| behind);
        if rest.contains("://") || behind.contains([',', ';']) {
            return Err(
                "contains more than one URL (give each URL a variable of its own), or a password \
                 with an unencoded @ or ://",
            );
        }
        if tail.contains('@') {
            return Err("has an @ after its host");
        }
        if host_and_port.contains([',', ';']) {
            return Err(
                "contains several hosts, but a tunnel leads to one host; give each host a variable \
                 of its own and list these variables in REDIS_STUNNEL_URLS, or write one host name \
                 that always leads to the primary",
            );
        }
        let (host, port) = split_port(host_and_port)?;
        if host.is_empty() {
            return Err("names no host");
        }
        let host = parse_host(host).ok_or(WRONG_HOST)?;

        let (tail, fragment) = tail.split_at(tail.find('#').unwrap_or(tail.len()));
        let (path, query) = tail.split_at(tail.find('?').unwrap_or(tail.len()));
        let [userinfo, query, fragment] = [userinfo, query, fragment].map(Secret::new);
        let path = path.to_owned();
        Ok(RedisUrl { scheme, plaintext, userinfo, host, port, path, query, fragment })
    }

    /// Returns true if the URL's scheme is `rediss` or `valkeys`.
    pub fn is_tls(&self) -> bool {
        self.scheme != self.plaintext
    }

    /// Returns the URL with which the app connects to the tunnel at `local`: this URL, but with the
    /// tunnel's address, a scheme without TLS, and no TLS parameters.
    pub fn local(&self, local: &Local) -> UrlText {
        let query = without_tls_parameters(self.query.expose());
        match local {
            Local::Port(_) => {
                let place = format!("{local}{}", self.path);
                self.text(self.plaintext, &place, &query)
            }
            Local::Socket(path) => {
                let path = Url::from_file_path(path).expect("the path of a socket is absolute");
                self.text(UNIX, path.path(), &self.with_database(query))
            }
        }
    }

    /// Adds the number of the database from this URL's path to `query`. In a URL that leads to a
    /// Unix socket, the path is the socket's path, so clients expect the number of the database in
    /// the query.
    fn with_database(&self, query: String) -> String {
        let given = query.strip_prefix('?').unwrap_or_default();
        let is_named = given.split('&').any(|part| key_of(part) == DATABASE);
        match self.database() {
            Some(database) if given.is_empty() => format!("?{DATABASE}={database}"),
            Some(database) if !is_named => format!("?{DATABASE}={database}&{given}"),
            _ => query,
        }
    }

    fn text(&self, scheme: &str, place: &str, query: &str) -> UrlText {
        let [userinfo, fragment] = [&self.userinfo, &self.fragment].map(Secret::expose);
        let whole = format!("{scheme}://{userinfo}{place}{query}{fragment}");
        let [query, fragment] = [query, fragment].map(mask_query);
        let shown = format!("{scheme}://{}{place}{query}{fragment}", mask_userinfo(userinfo));
        UrlText { whole: Secret::new(whole), shown }
    }

    /// Returns the text of the database number in the URL's path.
    pub fn database(&self) -> Option<&str> {
        let database = self.path.trim_matches('/');
        let is_number = !database.is_empty() && database.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(database)
    }

    /// Returns the user and password, or `None` if the URL contains no password.
    pub fn credentials(&self) -> Option<Credentials> {
        let (user, password) = self.userinfo.expose().strip_suffix('@')?.split_once(':')?;
        let decoded = |text: &str| Secret::new(percent_decode_str(text).decode_utf8_lossy());
        (!password.is_empty()).then(|| Credentials {
            user: (!user.is_empty()).then(|| decoded(user)),
            password: decoded(password),
        })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{}:{}{}", self.host, self.port, self.path);
        f.write_str(&self.text(self.scheme, &place, self.query.expose()).shown)
    }
}

/// Parses an IP address, or a host name of letters, digits, `-`, `.` (RFC 1123 section 2.1) and `_`
/// (which is common in Docker). The `url` crate accepts more characters in names, such as `,` and
/// `;`.
pub fn parse_host(text: &str) -> Option<Host<String>> {
    let host = Host::parse(text).ok()?;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match &host {
        Host::Domain(name) if name.len() > LONGEST_NAME || !name.bytes().all(is_part) => None,
        _ => Some(host),
    }
}

/// Returns the host without the brackets around an IPv6 address, because name lookup and SNI need
/// this form.
pub fn unbracketed(host: &Host<String>) -> String {
    host.to_string().trim_matches(['[', ']']).to_owned()
}

/// Splits a text such as `h:1`, `[::1]:1`, `h:` or `h` into host and port. If `authority` contains
/// no port, returns the port [`DEFAULT_PORT`].
fn split_port(authority: &str) -> Result<(&str, u16), &'static str> {
    let after_host = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']').ok_or(WRONG_HOST)? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(after_host);
    let port = match port.strip_prefix(':') {
        Some("") => DEFAULT_PORT,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port != 0).ok_or(WRONG_PORT)?
        }
        None if port.is_empty() => DEFAULT_PORT,
        _ => return Err(WRONG_PORT),
    };
    Ok((host, port))
}

/// Replaces user and password in the text `USER:PASSWORD@` by a mask.
fn mask_userinfo(userinfo: &str) -> String {
    let Some(userinfo) = userinfo.strip_suffix('@') else { return String::new() };
    match userinfo.split_once(':') {
        Some((user, password)) => format!("{}:{}@", Secret::new(user), Secret::new(password)),
        None => format!("{}@", Secret::new(userinfo)),
    }
}

/// Masks the values of the parameters in `query`, because some clients accept passwords in the
/// query. Does not mask the values of parameters that are known to be harmless, such as `db`.
/// `query` is a query that begins with `?`, a fragment that begins with `#`, or empty.
fn mask_query(query: &str) -> String {
    const HARMLESS: [&str; 8] = [
        "db",
        "database",
        "protocol",
        "timeout",
        "socket_timeout",
        "connect_timeout",
        "max_connections",
        "ssl_cert_reqs",
    ];
    let mask = |part: &str| match part.split_once('=') {
        // Some libraries also separate parameters by semicolons.
        Some((key, value)) if value.contains(';') || !HARMLESS.contains(&&*key_of(part)) => {
            format!("{key}={MASK}")
        }
        Some(_) => part.to_owned(),
        None => Secret::new(part).to_string(),
    };
    let (mark, query) = query.split_at(query.len().min(1));
    mark.to_owned() + &query.split('&').map(mask).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests;
