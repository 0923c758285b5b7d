//! Parses a Redis URL, shows it with masked passwords, and builds the URL of its tunnel.
//!
//! User, password, path and query stay as written, including percent-encoding. Only the host and
//! the port are decoded, because the tunnel needs them.

mod problem;
mod query;
mod text;

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::secret::Secret;
pub use problem::Problem;
pub use query::UrlTlsParameters;
use query::{key_of, without_tls_parameters};
pub use text::UrlText;

/// The default port, <https://www.iana.org/assignments/uri-schemes/prov/redis>.
pub const DEFAULT_PORT: u16 = 6379;

/// The maximum length of a host name, with its final dot (RFC 1035 section 3.1).
const LONGEST_NAME: usize = 254;

/// The scheme of a URL that leads to a Unix socket, as in redis-py, go-redis and ioredis:
/// <https://redis.readthedocs.io/en/stable/connections.html>.
pub const UNIX: &str = "unix";
/// The query parameter with the number of the database, in the URL of a Unix socket.
const DATABASE: &str = "db";
/// The local address of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// A port on 127.0.0.1.
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

/// The scheme of a Redis URL, such as `rediss`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    word: &'static str,
    /// The scheme of the same URL without TLS.
    plaintext: &'static str,
}

const SCHEMES: [Scheme; 4] = [
    Scheme { word: "redis", plaintext: "redis" },
    Scheme { word: "rediss", plaintext: "redis" },
    Scheme { word: "valkey", plaintext: "valkey" },
    Scheme { word: "valkeys", plaintext: "valkey" },
];

impl Scheme {
    /// The scheme at the start of `value`; `None`: `value` is no Redis URL. Ignores upper and lower
    /// case, and white space before the scheme.
    pub fn of(value: &str) -> Option<Scheme> {
        let (word, _) = value.trim_start().split_once(':')?;
        SCHEMES.into_iter().find(|scheme| scheme.word.eq_ignore_ascii_case(word))
    }
}

/// User and password of a URL, percent-decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: Option<Secret>,
    pub password: Secret,
}

/// A parsed Redis URL. `Debug` and `Display` mask user, password, fragment, and the parameters of
/// the query that may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    scheme: Scheme,
    /// The part of the authority before its last `@`, as written.
    userinfo: Option<Secret>,
    host: Host<String>,
    port: u16,
    /// Path, with its leading slash, as written; may be empty.
    path: String,
    /// The part after `?`, as written.
    query: Option<Secret>,
    /// The part after `#`, as written.
    fragment: Option<Secret>,
}

