use proptest::prelude::*;

use super::*;

#[test]
fn local_url_changes_only_scheme_host_port_and_tls_parameters() {
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
        ("rediss://h/0?a=1&ssl_cert_reqs=required&b=2", "h", 6379, "redis://127.0.0.1:1/0?a=1&b=2"),
        ("rediss://h/0?SSL_CA_CERTS=/x&tls=true", "h", 6379, "redis://127.0.0.1:1/0"),
        ("rediss://h/0?ssl[verify_peer]=0&skip_verify=1", "h", 6379, "redis://127.0.0.1:1/0"),
        ("rediss://h/0?ssl%5Bverify_peer%5D=0&ssl%5Fx=1", "h", 6379, "redis://127.0.0.1:1/0"),
        ("rediss://h/0?ssl_x=1#f", "h", 6379, "redis://127.0.0.1:1/0#f"),
    ];
    for (given, host, port, local) in cases {
        let url = RedisUrl::parse(given).unwrap_or_else(|problem| panic!("{given}: {problem}"));
        assert_eq!(url.host.to_string(), host, "{given}");
        assert_eq!(url.port, port, "{given}");
        assert_eq!(url.local(&Local::Port(1)).whole.expose(), local, "{given}");
    }
}

#[test]
fn invalid_redis_url_is_refused_with_the_reason() {
    let cases = [
        ("", "does not begin"),
        ("garbage", "does not begin"),
        ("http://h:6379", "does not begin"),
        ("redis+tls://h", "does not begin"),
        ("\"redis://h\"", "does not begin"),
        ("redis", "does not begin"),
        ("redis:h:6379", "has no //"),
        ("redis:/h", "has no //"),
        ("redis://", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://:pw@", "names no host"),
        ("redis://:pw@:6379/0", "names no host"),
        ("redis://h:0", "has a port"),
        ("redis://h:65536", "has a port"),
        ("redis://h:+1", "has a port"),
        ("redis://h:-1", "has a port"),
        ("redis://h:6379x", "has a port"),
        ("redis://h:secret", "has a port"),
        ("redis://::1:6379", "has a port"),
        ("redis://a:6379,b:6379", "contains several hosts"),
        ("redis://[::1", "has a host"),
        ("redis://[::1]6379", "has a port"),
        ("redis://[h]:6379", "has a host"),
        ("redis://h<x>", "has a host"),
        ("redis://1.2.3.4.5", "has a host"),
        ("redis://user/pw@h", "has an @"),
        ("redis://user?pw@h", "has an @"),
        ("redis://h\n", "contains white space"),
        ("redis://h/0 ", "contains white space"),
        (" redis://h", "contains white space"),
        ("redis://:p\u{7}w@h", "contains white space"),
        ("redis://:p w@h", "contains white space"),
        ("redis://a,b:6379", "contains several hosts"),
        ("redis://a;b", "contains several hosts"),
        ("rediss://:pw@h1:6379,h2:6379/0", "contains several hosts"),
        ("redis://a%2Cb", "has a host"),
        ("redis://a$b", "has a host"),
        ("redis://:p@ss/word@host:6379/0", "has an @"),
        ("redis://:p@ss?word@host:6379/0", "has an @"),
        ("redis://:p@ss#word@host:6379/0", "has an @"),
        ("redis://user:12/34@host", "has an @"),
        ("redis://:p/w@host", "has an @"),
        ("redis://u:p@h/0?name=a@b", "has an @"),
        ("redis://:pw1@a,redis://:pw2@b", "contains more than one URL"),
        ("redis://:pw1@a,:pw2@b", "contains more than one URL"),
        ("redis://:a://b@h", "contains more than one URL"),
        ("redis://u:p@ss,word@h", "contains more than one URL"),
        ("redis://h/0?proxy=http://x", "contains more than one URL"),
        ("redis://a/0,redis://b/0", "contains more than one URL"),
        ("redis://a/0;rediss://b/0", "contains more than one URL"),
    ];
    for (given, problem) in cases {
        let refused = RedisUrl::parse(given).unwrap_err();
        assert!(refused.starts_with(problem), "{given:?}: {refused}");
    }
}

#[test]
fn displayed_url_shows_no_secret() {
    let cases = [
        ("redis://h/0", "redis://h:6379/0"),
        ("redis://:pw@h/0", "redis://:***@h:6379/0"),
        ("rediss://me:pw@h:1/0?x=pw&db=2&pw", "rediss://***:***@h:1/0?x=***&db=2&***"),
        ("redis://pw@h#pw", "redis://***@h:6379#***"),
        ("redis://h?timeout=1;password=pw", "redis://h:6379?timeout=***"),
    ];
    for (given, shown) in cases {
        let url = RedisUrl::parse(given).unwrap();
        assert_eq!(url.to_string(), shown);
        assert!(!format!("{url:?}").contains("pw"), "{url:?}");
    }
}

#[test]
fn user_and_password_are_percent_decoded() {
    let credentials = |userinfo: &str| {
        let url = RedisUrl::parse(&format!("redis://{userinfo}h")).unwrap();
        let Credentials { user, password } = url.credentials()?;
        Some((user.map(|user| user.expose().to_owned()), password.expose().to_owned()))
    };
    for without in ["", "user@", "user:@"] {
        assert_eq!(credentials(without), None);
    }
    assert_eq!(credentials(":p%2Fw@"), Some((None, "p/w".to_owned())));
    assert_eq!(credentials("me:a:b@"), Some((Some("me".to_owned()), "a:b".to_owned())));
}

#[test]
fn ssl_cert_reqs_in_the_url_sets_the_verify_level() {
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
        assert_eq!(
            asked(&format!("?ssl_cert_reqs={wrong}")),
            Err("has an ssl_cert_reqs with a value other than required, optional and none")
        );
    }
    assert_eq!(
        asked("?ssl_cert_reqs=required&ssl_ca_certs="),
        Err("has an ssl_ca_certs without a file name")
    );
    let twice = asked("?ssl_cert_reqs=required&ssl_cert_reqs=cert_optional");
    assert_eq!(twice, Ok((Some(true), None)));
    for contradictory in [
        "?ssl_cert_reqs=required&ssl_cert_reqs=none",
        "?SSL_CERT_REQS=none&ssl_cert_reqs=required",
        "?ssl_ca_certs=a&ssl_ca_certs=b",
    ] {
        assert_eq!(
            asked(contradictory),
            Err("has ssl_cert_reqs or ssl_ca_certs twice, with different values")
        );
    }
}

