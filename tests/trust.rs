//! Who the server is (docs/trust.md): each kind of server against each kind of trust.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openssl::ssl::SslVersion;
use support::launcher::{HOLD, Held, Launcher, Outcome, logged, with_hosts};
use support::peer::{Peer, acceptor};
use support::pki::{Authority, Certificate, Kind, Request};
use support::resp::Reply;
use support::servers::{Front, Options, PASSWORD, Server};
use support::{Process, eventually, rest, two_free_ports};

/// What an app gets to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    Pong,
    /// A RESP error that holds this.
    Error(&'static str),
}
use Sees::{Error, Pong};

fn sees(held: &Held) -> Result<(), String> {
    let mut client = held.open();
    client.send(&["AUTH", PASSWORD]);
    match client.reply() {
        Ok(Reply::Line(line)) if line == "+OK" => Ok(()),
        Ok(Reply::Line(line)) => Err(line),
        other => panic!("neither an answer nor an error: {other:?}"),
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
fn each_server_against_each_level_of_trust() {
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

    // The server, then what an app sees under none, ca, full, and none with the right pin.
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
            [Pong, Pong, Error("it is for other.example, not for 127.0.0.1")],
        ),
        ("no IP address", &dns_only, [Pong, Pong, Error("it is for localhost, not for 127.0.0.1")]),
        ("a self-signed one", &self_signed, [Pong, Error("self-signed"), Error("self-signed")]),
        ("another CA's", &stranger, [Pong, Error(unknown), Error(unknown)]),
    ];
    let wrong_pin = Certificate::self_signed(tempfile::tempdir().unwrap().path());
    for (what, certificate, [none, ca, full]) in table {
        let options = Options { certificate: Some(certificate), ..Options::default() };
        let server = Server::start_with(Front::Redis, options);
        let pin = certificate.pin();
        let hold = |settings: &[(&str, &str)]| {
            let launcher = Launcher::holding(&server.url())
                .env("STUNNEL_CA_FILE", &authority.root.certificate_file);
            settings
                .iter()
                .fold(launcher, |launcher, (name, value)| launcher.env(name, value))
                .start_held()
        };
        for (level, expected) in [("none", none), ("ca", ca), ("full", full)] {
            check(&hold(&[("STUNNEL_VERIFY", level)]), expected, &format!("{what} under {level}"));
            let pinned = hold(&[("STUNNEL_VERIFY", level), ("STUNNEL_PIN", &pin)]);
            check(&pinned, expected, &format!("{what} under {level} with its pin"));
            let wrong = hold(&[("STUNNEL_VERIFY", level), ("STUNNEL_PIN", &wrong_pin.pin())]);
            let expected =
                if expected == Pong { Error("key differs from the pin") } else { expected };
            check(&wrong, expected, &format!("{what} under {level} with another pin"));
        }
        let several = format!("{};{pin}", wrong_pin.pin());
        check(&hold(&[("STUNNEL_PIN", &several)]), Pong, &format!("{what} with two pins"));
    }
}

#[test]
fn the_dates_of_a_certificate_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    for (valid, text, day) in [((-9, -3), "expired on", -3), ((3, 9), "not valid before", 3)] {
        let before = days_from_now(day);
        let request = Request { valid, ..Request::default() };
        let certificate = authority.issue(folder.path(), "dated", &request);
        let server = Server::start_with(
            Front::Redis,
            Options { certificate: Some(&certificate), ..Options::default() },
        );
        let held = Launcher::holding(&server.url())
            .env("STUNNEL_VERIFY", "ca")
            .env("STUNNEL_CA_FILE", &authority.root.certificate_file)
            .start_held();
        let line = sees(&held).unwrap_err();
        // Midnight may have passed in between.
        assert!(
            [before, days_from_now(day)].iter().any(|day| line.contains(&format!("{text} {day}"))),
            "{line}"
        );
    }
}

