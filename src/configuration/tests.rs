use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use openssl::ssl::SslVersion;

use super::*;
use crate::logging::LogFormat;
use crate::pool::PoolMode;
use crate::redis_url::Local;
use crate::supervisor::ForwardSignals;
use crate::tls::{Trust, Verify};

pub fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Reads a configuration, as if the system had CA certificates.
pub fn read(options: &[&str], environment: &Environment) -> Result<Configuration, Vec<String>> {
    let words = ["start-stunnel"].iter().chain(options).chain(&["true"]);
    let invocation =
        Invocation::parse_from(words.map(OsString::from)).expect("a good command line");
    let read = read_on(|| Ok(()), &invocation, environment);
    read.map_err(|mistakes| mistakes.iter().map(ConfigError::to_string).collect())
}

pub fn plan(options: &[&str], pairs: &[(&str, &str)]) -> Result<Plan, Vec<String>> {
    read(options, &environment(pairs)).map(|configuration| configuration.plan)
}

pub fn ports(ports: impl IntoIterator<Item = u16>) -> Vec<Local> {
    ports.into_iter().map(Local::Port).collect()
}

/// Reads a configuration from the options `options`, the variables `pairs`, and a Redis URL in
/// `CACHE_URL`. Returns the configuration and the trust settings for this URL.
fn settings(
    options: &[&str],
    pairs: &[(&str, &str)],
) -> Result<(Configuration, Trust), Vec<String>> {
    let url = [("REDIS_STUNNEL_URLS", "CACHE_URL"), ("CACHE_URL", "redis://h")];
    let configuration = read(options, &environment(&[&url[..], pairs].concat()))?;
    let trust = configuration.plan.routes[0].trust.clone();
    Ok((configuration, trust))
}

#[test]
fn unset_settings_have_the_documented_defaults() {
    let (configuration, trust) = settings(&[], &[]).unwrap();
    let settings = configuration.settings;
    assert_eq!(settings.listen_port, 6371);
    assert_eq!(settings.connection.connect_timeout, Duration::from_secs(10));
    assert!(!settings.connection.connect_retry);
    assert_eq!(settings.connection.idle_timeout, Some(Duration::from_secs(86_400)));
    assert_eq!(settings.connection.drain_timeout, Duration::from_secs(5));
    assert_eq!(settings.forward_signals, ForwardSignals::Auto);
    assert_eq!(settings.log.level, LevelFilter::INFO);
    assert_eq!(settings.log.format, LogFormat::Logfmt);
    let plain = Trust {
        verify: Verify::None,
        min_tls: SslVersion::TLS1_2,
        ca: None,
        pins: vec![],
        identity: None,
        server_name: None,
    };
    assert_eq!(trust, plain);
    assert!(!trust.authenticates());
}

#[test]
fn option_overrides_variable_and_variable_overrides_default() {
    let verify =
        |options: &[&str], pairs: &[(&str, &str)]| settings(options, pairs).unwrap().1.verify;
    assert_eq!(verify(&[], &[("STUNNEL_VERIFY", "ca")]), Verify::Ca);
    assert_eq!(verify(&[], &[("STUNNEL_VERIFY", "")]), Verify::None);
    assert_eq!(verify(&["--verify", "full"], &[("STUNNEL_VERIFY", "ca")]), Verify::Full);
    assert_eq!(verify(&["--verify", "full"], &[("STUNNEL_VERIFY", "bogus")]), Verify::Full);
    assert_eq!(verify(&["--verify", "ca"], &[("CACHE_URL_STUNNEL_VERIFY", "full")]), Verify::Full);
    assert_eq!(verify(&["--verify", "ca"], &[("CACHE_URL_STUNNEL_VERIFY", "")]), Verify::Ca);
    assert_eq!(verify(&[], &[("OTHER_URL_STUNNEL_VERIFY", "full")]), Verify::None);
}

