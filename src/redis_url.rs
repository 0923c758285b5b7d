//! A Redis URL: parsed, masked, and turned into its local form.
//!
//! User, password, path and query are carried as they were written, percent-encoding included; only
//! the host is understood (by the `url` crate's rules), since that is what a tunnel needs.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use url::Host;

use crate::resp;
use crate::secret::{MASK, Secret};

/// The port of a URL that names none, <https://www.iana.org/assignments/uri-schemes/prov/redis>.
pub const DEFAULT_PORT: u16 = 6379;

/// Characters of a host's name, with its final dot (RFC 1035 section 3.1).
const LONGEST_NAME: usize = 254;

/// The scheme of a URL that names a Unix socket, and the parameter that names the database there,
/// as redis-py, go-redis and ioredis have them:
/// <https://redis.readthedocs.io/en/stable/connections.html>.
pub const UNIX: &str = "unix";
const DATABASE: &str = "db";
/// What must not stand in a path as it is (RFC 3986 section 3.3).
const IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}');

/// Where a tunnel listens on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// A port of 127.0.0.1.
    Port(u16),
    /// A Unix socket.
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

/// The schemes that mean Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Redis,
    Rediss,
    Valkey,
    Valkeys,
}

impl Scheme {
    const ALL: [Scheme; 4] = [Scheme::Redis, Scheme::Rediss, Scheme::Valkey, Scheme::Valkeys];

    /// The scheme that `value` starts with, in any case and behind any white space; `None` when it
    /// is no Redis URL at all.
    pub fn of(value: &str) -> Option<Scheme> {
        let (word, _) = value.trim_start().split_once(':')?;
        Scheme::ALL.into_iter().find(|scheme| scheme.word().eq_ignore_ascii_case(word))
    }

    /// Whether the URL itself asks for TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Rediss | Scheme::Valkeys)
    }

    /// The scheme of the same URL without TLS.
    fn plaintext(self) -> Scheme {
        match self {
            Scheme::Redis | Scheme::Rediss => Scheme::Redis,
            Scheme::Valkey | Scheme::Valkeys => Scheme::Valkey,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Scheme::Redis => "redis",
            Scheme::Rediss => "rediss",
            Scheme::Valkey => "valkey",
            Scheme::Valkeys => "valkeys",
        }
    }
}

/// Why a value is no Redis URL. Never holds any part of the value: any part may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    NotUtf8,
    NotRedis,
    Unprintable,
    NoSlashes,
    NoHost,
    Host,
    Port,
    UnescapedUserinfo,
    SeveralUrls,
    SslCertReqs,
    SslCaCerts,
    SslTwice,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Problem::NotUtf8 => "is not valid UTF-8; percent-encode what is not ASCII",
            Problem::NotRedis => {
                "does not begin with redis://, rediss://, valkey:// or valkeys:// (a quote copied \
                 along?)"
            }
            Problem::Unprintable => {
                "holds white space or a control character (a line end or a quote copied along?); \
                 percent-encode it (%20 for a space) or remove it"
            }
            Problem::NoSlashes => "has no // behind its scheme",
            Problem::NoHost => "names no host",
            Problem::Host => {
                "has a host that is neither a name (letters, digits, - . and _) nor an IP address \
                 (IPv6 in brackets)"
            }
            Problem::Port => "has a port that is not a number from 1 to 65535",
            Problem::UnescapedUserinfo => "has an @ behind its host",
            Problem::SeveralUrls => {
                "holds more than one URL (give each a variable of its own), or a :// in its \
                 password"
            }
            Problem::SslCertReqs => {
                return f
                    .write_str("has an ssl_cert_reqs that is none of required, optional and none");
            }
            Problem::SslCaCerts => {
                return f.write_str("has an ssl_ca_certs without a file's name");
            }
            Problem::SslTwice => {
                return f.write_str("has ssl_cert_reqs or ssl_ca_certs twice, with two values");
            }
        })?;
        f.write_str("; expected redis://[USER]:[PASSWORD]@HOST[:PORT][/DATABASE]")?;
        match self {
            Problem::NoHost
            | Problem::Host
            | Problem::Port
            | Problem::UnescapedUserinfo
            | Problem::SeveralUrls => f.write_str(
                ", with the password percent-encoded: %2F for /, %3F for ?, %23 for #, %40 for @, \
                 %3A for :",
            ),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// What the query of a URL asks of TLS, as redis-py, Celery and Kombu have it:
/// <https://redis.readthedocs.io/en/stable/connections.html>.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlTlsParameters {
    /// `ssl_cert_reqs`: whether the server's certificate must hold.
    pub verify: Option<bool>,
    /// `ssl_ca_certs`: the file with the CAs to trust.
    pub ca_file: Option<String>,
}