#[test]
fn ca_file_and_ca_pem_add_up_and_a_variables_own_replaces_both() {
    let folder = tempfile::tempdir().unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path());
    let other = Authority::named(other_folder.path(), "Other");
    let certificate = ours.issue(folder.path(), "leaf", &Request::default());
    let certificate = Some(&certificate);
    let server = Server::start_with(Front::Redis, Options { certificate, ..Options::default() });
    let hold = |settings: &[(&str, &str)]| {
        let launcher = Launcher::holding(&server.url()).env("STUNNEL_VERIFY", "full");
        settings
            .iter()
            .fold(launcher, |launcher, (name, value)| launcher.env(name, value))
            .start_held()
    };
    let (our_pem, other_pem) = (ours.root.pem(), other.root.pem());
    let our_file = ours.root.certificate_file.to_str().unwrap();
    let other_file = other.root.certificate_file.to_str().unwrap();
    let unknown = Error("unable to get local issuer certificate");
    check(&hold(&[("STUNNEL_CA_PEM", &our_pem)]), Pong, "PEM text");
    check(
        &hold(&[("STUNNEL_CA_PEM", &our_pem.replace('\n', "\\n"))]),
        Pong,
        "PEM text in one line",
    );
    check(&hold(&[("STUNNEL_CA_PEM", &other_pem)]), unknown, "another CA");
    check(&hold(&[("STUNNEL_CA_FILE", our_file), ("STUNNEL_CA_PEM", &other_pem)]), Pong, "both");
    check(
        &hold(&[("STUNNEL_CA_FILE", other_file), ("STUNNEL_CA_PEM", &our_pem)]),
        Pong,
        "both, the other way",
    );
    let general = [("STUNNEL_CA_FILE", our_file), ("STUNNEL_CA_PEM", our_pem.as_str())];
    let own = [general[0], general[1], ("REDIS_URL_STUNNEL_CA_FILE", other_file)];
    check(&hold(&own), unknown, "its own CA alone");
    let own = [("STUNNEL_CA_FILE", other_file), ("REDIS_URL_STUNNEL_CA_PEM", &our_pem)];
    check(&hold(&own), Pong, "its own CA");
    check(&hold(&[]), unknown, "the system's roots");
}

#[test]
fn a_server_name_is_sent_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let request = Request { dns: &["redis.example"], ip: &[], ..Request::default() };
    let certificate = authority.issue(folder.path(), "named", &request);
    let server = Server::start_with(
        Front::Redis,
        Options { certificate: Some(&certificate), ..Options::default() },
    );
    let hold = |name: &str| {
        Launcher::holding(&server.url())
            .env("STUNNEL_VERIFY", "full")
            .env("STUNNEL_CA_FILE", &authority.root.certificate_file)
            .env("REDIS_URL_STUNNEL_SERVER_NAME", name)
            .start_held()
    };
    check(&hold("redis.example"), Pong, "its name");
    check(
        &hold("evil.example"),
        Error("it is for redis.example, not for evil.example"),
        "another name",
    );

    let peer =
        Peer::tls(|tls| tls.ssl().servername(openssl::ssl::NameType::HOST_NAME).map(str::to_owned));
    let sni = |url: &str, name: &str| {
        let held = Launcher::holding(url).env("STUNNEL_SERVER_NAME", name).start_held();
        drop(held.open());
        peer.result()
    };
    assert_eq!(sni(&peer.url(), ""), None, "an IP address gets no SNI");
    assert_eq!(sni(&peer.url(), "redis.example"), Some("redis.example".to_owned()));
    assert_eq!(
        sni(&peer.url().replace("127.0.0.1", "localhost"), ""),
        Some("localhost".to_owned())
    );
    assert_eq!(sni(&peer.url().replace("127.0.0.1", "localhost"), "192.0.2.1"), None);
}