#[test]
fn all_invalid_values_are_reported_with_the_accepted_forms() {
    let wrong = [
        ("STUNNEL_ENABLED", "flase", "'flase'; expected 1, true, yes or on"),
        ("STUNNEL_REDISS", "tunel", "'tunel'; expected tunnel or passthrough"),
        ("STUNNEL_PORT_OFFSET", "one", "'one'; expected a whole number"),
        ("STUNNEL_LISTEN_PORT", "65536", "'65536'; expected a port"),
        ("STUNNEL_VERIFY", "fulll", "'fulll'; expected none, ca or full"),
        ("STUNNEL_MIN_TLS", "1.1", "'1.1'; expected 1.2 or 1.3"),
        ("STUNNEL_CONNECT_TIMEOUT", "0", "'0'; expected a time of more than zero"),
        ("STUNNEL_CONNECTION_RETRY", "maybe", "'maybe'; expected 1, true"),
        ("STUNNEL_IDLE_TIMEOUT", "1d", "'1d'; expected a time such as 500ms"),
        ("STUNNEL_DRAIN_TIMEOUT", "-1", "'-1'; expected a time such as 500ms"),
        ("STUNNEL_POOL", "of", "'of'; expected off, on or auto"),
        ("STUNNEL_FORWARD_SIGNALS", "some", "'some'; expected auto, always or never"),
        ("STUNNEL_LOGLEVEL", "8", "'8'; expected emerg, alert"),
        ("STUNNEL_LOG_FORMAT", "xml", "'xml'; expected logfmt or json"),
        ("CACHE_URL_STUNNEL_VERIFY", "full\n", "'full\\n'; expected none, ca or full"),
        ("CACHE_URL_STUNNEL_PORT_OFFSET", "99999", "'99999'; expected a whole number"),
        ("CACHE_URL_STUNNEL_REDISS", "x", "'x'; expected tunnel or passthrough"),
        ("CACHE_URL_STUNNEL_POOL", "yes", "'yes'; expected off, on or auto"),
        ("STUNNEL_STATUS_ADDRESS", ":9121", "':9121'; expected HOST:PORT (such as 0.0.0.0:9121"),
        ("STUNNEL_METRICS_INTERVAL", "10ms", "'10ms'; expected a time of at least 1s, such as 60s"),
    ];
    let pairs = wrong.map(|(name, value, _)| (name, value));
    let errors = settings(&[], &pairs).unwrap_err();
    assert_eq!(errors.len(), wrong.len(), "{errors:#?}");
    for (name, _, expected) in wrong {
        let mut matching = errors.iter().filter(|error| error.starts_with(&format!("{name} is ")));
        let error = matching.next_back().unwrap_or_else(|| panic!("{name} in {errors:#?}"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn error_about_a_url_in_urls_does_not_show_the_url() {
    let mistakes = settings(&["--urls", "redis://:pw@h"], &[]).unwrap_err();
    assert!(mistakes[0].starts_with("--urls is a value of 13 bytes, not shown; expected names"));
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
}

#[test]
fn error_about_invalid_utf8_does_not_show_the_value() {
    let mut environment = environment(&[]);
    environment.insert("STUNNEL_VERIFY".into(), OsString::from_vec(vec![0xff, 0xfe]));
    let mistakes = read(&[], &environment).unwrap_err();
    assert_eq!(mistakes, ["STUNNEL_VERIFY is not valid UTF-8"]);
}

#[test]
fn only_a_valid_option_overrides_an_invalid_variable() {
    let pairs = [("STUNNEL_VERIFY", "bogus"), ("STUNNEL_LOG_LEVEL", "bogus")];
    settings(&["--verify", "full", "--log-level", "info"], &pairs).unwrap();
    let errors = settings(&["--verify", "ful", "--log-level", ""], &pairs).unwrap_err();
    let names: Vec<_> = errors.iter().map(|error| error.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["--verify", "STUNNEL_VERIFY", "--log-level", "STUNNEL_LOG_LEVEL"]);
}

#[test]
fn names_of_the_retired_buildpack_still_work() {
    let read = |pairs: &[(&str, &str)]| {
        settings(&[], pairs).map(|(configuration, _)| {
            let settings = configuration.settings;
            (settings.log.level, settings.connection.connect_retry)
        })
    };
    let (debug, notice) = (LevelFilter::TRACE, LevelFilter::INFO);
    assert_eq!(read(&[("STUNNEL_LOGLEVEL", "debug")]), Ok((debug, false)));
    assert_eq!(read(&[("STUNNEL_LOG_LEVEL", "debug")]), Ok((debug, false)));
    assert_eq!(read(&[("STUNNEL_CONNECTION_RETRY", "yes")]), Ok((notice, true)));
    assert_eq!(read(&[("STUNNEL_CONNECT_RETRY", "yes")]), Ok((notice, true)));
    let same = [("STUNNEL_LOG_LEVEL", "debug"), ("STUNNEL_LOGLEVEL", "debug")];
    assert_eq!(read(&same), Ok((debug, false)));
    let different = [("STUNNEL_CONNECT_RETRY", "yes"), ("STUNNEL_CONNECTION_RETRY", "no")];
    let errors = read(&different).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for name in ["STUNNEL_CONNECT_RETRY and STUNNEL_CONNECTION_RETRY", "different values"] {
        assert!(errors[0].contains(name), "{errors:?}");
    }
    let (configuration, _) = settings(&["--connect-retry", "no"], &different).unwrap();
    assert!(!configuration.settings.connection.connect_retry, "the option hides both variables");
}

#[test]
fn one_url_can_have_its_own_pool_mode() {
    let mode = |options: &[&str], pairs: &[(&str, &str)]| {
        settings(options, pairs).unwrap().0.plan.pools[0]
    };
    assert_eq!(mode(&[], &[]), PoolMode::Auto);
    assert_eq!(mode(&[], &[("STUNNEL_POOL", "off")]), PoolMode::Off);
    assert_eq!(mode(&["--pool", "off"], &[("CACHE_URL_STUNNEL_POOL", "on")]), PoolMode::On);
}

#[test]
fn empty_value_of_an_option_is_an_error() {
    for (option, _) in options::with_option() {
        let errors = settings(&[&format!("--{option}"), ""], &[]).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with(&format!("--{option} has an empty value")), "{errors:?}");
    }
}

#[test]
fn invalid_setting_for_one_url_is_an_error() {
    for setting in options::for_one_url() {
        let mut environment = environment(&[("REDIS_URL", "redis://h")]);
        let variable = setting.for_one("REDIS_URL");
        environment.insert(variable.clone().into(), OsString::from_vec(vec![0xff, 0xfe]));
        let errors = read(&[], &environment).unwrap_err();
        assert!(errors[0].starts_with(&variable), "{errors:?}");
    }
}

#[test]
fn error_shows_a_wrong_pin_or_path_but_no_secret() {
    const KEY: &str = "MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u";
    for (variable, value, shown) in [
        ("STUNNEL_PIN", "sha1//AAAA+/=", true),
        ("STUNNEL_PIN", "sha256//AAAA;sha256//BBBB", true),
        ("STUNNEL_PIN", "redis://:hunter2@h", false),
        ("STUNNEL_PIN", KEY, false),
        ("STUNNEL_CA_FILE", "/no/such/ca.pem", true),
        ("STUNNEL_CA_FILE", "certs/ca.pem", true),
        ("STUNNEL_CA_FILE", "hunter2\nhunter2", false),
        ("STUNNEL_CLIENT_CERT", "/no/such/client.pem", true),
        ("STUNNEL_CLIENT_KEY", "/no/such/client.key", true),
        ("STUNNEL_CLIENT_KEY", "s3cretpem", false),
        ("STUNNEL_CLIENT_KEY", KEY, false),
    ] {
        let errors = settings(&[], &[(variable, value)]).unwrap_err().join("; ");
        assert!(errors.contains(&format!("{variable} ")), "{errors}");
        assert_eq!(errors.contains(&format!("'{value}'")), shown, "{errors}");
        assert!(shown || !errors.contains(&value[..7]), "{errors}");
    }
}

#[test]
fn endless_ca_file_and_invalid_host_name_are_errors() {
    let endless = settings(&[], &[("STUNNEL_CA_FILE", "/dev/zero")]).unwrap_err();
    assert!(
        endless[0].contains("'/dev/zero', a file that cannot be read (more than"),
        "{endless:?}"
    );
    let long = format!("{}.test", "x".repeat(250));
    for name in ["a,b", "a;b", "redis.test:6379", &long] {
        let errors = settings(&[], &[("STUNNEL_SERVER_NAME", name)]).unwrap_err();
        assert!(errors[0].contains(&format!("'{name}'")) || name.len() > 250, "{errors:?}");
    }
    assert!(plan(&[], &[("REDIS_URL", &format!("redis://{long}"))]).is_err());
}

#[test]
fn text_that_is_no_pem_is_an_error() {
    for variable in ["STUNNEL_CA_PEM", "CACHE_URL_STUNNEL_CA_PEM"] {
        let errors = settings(&[], &[(variable, "/etc/ca-certificates.crt")]).unwrap_err();
        let problem = format!("{variable} is not PEM text");
        assert!(errors[0].starts_with(&problem), "{errors:?}");
        assert!(errors[0].contains("set STUNNEL_CA_FILE instead"), "{errors:?}");
    }
}

#[test]
fn pem_text_may_have_a_comment_that_is_not_utf8() {
    let mut environment = environment(&[("REDIS_URL", "redis://h")]);
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let text = [b"# F\xf5tan\xfas\n", pem.as_bytes()].concat();
    environment.insert("STUNNEL_CA_PEM".into(), OsString::from_vec(text));
    let errors = read(&[], &environment).unwrap_err();
    // The certificate itself is broken, but the launcher has found the certificate.
    assert!(errors[0].contains("(certificate number 1)"), "{errors:?}");
    assert_eq!(errors.len(), 1, "{errors:?}");
}
