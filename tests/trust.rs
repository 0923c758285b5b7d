//! Authenticating the server (docs/trust.md): kinds of servers against kinds of trust settings.

mod support;

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use openssl::ssl::{NameType, SniError, SslAlert, SslVersion};
use support::launcher::{HOLD, Held, Launcher, logged, with_hosts};
use support::peer::{Peer, acceptor_builder, s_server};
use support::pki::{Authority, Certificate, Kind, Request};
use support::resp::Reply;
use support::rest;
use support::servers::{Front, Options, PASSWORD, Server};

/// What an app receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    Pong,
    /// A RESP error that contains this text.
    Error(&'static str),
}
use Sees::{Error, Pong};

fn sees(held: &Held) -> Result<(), String> {
    let mut client = held.open();
    client.send(&["AUTH", PASSWORD]);
    match client.reply() {
        Ok(Reply::Line(line)) if line == "+OK" => Ok(()),
        Ok(Reply::Line(line)) => Err(line),
        other => panic!("no reply: {other:?}"),
    }
}

fn check(held: &Held, expected: Sees, what: &str) {
    match (sees(held), expected) {
        (Ok(()), Pong) => {}
        (Err(line), Error(text)) => {
            assert!(line.starts_with("-ERR start-stunnel: "), "{what}: {line}");
            assert!(line.contains(text), "{what}: {line}");
            assert!(line.len() <= 298, "{what}: {line}");
        }
        (seen, expected) => panic!("{what}: {seen:?}, not {expected:?}"),
    }
}

