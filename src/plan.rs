//! Settings + environment -> which tunnels there are, and what COMMAND gets to see. Pure.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::Ipv4Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use url::Host;

use crate::cli;
use crate::redis_url::{self, Credentials, Local, Problem, RedisUrl, Scheme, UNIX};
use crate::secret::{MASK, Secret};
use crate::settings::{
    ConfigError, Environment, Reader, Rediss, Reported, TrustSettings, UrlSettings,
    is_variable_name, lookup,
};

/// The variable that is always looked at first.
const REDIS_URL: &str = "REDIS_URL";
/// What the launcher appends to a variable's name for its own copy of the local URL.
const OWN_SUFFIX: &str = "_STUNNEL";
/// The hosts of Heroku's PrivateLink endpoints, which speak TLS on the port of the URL:
/// <https://devcenter.heroku.com/articles/heroku-redis-via-privatelink>.
const PRIVATELINK_DOMAIN: &str = ".vpce.amazonaws.com";

/// The programs that connect to 127.0.0.1:6379 unless their command line says otherwise.
const REDIS_CLIS: [&str; 2] = ["redis-cli", "valkey-cli"];
/// The variable from which they take a password: <https://redis.io/docs/latest/develop/tools/cli/>.
pub const REDISCLI_AUTH: &str = "REDISCLI_AUTH";

/// Where a tunnel's TLS goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub host: Host<String>,
    pub port: u16,
}

impl Upstream {
    /// The host without the brackets of an IPv6 address: for look-up and SNI.
    pub fn host_name(&self) -> String {
        redis_url::unbracketed(&self.host)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One tunnel: a local port, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The variables that share it, the first one first.
    pub variables: Vec<String>,
    pub upstream: Upstream,
    pub trust: TrustSettings,
    /// Whether TLS goes to another port than the URL's.
    pub port_moved: bool,
    /// Whether each of its URLs has a password, which clients send on every connection.
    pub all_have_passwords: bool,
}

/// What becomes of one variable.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It leads through the tunnel of this index.
    Tunnelled(usize, Box<RedisUrl>),
    /// It stays as it is, by the user's wish or since it already leads through a tunnel.
    Untouched(Box<RedisUrl>),
    /// It already leads through a tunnel that listens on a Unix socket.
    UntouchedSocket,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub tunnels: Vec<Tunnel>,
    /// The variables whose servers nothing authenticates, without anybody having said so.
    pub unauthenticated: Vec<String>,
    /// The variables with a Redis URL that stay as they are, since nobody names them.
    pub others: Vec<String>,
    /// Name, value as found, and fate of each Redis variable, in the order of the contract.
    variables: Vec<(String, String, Fate)>,
}

/// An argument of COMMAND's that held a URL which the shell had expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// Its place: 0 is COMMAND itself.
    pub argument: usize,
    /// The variable whose URL it held.
    pub variable: String,
}

/// A redis-cli that has been told where its server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisCli {
    /// The whole command line. Holds no password.
    pub words: Vec<OsString>,
    /// For [`REDISCLI_AUTH`].
    pub password: Option<Secret>,
    /// The variable whose URL it is.
    pub variable: String,
}

impl Plan {
    /// Decides about every Redis variable: those `listed` by the user, or those that are discovered.
    ///
    /// # Errors
    /// When anything about any of them is wrong.
    pub fn make(
        listed: Option<Vec<String>>,
        environment: &Environment,
        reader: &mut Reader<'_>,
    ) -> Result<Plan, Reported> {
        let mut plan = Plan::default();
        let mut wrong = None;
        for (name, listed) in candidates(listed, environment) {
            match plan.decide(&name, listed, environment, reader) {
                Ok(Some((value, fate))) => plan.variables.push((name, value, fate)),
                Ok(None) => {}
                Err(reported) => wrong = Some(reported),
            }
        }
        plan.others = other_urls(&plan, environment);
        wrong.map_or(Ok(plan), Err)
    }

    /// Decides about the variable `name`; `None` when there is no URL in it, and need be none.
    fn decide(
        &mut self,
        name: &str,
        listed: bool,
        environment: &Environment,
        reader: &mut Reader<'_>,
    ) -> Result<Option<(String, Fate)>, Reported> {
        if let Some(value) = tunnelled_socket(name, environment) {
            return Ok(Some((value, Fate::UntouchedSocket)));
        }
        let Some((value, url)) = reader.mistakes.check(url_in(name, listed, environment))? else {
            return Ok(None);
        };
        if is_own(name, OsStr::new(&value), environment) && leads_to_a_tunnel(&url) {
            return Ok(Some((value, Fate::Untouched(Box::new(url)))));
        }
        let wishes = url.tls_wishes().map_err(|problem| ConfigError::new(name, problem));
        let wishes = reader.mistakes.check(wishes)?;
        let settings = reader.url_settings(name, &wishes)?;
        if url.scheme().is_tls() && settings.rediss == Rediss::Passthrough {
            return Ok(Some((value, Fate::Untouched(Box::new(url)))));
        }
        let upstream = upstream_of(name, &url, &settings);
        let (upstream, port_moved) = reader.mistakes.check(upstream)?;
        if !settings.trust.authenticates() && !settings.verify_chosen {
            self.unauthenticated.push(name.to_owned());
        }
        let has_password = url.credentials().is_some();
        let tunnel = self.tunnel_to(name, upstream, settings.trust, port_moved, has_password);
        Ok(Some((value, Fate::Tunnelled(tunnel, Box::new(url)))))
    }