impl RedisUrl {
    /// Parses `value` as a URL of RFC 3986 section 3.
    ///
    /// # Errors
    /// Describes the problem without showing any part of the value.
    pub fn parse(value: &str) -> Result<RedisUrl, Problem> {
        let scheme = Scheme::of(value).ok_or(Problem::NOT_REDIS)?;
        if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Problem::UNPRINTABLE);
        }
        let rest = value[scheme.word.len()..].strip_prefix("://").ok_or(Problem::NO_SLASHES)?;

        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (userinfo, host_and_port) = match authority.rsplit_once('@') {
            Some((userinfo, rest)) => (Some(Secret::new(userinfo)), rest),
            None => (None, authority),
        };
        // In a password that is not percent-encoded, characters such as / end the authority too
        // early. The next checks detect such URLs.
        let lists_hosts = userinfo.as_ref().is_some_and(|userinfo| {
            let (_, behind) = split_off(userinfo.expose(), '@');
            behind.is_some_and(|behind| behind.contains([',', ';']))
        });
        if rest.contains("://") || lists_hosts {
            return Err(Problem::SEVERAL_URLS);
        }
        if tail.contains('@') {
            return Err(Problem::UNESCAPED_USERINFO);
        }
        if host_and_port.contains([',', ';']) {
            return Err(Problem::HOST_LIST);
        }
        let (host, port) = split_port(host_and_port)?;
        if host.is_empty() {
            return Err(Problem::NO_HOST);
        }
        let host = parse_host(host).ok_or(Problem::HOST)?;

        let (tail, fragment) = split_off(tail, '#');
        let (path, query) = split_off(tail, '?');
        Ok(RedisUrl {
            scheme,
            userinfo,
            host,
            port,
            path: path.to_owned(),
            query: query.map(Secret::new),
            fragment: fragment.map(Secret::new),
        })
    }

    /// True if the scheme is `rediss` or `valkeys`.
    pub fn is_tls(&self) -> bool {
        self.scheme.word != self.scheme.plaintext
    }

    pub fn host(&self) -> &Host<String> {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL for clients of the tunnel at `local`: this URL with the tunnel's address, a scheme
    /// without TLS, and no TLS parameters.
    pub fn local(&self, local: &Local) -> UrlText {
        let query = self.query.as_ref().and_then(|query| without_tls_parameters(query.expose()));
        match local {
            Local::Port(_) => {
                let place = format!("{local}{}", self.path);
                self.text(self.scheme.plaintext, &place, query.as_deref())
            }
            Local::Socket(path) => {
                let path = Url::from_file_path(path).expect("the path of a socket is absolute");
                self.text(UNIX, path.path(), self.with_database(query).as_deref())
            }
        }
    }

    /// Adds the database in the URL's path to `query`. The path of the local URL is the socket's
    /// path, so clients look for the database in the query.
    fn with_database(&self, query: Option<String>) -> Option<String> {
        let given = query.as_deref().unwrap_or_default();
        let is_named = given.split('&').any(|part| key_of(part) == DATABASE);
        match self.database() {
            Some(database) if given.is_empty() => Some(format!("{DATABASE}={database}")),
            Some(database) if !is_named => Some(format!("{DATABASE}={database}&{given}")),
            _ => query,
        }
    }

    fn text(&self, scheme: &str, place: &str, query: Option<&str>) -> UrlText {
        let [userinfo, fragment] =
            [&self.userinfo, &self.fragment].map(|part| part.as_ref().map(Secret::expose));
        UrlText::new(scheme, userinfo, place, query, fragment)
    }

    /// The number of the database in the URL's path, as text.
    pub fn database(&self) -> Option<&str> {
        let database = self.path.trim_matches('/');
        let is_number = !database.is_empty() && database.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(database)
    }

    /// User and password; `None` if the URL has no password.
    pub fn credentials(&self) -> Option<Credentials> {
        let (user, password) = self.userinfo.as_ref()?.expose().split_once(':')?;
        let decoded = |text: &str| Secret::new(percent_decode_str(text).decode_utf8_lossy());
        (!password.is_empty()).then(|| Credentials {
            user: (!user.is_empty()).then(|| decoded(user)),
            password: decoded(password),
        })
    }

    /// The TLS parameters in the URL's query.
    ///
    /// # Errors
    /// If a TLS parameter is unknown or empty, or if two TLS parameters contradict each other.
    pub fn tls_parameters(&self) -> Result<UrlTlsParameters, Problem> {
        query::tls_parameters(self.query.as_ref().map_or("", Secret::expose))
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{}:{}{}", self.host, self.port, self.path);
        self.text(self.scheme.word, &place, self.query.as_ref().map(Secret::expose)).fmt(f)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses an IP address, or a host name of letters, digits, `-`, `.` (RFC 1123 section 2.1) and `_`
/// (common in Docker). The `url` crate accepts more characters in names, such as `,` and `;`.
pub fn parse_host(text: &str) -> Option<Host<String>> {
    let host = Host::parse(text).ok()?;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match &host {
        Host::Domain(name) if name.len() > LONGEST_NAME || !name.bytes().all(is_part) => None,
        _ => Some(host),
    }
}

/// The host without the brackets of an IPv6 address, for name lookup and SNI.
pub fn unbracketed(host: &Host<String>) -> String {
    match host {
        Host::Domain(name) => name.clone(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

/// Splits `h:1`, `[::1]:1`, `h:` or `h` into host and port. A missing port is the default port.
fn split_port(authority: &str) -> Result<(&str, u16), Problem> {
    let after_host = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']').ok_or(Problem::HOST)? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(after_host);
    let port = match port.strip_prefix(':') {
        Some("") => DEFAULT_PORT,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port != 0).ok_or(Problem::PORT)?
        }
        None if port.is_empty() => DEFAULT_PORT,
        _ => return Err(Problem::PORT),
    };
    Ok((host, port))
}

fn split_off(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests;
