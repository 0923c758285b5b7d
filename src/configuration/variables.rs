//! Finds the variables that hold Redis URLs, and decides which variables get a tunnel.

use std::ffi::OsString;
use std::net::Ipv4Addr;

use url::Host;

use super::options;
use super::plan::{COPY_SUFFIX, Plan, Tunnelled};
use super::reader::Reader;
use super::sources::{ConfigError, Sources};
use super::spelling::is_close;
use super::values::Rediss;
use crate::environment::{Environment, lookup};
use crate::redis_url::{FORM, RedisUrl, UNIX, has_scheme};
use crate::secret::{MASK, Secret};
use crate::tunnel::{Route, SettingNames, Upstream};

/// The variable that gets the first tunnel by default.
const REDIS_URL: &str = "REDIS_URL";
/// The domain of Heroku's PrivateLink endpoints. These servers speak TLS on the port that the URL
/// contains: <https://devcenter.heroku.com/articles/heroku-redis-via-privatelink>.
const PRIVATELINK_DOMAIN: &str = ".vpce.amazonaws.com";

/// Plans the tunnels for the variables that the user lists, or else for the variables in
/// [`options::DISCOVERED`].
pub fn plan(reader: &mut Reader<'_>) -> Plan {
    let mut plan = Plan::default();
    let list = reader.sources.find(&options::URLS.declaration);
    let listed = list.as_ref().map(|list| list.parse(options::URLS.parse)).transpose();
    // If the user's list is wrong, `Reader::check_setting` has already reported the mistake.
    let Ok(listed) = listed else { return plan };
    let list = list.map(|list| list.name);
    let names = listed.flatten().unwrap_or_else(|| discovered(reader.sources.environment));
    for name in names {
        add(&mut plan, name, list.as_deref(), reader);
    }
    plan
}

/// Adds the variable `name` to the plan, or reports a mistake in its URL. If the user has listed
/// this variable, `list` names the option or variable that contains the user's list.
fn add(plan: &mut Plan, name: String, list: Option<&str>, reader: &mut Reader<'_>) {
    let environment = reader.sources.environment;
    if let Some(shown) = outer_tunnel(&name, environment) {
        return plan.untouched.push((name, shown));
    }
    let Some(Some((value, url))) = reader.check(url_in(&name, list, environment)) else { return };
    let sources = reader.sources.for_url(&name);
    for own in options::for_one_url().filter_map(|setting| sources.own(setting)) {
        reader.check(own.check());
    }
    if url.is_tls() && sources.read(&options::REDISS) == Rediss::Passthrough {
        return plan.untouched.push((name, url.to_string()));
    }
    let Some(route) = route(&name, &url, reader) else { return };
    if !route.trust.authenticates() && sources.find(&options::VERIFY.declaration).is_none() {
        plan.unauthenticated.push(name.clone());
    }
    let route = plan.share(route, sources.read(&options::POOL));
    let variable = name.clone();
    plan.tunnelled.push(Tunnelled { variable, value: Secret::new(value), route, url });
}

/// Returns the route for `url`, which the variable `name` holds. Returns `None` after reporting a
/// mistake.
fn route(name: &str, url: &RedisUrl, reader: &mut Reader<'_>) -> Option<Route> {
    let sources = reader.sources.for_url(name);
    let in_url = url.tls_parameters().map_err(|problem| ConfigError::new(name, problem));
    let in_url = reader.check(in_url)?;
    let is_verify_set = sources.find(&options::VERIFY.declaration).is_some();
    let full_by_url = in_url.verify == Some(true) && !is_verify_set;
    let setting_names = SettingNames { full_by_url, ..sources.names() };
    let trust = reader.trust(sources, &setting_names, &in_url);
    let (upstream, port_offset) = reader.check(upstream_of(name, url, sources))?;
    Some(Route {
        variables: vec![name.to_owned()],
        upstream,
        trust,
        port_offset,
        setting_names,
        max_connections: sources.read(&options::MAX_CONNECTIONS),
    })
}