/// The key in the form that PKCS#8 replaced: PKCS#1, or SEC 1.
fn traditional(certificate: &Certificate) -> String {
    let pem = match certificate.key.rsa() {
        Ok(key) => key.private_key_to_pem(),
        Err(_) => certificate.key.ec_key().unwrap().private_key_to_pem(),
    };
    String::from_utf8(pem.unwrap()).unwrap()
}

#[test]
fn a_server_that_wants_a_client_certificate_gets_it() {
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

/// `openssl s_server` that speaks TLS 1.0 at most, and says nothing else.
fn tls_1_0_server(folder: &Path) -> (Process, u16) {
    let certificate = Certificate::self_signed(folder);
    let port = two_free_ports();
    let server = Command::new("openssl")
        .args(["s_server", "-tls1", "-quiet", "-cipher", "ALL:@SECLEVEL=0"])
        .args(["-accept", &format!("127.0.0.1:{port}")])
        .arg("-cert")
        .arg(&certificate.certificate_file)
        .arg("-key")
        .arg(&certificate.key_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl (see bin/setup)");
    let server = Process(server);
    eventually("s_server listens", || {
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        sockets.contains(&format!("0100007F:{port:04X} 00000000:0000 0A")).then_some(())
    });
    (server, port)
}

#[test]
fn without_a_common_tls_version_the_app_is_told() {
    let options = Options { protocols: Some("TLSv1.2"), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let hold = |version: &str| {
        Launcher::holding(&server.url()).env("STUNNEL_MIN_TLS", version).start_held()
    };
    check(&hold("1.2"), Pong, "TLS 1.2");
    check(&hold("1.3"), Error("no common TLS version"), "TLS 1.3 demanded");
    check(&hold("1.3"), Error("STUNNEL_MIN_TLS"), "TLS 1.3 demanded");

    let folder = tempfile::tempdir().unwrap();
    let (_old, port) = tls_1_0_server(folder.path());
    let held = Launcher::hold(&format!("rediss://127.0.0.1:{port}"));
    check(&held, Error("no common TLS version"), "a TLS 1.0 server");
}

#[test]
fn wrong_trust_settings_fail_at_start_and_name_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| {
        fs::write(path(name), text).unwrap();
        path(name)
    };
    let ours = Certificate::self_signed(folder.path());
    let other_folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(other_folder.path());
    let cipher = openssl::symm::Cipher::aes_128_cbc();
    let encrypted_pkcs1 = ours.key.rsa().unwrap().private_key_to_pem_passphrase(cipher, b"pw");
    let encrypted_pkcs1 = String::from_utf8(encrypted_pkcs1.unwrap()).unwrap();
    let encrypted = ours.key.private_key_to_pem_pkcs8_passphrase(cipher, b"pw").unwrap();
    let encrypted = String::from_utf8(encrypted).unwrap();
    let (cert, key) = (ours.pem(), ours.key_pem());
    let garbled = cert.replacen("MII", "xxx", 1);

    let empty = write("empty", "");
    let no_pem = write("no-pem", "hello");
    let missing = path("missing");
    // Settings, the name that the error must give, and a part of what it must say.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (&[("STUNNEL_CA_FILE", &missing)], "STUNNEL_CA_FILE", "cannot be read"),
        (
            &[("STUNNEL_CA_FILE", folder.path().to_str().unwrap())],
            "STUNNEL_CA_FILE",
            "cannot be read",
        ),
        (&[("STUNNEL_CA_FILE", &empty)], "STUNNEL_CA_FILE", "holds no certificate"),
        (&[("STUNNEL_CA_FILE", &no_pem)], "STUNNEL_CA_FILE", "-----BEGIN CERTIFICATE-----"),
        (&[("STUNNEL_CA_PEM", &garbled)], "STUNNEL_CA_PEM", "cannot be read"),
        (&[("REDIS_URL_STUNNEL_CA_FILE", &missing)], "REDIS_URL_STUNNEL_CA_FILE", "cannot be read"),
        (&[("STUNNEL_PIN", "sha256//AAAA")], "STUNNEL_PIN", "base64 of 32 bytes"),
        (&[("REDIS_URL_STUNNEL_PIN", "x")], "REDIS_URL_STUNNEL_PIN", "base64 of 32 bytes"),
        (&[("STUNNEL_CLIENT_CERT", &cert)], "STUNNEL_CLIENT_KEY", "STUNNEL_CLIENT_CERT is"),
        (&[("STUNNEL_CLIENT_KEY", &key)], "STUNNEL_CLIENT_CERT", "STUNNEL_CLIENT_KEY is"),
        (
            &[("STUNNEL_CLIENT_CERT", &cert), ("STUNNEL_CLIENT_KEY", &encrypted)],
            "STUNNEL_CLIENT_KEY",
            "openssl pkcs8 -topk8 -nocrypt",
        ),
        (
            &[("STUNNEL_CLIENT_CERT", &cert), ("STUNNEL_CLIENT_KEY", &encrypted_pkcs1)],
            "STUNNEL_CLIENT_KEY",
            "openssl pkcs8 -topk8 -nocrypt",
        ),
        (
            &[("STUNNEL_CLIENT_CERT", &cert), ("STUNNEL_CLIENT_KEY", &other.key_pem())],
            "STUNNEL_CLIENT_KEY",
            "does not belong",
        ),
        (
            &[("STUNNEL_CLIENT_CERT", &cert), ("STUNNEL_CLIENT_KEY", &cert)],
            "STUNNEL_CLIENT_KEY",
            "no private key",
        ),
        (
            &[("STUNNEL_CLIENT_CERT", &missing), ("STUNNEL_CLIENT_KEY", &key)],
            "STUNNEL_CLIENT_CERT",
            "cannot be read",
        ),
        (&[("STUNNEL_SERVER_NAME", "no name")], "STUNNEL_SERVER_NAME", "host name"),
    ];
    for (settings, name, problem) in cases {
        let launcher = Launcher::script("echo ran").redis("rediss://h");
        let launcher =
            settings.iter().fold(launcher, |launcher, (name, value)| launcher.env(name, value));
        let ended: Outcome = launcher.run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{name}: {}", ended.stderr);
        assert_eq!(logged(&ended.stderr, "config-error", "var"), [*name], "{}", ended.stderr);
        assert!(ended.stderr.contains(problem), "{problem} in {}", ended.stderr);
        for secret in [&key, &encrypted] {
            let line = secret.lines().nth(1).unwrap();
            assert!(!ended.stderr.contains(line), "a key in {}", ended.stderr);
        }
    }
}

#[test]
fn tls_parameters_in_the_url_hold_unless_a_setting_overrides() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let certificate = authority.issue(folder.path(), "leaf", &Request::default());
    let certificate = Some(&certificate);
    let server = Server::start_with(Front::Redis, Options { certificate, ..Options::default() });
    let hold = |query: &str, level: &str| {
        let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/0{query}", server.tls_port());
        Launcher::holding(&url).env("STUNNEL_VERIFY", level).start_held()
    };
    let ca = authority.root.certificate_file.to_str().unwrap().replace('/', "%2F");
    let unknown = Error("unable to get local issuer certificate");
    let held = hold("?ssl_cert_reqs=required", "");
    assert!(held.url.ends_with("/0"), "{}", held.url);
    check(&held, unknown, "required, by the system's roots");
    check(
        &hold(&format!("?ssl_cert_reqs=required&ssl_ca_certs={ca}"), ""),
        Pong,
        "required, by its CA",
    );
    check(&hold("?ssl_cert_reqs=none", ""), Pong, "none");
    check(&hold("?ssl_cert_reqs=CERT_REQUIRED", "none"), Pong, "a setting wins");
    check(&hold("?ssl_cert_reqs=none", "full"), unknown, "a setting wins, the other way");
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
fn real_clients_show_the_reason_to_their_users() {
    let server = Server::start(Front::Redis);
    let script = "redis-cli --no-auth-warning -u \"$REDIS_URL\" get k";
    let ended = Launcher::script(script).redis(&server.url()).env("STUNNEL_VERIFY", "full").run();
    let shown = ended.stdout + &ended.stderr;
    let reason = "start-stunnel: 127.0.0.1:";
    assert!(shown.contains(reason) && shown.contains("self-signed certificate"), "{shown}");

    let python = "import os, redis\n\
                  try: redis.Redis.from_url(os.environ['REDIS_URL']).get('k')\n\
                  except redis.exceptions.RedisError as error: print(type(error).__name__, error)";
    let ended = Launcher::new(["/usr/bin/python3", "-c", python])
        .redis(&server.url())
        .env("STUNNEL_VERIFY", "full")
        .run();
    assert!(ended.stdout.contains("self-signed certificate"), "{ended:?}");
}

#[test]
fn a_pin_silences_the_warning_and_an_unused_ca_causes_one() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let events = |settings: &[(&str, &str)]| {
        let launcher = Launcher::script("true").redis("rediss://h");
        let launcher =
            settings.iter().fold(launcher, |launcher, (name, value)| launcher.env(name, value));
        launcher.run().stderr
    };
    assert!(events(&[]).contains("at=not-authenticated"));
    assert!(!events(&[("STUNNEL_PIN", &certificate.pin())]).contains("at=not-authenticated"));
    let unused = events(&[("STUNNEL_CA_PEM", &certificate.pem())]);
    assert!(unused.contains("at=not-authenticated") && unused.contains("at=ca-unused"), "{unused}");
}