fn days_from_now(days: i64) -> String {
    let output =
        Command::new("date").args(["-u", "-d", &format!("{days} days"), "+%F"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn each_verify_level_accepts_only_the_right_servers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Authority::new(folder);
    let good = Request::default();
    let issue = |file: &str, request: Request<'_>| authority.issue(folder, file, &request);
    let rsa = issue("rsa", good.clone());
    let ecdsa = issue("ecdsa", Request { kind: Kind::Ecdsa, ..good.clone() });
    let expired = issue("expired", Request { valid: (-9, -3), ..good.clone() });
    let early = issue("early", Request { valid: (3, 9), ..good.clone() });
    let wrong_name = issue(
        "wrong",
        Request { dns: &["other.example"], ip: &[], name: "other.example", ..good.clone() },
    );
    let dns_only = issue("dns", Request { ip: &[], ..good.clone() });
    let self_signed = Certificate::self_signed(folder);
    let stranger = Certificate::issue(
        folder,
        "stranger",
        &good,
        Some(&Authority::named(tempfile::tempdir().unwrap().path(), "Other").root),
        &[],
    );

    // The server, its certificate, and what an app receives under none, ca and full.
    let unknown = "unable to get local issuer certificate";
    let table: [(&str, &Certificate, [Sees; 3]); 8] = [
        ("a good RSA certificate", &rsa, [Pong, Pong, Pong]),
        ("a good ECDSA certificate", &ecdsa, [Pong, Pong, Pong]),
        ("an expired one", &expired, [Pong, Error("expired on "), Error("expired on ")]),
        (
            "one from the future",
            &early,
            [Pong, Error("not valid before "), Error("not valid before ")],
        ),
        (
            "another name",
            &wrong_name,
            [Pong, Pong, Error("certificate is for other.example, not for 127.0.0.1")],
        ),
        (
            "no IP address",
            &dns_only,
            [Pong, Pong, Error("certificate is for localhost, not for 127.0.0.1")],
        ),
        ("a self-signed one", &self_signed, [Pong, Error("self-signed"), Error("self-signed")]),
        ("another CA's", &stranger, [Pong, Error(unknown), Error(unknown)]),
    ];
    for (what, certificate, expected) in table {
        check_each_level(what, certificate, &authority.root, expected);
    }
}

/// Checks what apps receive from a server with this certificate under each level, without a pin,
/// with the server's pin and with another pin.
fn check_each_level(
    what: &str,
    certificate: &Certificate,
    root: &Certificate,
    [none, ca, full]: [Sees; 3],
) {
    let server = Server::with_certificate(certificate);
    let pin = certificate.pin();
    let wrong_pin = Certificate::self_signed(tempfile::tempdir().unwrap().path()).pin();
    let hold = |settings: &[(&str, &str)]| {
        Launcher::holding(&server.url())
            .env("STUNNEL_CA_FILE", &root.certificate_file)
            .settings(settings)
            .start_held()
    };
    for (level, expected) in [("none", none), ("ca", ca), ("full", full)] {
        check(&hold(&[("STUNNEL_VERIFY", level)]), expected, &format!("{what} under {level}"));
        let pinned = hold(&[("STUNNEL_VERIFY", level), ("STUNNEL_PIN", &pin)]);
        check(&pinned, expected, &format!("{what} under {level} with its pin"));
        let wrong = hold(&[("STUNNEL_VERIFY", level), ("STUNNEL_PIN", &wrong_pin)]);
        let expected = if expected == Pong { Error("key differs from the pin") } else { expected };
        check(&wrong, expected, &format!("{what} under {level} with another pin"));
    }
    let several = format!("{wrong_pin};{pin}");
    check(&hold(&[("STUNNEL_PIN", &several)]), Pong, &format!("{what} with two pins"));
}

#[test]
fn the_error_names_the_date_of_an_invalid_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    for (valid, text, day) in [((-9, -3), "expired on", -3), ((3, 9), "not valid before", 3)] {
        let before = days_from_now(day);
        let request = Request { valid, ..Request::default() };
        let server = Server::with_certificate(&authority.issue(folder.path(), "dated", &request));
        let held = Launcher::holding(&server.url())
            .env("STUNNEL_VERIFY", "ca")
            .env("STUNNEL_CA_FILE", &authority.root.certificate_file)
            .start_held();
        let line = sees(&held).unwrap_err();
        // The test may have run past midnight.
        let days = [before, days_from_now(day)];
        assert!(days.iter().any(|day| line.contains(&format!("{text} {day}"))), "{line}");
    }
}

#[test]
fn ca_file_and_ca_pem_add_up_and_per_url_settings_replace_them() {
    let folder = tempfile::tempdir().unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path());
    let other = Authority::named(other_folder.path(), "Other");
    let server = Server::with_certificate(&ours.issue(folder.path(), "leaf", &Request::default()));
    let (our_pem, other_pem) = (ours.root.pem(), other.root.pem());
    let one_line = our_pem.replace('\n', "\\n");
    let our_file = ours.root.certificate_file.to_str().unwrap();
    let other_file = other.root.certificate_file.to_str().unwrap();
    let (file, pem) = ("STUNNEL_CA_FILE", "STUNNEL_CA_PEM");
    let (own_file, own_pem) = ("REDIS_URL_STUNNEL_CA_FILE", "REDIS_URL_STUNNEL_CA_PEM");
    let unknown = Error("unable to get local issuer certificate");
    for (what, settings, expected) in [
        ("PEM text", &[(pem, &*our_pem)][..], Pong),
        ("PEM text in one line", &[(pem, &one_line)], Pong),
        ("another CA", &[(pem, &other_pem)], unknown),
        ("both", &[(file, our_file), (pem, &other_pem)], Pong),
        ("both, the other way", &[(file, other_file), (pem, &our_pem)], Pong),
        (
            "a CA for this URL replaces the others",
            &[(file, our_file), (pem, &our_pem), (own_file, other_file)],
            unknown,
        ),
        ("the right CA for this URL", &[(file, other_file), (own_pem, &our_pem)], Pong),
        ("the system's roots", &[], unknown),
    ] {
        let launcher = Launcher::holding(&server.url()).env("STUNNEL_VERIFY", "full");
        check(&launcher.settings(settings).start_held(), expected, what);
    }
}