/// Returns the variables that hold a Redis URL but are not in the plan.
pub fn others(plan: &Plan, environment: &Environment) -> Vec<String> {
    let is_url = |value: &OsString| value.to_str().is_some_and(has_scheme);
    environment
        .iter()
        .filter(|(_, value)| is_url(value))
        .filter_map(|(name, _)| name.to_str())
        .filter(|name| !is_ours(name))
        .filter(|name| !plan.contains(name))
        .map(str::to_owned)
        .collect()
}

/// If `REDIS_URL` is not in the plan, but a variable with a similar name holds a Redis URL, returns
/// the question whether the user meant `REDIS_URL`.
pub fn question(plan: &Plan) -> Option<String> {
    let is_missing = !plan.contains(REDIS_URL);
    let mut others = plan.unused.other_urls.iter();
    let misspelt = others.find(|name| is_missing && is_close(name, REDIS_URL))?;
    Some(format!("{misspelt} holds a Redis URL. Did you mean {REDIS_URL}?"))
}

/// Returns the variables in which the launcher looks for Redis URLs if the user lists no variables.
fn discovered(environment: &Environment) -> Vec<String> {
    let discovered = environment
        .keys()
        .filter_map(|name| name.to_str())
        .filter(|name| name.starts_with("HEROKU_REDIS_") || is_endpoint(name))
        .filter(|name| !is_ours(name));
    // The names of the variables are in alphabetical order, because the environment is a sorted
    // map.
    std::iter::once(REDIS_URL).chain(discovered).map(str::to_owned).collect()
}

/// Returns true if the variable `name` belongs to start-stunnel, because it is a setting or holds a
/// copy of a tunnel's local URL.
fn is_ours(name: &str) -> bool {
    name.ends_with(COPY_SUFFIX) || name.contains("_STUNNEL_")
}

/// Returns the URL in the variable `name`, with masked secrets, if the URL leads to another
/// launcher's tunnel. The other launcher has set the variable `<name>_STUNNEL` to the same URL.
fn outer_tunnel(name: &str, environment: &Environment) -> Option<String> {
    let value = lookup(environment, name)?;
    let copy = lookup(environment, &format!("{name}{COPY_SUFFIX}"))?;
    let value = value.to_str().filter(|_| value == copy)?;
    if value.starts_with(&format!("{UNIX}://")) {
        return Some(format!("{UNIX}://{MASK}"));
    }
    let url = RedisUrl::parse(value).ok()?;
    let is_local = matches!(url.host, Host::Ipv4(Ipv4Addr::LOCALHOST));
    (is_local && !url.is_tls()).then(|| url.to_string())
}

/// Returns true if Heroku's PrivateLink add-on sets the variable `name`.
fn is_endpoint(name: &str) -> bool {
    name.strip_prefix("REDIS_ENDPOINT_").is_some_and(|rest| rest.ends_with("_URL"))
}

/// Returns the URL in the variable `name`, both as text and parsed, or `None` if the variable holds
/// no Redis URL. Three cases are errors instead: a listed variable that holds no Redis URL, a
/// REDIS_URL that holds some other text, and a malformed Redis URL.
fn url_in(
    name: &str,
    list: Option<&str>,
    environment: &Environment,
) -> Result<Option<(String, RedisUrl)>, ConfigError> {
    let Some(value) = lookup(environment, name) else {
        let Some(list) = list else { return Ok(None) };
        let problem = format!(
            "is not set, but {list} lists this variable; set the variable, or remove the variable \
             from the list"
        );
        return Err(ConfigError::new(name, problem));
    };
    let parsed = match value.to_str() {
        Some(text) => RedisUrl::parse(text).map(|url| (text.to_owned(), url)),
        None => Err("is not valid UTF-8; percent-encode characters that are not ASCII"),
    };
    let must_be_url = list.is_some() || name == REDIS_URL;
    match parsed {
        Ok(found) => Ok(Some(found)),
        Err(_) if !must_be_url && !has_scheme(&value.to_string_lossy()) => Ok(None),
        Err(problem) => Err(ConfigError::new(name, format!("{problem}; expected {FORM}"))),
    }
}