#[test]
fn a_weak_client_certificate_fails_at_start_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let server = Server::start(Front::Redis);
    let authority = Authority::new(folder);
    let client = Request { name: "client", ..Request::default() };
    let issue = |file: &str, request: &Request<'_>| {
        let made = authority.issue(folder, file, request);
        [made.certificate_file, made.key_file].map(|file| file.to_str().unwrap().to_owned())
    };
    let short = issue("short", &Request { kind: Kind::WeakRsa, ..client.clone() });
    let sha1 = issue("sha1", &Request { weakly_signed: true, ..client.clone() });
    let good = issue("good", &client);
    let chain = [&good[0], &sha1[0]].map(|file| fs::read_to_string(file).unwrap());
    let chained = [folder.join("chained.pem").to_str().unwrap().to_owned(), good[1].clone()];
    fs::write(&chained[0], chain.concat()).unwrap();
    let bits = "security level 2 refuses: ee key too small (its key has 1024 bits;";
    let digest = "2048 bits; it is signed by sha1WithRSAEncryption)";
    for ([certificate, key], reason) in [
        (&short, bits),
        (&sha1, digest),
        (&chained, "at place 3 of its chain that OpenSSL's security level 2 refuses"),
    ] {
        for words in [&["echo", "ran"][..], &["--check"]] {
            let options = ["--client-cert", certificate, "--client-key", key];
            let ended = Launcher::new([&options, words].concat()).redis(&server.url()).run();
            assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
            assert_eq!(logged(&ended.stderr, "config-error", "var"), ["--client-cert"]);
            assert!(ended.stderr.contains(reason), "{}", ended.stderr);
        }
    }
    let held =
        Launcher::new(["--client-cert", &good[0], "--client-key", &good[1], "sh", "-c", HOLD]);
    assert_eq!(sees(&held.redis(&server.url()).start_held()), Ok(()));
}