/// User and password of a URL, as they go into AUTH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Option<Secret>,
    password: Secret,
}

impl Credentials {
    pub fn user(&self) -> Option<&Secret> {
        self.user.as_ref()
    }

    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// The request that authenticates, in RESP: with the user where there is one (Redis 6).
    pub fn auth_command(&self) -> Vec<u8> {
        let user = self.user.as_ref().map(Secret::expose);
        let words = ["AUTH"].into_iter().chain(user).chain([self.password.expose()]);
        resp::request(&words.collect::<Vec<_>>())
    }

    /// The same without the user, for Redis before 6, which knows only a password.
    pub fn auth_command_without_user(&self) -> Vec<u8> {
        resp::request(&["AUTH", self.password.expose()])
    }
}

/// A parsed Redis URL. `Debug` and `Display` mask user, password and whatever in the query looks
/// like one.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    scheme: Scheme,
    /// What stands before the last `@` of the authority, as written.
    userinfo: Option<Secret>,
    host: Host<String>,
    port: u16,
    /// Path, with its leading slash, as written; may be empty.
    path: String,
    /// What stands behind `?`, as written.
    query: Option<Secret>,
    /// What stands behind `#`, as written.
    fragment: Option<Secret>,
}

impl RedisUrl {
    /// Parses `value` by RFC 3986 section 3, with the host judged by the `url` crate.
    ///
    /// # Errors
    /// [`Problem`] says what is wrong without repeating any of the value.
    pub fn parse(value: &str) -> Result<RedisUrl, Problem> {
        let scheme = Scheme::of(value).ok_or(Problem::NotRedis)?;
        if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Problem::Unprintable);
        }
        let rest = value[scheme.word().len()..].strip_prefix("://").ok_or(Problem::NoSlashes)?;

        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (userinfo, host_and_port) = match authority.rsplit_once('@') {
            Some((userinfo, rest)) => (Some(Secret::new(userinfo)), rest),
            None => (None, authority),
        };
        // Whoever forgot to percent-encode a password has one of these: then no part is what it
        // seems to be.
        let lists_hosts = userinfo.as_ref().is_some_and(|userinfo| {
            let (_, behind) = split_off(userinfo.expose(), '@');
            behind.is_some_and(|behind| behind.contains([',', ';']))
        });
        if rest.contains("://") || lists_hosts {
            return Err(Problem::SeveralUrls);
        }
        if tail.contains('@') {
            return Err(Problem::UnescapedUserinfo);
        }
        let (host, port) = split_port(host_and_port)?;
        if host.is_empty() {
            return Err(Problem::NoHost);
        }
        let host = parse_host(host).ok_or(Problem::Host)?;

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

    /// Understands what [`RedisUrl::local`] makes for a socket: where that is, and a URL with the
    /// same user, password and database. `None` for anything else.
    pub fn from_socket(value: &str) -> Option<(RedisUrl, Local)> {
        let rest = value.strip_prefix(UNIX)?.strip_prefix("://")?;
        let (rest, _) = split_off(rest, '#');
        let (place, query) = split_off(rest, '?');
        let (userinfo, path) = place.split_at(place.find('/')?);
        let path: Vec<u8> = percent_decode_str(path).collect();
        let parameters = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let database = parameters.into_iter().find(|(key, _)| key == DATABASE);
        let database = database.map(|(_, value)| format!("/{value}")).unwrap_or_default();
        let url = RedisUrl::parse(&format!("redis://{userinfo}localhost{database}")).ok()?;
        Some((url, Local::Socket(OsString::from_vec(path).into())))
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub fn host(&self) -> &Host<String> {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL by which a client reaches a tunnel at `local`: everything as written, but without
    /// TLS, and without the parameters that only make sense with it.
    pub fn local(&self, local: &Local) -> UrlText {
        let query = self.query.as_ref().and_then(without_tls_parameters);
        match local {
            Local::Port(port) => {
                let place = format!("{}:{port}{}", std::net::Ipv4Addr::LOCALHOST, self.path);
                self.text(self.scheme.plaintext().word(), place, query)
            }
            Local::Socket(path) => {
                let path = percent_encode(path.as_os_str().as_bytes(), IN_PATH).to_string();
                self.text(UNIX, path, self.with_database(query))
            }
        }
    }

    /// `query` with the database that the path names: where the path leads to a socket, clients
    /// look for it there.
    fn with_database(&self, query: Option<Secret>) -> Option<Secret> {
        let named = query
            .as_ref()
            .is_some_and(|query| query.expose().split('&').any(|part| key_of(part) == DATABASE));
        let Some(database) = self.database().filter(|_| !named) else {
            return query;
        };
        let mut parameters = format!("{DATABASE}={database}");
        if let Some(query) = query.filter(|query| !query.expose().is_empty()) {
            parameters += &format!("&{}", query.expose());
        }
        Some(Secret::new(parameters))
    }

    fn text(&self, scheme: &'static str, place: String, query: Option<Secret>) -> UrlText {
        let (userinfo, fragment) = (self.userinfo.clone(), self.fragment.clone());
        UrlText { scheme, userinfo, place, query, fragment }
    }

    /// The number of the database that the path names, in digits.
    pub fn database(&self) -> Option<&str> {
        let database = self.path.trim_matches('/');
        let is_number = !database.is_empty() && database.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(database)
    }

    /// User and password, percent-decoded; `None` without a password.
    pub fn credentials(&self) -> Option<Credentials> {
        let (user, password) = self.userinfo.as_ref()?.expose().split_once(':')?;
        let decoded = |text: &str| Secret::new(percent_decode_str(text).decode_utf8_lossy());
        (!password.is_empty()).then(|| Credentials {
            user: (!user.is_empty()).then(|| decoded(user)),
            password: decoded(password),
        })
    }

    /// What the URL's query asks of TLS.
    ///
    /// # Errors
    /// When it asks for something unknown, for nothing, or for two things.
    pub fn tls_parameters(&self) -> Result<UrlTlsParameters, Problem> {
        /// Clients differ in which of two they take.
        fn note<T: PartialEq>(known: &mut Option<T>, value: T) -> Result<(), Problem> {
            match known.replace(value) {
                Some(earlier) if Some(&earlier) != known.as_ref() => Err(Problem::SslTwice),
                _ => Ok(()),
            }
        }
        let mut asked = UrlTlsParameters::default();
        let query = self.query.as_ref().map_or("", Secret::expose);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.to_ascii_lowercase().as_str() {
                "ssl_cert_reqs" => {
                    let value = value.to_ascii_lowercase();
                    let verify = match value.strip_prefix("cert_").unwrap_or(&value) {
                        // To a client, optional means the same (Python's ssl.CERT_OPTIONAL).
                        "required" | "optional" => true,
                        "none" => false,
                        _ => return Err(Problem::SslCertReqs),
                    };
                    note(&mut asked.verify, verify)?;
                }
                // It must not stand for the system's CAs in a template whose variable is unset.
                "ssl_ca_certs" if value.is_empty() => return Err(Problem::SslCaCerts),
                "ssl_ca_certs" => note(&mut asked.ca_file, value.into_owned())?,
                _ => {}
            }
        }
        Ok(asked)
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{}:{}{}", self.host, self.port, self.path);
        self.text(self.scheme.word(), place, self.query.clone()).fmt(f)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A URL as it is written. `Display` masks what [`RedisUrl`]'s does.
#[derive(Clone)]
pub struct UrlText {
    scheme: &'static str,
    userinfo: Option<Secret>,
    /// Host, port and path, or the path of a socket.
    place: String,
    query: Option<Secret>,
    fragment: Option<Secret>,
}

impl UrlText {
    /// The URL in full, secrets included: for a client's eyes only.
    pub fn expose(&self) -> String {
        self.assemble(Secret::expose, Secret::expose)
    }

    fn assemble<'a, S: fmt::Display>(
        &'a self,
        userinfo: impl Fn(&'a Secret) -> S,
        query: impl Fn(&'a Secret) -> S,
    ) -> String {
        let mut url = format!("{}://", self.scheme);
        if let Some(part) = &self.userinfo {
            url += &format!("{}@", userinfo(part));
        }
        url += &self.place;
        if let Some(part) = &self.query {
            url += &format!("?{}", query(part));
        }
        if let Some(part) = &self.fragment {
            url += &format!("#{}", query(part));
        }
        url
    }
}

impl fmt::Display for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.assemble(mask_userinfo, mask_query))
    }
}