    /// Whether any Redis URL was found at all.
    pub fn found_urls(&self) -> bool {
        !self.variables.is_empty()
    }

    /// What [`cli::URLS`] would have to be for the others to be tunnelled as well.
    pub fn with_others(&self) -> String {
        let names = self.variables.iter().map(|(name, ..)| name).chain(&self.others);
        let names = names.map(String::as_str).filter(|name| is_variable_name(name));
        names.collect::<Vec<_>>().join(" ")
    }

    /// What the first URL that leads through the tunnel of this index says about who the user is.
    pub fn credentials(&self, tunnel: usize) -> Option<Credentials> {
        let mut urls = self.tunnelled().filter(|(_, _, index, _)| *index == tunnel);
        urls.find_map(|(.., url)| url.credentials())
    }

    /// What COMMAND's environment gets, when the tunnels listen at `locals`: names and values, secrets
    /// included.
    pub fn changes(&self, locals: &[Local]) -> Vec<(String, String)> {
        self.tunnelled()
            .flat_map(|(name, _, index, url)| {
                let local = url.local(&locals[index]).expose();
                [(name.to_owned(), local.clone()), (format!("{name}{OWN_SUFFIX}"), local)]
            })
            .collect()
    }

    /// Every Redis variable as COMMAND would see it, one `NAME=value` each, secrets masked.
    pub fn describe(&self, locals: &[Local]) -> Vec<String> {
        let lines = self.variables.iter().flat_map(|(name, _, fate)| match fate {
            Fate::Untouched(url) => vec![format!("{name}={url}")],
            Fate::UntouchedSocket => vec![format!("{name}={UNIX}://{MASK}")],
            Fate::Tunnelled(index, url) => {
                let local = url.local(&locals[*index]);
                vec![format!("{name}={local}"), format!("{name}{OWN_SUFFIX}={local}")]
            }
        });
        lines.collect()
    }

    /// COMMAND's words with every tunnelled URL in them made local: the shell that reads a Procfile
    /// line expands `$REDIS_URL` before the launcher can change it.
    pub fn rewrite(&self, words: Vec<OsString>, locals: &[Local]) -> (Vec<OsString>, Vec<Rewrite>) {
        let mut rewrites = Vec::new();
        let rewritten = words.into_iter().enumerate().map(|(argument, word)| {
            let (word, variables) = self.rewrite_word(word.as_bytes(), locals);
            rewrites.extend(variables.into_iter().map(|variable| Rewrite { argument, variable }));
            OsString::from_vec(word)
        });
        (rewritten.collect(), rewrites)
    }

    /// What a redis-cli that is told nothing about its server needs to connect to the first tunnelled URL; `None` for
    /// any other COMMAND, and for one with any option that is not known to be harmless. It knows no REDIS_URL of its own.
    pub fn redis_cli(&self, words: &[OsString], locals: &[Local]) -> Option<RedisCli> {
        let (program, rest) = words.split_first()?;
        let program = Path::new(program).file_name()?;
        if !REDIS_CLIS.iter().any(|name| program == *name) {
            return None;
        }
        let names_database = names_database(rest)?;
        let (name, _, index, url) = self.tunnelled().next()?;
        let mut options: Vec<OsString> = match &locals[index] {
            Local::Port(port) => {
                ["-h", "127.0.0.1", "-p", &port.to_string()].map(OsString::from).to_vec()
            }
            Local::Socket(path) => vec!["-s".into(), path.into()],
        };
        if let Some(database) = url.database().filter(|_| !names_database) {
            options.extend(["-n".into(), database.into()]);
        }
        let credentials = url.credentials();
        if let Some(user) = credentials.as_ref().and_then(Credentials::user) {
            options.extend(["--user".into(), user.expose().into()]);
        }
        let words = [&words[..1], &options, rest].concat();
        let password = credentials.map(|credentials| credentials.password().clone());
        Some(RedisCli { words, password, variable: name.to_owned() })
    }