#[test]
fn a_bundle_that_openssl_cannot_read_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    // A serial number with a byte too many, which X.690 section 8.3.2 forbids and not every parser
    // minds.
    let mut der = certificate.certificate.to_der().unwrap();
    let serial = 4 + 4 + 5;
    assert_eq!(der[serial], 0x02, "an INTEGER");
    der[serial + 2..serial + 4].copy_from_slice(&[0, 1]);
    let pem = format!(
        "{}-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        certificate.pem(),
        openssl::base64::encode_block(&der)
    );
    for variable in ["STUNNEL_CA_PEM", "REDIS_URL_STUNNEL_CA_PEM", "STUNNEL_CLIENT_CERT"] {
        let ended = Launcher::script("echo ran")
            .redis("rediss://h")
            .env("STUNNEL_VERIFY", "ca")
            .env("STUNNEL_CLIENT_CERT", certificate.pem())
            .env("STUNNEL_CLIENT_KEY", certificate.key_pem())
            .env(variable, &pem)
            .run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
        assert_eq!(logged(&ended.stderr, "config-error", "var"), [variable]);
        let reason = "a certificate that cannot be read (the one at place 2)";
        assert!(ended.stderr.contains(reason), "{}", ended.stderr);
    }
}

#[test]
fn a_name_that_ends_with_a_dot_passes_full() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let name = "redis.test";
    let request = Request { name, dns: &[name], ip: &[], ..Request::default() };
    let certificate = authority.issue(folder.path(), "dotted", &request);
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.1 redis.test redis.test. other.test\n") else {
        return;
    };
    let held = launcher
        .redis(&format!("rediss://{name}.:{}", server.tls_port()))
        .env("HEROKU_REDIS_OTHER_URL", format!("rediss://other.test:{}", server.tls_port()))
        .env("HEROKU_REDIS_OTHER_URL_STUNNEL_SERVER_NAME", "redis.test.")
        .env("STUNNEL_VERIFY", "full")
        .env("STUNNEL_CA_FILE", &authority.root.certificate_file)
        .start_held();
    assert_eq!(sees(&held), Ok(()));
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "tunnel-up", "upstream")[0], format!("{name}.:{}", server.tls_port()));
}