#[test]
fn a_server_name_is_sent_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let request = Request { dns: &["redis.example"], ip: &[], ..Request::default() };
    let server = Server::with_certificate(&authority.issue(folder.path(), "named", &request));
    for (name, expected) in [
        ("redis.example", Pong),
        ("redis.example.", Pong),
        ("evil.example", Error("certificate is for redis.example, not for evil.example")),
    ] {
        let held = Launcher::holding(&server.url())
            .env("STUNNEL_VERIFY", "full")
            .env("STUNNEL_CA_FILE", &authority.root.certificate_file)
            .env("REDIS_URL_STUNNEL_SERVER_NAME", name)
            .start_held();
        check(&held, expected, name);
    }

    let peer = Peer::tls(|tls| tls.ssl().servername(NameType::HOST_NAME).map(str::to_owned));
    for (host, name, sent) in [
        // An IP address is not sent in SNI.
        ("127.0.0.1", "", None),
        ("127.0.0.1", "redis.example", Some("redis.example")),
        ("127.0.0.1", "redis.example.", Some("redis.example")),
        ("localhost", "", Some("localhost")),
        ("localhost", "192.0.2.1", None),
    ] {
        let url = format!("rediss://{host}:{}", peer.port);
        let held = Launcher::holding(&url).env("STUNNEL_SERVER_NAME", name).start_held();
        drop(held.open());
        assert_eq!(peer.result().as_deref(), sent, "{host} {name}");
    }
}

/// The key in its traditional form, PKCS#1 or SEC 1, instead of PKCS#8.
fn traditional(certificate: &Certificate) -> String {
    let pem = match certificate.key.rsa() {
        Ok(key) => key.private_key_to_pem(),
        Err(_) => certificate.key.ec_key().unwrap().private_key_to_pem(),
    };
    String::from_utf8(pem.unwrap()).unwrap()
}

#[test]
fn a_server_that_requires_a_client_certificate_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let other = tempfile::tempdir().unwrap();
    let stranger = Certificate::self_signed(other.path());
    for kind in [Kind::Rsa, Kind::Ecdsa] {
        let client =
            authority.issue(folder.path(), "client", &Request { kind, ..Request::default() });
        for protocols in ["TLSv1.2", "TLSv1.3"] {
            let server = Server::for_clients_of(&authority.root, protocols);
            let hold = |certificate: &str, key: &str| {
                Launcher::holding(&server.url())
                    .env("STUNNEL_CLIENT_CERT", certificate)
                    .env("STUNNEL_CLIENT_KEY", key)
                    .start_held()
            };
            let what = format!("{kind:?} {protocols}");
            let files =
                (client.certificate_file.to_str().unwrap(), client.key_file.to_str().unwrap());
            check(&hold(files.0, files.1), Pong, &what);
            check(&hold(&client.pem(), &client.key_pem()), Pong, &what);
            check(&hold(&client.pem(), &traditional(&client)), Pong, &what);
            let one_line = |pem: String| pem.replace('\n', "\\n");
            check(&hold(&one_line(client.pem()), &one_line(client.key_pem())), Pong, &what);
            check(&hold("", ""), Error("client certificate"), &what);
            check(&hold("", ""), Error("STUNNEL_CLIENT_CERT"), &what);
            let refused = Error("the server refuses the client certificate");
            check(&hold(&stranger.pem(), &stranger.key_pem()), refused, &what);
        }
    }
}

#[test]
fn the_app_learns_that_no_tls_version_is_common() {
    let options = Options { words: &["--tls-protocols", "TLSv1.2"], ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let hold = |version: &str| {
        Launcher::holding(&server.url()).env("STUNNEL_MIN_TLS", version).start_held()
    };
    check(&hold("1.2"), Pong, "TLS 1.2");
    check(&hold("1.3"), Error("none of the allowed TLS versions"), "TLS 1.3 required");
    check(&hold("1.3"), Error("STUNNEL_MIN_TLS"), "TLS 1.3 required");

    let folder = tempfile::tempdir().unwrap();
    let options = ["-tls1", "-cipher", "ALL:@SECLEVEL=0"];
    let (_old, port) = s_server(folder.path(), &options);
    let held = Launcher::hold(&format!("rediss://127.0.0.1:{port}"));
    check(&held, Error("none of the allowed TLS versions"), "a TLS 1.0 server");
}

/// A valid certificate, then one whose serial number has a superfluous byte. X.690 section 8.3.2
/// forbids this, but not every parser notices it.
fn with_overlong_serial(certificate: &Certificate) -> String {
    let mut der = certificate.certificate.to_der().unwrap();
    let serial = 4 + 4 + 5;
    assert_eq!(der[serial], 0x02, "an INTEGER");
    der[serial + 2..serial + 4].copy_from_slice(&[0, 1]);
    let base64 = openssl::base64::encode_block(&der);
    let bad = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
    certificate.pem() + &bad
}

type Settings<'a> = Vec<(&'a str, &'a str)>;

fn ca_file(value: &str) -> Settings<'_> {
    vec![("STUNNEL_CA_FILE", value)]
}