    fn rewrite_word(&self, word: &[u8], locals: &[Local]) -> (Vec<u8>, Vec<String>) {
        let (mut done, mut variables) = (Vec::with_capacity(word.len()), Vec::new());
        let mut rest = word;
        while let Some((&byte, after)) = rest.split_first() {
            let longest = self
                .tunnelled()
                .filter(|(_, value, ..)| begins_with_url(rest, value))
                // The first of equals, as the contract orders variables.
                .reduce(|best, other| if other.1.len() > best.1.len() { other } else { best });
            match longest {
                Some((name, value, index, url)) => {
                    done.extend(url.local(&locals[index]).expose().as_bytes());
                    if !variables.iter().any(|known| known == name) {
                        variables.push(name.to_owned());
                    }
                    rest = &rest[value.len()..];
                }
                None => {
                    done.push(byte);
                    rest = after;
                }
            }
        }
        (done, variables)
    }

    fn tunnelled(&self) -> impl Iterator<Item = (&str, &str, usize, &RedisUrl)> {
        self.variables.iter().filter_map(|(name, value, fate)| match fate {
            Fate::Tunnelled(index, url) => Some((name.as_str(), value.as_str(), *index, &**url)),
            Fate::Untouched(_) | Fate::UntouchedSocket => None,
        })
    }

    /// The index of the tunnel to `upstream`, a new one unless one with the same settings exists.
    fn tunnel_to(
        &mut self,
        name: &str,
        upstream: Upstream,
        trust: TrustSettings,
        port_moved: bool,
        has_password: bool,
    ) -> usize {
        let same = |tunnel: &Tunnel| tunnel.upstream == upstream && tunnel.trust == trust;
        match self.tunnels.iter().position(same) {
            Some(index) => {
                self.tunnels[index].variables.push(name.to_owned());
                self.tunnels[index].all_have_passwords &= has_password;
                index
            }
            None => {
                let variables = vec![name.to_owned()];
                let all_have_passwords = has_password;
                self.tunnels.push(Tunnel {
                    variables,
                    upstream,
                    trust,
                    port_moved,
                    all_have_passwords,
                });
                self.tunnels.len() - 1
            }
        }
    }
}

/// The names to look at, each with whether the user listed it.
fn candidates(listed: Option<Vec<String>>, environment: &Environment) -> Vec<(String, bool)> {
    if let Some(listed) = listed {
        return listed.into_iter().map(|name| (name, true)).collect();
    }
    let discovered = environment
        .keys()
        .filter_map(|name| name.to_str())
        .filter(|name| name.starts_with("HEROKU_REDIS_") || is_endpoint(name))
        .filter(|name| !is_ours(name));
    // The environment is a sorted map: alphabetical order comes of itself.
    std::iter::once(REDIS_URL).chain(discovered).map(|name| (name.to_owned(), false)).collect()
}

/// The options of redis-cli that leave it to us which server is asked, as whom, and whether it stays with that server,
/// each with the number of words that follow it: <https://redis.io/docs/latest/develop/tools/cli/>.
const HARMLESS_OPTIONS: [(&str, usize); 31] = [
    ("-2", 0),
    ("-3", 0),
    ("-D", 1),
    ("-X", 1),
    ("-d", 1),
    ("-e", 0),
    ("-i", 1),
    ("-n", 1),
    ("-r", 1),
    ("-x", 0),
    ("--bigkeys", 0),
    ("--count", 1),
    ("--csv", 0),
    ("--eval", 1),
    ("--hotkeys", 0),
    ("--json", 0),
    ("--latency", 0),
    ("--latency-dist", 0),
    ("--latency-history", 0),
    ("--memkeys", 0),
    ("--memkeys-samples", 1),
    ("--no-auth-warning", 0),
    ("--no-raw", 0),
    ("--pattern", 1),
    ("--pipe", 0),
    ("--pipe-timeout", 1),
    ("--quoted-input", 0),
    ("--raw", 0),
    ("--scan", 0),
    ("--show-pushes", 1),
    ("--stat", 0),
];

/// Whether redis-cli's own `-n` is among its options, if it has no option but [`HARMLESS_OPTIONS`]; else `None`: our
/// password must not go to another server.
fn names_database(arguments: &[OsString]) -> Option<bool> {
    let mut names_database = false;
    let mut rest = arguments.iter();
    // What does not begin with a dash is the command for Redis, and all behind it belongs to that.
    while let Some(option) = rest.next().filter(|word| word.as_bytes().starts_with(b"-")) {
        let (option, words) = HARMLESS_OPTIONS.iter().find(|(known, _)| option == *known)?;
        names_database |= *option == "-n";
        for _ in 0..*words {
            rest.next()?;
        }
    }
    Some(names_database)
}

/// Whether an outer launcher made this value of variable `name`.
fn is_own(name: &str, value: &OsStr, environment: &Environment) -> bool {
    lookup(environment, &format!("{name}{OWN_SUFFIX}")) == Some(value)
}

/// Whether `url` leads where a launcher listens: without TLS to 127.0.0.1.
fn leads_to_a_tunnel(url: &RedisUrl) -> bool {
    !url.scheme().is_tls() && matches!(url.host(), Host::Ipv4(Ipv4Addr::LOCALHOST))
}