#[test]
fn a_name_that_ends_with_a_dot_is_sent_without_it() {
    let peer = Peer::tls(|stream| {
        stream.ssl().servername(openssl::ssl::NameType::HOST_NAME).map(str::to_owned)
    });
    let held =
        Launcher::holding(&peer.url()).env("STUNNEL_SERVER_NAME", "redis.test.").start_held();
    drop(held.open());
    assert_eq!(peer.result().as_deref(), Some("redis.test"));
}

/// A server that stops to answer after some handshakes.
fn mute_after(handshakes: usize) -> Peer<()> {
    let acceptor = acceptor(SslVersion::TLS1_3);
    Peer::numbered(move |number, mut stream| {
        if number < handshakes {
            // It ends with an alert when the certificate is refused.
            let _ = acceptor.accept(stream).map(|mut stream| rest(&mut stream));
        } else {
            rest(&mut stream);
        }
    })
}

#[test]
fn a_bad_certificate_is_reported_though_the_server_then_hangs() {
    let is_told = |timeout: &str| {
        let peer = mute_after(1);
        let held = Launcher::holding(&peer.url())
            .env("STUNNEL_VERIFY", "full")
            .env("STUNNEL_CONNECT_TIMEOUT", timeout)
            .start_held();
        let mut app = held.open();
        app.send(&["PING"]);
        let said = app.reply();
        let log = held.finish().stderr;
        let text = "certificate check failed: self-signed certificate";
        matches!(said, Ok(Reply::Line(line)) if line.contains(text))
            && logged(&log, "connection-failed", "error").is_empty()
            && logged(&log, "connection-refused", "error").len() == 1
    };
    assert!(is_told("20s"));
    // Less than the explanation has. On a busy machine it may not do for the first handshake.
    assert!((0..10).any(|_| is_told("900ms")));
}