fn client<'a>(cert: &'a str, key: &'a str) -> Settings<'a> {
    vec![("STUNNEL_CLIENT_CERT", cert), ("STUNNEL_CLIENT_KEY", key)]
}

#[test]
fn invalid_trust_settings_fail_at_start_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| {
        fs::write(path(name), text).unwrap();
        path(name)
    };
    let ours = Certificate::self_signed(folder.path());
    let other_folder = tempfile::tempdir().unwrap();
    let other_key = Certificate::self_signed(other_folder.path()).key_pem();
    let cipher = openssl::symm::Cipher::aes_128_cbc();
    let encrypted_pkcs1 = ours.key.rsa().unwrap().private_key_to_pem_passphrase(cipher, b"pw");
    let encrypted_pkcs1 = String::from_utf8(encrypted_pkcs1.unwrap()).unwrap();
    let encrypted = ours.key.private_key_to_pem_pkcs8_passphrase(cipher, b"pw").unwrap();
    let encrypted = String::from_utf8(encrypted).unwrap();
    let (cert, key) = (ours.pem(), ours.key_pem());
    let [garbled, garbled_key] = [&cert, &key].map(|pem| pem.replacen("MII", "xxx", 1));

    let second_bad = with_overlong_serial(&ours);
    let at_place_2 = "a certificate that cannot be read (certificate number 2)";
    let empty = write("empty", "");
    let no_pem = write("no-pem", "hello");
    let missing = path("missing");
    let (cert_name, key_name) = ("STUNNEL_CLIENT_CERT", "STUNNEL_CLIENT_KEY");
    // The settings, the variable that the error must name, and a part of the error.
    let folder_path = path(".");
    let cases: [(Settings<'_>, &str, &str); 19] = [
        (ca_file(&missing), "STUNNEL_CA_FILE", "cannot be read"),
        (ca_file(&folder_path), "STUNNEL_CA_FILE", "cannot be read"),
        (ca_file(&empty), "STUNNEL_CA_FILE", "holds no certificate"),
        (ca_file(&no_pem), "STUNNEL_CA_FILE", "-----BEGIN CERTIFICATE-----"),
        (vec![("STUNNEL_CA_PEM", &garbled)], "STUNNEL_CA_PEM", "cannot be read"),
        (
            vec![("REDIS_URL_STUNNEL_CA_FILE", &missing)],
            "REDIS_URL_STUNNEL_CA_FILE",
            "cannot be read",
        ),
        (vec![("STUNNEL_PIN", "sha256//AAAA")], "STUNNEL_PIN", "base64 of 32 bytes"),
        (vec![("REDIS_URL_STUNNEL_PIN", "x")], "REDIS_URL_STUNNEL_PIN", "base64 of 32 bytes"),
        (client(&cert, ""), key_name, "STUNNEL_CLIENT_CERT is"),
        (client("", &key), cert_name, "STUNNEL_CLIENT_KEY is"),
        (client(&cert, &encrypted), key_name, "openssl pkcs8 -topk8 -nocrypt"),
        (client(&cert, &encrypted_pkcs1), key_name, "openssl pkcs8 -topk8 -nocrypt"),
        (client(&cert, &other_key), key_name, "does not match"),
        (client(&cert, &garbled_key), key_name, "cannot be read"),
        (client(&cert, &cert), key_name, "no private key"),
        (client(&missing, &key), cert_name, "cannot be read"),
        (client(&second_bad, &key), cert_name, at_place_2),
        (vec![("STUNNEL_CA_PEM", &second_bad)], "STUNNEL_CA_PEM", at_place_2),
        (vec![("STUNNEL_SERVER_NAME", "no name")], "STUNNEL_SERVER_NAME", "host name"),
    ];
    for (settings, name, problem) in cases {
        let log = log_of_refused(&settings);
        assert_eq!(logged(&log, "config-error", "var"), [name], "{log}");
        assert!(log.contains(problem), "{problem} in {log}");
        for secret in [&key, &garbled_key, &encrypted] {
            let line = secret.lines().nth(1).unwrap();
            assert!(!log.contains(line), "a key in {log}");
        }
    }
}