/// Returns the server to which the tunnel for `url` connects, and [`Route::port_offset`].
fn upstream_of(
    name: &str,
    url: &RedisUrl,
    sources: Sources<'_>,
) -> Result<(Upstream, Option<i32>), ConfigError> {
    let setting = &options::PORT_OFFSET.declaration;
    let is_privatelink = is_privatelink(name, url) && sources.own(setting).is_none();
    let port_offset = match is_privatelink {
        _ if url.is_tls() => None,
        true => Some(0),
        false => Some(sources.read(&options::PORT_OFFSET)),
    };
    let offset = port_offset.unwrap_or(0);
    let port = i32::from(url.port) + offset;
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok((Upstream { host: url.host.clone(), port }, port_offset)),
        _ => Err(ConfigError::new(
            name,
            format!(
                "results in TLS port {port}, which is not a valid port (the URL's port {url_port} \
                 plus {offset} from {general}); set {specific} so that the sum is a port from 1 to \
                 65535. If port {url_port} itself speaks TLS, write rediss:// instead",
                url_port = url.port,
                general = sources.names().of(setting.variable),
                specific = setting.for_one(name),
            ),
        )),
    }
}

/// Returns true if `url` leads to one of Heroku's PrivateLink endpoints.
fn is_privatelink(name: &str, url: &RedisUrl) -> bool {
    is_endpoint(name)
        || matches!(&url.host, Host::Domain(host)
            if host.trim_end_matches('.').ends_with(PRIVATELINK_DOMAIN))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::super::tests::{environment, plan, ports, read};
    use super::*;

    /// Returns the text `NAME=upstream` for each variable that gets a tunnel.
    fn upstreams(plan: &Plan) -> Vec<String> {
        let upstream = |tunnelled: &Tunnelled| {
            format!("{}={}", tunnelled.variable, plan.routes[tunnelled.route].upstream)
        };
        plan.tunnelled.iter().map(upstream).collect()
    }

    /// Each row contains environment variables, and the server to which the tunnel for these
    /// variables must lead.
    const UPSTREAMS: &[(&[(&str, &str)], &str)] = &[
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

    #[test]
    fn tunnel_connects_to_the_documented_host_and_port() {
        for (pairs, upstream) in UPSTREAMS {
            let plan = plan(&[], pairs).unwrap_or_else(|errors| panic!("{pairs:?}: {errors:?}"));
            let upstreams: Vec<_> =
                plan.routes.iter().map(|route| route.upstream.to_string()).collect();
            assert_eq!(upstreams, [*upstream], "{pairs:?}");
        }
    }

    #[test]
    fn redis_url_comes_first_then_others_in_alphabetical_order() {
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
    fn only_listed_variables_get_a_tunnel_whatever_their_names() {
        let pairs = [("REDIS_URL", "redis://main"), ("B", "redis://b"), ("A_STUNNEL", "redis://a")];
        let by_option = plan(&["--urls", "B,A_STUNNEL"], &pairs).unwrap();
        assert_eq!(upstreams(&by_option), ["B=b:6380", "A_STUNNEL=a:6380"]);
        let with_variable = [&pairs[..], &[("REDIS_STUNNEL_URLS", "A_STUNNEL B")]].concat();
        let by_variable = plan(&[], &with_variable).unwrap();
        assert_eq!(upstreams(&by_variable), ["A_STUNNEL=a:6380", "B=b:6380"]);
        assert!(by_variable.unused.unknown.is_empty());
        // The copy of A would replace the URL of the listed variable A_STUNNEL.
        let pairs = [("A", "redis://a"), ("A_STUNNEL", "redis://b"), ("STUNNEL_A", "redis://a")];
        let both = plan(&["--urls", "A_STUNNEL A STUNNEL_A"], &pairs).unwrap();
        let changed: Vec<_> = both.changes(&ports([1, 2])).map(|(name, _)| name).collect();
        assert_eq!(
            changed,
            ["A_STUNNEL", "A_STUNNEL_STUNNEL", "A", "STUNNEL_A", "STUNNEL_A_STUNNEL"]
        );
        assert!(both.unused.unknown.is_empty());
    }

    #[test]
    fn url_that_cannot_get_a_tunnel_is_an_error() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("REDIS_URL", "http://h")], "REDIS_URL does not begin with redis://"),
            (
                &[("REDIS_URL", "redis://")],
                "REDIS_URL names no host; expected redis://[USER]:[PASSWORD]@HOST",
            ),
            (&[("REDIS_URL", "redis://h:65535")], "REDIS_URL results in TLS port 65536"),
            (
                &[("REDIS_URL", "redis://h:1"), ("STUNNEL_PORT_OFFSET", "-1")],
                "REDIS_URL results in TLS port 0, which is not a valid port (the URL's port 1 \
                 plus -1",
            ),
            (&[("HEROKU_REDIS_X_URL", "redis://h:x")], "HEROKU_REDIS_X_URL has a port"),
            (&[("HEROKU_REDIS_X_URL", " redis://h")], "HEROKU_REDIS_X_URL contains white space"),
            (&[("REDIS_ENDPOINT_X_URL", "valkeys:h")], "REDIS_ENDPOINT_X_URL has no //"),
            (&[("REDIS_STUNNEL_URLS", "A")], "A is not set, but REDIS_STUNNEL_URLS lists this"),
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
    fn unset_variable_in_a_list_is_an_error_that_names_the_list() {
        let environment = environment(&[("REDIS_STUNNEL_URLS", "B")]);
        let errors = read(&["--urls", "REDIS_ULR"], &environment).unwrap_err();
        let expected = "REDIS_ULR is not set, but --urls lists this variable; set the variable, or \
                        remove the variable from the list";
        assert_eq!(errors, [expected]);
    }

    #[test]
    fn variable_without_a_redis_url_is_skipped() {
        for pairs in [&[][..], &[("REDIS_URL", "")], &[("HEROKU_REDIS_X", "no url")]] {
            assert_eq!(plan(&[], pairs), Ok(Plan::default()), "{pairs:?}");
        }
    }

    #[test]
    fn urls_passed_through_or_already_tunnelled_stay_unchanged() {
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
        let urls = pairs.iter().filter(|(name, _)| name.ends_with("URL"));
        assert_eq!(plan.variables().count(), urls.count());
    }

    #[test]
    fn only_the_url_of_another_launchers_tunnel_stays_unchanged() {
        for (url, is_tunnelled) in [
            ("redis://h:6379", true),
            ("rediss://127.0.0.1:6371", true),
            ("redis://127.0.0.2:6371", true),
            ("redis://localhost:6371", true),
            ("redis://127.0.0.1:6371", false),
            ("valkey://u:p@127.0.0.1:1/2", false),
            ("unix:///run/start-stunnel-x/redis0.sock", false),
        ] {
            let plan = plan(&[], &[("REDIS_URL", url), ("REDIS_URL_STUNNEL", url)]).unwrap();
            assert_eq!(plan.untouched().count(), usize::from(!is_tunnelled), "{url}");
            assert_eq!(plan.tunnelled.len(), usize::from(is_tunnelled), "{url}");
        }
    }

    #[test]
    fn each_of_fifty_servers_gets_its_own_route() {
        let urls = (10..60).map(|n| (format!("HEROKU_REDIS_{n}_URL"), format!("redis://h{n}")));
        let urls: Vec<_> = urls.collect();
        let pairs: Vec<_> = urls.iter().map(|(name, url)| (name.as_str(), url.as_str())).collect();
        assert_eq!(plan(&[], &pairs).unwrap().routes.len(), 50);
    }

    #[test]
    fn invalid_utf8_in_other_variables_is_no_error() {
        let mut environment = environment(&[("REDIS_URL", "redis://h")]);
        let garbage = OsString::from_vec(vec![0xff, 0xfe, b'=']);
        environment.insert("OTHER".into(), garbage.clone());
        environment.insert(OsString::from_vec(vec![0xfe]), "x".into());
        environment.insert("HEROKU_REDIS_BINARY".into(), garbage.clone());
        let found = read(&[], &environment).unwrap().plan;
        assert_eq!(upstreams(&found), ["REDIS_URL=h:6380"]);

        let mut value = b"redis://:".to_vec();
        value.extend([0xff, b'@', b'h']);
        environment.insert("HEROKU_REDIS_BINARY".into(), OsString::from_vec(value));
        let errors = read(&[], &environment).unwrap_err();
        assert!(errors[0].starts_with("HEROKU_REDIS_BINARY is not valid UTF-8"), "{errors:?}");
    }
}