#[test]
fn check_reports_a_bad_certificate_though_the_server_then_hangs() {
    // The look at the server, and one for each level.
    let peer = mute_after(3);
    let ended = Launcher::new(["--check", "--log-format", "json", "--connect-timeout", "5s"])
        .redis(&peer.url())
        .env("STUNNEL_VERIFY", "full")
        .run();
    let count = ended.stdout.matches("\"self-signed certificate\"").count();
    assert_eq!(count, 2, "{}", ended.stdout);
}

/// The hint of the log at the first connection through a launcher with these words and settings.
fn hint(url: &str, options: &[&str], settings: &[(&str, &str)]) -> String {
    let words = [options, &["sh", "-c", support::launcher::HOLD]].concat();
    let launcher = Launcher::new(words).redis(url);
    let held = settings
        .iter()
        .fold(launcher, |launcher, (name, value)| launcher.env(name, value))
        .start_held();
    let mut client = held.open();
    client.send(&["PING"]);
    let Ok(Reply::Line(line)) = client.reply() else { panic!("no error") };
    drop(client);
    let log = held.finish().stderr;
    let hint = logged(&log, "connection-refused", "hint").remove(0);
    assert!(line.ends_with(&hint), "the app is told the same: {line}");
    hint
}

#[test]
fn a_hint_names_the_setting_that_counts() {
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    let server = Server::start(Front::Redis);
    let url = server.url();
    for (options, settings, expected) in [
        (&[][..], &[("STUNNEL_PIN", &*other)][..], "set STUNNEL_PIN to it"),
        (&["--pin", &other], &[], "set STUNNEL_PIN to it in place of --pin"),
        (&[], &[("REDIS_URL_STUNNEL_PIN", &*other)], "set REDIS_URL_STUNNEL_PIN to it"),
        (
            &["--pin", &other],
            &[("REDIS_URL_STUNNEL_PIN", &*other)],
            "set REDIS_URL_STUNNEL_PIN to it",
        ),
        (&["--verify", "full"], &[], "together with --verify=none"),
        (&[], &[("REDIS_URL_STUNNEL_VERIFY", "ca")], "together with REDIS_URL_STUNNEL_VERIFY=none"),
    ] {
        let hint = hint(&url, options, settings);
        assert!(hint.contains(expected), "{expected}: {hint}");
    }
}