/// The log of a launcher that refuses to start with these settings.
fn log_of_refused(settings: &[(&str, &str)]) -> String {
    let ended = Launcher::script("echo ran").redis("rediss://h").settings(settings).run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{settings:?}: {}", ended.stderr);
    ended.stderr
}

#[test]
fn settings_override_tls_parameters_in_the_url() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let server =
        Server::with_certificate(&authority.issue(folder.path(), "leaf", &Request::default()));
    let ca = authority.root.certificate_file.to_str().unwrap().replace('/', "%2F");
    let by_ca = format!("ssl_cert_reqs=required&ssl_ca_certs={ca}");
    let unknown = Error("unable to get local issuer certificate");
    for (query, level, expected) in [
        ("ssl_cert_reqs=required", "", unknown),
        (&by_ca, "", Pong),
        ("ssl_cert_reqs=none", "", Pong),
        ("ssl_cert_reqs=CERT_REQUIRED", "none", Pong),
        ("ssl_cert_reqs=none", "full", unknown),
    ] {
        let held = Launcher::holding(&format!("{}?{query}", server.url()))
            .env("STUNNEL_VERIFY", level)
            .start_held();
        assert!(held.url.ends_with("/0"), "{}", held.url);
        check(&held, expected, &format!("{query} with '{level}'"));
    }
    for (query, named) in [
        ("ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("ssl_cert_reqs=required&ssl_ca_certs=", "ssl_ca_certs"),
        ("ssl_cert_reqs=required&ssl_cert_reqs=none", "twice"),
    ] {
        let wrong = Launcher::script("true").redis(&format!("rediss://h?{query}")).run();
        assert_eq!(wrong.code(), 78, "{query}");
        assert!(wrong.stderr.contains(named), "{}", wrong.stderr);
    }
}

#[test]
fn redis_cli_and_redis_py_show_why_tls_failed() {
    let server = Server::start(Front::Redis);
    let python = "import os, redis\n\
                  try: redis.Redis.from_url(os.environ['REDIS_URL']).get('k')\n\
                  except redis.exceptions.RedisError as error: print(type(error).__name__, error)";
    for client in [
        ["sh", "-c", "redis-cli --no-auth-warning -u \"$REDIS_URL\" get k"],
        ["/usr/bin/python3", "-c", python],
    ] {
        let launcher = Launcher::new(client).redis(&server.url());
        let ended = launcher.env("STUNNEL_VERIFY", "full").run();
        let shown = ended.stdout + &ended.stderr;
        let reason = "start-stunnel: 127.0.0.1:";
        assert!(shown.contains(reason) && shown.contains("self-signed certificate"), "{shown}");
    }
}

#[test]
fn a_pin_prevents_the_warning_and_an_unused_ca_causes_one() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    for (settings, not_authenticated, ca_unused) in [
        (&[][..], true, false),
        (&[("STUNNEL_PIN", &*certificate.pin())], false, false),
        (&[("STUNNEL_CA_PEM", &certificate.pem())], true, true),
    ] {
        let log = Launcher::script("true").redis("rediss://h").settings(settings).run().stderr;
        let warned = ["at=not-authenticated", "at=ca-unused"].map(|event| log.contains(event));
        assert_eq!(warned, [not_authenticated, ca_unused], "{log}");
    }
}