/// A host by the `url` crate's rules, and with nothing in its name but what names of hosts have
/// (RFC 1123 section 2.1, and the underscore of Docker's): the crate takes more, `,` and `;` among
/// it, and any length.
pub fn parse_host(text: &str) -> Option<Host<String>> {
    let host = Host::parse(text).ok()?;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match &host {
        Host::Domain(name) if name.len() > LONGEST_NAME || !name.bytes().all(is_part) => None,
        _ => Some(host),
    }
}

/// The host without the brackets of an IPv6 address: for look-up and SNI.
pub fn unbracketed(host: &Host<String>) -> String {
    match host {
        Host::Domain(name) => name.clone(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

/// Splits `h:1`, `[::1]:1`, `h:` and `h`; an absent or empty port means the default.
fn split_port(authority: &str) -> Result<(&str, u16), Problem> {
    let after_host = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']').ok_or(Problem::Host)? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(after_host);
    let port = match port.strip_prefix(':') {
        Some("") => DEFAULT_PORT,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port != 0).ok_or(Problem::Port)?
        }
        None if port.is_empty() => DEFAULT_PORT,
        _ => return Err(Problem::Port),
    };
    Ok((host, port))
}

fn split_off(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn key_of(parameter: &str) -> String {
    split_off(parameter, '=').0.to_ascii_lowercase()
}

/// The query without TLS parameters, `None` when nothing else was in it.
fn without_tls_parameters(query: &Secret) -> Option<Secret> {
    let all: Vec<&str> = query.expose().split('&').collect();
    let kept: Vec<&str> = all.iter().copied().filter(|part| !is_tls_parameter(part)).collect();
    if kept.is_empty() && !all.is_empty() {
        return None;
    }
    Some(Secret::new(kept.join("&")))
}

/// Whether a client would refuse this parameter on a plaintext URL, or start TLS because of it:
/// redis-py, Celery and Kombu (`ssl_…`), ioredis (`tls`), Predis (`ssl[…]`), go-redis
/// (`skip_verify`), Lettuce (`verifyPeer`).
fn is_tls_parameter(parameter: &str) -> bool {
    const EXACT: [&str; 4] = ["ssl", "tls", "skip_verify", "verifypeer"];
    const PREFIXES: [&str; 4] = ["ssl_", "tls_", "ssl[", "tls["];
    let key = key_of(parameter);
    EXACT.contains(&key.as_str()) || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

fn mask_userinfo(userinfo: &Secret) -> String {
    match userinfo.expose().split_once(':') {
        Some((user, password)) => format!("{}:{}", Secret::new(user), Secret::new(password)),
        None => userinfo.to_string(),
    }
}

/// Keeps the values of well-known parameters and masks every other: some clients take passwords
/// there.
fn mask_query(query: &Secret) -> String {
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
        Some((key, _)) if !HARMLESS.contains(&key_of(part).as_str()) => format!("{key}={MASK}"),
        Some(_) => part.to_owned(),
        None => Secret::new(part).to_string(),
    };
    query.expose().split('&').map(mask).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_reach_the_app_byte_for_byte_but_for_scheme_host_and_port() {
        let cases = [
            ("redis://h", "h", 6379, "redis://127.0.0.1:1"),
            ("redis://h:7000", "h", 7000, "redis://127.0.0.1:1"),
            ("redis://h:", "h", 6379, "redis://127.0.0.1:1"),
            ("redis://h/", "h", 6379, "redis://127.0.0.1:1/"),
            ("redis://h:06380", "h", 6380, "redis://127.0.0.1:1"),
            ("rediss://h:6379/0", "h", 6379, "redis://127.0.0.1:1/0"),
            ("valkey://h:6379/0", "h", 6379, "valkey://127.0.0.1:1/0"),
            ("valkeys://h", "h", 6379, "valkey://127.0.0.1:1"),
            ("REDISS://H:6379", "h", 6379, "redis://127.0.0.1:1"),
            ("redis://h:pw@host:6379/3?x=1", "host", 6379, "redis://h:pw@127.0.0.1:1/3?x=1"),
            ("redis://:pw@h", "h", 6379, "redis://:pw@127.0.0.1:1"),
            ("redis://@h", "h", 6379, "redis://@127.0.0.1:1"),
            ("redis://:@h", "h", 6379, "redis://:@127.0.0.1:1"),
            ("redis://user@h", "h", 6379, "redis://user@127.0.0.1:1"),
            ("redis://u:p%40%2f%3A%20x@h", "h", 6379, "redis://u:p%40%2f%3A%20x@127.0.0.1:1"),
            ("redis://u:!$&'()*+,;=~-._@h", "h", 6379, "redis://u:!$&'()*+,;=~-._@127.0.0.1:1"),
            ("redis://u:a@b:c@h", "h", 6379, "redis://u:a@b:c@127.0.0.1:1"),
            ("redis://u:pässword@h", "h", 6379, "redis://u:pässword@127.0.0.1:1"),
            ("redis://[::1]:6379/1", "[::1]", 6379, "redis://127.0.0.1:1/1"),
            ("redis://[2001:DB8::1]", "[2001:db8::1]", 6379, "redis://127.0.0.1:1"),
            ("redis://10.0.0.1:1234", "10.0.0.1", 1234, "redis://127.0.0.1:1"),
            ("redis://my_redis:6379", "my_redis", 6379, "redis://127.0.0.1:1"),
            ("redis://h:65535/15", "h", 65535, "redis://127.0.0.1:1/15"),
            ("redis://h?db=3", "h", 6379, "redis://127.0.0.1:1?db=3"),
            ("redis://h/0?", "h", 6379, "redis://127.0.0.1:1/0?"),
            ("redis://h/0?a=1&&b", "h", 6379, "redis://127.0.0.1:1/0?a=1&&b"),
            ("redis://h/0#frag", "h", 6379, "redis://127.0.0.1:1/0#frag"),
            ("redis://u:p@h/0?name=a%40b", "h", 6379, "redis://u:p@127.0.0.1:1/0?name=a%40b"),
            ("rediss://h/0?ssl_cert_reqs=none", "h", 6379, "redis://127.0.0.1:1/0"),
            (
                "rediss://h/0?a=1&ssl_cert_reqs=required&b=2",
                "h",
                6379,
                "redis://127.0.0.1:1/0?a=1&b=2",
            ),
            ("rediss://h/0?SSL_CA_CERTS=/x&tls=true", "h", 6379, "redis://127.0.0.1:1/0"),
            ("rediss://h/0?ssl[verify_peer]=0&skip_verify=1", "h", 6379, "redis://127.0.0.1:1/0"),
            ("rediss://h/0?ssl_x=1#f", "h", 6379, "redis://127.0.0.1:1/0#f"),
        ];
        for (given, host, port, local) in cases {
            let url = RedisUrl::parse(given).unwrap_or_else(|problem| panic!("{given}: {problem}"));
            assert_eq!(url.host().to_string(), host, "{given}");
            assert_eq!(url.port(), port, "{given}");
            assert_eq!(url.local(&Local::Port(1)).expose(), local, "{given}");
        }
    }

    #[test]
    fn what_is_no_redis_url_is_refused_with_the_reason() {
        let cases = [
            ("", Problem::NotRedis),
            ("garbage", Problem::NotRedis),
            ("http://h:6379", Problem::NotRedis),
            ("redis+tls://h", Problem::NotRedis),
            ("\"redis://h\"", Problem::NotRedis),
            ("redis", Problem::NotRedis),
            ("redis:h:6379", Problem::NoSlashes),
            ("redis:/h", Problem::NoSlashes),
            ("redis://", Problem::NoHost),
            ("redis:///0", Problem::NoHost),
            ("redis://:6379", Problem::NoHost),
            ("redis://:pw@", Problem::NoHost),
            ("redis://:pw@:6379/0", Problem::NoHost),
            ("redis://h:0", Problem::Port),
            ("redis://h:65536", Problem::Port),
            ("redis://h:+1", Problem::Port),
            ("redis://h:-1", Problem::Port),
            ("redis://h:6379x", Problem::Port),
            ("redis://h:secret", Problem::Port),
            ("redis://::1:6379", Problem::Port),
            ("redis://a:6379,b:6379", Problem::Port),
            ("redis://[::1", Problem::Host),
            ("redis://[::1]6379", Problem::Port),
            ("redis://[h]:6379", Problem::Host),
            ("redis://h<x>", Problem::Host),
            ("redis://1.2.3.4.5", Problem::Host),
            ("redis://user/pw@h", Problem::UnescapedUserinfo),
            ("redis://user?pw@h", Problem::UnescapedUserinfo),
            ("redis://h\n", Problem::Unprintable),
            ("redis://h/0 ", Problem::Unprintable),
            (" redis://h", Problem::Unprintable),
            ("redis://:p\u{7}w@h", Problem::Unprintable),
            ("redis://:p w@h", Problem::Unprintable),
            ("redis://a,b:6379", Problem::Host),
            ("redis://a;b", Problem::Host),
            ("redis://a%2Cb", Problem::Host),
            ("redis://a$b", Problem::Host),
            ("redis://:p@ss/word@host:6379/0", Problem::UnescapedUserinfo),
            ("redis://:p@ss?word@host:6379/0", Problem::UnescapedUserinfo),
            ("redis://:p@ss#word@host:6379/0", Problem::UnescapedUserinfo),
            ("redis://user:12/34@host", Problem::UnescapedUserinfo),
            ("redis://:p/w@host", Problem::UnescapedUserinfo),
            ("redis://u:p@h/0?name=a@b", Problem::UnescapedUserinfo),
            ("redis://:pw1@a,redis://:pw2@b", Problem::SeveralUrls),
            ("redis://:pw1@a,:pw2@b", Problem::SeveralUrls),
            ("redis://:a://b@h", Problem::SeveralUrls),
            ("redis://h/0?proxy=http://x", Problem::SeveralUrls),
            ("redis://a/0,redis://b/0", Problem::SeveralUrls),
            ("redis://a/0;rediss://b/0", Problem::SeveralUrls),
        ];
        for (given, problem) in cases {
            assert_eq!(RedisUrl::parse(given), Err(problem), "{given:?}");
        }
    }

    #[test]
    fn who_forgot_to_percent_encode_a_password_is_told_so() {
        for given in ["redis://:p@ss/word@host", "redis://:a@b,redis://:c@d", "redis://a,b:6379"] {
            let problem = RedisUrl::parse(given).unwrap_err().to_string();
            assert!(problem.contains("with the password percent-encoded: %2F for /"), "{problem}");
        }
    }

    #[test]
    fn a_printed_url_shows_no_secret() {
        let cases = [
            ("redis://h/0", "redis://h:6379/0"),
            ("redis://:pw@h/0", "redis://:***@h:6379/0"),
            ("rediss://me:pw@h:1/0?x=pw&db=2&pw", "rediss://***:***@h:1/0?x=***&db=2&***"),
            ("redis://pw@h#pw", "redis://***@h:6379#***"),
        ];
        for (given, shown) in cases {
            let url = RedisUrl::parse(given).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn user_and_password_go_into_auth_decoded() {
        let auth = |userinfo: &str| {
            let url = RedisUrl::parse(&format!("redis://{userinfo}h")).unwrap();
            url.credentials().map(|found| String::from_utf8(found.auth_command()).unwrap())
        };
        assert_eq!(auth(""), None);
        assert_eq!(auth("user@"), None);
        assert_eq!(auth("user:@"), None);
        assert_eq!(auth(":p%2Fw@").unwrap(), "*2\r\n$4\r\nAUTH\r\n$3\r\np/w\r\n");
        assert_eq!(auth("me:a:b@").unwrap(), "*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$3\r\na:b\r\n");
    }

    #[test]
    fn a_query_may_ask_for_verification() {
        let asked = |query: &str| {
            let url = RedisUrl::parse(&format!("rediss://h/0{query}")).unwrap();
            url.tls_parameters().map(|asked| (asked.verify, asked.ca_file))
        };
        assert_eq!(asked(""), Ok((None, None)));
        assert_eq!(asked("?ssl_cert_reqs=none"), Ok((Some(false), None)));
        assert_eq!(asked("?a=1&ssl_cert_reqs=CERT_REQUIRED"), Ok((Some(true), None)));
        assert_eq!(asked("?ssl_cert_reqs=optional"), Ok((Some(true), None)));
        assert_eq!(asked("?ssl_ca_certs=%2Fetc%2Fca.pem"), Ok((None, Some("/etc/ca.pem".into()))));
        for wrong in ["maybe", "", "cert_"] {
            assert_eq!(asked(&format!("?ssl_cert_reqs={wrong}")), Err(Problem::SslCertReqs));
        }
        assert_eq!(asked("?ssl_cert_reqs=required&ssl_ca_certs="), Err(Problem::SslCaCerts));
        let twice = asked("?ssl_cert_reqs=required&ssl_cert_reqs=cert_optional");
        assert_eq!(twice, Ok((Some(true), None)));
        for contradictory in [
            "?ssl_cert_reqs=required&ssl_cert_reqs=none",
            "?SSL_CERT_REQS=none&ssl_cert_reqs=required",
            "?ssl_ca_certs=a&ssl_ca_certs=b",
        ] {
            assert_eq!(asked(contradictory), Err(Problem::SslTwice));
        }
    }

    /// Splits at the first `/`, `?` or `#` behind the authority: what must come through as written.
    fn around_host(url: &str) -> (Option<&str>, &str) {
        let rest = url.split_once("://").unwrap().1;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        (authority.rsplit_once('@').map(|(userinfo, _)| userinfo), tail)
    }

    #[test]
    fn at_a_socket_the_database_stands_in_the_query() {
        let cases = [
            ("redis://h", "unix:///t/r.sock"),
            ("rediss://u:p%40@h:1/3", "unix://u:p%40@/t/r.sock?db=3"),
            ("valkeys://:p@h/", "unix://:p@/t/r.sock"),
            ("redis://h/0?timeout=1", "unix:///t/r.sock?db=0&timeout=1"),
            ("redis://h/0?db=7", "unix:///t/r.sock?db=7"),
            ("redis://h/2?ssl_cert_reqs=none", "unix:///t/r.sock?db=2"),
            ("redis://h/2?", "unix:///t/r.sock?db=2"),
            ("redis://h/name", "unix:///t/r.sock"),
        ];
        for (given, local) in cases {
            let url = RedisUrl::parse(given).unwrap();
            assert_eq!(url.local(&Local::Socket("/t/r.sock".into())).expose(), local, "{given}");
        }
        let url = RedisUrl::parse("redis://u:pw@h?auth=pw").unwrap();
        let local = url.local(&Local::Socket("/a b?/%#ä".into()));
        assert_eq!(local.expose(), "unix://u:pw@/a%20b%3F/%25%23%C3%A4?auth=pw");
        assert_eq!(local.to_string(), "unix://***:***@/a%20b%3F/%25%23%C3%A4?auth=***");
    }

    proptest! {
        #[test]
        fn the_local_form_differs_in_scheme_host_and_port_only(
            scheme in "(?i)(redis|valkey)s?",
            userinfo in prop::option::of("[^/?#\\s\\pC]{0,12}"),
            host in "[a-z][a-z0-9_.-]{0,20}|\\[::[0-9a-f]{1,4}\\]|(2[0-4][0-9]\\.){3}1",
            port in prop::option::of(1..=65535u16),
            path in "(/[0-9a-z%._@-]{0,8})?",
            query in "(\\?[a-r0-9=&%+:-]{0,16})?",
            local_port in 1..=65535u16,
        ) {
            let mut given = format!("{scheme}://");
            if let Some(userinfo) = userinfo {
                given += &format!("{userinfo}@");
            }
            given += &host;
            if let Some(port) = port {
                given += &format!(":{port}");
            }
            given += &format!("{path}{query}");
            if let Ok(url) = RedisUrl::parse(&given) {
                let local = url.local(&Local::Port(local_port)).expose();
                prop_assert_eq!(around_host(&local), around_host(&given));
                let again = RedisUrl::parse(&local).expect("the local form parses");
                prop_assert_eq!(again.host().to_string(), "127.0.0.1");
                prop_assert_eq!(again.port(), local_port);
                prop_assert!(!again.scheme().is_tls());
                url::Url::parse(&local).expect("other parsers take the local form too");
            }
        }

        #[test]
        fn no_value_makes_the_parser_panic_and_no_error_repeats_it(rest in "\\PC{0,40}") {
            for value in [rest.clone(), format!("redis://{rest}"), format!("rediss://u:{rest}@h")] {
                if let Err(problem) = RedisUrl::parse(&value) {
                    prop_assert!(rest.len() < 6 || !problem.to_string().contains(&rest));
                }
            }
        }
    }
}