/// The names of variables with a Redis URL about which `plan` decides nothing.
fn other_urls(plan: &Plan, environment: &Environment) -> Vec<String> {
    let is_url = |value: &OsString| value.to_str().and_then(Scheme::of).is_some();
    environment
        .iter()
        .filter(|(_, value)| is_url(value))
        .filter_map(|(name, _)| name.to_str())
        .filter(|name| !is_ours(name))
        .filter(|name| plan.variables.iter().all(|(known, ..)| known != name))
        .map(str::to_owned)
        .collect()
}

/// Whether a name is of the launcher's own making, or of one of its settings.
fn is_ours(name: &str) -> bool {
    name.ends_with(OWN_SUFFIX) || name.contains("_STUNNEL_")
}

/// The value of variable `name`, if it leads to an outer launcher's Unix socket.
fn tunnelled_socket(name: &str, environment: &Environment) -> Option<String> {
    let value = lookup(environment, name)?;
    let text = value.to_str().filter(|text| text.starts_with(&format!("{UNIX}://")))?;
    is_own(name, value, environment).then(|| text.to_owned())
}

/// Whether Heroku's PrivateLink add-on named this variable.
fn is_endpoint(name: &str) -> bool {
    name.strip_prefix("REDIS_ENDPOINT_").is_some_and(|rest| rest.ends_with("_URL"))
}

/// The URL in variable `name`, as written and parsed; `None` when there is nothing to tunnel.
fn url_in(
    name: &str,
    listed: bool,
    environment: &Environment,
) -> Result<Option<(String, RedisUrl)>, ConfigError> {
    let Some(value) = lookup(environment, name) else {
        return match listed {
            true => Err(ConfigError::new(
                name,
                format!(
                    "is not set, but {} lists it; set it, or remove it from the list",
                    cli::URLS.variable
                ),
            )),
            false => Ok(None),
        };
    };
    let parsed = match value.to_str() {
        Some(text) => RedisUrl::parse(text).map(|url| (text.to_owned(), url)),
        None => Err(Problem::NotUtf8),
    };
    match parsed {
        Ok(found) => Ok(Some(found)),
        Err(_)
            if !listed && name != REDIS_URL && Scheme::of(&value.to_string_lossy()).is_none() =>
        {
            Ok(None)
        }
        Err(problem) => Err(ConfigError::new(name, problem)),
    }
}

/// Where the TLS of `url` is spoken, and whether that is another port than the URL's.
fn upstream_of(
    name: &str,
    url: &RedisUrl,
    own: &UrlSettings,
) -> Result<(Upstream, bool), ConfigError> {
    let privatelink = is_endpoint(name)
        || matches!(url.host(), Host::Domain(host)
            if host.trim_end_matches('.').ends_with(PRIVATELINK_DOMAIN));
    let offset = match &own.port_offset {
        _ if url.scheme().is_tls() => 0,
        offset if privatelink && !offset.own => 0,
        offset => offset.value,
    };
    let port = i32::from(url.port()) + offset;
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok((Upstream { host: url.host().clone(), port }, offset != 0)),
        _ => Err(ConfigError::new(
            name,
            format!(
                "leads to TLS port {port} (port {} plus {offset} from {}), which does not exist; \
                 set {name}_{} so that the sum is 1 to 65535, or write rediss:// when the port in \
                 the URL speaks TLS itself",
                url.port(),
                own.port_offset.source,
                cli::PORT_OFFSET.variable,
            ),
        )),
    }
}