#[test]
fn no_pin_is_advised_where_the_chain_is_verified_as_well() {
    let server = Server::start(Front::Redis);
    let ended = Launcher::new(["--check"]).redis(&server.url()).run();
    let pin = ended.stdout.split_whitespace().find(|word| word.starts_with("sha256//")).unwrap();
    let full = ("STUNNEL_VERIFY", "full");
    assert_eq!(
        hint(&server.url(), &[], &[full]),
        "set STUNNEL_CA_FILE to its CA, or STUNNEL_PIN to its key (start-stunnel --check prints \
         it) together with STUNNEL_VERIFY=none"
    );
    assert_eq!(
        hint(&server.url(), &[], &[full, ("STUNNEL_PIN", pin)]),
        "a pin does not replace the chain that STUNNEL_VERIFY demands: set STUNNEL_CA_FILE to its \
         CA, or STUNNEL_VERIFY=none so that the pin alone counts"
    );
    // What the hint says is so.
    let held = Launcher::holding(&server.url())
        .env("STUNNEL_VERIFY", "none")
        .env("STUNNEL_PIN", pin)
        .start_held();
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn a_hint_names_a_url_that_demands_full_and_its_override() {
    let server = Server::start(Front::Redis);
    let url = format!("{}?ssl_cert_reqs=required", server.url());
    let hint = hint(&url, &[], &[]);
    let expected = "ssl_cert_reqs in REDIS_URL asks for full, which STUNNEL_VERIFY=none overrides";
    assert!(hint.starts_with(expected), "{hint}");
    let held = Launcher::holding(&url).env("STUNNEL_VERIFY", "none").start_held();
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn untrusted_chain_names_its_issuer_and_the_setting() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let authority = Authority::new(ours.path());
    let certificate = authority.issue(ours.path(), "leaf", &Request::default());
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let other = Authority::named(theirs.path(), "Other").root;
    let settings = |verify| {
        let launcher = Launcher::holding(&server.url()).env("STUNNEL_VERIFY", verify);
        launcher.env("STUNNEL_CA_FILE", &other.certificate_file).start_held()
    };
    let line = sees(&settings("ca")).unwrap_err();
    let issuer = "unable to get local issuer certificate: CN=Test Root;";
    let remedy = "none of the CAs that are set signed this chain: set STUNNEL_CA_FILE to its \
                  issuer, or STUNNEL_PIN to its key";
    assert!(line.contains(issuer) && line.contains(remedy), "{line}");
    // Following it helps.
    let both = [other.pem(), authority.root.pem()].concat();
    fs::write(&other.certificate_file, both).unwrap();
    assert_eq!(sees(&settings("ca")), Ok(()));
}

/// HAProxy in front of `server`, for clients that ask for localhost by name only (`strict-sni`).
fn strict_haproxy(folder: &Path, server: &Server) -> (Process, u16) {
    let certificate =
        Certificate::issue(folder, "named", &Request { ip: &[], ..Request::default() }, None, &[]);
    let pem = folder.join("both.pem");
    fs::write(&pem, certificate.pem() + &certificate.key_pem()).unwrap();
    let (port, configuration) = (two_free_ports(), folder.join("haproxy.cfg"));
    let lines = format!(
        "defaults\n mode tcp\n timeout connect 9s\n timeout client 99s\n timeout server 99s\n\
         listen redis\n bind 127.0.0.1:{port} ssl crt {} strict-sni\n server r 127.0.0.1:{}\n",
        pem.display(),
        server.port
    );
    fs::write(&configuration, lines).unwrap();
    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-f").arg(&configuration).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process(haproxy.spawn().expect("haproxy (see bin/setup)"));
    eventually("HAProxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    (process, port)
}

#[test]
fn server_that_demands_a_name_gets_the_setting_for_it() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(Front::Redis));
    let (_haproxy, port) = strict_haproxy(folder.path(), &server);
    let hold = |host: &str, name: &str| {
        let url = format!("rediss://:{PASSWORD}@{host}:{port}");
        Launcher::holding(&url).env("STUNNEL_SERVER_NAME", name).start_held()
    };
    let told = |host: &str, name: &str| sees(&hold(host, name)).unwrap_err();
    let by_address = told("127.0.0.1", "");
    for part in ["the name it was asked for (SNI)", "IP address; set STUNNEL_SERVER_NAME to a name"]
    {
        assert!(by_address.contains(part), "{by_address}");
    }
    assert!(!by_address.contains("CLIENT_CERT"), "{by_address}");
    let by_other_name = told("127.0.0.1", "other.example");
    let expected = "other.example was sent; set STUNNEL_SERVER_NAME to a name that";
    assert!(by_other_name.contains(expected), "{by_other_name}");
    assert_eq!(sees(&hold("127.0.0.1", "localhost")), Ok(()));
}

#[test]
fn rediss_url_with_a_plaintext_port_says_what_to_write() {
    let server = Server::start(Front::Redis);
    let hint = hint(&format!("rediss://127.0.0.1:{}", server.port), &[], &[]);
    for part in [
        &format!("if TLS is on the next port, {}, write redis://;", server.port + 1),
        "if this Redis has no TLS, write redis:// and set STUNNEL_ENABLED=false",
    ] {
        assert!(hint.contains(part), "{hint}");
    }
}

#[test]
fn missing_client_certificate_is_told_before_the_app_gives_up() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let server = Server::for_clients_of(&authority.root, "TLSv1.3");
    // Two seconds would pass if the launcher waited for a second request. A busy machine may need
    // another attempt.
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