#[test]
fn a_weak_client_certificate_fails_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let issue = |request: Request<'_>| {
        let made = authority.issue(folder.path(), "client", &request);
        [made.pem(), made.key_pem()]
    };
    let short = issue(Request { kind: Kind::WeakRsa, ..Request::default() });
    let sha1 = issue(Request { weakly_signed: true, ..Request::default() });
    let good = issue(Request::default());
    let chained = [good[0].clone() + &sha1[0], good[1].clone()];
    let bits = "security level 2 refuses: ee key too small (the certificate's key has 1024 bits;";
    let digest = "2048 bits; its signature algorithm is sha1WithRSAEncryption)";
    for ([certificate, key], reason) in [
        (&short, bits),
        (&sha1, digest),
        (&chained, "at place 3 of its chain that OpenSSL's security level 2 refuses"),
    ] {
        for words in [&["echo", "ran"][..], &["--check"]] {
            let settings = [("STUNNEL_CLIENT_CERT", &**certificate), ("STUNNEL_CLIENT_KEY", key)];
            let ended = Launcher::new(words).redis("rediss://h").settings(&settings).run();
            assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
            assert_eq!(logged(&ended.stderr, "config-error", "var"), ["STUNNEL_CLIENT_CERT"]);
            assert!(ended.stderr.contains(reason), "{}", ended.stderr);
        }
    }
}

#[test]
fn a_host_that_ends_with_a_dot_passes_verification() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let request = Request { dns: &["redis.test"], ip: &[], ..Request::default() };
    let server = Server::with_certificate(&authority.issue(folder.path(), "dotted", &request));
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.1 redis.test redis.test.\n") else {
        return;
    };
    let held = launcher
        .redis(&format!("rediss://redis.test.:{}", server.tls_port()))
        .env("STUNNEL_VERIFY", "full")
        .env("STUNNEL_CA_FILE", &authority.root.certificate_file)
        .start_held();
    assert_eq!(held.client().ask(&["AUTH", PASSWORD]), Reply::line("+OK"));
    let upstream = logged(&held.finish().stderr, "tunnel-up", "upstream").remove(0);
    assert_eq!(upstream, format!("redis.test.:{}", server.tls_port()));
}

/// The hint in the log of a launcher with these options and settings, after one connection.
fn hint(url: &str, options: &[&str], settings: &[(&str, &str)]) -> String {
    let words = [options, &["sh", "-c", HOLD]].concat();
    let held = Launcher::new(words).redis(url).settings(settings).start_held();
    let line = sees(&held).unwrap_err();
    let hint = logged(&held.finish().stderr, "connection-refused", "hint").remove(0);
    assert!(line.ends_with(&hint), "the app receives the same hint: {line}");
    hint
}

#[test]
fn a_hint_names_the_setting_that_takes_effect() {
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    let server = Server::start(Front::Redis);
    let url = server.url();
    let asking = format!("{url}?ssl_cert_reqs=required");
    let in_url = "ssl_cert_reqs in REDIS_URL demands full verification: set STUNNEL_CA_FILE to";
    for (options, settings, expected) in [
        (&[][..], &[("STUNNEL_PIN", &*other)][..], "set STUNNEL_PIN to the new pin"),
        (&["--pin", &other], &[], "set STUNNEL_PIN to the new pin in place of --pin"),
        (&[], &[("REDIS_URL_STUNNEL_PIN", &*other)], "set REDIS_URL_STUNNEL_PIN to the new pin"),
        (
            &["--pin", &other],
            &[("REDIS_URL_STUNNEL_PIN", &*other)],
            "set REDIS_URL_STUNNEL_PIN to the new pin",
        ),
        (&["--verify", "full"], &[], "set --verify=none and STUNNEL_PIN to"),
        (&[], &[("REDIS_URL_STUNNEL_VERIFY", "ca")], "set REDIS_URL_STUNNEL_VERIFY=none"),
        (&[], &[("REDIS_URL", &asking)], in_url),
    ] {
        let hint = hint(&url, options, settings);
        assert!(hint.contains(expected), "{expected}: {hint}");
    }
}

#[test]
fn a_pin_is_advised_only_together_with_verify_none() {
    let server = Server::start(Front::Redis);
    let ended = Launcher::new(["--check"]).redis(&server.url()).run();
    let pin = ended.stdout.split_whitespace().find(|word| word.starts_with("sha256//")).unwrap();
    let full = ("STUNNEL_VERIFY", "full");
    assert_eq!(
        hint(&server.url(), &[], &[full]),
        "set STUNNEL_CA_FILE to the server's CA, or set STUNNEL_VERIFY=none and STUNNEL_PIN to the \
         server's pin (see start-stunnel --check)"
    );
    assert_eq!(
        hint(&server.url(), &[], &[full, ("STUNNEL_PIN", pin)]),
        "a pin does not replace the chain that STUNNEL_VERIFY demands: set STUNNEL_CA_FILE to the \
         server's CA, or set STUNNEL_VERIFY=none to check only the pin"
    );
}