/// Returns the parts of a URL that the launcher must not change: the user and password, and the
/// text from the path to the end.
fn around_host(url: &str) -> (Option<&str>, &str) {
    let rest = url.split_once("://").unwrap().1;
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    (authority.rsplit_once('@').map(|(userinfo, _)| userinfo), tail)
}

#[test]
fn url_of_a_socket_has_the_database_in_its_query() {
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
        assert_eq!(url.local(&Local::Socket("/t/r.sock".into())).whole.expose(), local, "{given}");
    }
    let url = RedisUrl::parse("redis://u:pw@h?auth=pw").unwrap();
    let local = url.local(&Local::Socket("/a b?/%#ä".into()));
    assert_eq!(local.whole.expose(), "unix://u:pw@/a%20b%3F/%25%23%C3%A4?auth=pw");
    assert_eq!(local.shown, "unix://***:***@/a%20b%3F/%25%23%C3%A4?auth=***");
}

proptest! {
    #[test]
    fn local_url_differs_in_scheme_host_and_port_only(
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
            let local = url.local(&Local::Port(local_port)).whole;
            let local = local.expose();
            prop_assert_eq!(around_host(local), around_host(&given));
            let again = RedisUrl::parse(local).expect("the local form parses");
            prop_assert_eq!(again.host.to_string(), "127.0.0.1");
            prop_assert_eq!(again.port, local_port);
            prop_assert!(!again.is_tls());
            url::Url::parse(local).expect("other parsers take the local form too");
        }
    }

    #[test]
    fn parser_never_panics_and_its_errors_show_no_value(rest in "\\PC{0,40}") {
        for value in [rest.clone(), format!("redis://{rest}"), format!("rediss://u:{rest}@h")] {
            if let Err(problem) = RedisUrl::parse(&value) {
                prop_assert!(rest.len() < 6 || !problem.contains(&rest));
            }
        }
    }
}