/// Whether `text` begins with `url`, and the URL ends there instead of going on as another one.
fn begins_with_url(text: &[u8], url: &str) -> bool {
    let Some(after) = text.strip_prefix(url.as_bytes()) else {
        return false;
    };
    let goes_on = |byte: u8| match byte {
        // In a query another parameter follows; elsewhere it is the shell's `&`.
        b'&' => url.contains('?'),
        _ => {
            byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"-._~%:/?#[@!$*+=".contains(&byte)
        }
    };
    !after.first().copied().is_some_and(goes_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::{environment, invocation, reader};

    fn plan_with(options: &[&str], environment: &Environment) -> Result<Plan, Vec<String>> {
        let invocation = invocation(options);
        let mut reader = reader(&invocation, environment);
        let listed = reader.urls().expect("good names");
        Plan::make(listed, environment, &mut reader)
            .map_err(|_| reader.mistakes.all().iter().map(ConfigError::to_string).collect())
    }

    fn plan(options: &[&str], pairs: &[(&str, &str)]) -> Result<Plan, Vec<String>> {
        plan_with(options, &environment(pairs))
    }

    fn ports(ports: impl IntoIterator<Item = u16>) -> Vec<Local> {
        ports.into_iter().map(Local::Port).collect()
    }

    /// `NAME=upstream` for each tunnelled variable, in order.
    fn upstreams(plan: &Plan) -> Vec<String> {
        plan.tunnelled()
            .map(|(name, _, index, _)| format!("{name}={}", plan.tunnels[index].upstream))
            .collect()
    }

    #[test]
    fn tls_goes_where_the_table_of_the_contract_says() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("REDIS_URL", "redis://h:6379")], "h:6380"),
            (&[("REDIS_URL", "valkey://h:6379")], "h:6380"),
            (&[("REDIS_URL", "redis://h")], "h:6380"),
            (&[("REDIS_URL", "rediss://h:6379")], "h:6379"),
            (&[("REDIS_URL", "valkeys://h:6379")], "h:6379"),
            (&[("REDIS_URL", "rediss://h")], "h:6379"),
            (&[("REDIS_URL", "rediss://h"), ("STUNNEL_PORT_OFFSET", "7")], "h:6379"),
            (&[("REDIS_URL", "rediss://h"), ("REDIS_URL_STUNNEL_PORT_OFFSET", "7")], "h:6379"),
            (&[("REDIS_URL", "rediss://h:65535")], "h:65535"),
            (&[("REDIS_URL", "redis://h:6379"), ("STUNNEL_PORT_OFFSET", "0")], "h:6379"),
            (&[("REDIS_URL", "redis://h:6379"), ("STUNNEL_PORT_OFFSET", "-79")], "h:6300"),
            (
                &[
                    ("REDIS_URL", "redis://h:6379"),
                    ("STUNNEL_PORT_OFFSET", "5"),
                    ("REDIS_URL_STUNNEL_PORT_OFFSET", "9"),
                ],
                "h:6388",
            ),
            (&[("REDIS_URL", "redis://[::1]:6379")], "[::1]:6380"),
            (
                &[("REDIS_URL", "redis://vpce-1.vpce.amazonaws.com:6379")],
                "vpce-1.vpce.amazonaws.com:6379",
            ),
            (&[("REDIS_URL", "redis://A.VPCE.Amazonaws.com.")], "a.vpce.amazonaws.com.:6379"),
            (
                &[("REDIS_URL", "redis://a.vpce.amazonaws.com.evil.net")],
                "a.vpce.amazonaws.com.evil.net:6380",
            ),
            (&[("REDIS_URL", "redis://xvpce.amazonaws.com")], "xvpce.amazonaws.com:6380"),
            (
                &[("REDIS_URL", "redis://a.vpce.amazonaws.com"), ("STUNNEL_PORT_OFFSET", "1")],
                "a.vpce.amazonaws.com:6379",
            ),
            (
                &[
                    ("REDIS_URL", "redis://a.vpce.amazonaws.com"),
                    ("REDIS_URL_STUNNEL_PORT_OFFSET", "1"),
                ],
                "a.vpce.amazonaws.com:6380",
            ),
            (&[("REDIS_ENDPOINT_X_URL", "redis://h:6379")], "h:6379"),
            (&[("REDIS_ENDPOINT_X_URL", "valkey://h:6379")], "h:6379"),
            (&[("REDIS_ENDPOINT_X_URL", "rediss://h:6379")], "h:6379"),
            (
                &[
                    ("REDIS_ENDPOINT_X_URL", "redis://h:6379"),
                    ("REDIS_ENDPOINT_X_URL_STUNNEL_PORT_OFFSET", "1"),
                ],
                "h:6380",
            ),
        ];
        for (pairs, upstream) in cases {
            let plan = plan(&[], pairs).unwrap_or_else(|errors| panic!("{pairs:?}: {errors:?}"));
            assert_eq!(plan.tunnels[0].upstream.to_string(), *upstream, "{pairs:?}");
        }
    }

    #[test]
    fn redis_url_comes_first_then_the_others_in_alphabetical_order() {
        let found = plan(
            &[],
            &[
                ("HEROKU_REDIS_ROSE_URL", "redis://rose"),
                ("REDIS_ENDPOINT_1_URL", "redis://endpoint"),
                ("HEROKU_REDIS_AMBER_URL", "redis://amber"),
                ("REDIS_URL", "redis://main"),
                ("REDIS_ENDPOINT_1", "redis://no-endpoint"),
                ("HEROKU_REDIS_AMBER_URL_STUNNEL", "redis://127.0.0.1:1"),
                ("HEROKU_REDIS_AMBER_URL_STUNNEL_VERIFY", "ca"),
                ("HEROKU_REDIS", "redis://no-name"),
                ("CACHE_URL", "redis://cache"),
                ("HEROKU_REDIS_EMPTY_URL", ""),
                ("HEROKU_REDIS_PLAN", "mini"),
                ("REDIS_ENDPOINT_2_URL", "https://h"),
            ],
        );
        assert_eq!(
            upstreams(&found.unwrap()),
            [
                "REDIS_URL=main:6380",
                "HEROKU_REDIS_AMBER_URL=amber:6380",
                "HEROKU_REDIS_ROSE_URL=rose:6380",
                "REDIS_ENDPOINT_1_URL=endpoint:6379",
            ]
        );
    }

    #[test]
    fn listed_names_count_alone_and_whatever_their_form() {
        let pairs = [("REDIS_URL", "redis://main"), ("B", "redis://b"), ("A_STUNNEL", "redis://a")];
        let by_option = plan(&["--urls", "B,A_STUNNEL"], &pairs).unwrap();
        assert_eq!(upstreams(&by_option), ["B=b:6380", "A_STUNNEL=a:6380"]);
        let with_variable = [&pairs[..], &[("REDIS_STUNNEL_URLS", "A_STUNNEL B")]].concat();
        let by_variable = plan(&[], &with_variable).unwrap();
        assert_eq!(upstreams(&by_variable), ["A_STUNNEL=a:6380", "B=b:6380"]);
    }

    #[test]
    fn what_would_leave_the_app_in_plaintext_is_an_error() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("REDIS_URL", "http://h")], "REDIS_URL does not begin with redis://"),
            (&[("REDIS_URL", "redis://")], "REDIS_URL names no host"),
            (&[("REDIS_URL", "redis://h:65535")], "REDIS_URL leads to TLS port 65536"),
            (
                &[("REDIS_URL", "redis://h:1"), ("STUNNEL_PORT_OFFSET", "-1")],
                "REDIS_URL leads to TLS port 0 (port 1 plus -1 from STUNNEL_PORT_OFFSET)",
            ),
            (&[("HEROKU_REDIS_X_URL", "redis://h:x")], "HEROKU_REDIS_X_URL has a port"),
            (&[("HEROKU_REDIS_X_URL", " redis://h")], "HEROKU_REDIS_X_URL holds white space"),
            (&[("REDIS_ENDPOINT_X_URL", "valkeys:h")], "REDIS_ENDPOINT_X_URL has no //"),
            (&[("REDIS_STUNNEL_URLS", "A")], "A is not set, but REDIS_STUNNEL_URLS lists it"),
            (&[("REDIS_STUNNEL_URLS", "A"), ("A", "")], "A is not set"),
            (&[("REDIS_STUNNEL_URLS", "A"), ("A", "x")], "A does not begin with"),
            (
                &[("REDIS_URL", "redis://h"), ("REDIS_URL_STUNNEL_VERIFY", "x")],
                "REDIS_URL_STUNNEL_VERIFY is 'x'",
            ),
        ];
        for (pairs, expected) in cases {
            let errors = plan(&[], pairs).expect_err(expected);
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].starts_with(expected), "{errors:?}");
        }
    }

    #[test]
    fn without_any_url_there_is_nothing_to_tunnel() {
        for pairs in [&[][..], &[("REDIS_URL", "")], &[("HEROKU_REDIS_X", "no url")]] {
            let plan = plan(&[], pairs).unwrap();
            assert!(!plan.found_urls(), "{pairs:?}");
        }
    }

    #[test]
    fn two_variables_share_a_tunnel_only_with_the_same_upstream_and_settings() {
        let pairs = [
            ("REDIS_URL", "redis://:a@h:6379/0"),
            ("HEROKU_REDIS_A_URL", "rediss://u:b@H:6380/1"),
            ("HEROKU_REDIS_B_URL", "redis://h:6379"),
            ("HEROKU_REDIS_B_URL_STUNNEL_VERIFY", "full"),
            ("HEROKU_REDIS_C_URL", "redis://h:6378"),
        ];
        let plan = plan(&[], &pairs).unwrap();
        let shared: Vec<_> = plan.tunnels.iter().map(|tunnel| tunnel.variables.join(" ")).collect();
        assert_eq!(
            shared,
            ["REDIS_URL HEROKU_REDIS_A_URL", "HEROKU_REDIS_B_URL", "HEROKU_REDIS_C_URL"]
        );
        let changes = plan.changes(&ports([1, 2, 3]));
        assert_eq!(changes[0], ("REDIS_URL".into(), "redis://:a@127.0.0.1:1/0".into()));
        assert_eq!(changes[1], ("REDIS_URL_STUNNEL".into(), "redis://:a@127.0.0.1:1/0".into()));
        assert_eq!(changes[2], ("HEROKU_REDIS_A_URL".into(), "redis://u:b@127.0.0.1:1/1".into()));
        assert_eq!(changes[4], ("HEROKU_REDIS_B_URL".into(), "redis://127.0.0.1:2".into()));
    }

    #[test]
    fn a_tunnel_knows_whether_a_url_without_a_password_leads_through_it() {
        let cases: &[(&[&str], bool)] = &[
            (&["redis://:pw@h"], true),
            (&["redis://u:pw@h"], true),
            (&["redis://h"], false),
            (&["redis://u@h"], false),
            (&["redis://u:@h"], false),
            (&["redis://:pw@h", "redis://:other@h/1"], true),
            (&["redis://:pw@h", "redis://h/1"], false),
            (&["redis://h", "redis://:pw@h/1"], false),
        ];
        for (urls, expected) in cases {
            let pairs: Vec<_> =
                ["REDIS_URL", "HEROKU_REDIS_A_URL"].into_iter().zip(urls.iter().copied()).collect();
            let plan = plan(&[], &pairs).unwrap();
            assert_eq!(plan.tunnels.len(), 1);
            assert_eq!(plan.tunnels[0].all_have_passwords, *expected, "{urls:?}");
        }
    }

    #[test]
    fn fifty_urls_get_fifty_tunnels() {
        let names: Vec<_> = (10..60).map(|n| format!("HEROKU_REDIS_{n}_URL")).collect();
        let values: Vec<_> = (10..60).map(|n| format!("redis://:pw{n}@h{n}:6379/{n}")).collect();
        let pairs: Vec<_> = names
            .iter()
            .zip(&values)
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let plan = plan(&[], &pairs).unwrap();
        assert_eq!(plan.tunnels.len(), 50);
        let last = &plan.changes(&ports(1..=50))[98];
        assert_eq!(*last, ("HEROKU_REDIS_59_URL".into(), "redis://:pw59@127.0.0.1:50/59".into()));
    }

    #[test]
    fn a_url_that_leads_to_an_outer_launchers_socket_is_left_alone() {
        let outer = "unix://u:pw@/run/start-stunnel-abc/redis0.sock?db=3";
        let plan = plan(&[], &[("REDIS_URL", outer), ("REDIS_URL_STUNNEL", outer)]).unwrap();
        assert!(plan.found_urls() && plan.tunnels.is_empty());
        assert_eq!(plan.describe(&[]), ["REDIS_URL=unix://***"]);
        let errors = super::tests::plan(&[], &[("REDIS_URL", outer)]).unwrap_err();
        assert!(errors[0].contains("does not begin with redis://"), "{errors:?}");
    }

    #[test]
    fn passthrough_and_nested_urls_are_left_alone() {
        let pairs = [
            ("REDIS_URL", "rediss://:pw@h:6379"),
            ("HEROKU_REDIS_PLAIN_URL", "redis://h:6379"),
            ("HEROKU_REDIS_OWN_URL", "rediss://own"),
            ("HEROKU_REDIS_OWN_URL_STUNNEL_REDISS", "tunnel"),
            ("HEROKU_REDIS_NESTED_URL", "redis://127.0.0.1:6371"),
            ("HEROKU_REDIS_NESTED_URL_STUNNEL", "redis://127.0.0.1:6371"),
            ("HEROKU_REDIS_STALE_URL", "redis://stale"),
            ("HEROKU_REDIS_STALE_URL_STUNNEL", "redis://127.0.0.1:6371"),
        ];
        let plan = plan(&["--rediss", "passthrough"], &pairs).unwrap();
        assert_eq!(
            upstreams(&plan),
            [
                "HEROKU_REDIS_OWN_URL=own:6379",
                "HEROKU_REDIS_PLAIN_URL=h:6380",
                "HEROKU_REDIS_STALE_URL=stale:6380",
            ]
        );
        assert!(plan.found_urls());
        assert_eq!(plan.describe(&ports([1, 2, 3]))[0], "REDIS_URL=rediss://:***@h:6379");
        assert!(
            plan.changes(&ports([1, 2, 3])).iter().all(|(name, _)| !name.starts_with("REDIS_URL"))
        );
    }

    #[test]
    fn other_variables_may_hold_anything() {
        let mut environment = environment(&[("REDIS_URL", "redis://h")]);
        let garbage = OsString::from_vec(vec![0xff, 0xfe, b'=']);
        environment.insert("OTHER".into(), garbage.clone());
        environment.insert(OsString::from_vec(vec![0xfe]), "x".into());
        environment.insert("HEROKU_REDIS_BINARY".into(), garbage.clone());
        let found = plan_with(&[], &environment).unwrap();
        assert_eq!(upstreams(&found), ["REDIS_URL=h:6380"]);

        let mut value = b"redis://:".to_vec();
        value.extend([0xff, b'@', b'h']);
        environment.insert("HEROKU_REDIS_BINARY".into(), OsString::from_vec(value));
        let errors = plan_with(&[], &environment).unwrap_err();
        assert!(errors[0].starts_with("HEROKU_REDIS_BINARY is not valid UTF-8"), "{errors:?}");
    }

    #[test]
    fn a_url_that_the_shell_expanded_into_an_argument_becomes_local() {
        let plan = plan(
            &[],
            &[
                ("REDIS_URL", "redis://h:6379"),
                ("HEROKU_REDIS_A_URL", "redis://h:6379/1"),
                ("HEROKU_REDIS_Q_URL", "rediss://:pw@q/0?a=1"),
            ],
        )
        .unwrap();
        let ports = ports([1, 2]);
        let cases = [
            ("redis://h:6379", "redis://127.0.0.1:1"),
            ("-uredis://h:6379", "-uredis://127.0.0.1:1"),
            ("--url=redis://h:6379", "--url=redis://127.0.0.1:1"),
            ("redis://h:6379/1", "redis://127.0.0.1:1/1"),
            ("redis://h:6379/12", "redis://h:6379/12"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://h:63790/0", "redis://h:63790/0"),
            ("redis://h:6379x", "redis://h:6379x"),
            ("redis://h:6379?x=1", "redis://h:6379?x=1"),
            ("redis-cli -u redis://h:6379; echo", "redis-cli -u redis://127.0.0.1:1; echo"),
            (
                "'redis://h:6379' \"redis://h:6379\"",
                "'redis://127.0.0.1:1' \"redis://127.0.0.1:1\"",
            ),
            ("$(x redis://h:6379)", "$(x redis://127.0.0.1:1)"),
            ("a redis://h:6379&", "a redis://127.0.0.1:1&"),
            ("redis://h:6379,redis://h:6379/1", "redis://127.0.0.1:1,redis://127.0.0.1:1/1"),
            ("rediss://:pw@q/0?a=1", "redis://:pw@127.0.0.1:2/0?a=1"),
            ("rediss://:pw@q/0?a=1&b=2", "rediss://:pw@q/0?a=1&b=2"),
            ("rediss://h:6379", "rediss://h:6379"),
            ("plain", "plain"),
            ("", ""),
        ];
        for (given, expected) in cases {
            let (words, rewrites) = plan.rewrite(vec!["cmd".into(), given.into()], &ports);
            assert_eq!(words, ["cmd", expected], "{given}");
            assert_eq!(rewrites.is_empty(), given == expected, "{given}");
            assert!(rewrites.iter().all(|rewrite| rewrite.argument == 1), "{given}");
        }
        let (_, rewrites) = plan.rewrite(vec!["redis://h:6379/1 redis://h:6379".into()], &ports);
        let variables: Vec<_> = rewrites.iter().map(|rewrite| rewrite.variable.as_str()).collect();
        assert_eq!(variables, ["HEROKU_REDIS_A_URL", "REDIS_URL"]);
    }

    #[test]
    fn a_redis_cli_that_is_told_nothing_gets_to_know_its_server() {
        let plan = plan(&[], &[("REDIS_URL", "redis://us%65r:p%40ss@h/3")]).unwrap();
        let told = |words: &[&str], local: Local| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            plan.redis_cli(&words, &[local]).map(|told| {
                assert_eq!(told.password, Some(Secret::new("p@ss")));
                told.words.join(OsStr::new(" ")).into_string().unwrap()
            })
        };
        let port = Local::Port(7);
        for (words, expected) in [
            (&["redis-cli"][..], "redis-cli -h 127.0.0.1 -p 7 -n 3 --user user"),
            (
                &["/usr/bin/valkey-cli", "-3"],
                "/usr/bin/valkey-cli -h 127.0.0.1 -p 7 -n 3 --user user -3",
            ),
            (&["redis-cli", "get", "k"], "redis-cli -h 127.0.0.1 -p 7 -n 3 --user user get k"),
            (
                &["redis-cli", "-r", "5", "--raw", "get", "-h"],
                "redis-cli -h 127.0.0.1 -p 7 -n 3 --user user -r 5 --raw get -h",
            ),
            (&["redis-cli", "-n", "1"], "redis-cli -h 127.0.0.1 -p 7 --user user -n 1"),
        ] {
            assert_eq!(told(words, port.clone()).as_deref(), Some(expected));
        }
        let socket = Local::Socket("/t/r.sock".into());
        assert_eq!(
            told(&["redis-cli"], socket).as_deref(),
            Some("redis-cli -s /t/r.sock -n 3 --user user")
        );
        for words in [
            &["redis-cli", "-h", "other"][..],
            &["redis-cli", "-p", "1", "ping"],
            &["redis-cli", "-u", "redis://other"],
            &["redis-cli", "--tls"],
            &["redis-cli", "-c"],
            &["redis-cli", "-x", "--cluster", "info"],
            &["redis-cli", "--no-such-option"],
            &["redis-cli", "-r"],
            &["redis-cli", "-"],
            &["redis-benchmark"],
            &["sh", "-c", "redis-cli"],
        ] {
            assert_eq!(told(words, port.clone()), None, "{words:?}");
        }
    }

    #[test]
    fn an_argument_that_is_not_utf8_is_rewritten_too() {
        let plan = plan(&[], &[("REDIS_URL", "redis://h")]).unwrap();
        let word = OsString::from_vec(b"\xff redis://h \xfe".to_vec());
        let (words, _) = plan.rewrite(vec![word], &ports([7]));
        assert_eq!(words[0].as_bytes(), b"\xff redis://127.0.0.1:7 \xfe");
    }
}