#[test]
fn an_untrusted_chain_shows_its_issuer_and_the_setting() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let authority = Authority::new(ours.path());
    let certificate = authority.issue(ours.path(), "leaf", &Request::default());
    let server = Server::with_certificate(&certificate);
    let other = Authority::named(theirs.path(), "Other").root;
    let hold = || {
        let launcher = Launcher::holding(&server.url()).env("STUNNEL_VERIFY", "ca");
        launcher.env("STUNNEL_CA_FILE", &other.certificate_file).start_held()
    };
    let line = sees(&hold()).unwrap_err();
    let issuer = "unable to get local issuer certificate: CN=Test Root;";
    let remedy = "none of the configured CAs signed this chain: set STUNNEL_CA_FILE to the chain's \
                  issuer, or set STUNNEL_VERIFY=none";
    assert!(line.contains(issuer) && line.contains(remedy), "{line}");
    // The hint is right.
    fs::write(&other.certificate_file, [other.pem(), authority.root.pem()].concat()).unwrap();
    assert_eq!(sees(&hold()), Ok(()));
}

#[test]
fn a_server_that_requires_a_name_causes_a_hint() {
    let mut acceptor = acceptor_builder(SslVersion::TLS1_3);
    acceptor.set_servername_callback(|ssl, alert| match ssl.servername(NameType::HOST_NAME) {
        Some("localhost") => Ok(()),
        _ => {
            *alert = SslAlert::UNRECOGNIZED_NAME;
            Err(SniError::ALERT_FATAL)
        }
    });
    let acceptor = acceptor.build();
    let peer = Peer::tcp(move |stream| {
        if let Ok(mut tls) = acceptor.accept(stream) {
            tls.write_all(b"+OK\r\n").unwrap();
            rest(&mut tls);
        }
    });
    let asking_for = |name: &str| {
        sees(&Launcher::holding(&peer.url()).env("STUNNEL_SERVER_NAME", name).start_held())
    };
    let by_address = asking_for("").unwrap_err();
    for part in
        ["not accept the server name (SNI)", "IP address; set STUNNEL_SERVER_NAME to a server"]
    {
        assert!(by_address.contains(part), "{by_address}");
    }
    assert!(!by_address.contains("CLIENT_CERT"), "{by_address}");
    let by_other_name = asking_for("other.example").unwrap_err();
    let expected = "sent was other.example; set STUNNEL_SERVER_NAME to a server name";
    assert!(by_other_name.contains(expected), "{by_other_name}");
    assert_eq!(asking_for("localhost"), Ok(()));
}

#[test]
fn a_rediss_url_with_a_plaintext_port_causes_a_hint() {
    let server = Server::start(Front::Redis);
    let hint = hint(&format!("rediss://127.0.0.1:{}", server.port), &[], &[]);
    for part in [
        &format!("if TLS is on the next port, {}, write redis:// in REDIS_URL;", server.port + 1),
        "if this Redis has no TLS, write redis:// and set STUNNEL_ENABLED=false",
    ] {
        assert!(hint.contains(part), "{hint}");
    }
}

#[test]
fn a_missing_client_certificate_is_reported_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let server = Server::for_clients_of(&authority.root, "TLSv1.3");
    // If the launcher waited for a second request, this would take two seconds. A busy machine may
    // need several attempts.
    let soon = (0..10).any(|_| {
        let held = Launcher::hold(&server.url());
        let mut client = held.open();
        let asked = Instant::now();
        client.send(&["PING"]);
        let Ok(Reply::Line(line)) = client.reply() else { panic!("no error") };
        assert!(line.contains("client certificate"), "{line}");
        asked.elapsed() < Duration::from_secs(1)
    });
    assert!(soon);
}
