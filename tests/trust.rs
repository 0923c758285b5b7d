//! Authentication of the server (docs/trust.md): which servers the launcher accepts with which
//! settings.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use openssl::ssl::{NameType, SniError, SslAlert, SslVersion};
use support::launcher::{HOLD, Held, Launcher, logged, with_hosts};
use support::peer::{Peer, acceptor_builder, s_server};
use support::pki::{Authority, Certificate, Kind, Request};
use support::resp::{Client, Reply};
use support::rest;
use support::servers::{Issued, PASSWORD, Server};

/// The reply that an app receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees<'a> {
    Pong,
    /// A Redis error that contains this text.
    Error(&'a str),
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

fn check(held: &Held, expected: Sees<'_>, what: &str) {
    match (sees(held), expected) {
        (Ok(()), Pong) => {}
        (Err(line), Error(text)) => {
            assert!(line.starts_with("-ERR start-stunnel: "), "{what}: {line}");
            assert!(line.contains(text), "{what}: {line}");
            assert!(line.len() <= 998, "{what}: {line}");
        }
        (seen, expected) => panic!("{what}: {seen:?}, not {expected:?}"),
    }
}

/// The first day (`start`) or the last day (`end`) of a certificate's validity.
fn day(certificate: &Certificate, which: &str) -> String {
    let script = format!("openssl x509 -in '{}' -noout -{which}date", certificate.path());
    let output = Command::new("sh").args(["-c", &format!("{script} -dateopt iso_8601")]).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    output[..output.find(' ').unwrap()].split('=').nth(1).unwrap().to_owned()
}

/// Copies a PEM file, and adds a comment that is not UTF-8. Returns the path of the copy.
fn with_latin_1_comment(pem: &Path) -> String {
    let copy = format!("{}.latin-1", pem.display());
    fs::write(&copy, [b"# F\xf5tan\xfas\n", &*fs::read(pem).unwrap()].concat()).unwrap();
    copy
}

/// The hint about a certificate that needs to be replaced.
const REPLACE: &str =
    "; replace the server's certificate chain. Until then, set STUNNEL_VERIFY=none and STUNNEL_PIN";

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
    let ip_as_dns = issue("ip-as-dns", Request { dns: &["127.0.0.1"], ip: &[], ..good.clone() });
    let name_only = Request { dns: &[], ip: &[], name: "127.0.0.1", ..good.clone() };
    let name_only = issue("name-only", name_only);
    let for_clients = issue("clients", Request { for_clients: true, ..good.clone() });
    let self_signed = Certificate::self_signed(folder);
    let stranger = Certificate::issue(
        folder,
        "stranger",
        &good,
        Some(&Authority::named(tempfile::tempdir().unwrap().path(), "Other").root),
        &[],
    );

    // Each row has a certificate, and the replies that an app gets under the verify levels none, ca
    // and full.
    let expired_on = format!("expired on {}", day(&expired, "end"));
    let not_before = format!("not valid before {}", day(&early, "start"));
    let both = |error| [Pong, Error(error), Error(error)];
    let unknown = "unable to get local issuer certificate: CN=Other Root";
    let wrong_purpose = format!("certificate purpose: CN=localhost{REPLACE}");
    let only_full = |error| [Pong, Pong, Error(error)];
    let table = [
        ("a good RSA certificate", &rsa, [Pong; 3]),
        ("a good ECDSA certificate", &ecdsa, [Pong; 3]),
        ("an expired certificate", &expired, both(&expired_on)),
        ("a certificate that is not valid yet", &early, both(&not_before)),
        (
            "another name",
            &wrong_name,
            only_full("for other.example, not for the IP address 127.0.0.1"),
        ),
        ("no IP address", &dns_only, only_full("for localhost, not for the IP address 127.0.0.1")),
        (
            "an IP address as a DNS name",
            &ip_as_dns,
            only_full("for 127.0.0.1 (a DNS name), not for the IP address 127.0.0.1"),
        ),
        (
            "an IP address as the common name",
            &name_only,
            only_full("for 127.0.0.1 (a common name), not for the IP address 127.0.0.1"),
        ),
        ("a self-signed certificate", &self_signed, both("self-signed")),
        ("a certificate of another CA", &stranger, both(unknown)),
        ("a certificate for clients", &for_clients, both(&wrong_purpose)),
    ];
    for (what, certificate, expected) in table {
        check_each_level(what, certificate, &authority.root, expected);
    }
}

#[test]
fn certificates_of_flawed_cas_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let ca = Request { is_ca: true, ..Request::default() };
    let expired = Request { name: "Old CA", valid: (-9, -3), ..ca.clone() };
    let weak = Request { name: "Weak CA", kind: Kind::WeakRsa, ..ca.clone() };
    // Trusting a server's own certificate must not mean trusting what this server signs.
    let server = Request { name: "other.example", ..Request::default() };
    for (request, reason) in [
        (&expired, "the CA certificate CN=Old CA expired on "),
        (&weak, &*format!("CA certificate key too weak: CN=Weak CA{REPLACE}")),
        (&server, &format!("invalid CA certificate: CN=other.example{REPLACE}")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let ca = Certificate::issue(folder.path(), "ca", request, Some(&authority.root), &[]);
        let good = Request::default();
        let certificate = Certificate::issue(folder.path(), "leaf", &good, Some(&ca), &[]);
        check_each_level(reason, &certificate, &ca, [Pong, Error(reason), Error(reason)]);
    }
}

/// Checks the replies that apps get from a server with this certificate at each level: without a
/// pin, with the server's pin, and with another pin.
fn check_each_level(
    what: &str,
    certificate: &Certificate,
    root: &Certificate,
    [none, ca, full]: [Sees<'_>; 3],
) {
    let server = Server::with_certificate(certificate);
    let pin = certificate.pin();
    let wrong_pin = Certificate::self_signed(tempfile::tempdir().unwrap().path()).pin();
    let hold = |settings: &[(&str, &str)]| {
        let settings = [&[("STUNNEL_CA_FILE", root.path())], settings].concat();
        Launcher::hold_with(&server.url(), &settings)
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
fn both_ca_settings_apply_unless_a_url_has_its_own_ca() {
    let Issued { authority, server, folder: _folder, certificate } =
        Issued::new(&Request::default());
    let other_folder = tempfile::tempdir().unwrap();
    let intermediate = &*authority.intermediate.path().to_owned();
    let leaf = &*String::from_utf8(certificate.certificate.to_pem().unwrap()).unwrap();
    let (ours, other) = (authority.root, Authority::named(other_folder.path(), "Other").root);
    let (our_pem, other_pem) = (ours.pem(), other.pem());
    let escaped = our_pem.replace('\n', "\\n");
    // The shell's echo adds a line end, for example when it writes a Kubernetes Secret.
    let echoed = format!("{escaped}\n");
    let windows = our_pem.replace('\n', "\\r\\n");
    let (our_file, other_file) = (ours.path(), other.path());
    let latin_1 = &*with_latin_1_comment(&ours.certificate_file);
    let (file, pem) = ("STUNNEL_CA_FILE", "STUNNEL_CA_PEM");
    let (own_file, own_pem) = ("REDIS_URL_STUNNEL_CA_FILE", "REDIS_URL_STUNNEL_CA_PEM");
    let unknown = Error("unable to get local issuer certificate");
    for (what, settings, expected) in [
        ("PEM text", &[(pem, &*our_pem)][..], Pong),
        ("PEM text in one line", &[(pem, &escaped)], Pong),
        ("PEM text in one line, with a line end", &[(pem, &echoed)], Pong),
        ("PEM text with the line ends of Windows", &[(pem, &windows)], Pong),
        ("a comment in Latin-1", &[(file, latin_1)], Pong),
        ("only the intermediate CA", &[(file, intermediate)], Pong),
        ("only the intermediate CA in the system", &[("SSL_CERT_FILE", intermediate)], Pong),
        ("only the server's own certificate", &[(pem, leaf)], Pong),
        ("another CA", &[(pem, &other_pem)], unknown),
        ("both", &[(file, our_file), (pem, &other_pem)], Pong),
        ("both, with the CAs exchanged", &[(file, other_file), (pem, &our_pem)], Pong),
        (
            "a CA for this URL replaces the others",
            &[(file, our_file), (pem, &our_pem), (own_file, other_file)],
            unknown,
        ),
        ("the right CA for this URL", &[(file, other_file), (own_pem, &our_pem)], Pong),
        ("the system's roots", &[], unknown),
    ] {
        let settings = [&[("STUNNEL_VERIFY", "full")], settings].concat();
        check(&Launcher::hold_with(&server.url(), &settings), expected, what);
    }
}

#[test]
fn the_server_name_setting_is_sent_and_verified() {
    let request = Request { dns: &["redis.example"], ip: &[], ..Request::default() };
    let Issued { authority, server, folder: _folder, .. } = Issued::new(&request);
    for (name, expected) in [
        ("redis.example", Pong),
        ("redis.example.", Pong),
        ("evil.example", Error("certificate is for redis.example, not for evil.example")),
    ] {
        let settings = [
            ("STUNNEL_VERIFY", "full"),
            ("STUNNEL_CA_FILE", authority.root.path()),
            ("REDIS_URL_STUNNEL_SERVER_NAME", name),
        ];
        check(&Launcher::hold_with(&server.url(), &settings), expected, name);
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
        let held = Launcher::hold_with(&url, &[("STUNNEL_SERVER_NAME", name)]);
        drop(held.open());
        assert_eq!(peer.result().as_deref(), sent, "{host} {name}");
    }
}

/// The certificate's key in the older format PKCS#1 or SEC 1, instead of PKCS#8.
fn traditional(certificate: &Certificate) -> String {
    let pem = match certificate.key.rsa() {
        Ok(key) => key.private_key_to_pem(),
        Err(_) => certificate.key.ec_key().unwrap().private_key_to_pem(),
    };
    String::from_utf8(pem.unwrap()).unwrap()
}

#[test]
fn a_client_certificate_is_sent_if_the_server_requires_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let other = tempfile::tempdir().unwrap();
    let stranger = Certificate::self_signed(other.path());
    for kind in [Kind::Rsa, Kind::Ecdsa] {
        let request = Request { kind, ..Request::default() };
        let ours = authority.issue(folder.path(), "client", &request);
        for protocols in ["TLSv1.2", "TLSv1.3"] {
            let server = Server::for_clients_of(&authority.root, protocols);
            let sees = |certificate: &str, key: &str, expected| {
                let held = Launcher::hold_with(&server.url(), &client(certificate, key));
                check(&held, expected, &format!("{kind:?} {protocols}"));
            };
            let one_line = |pem: String| pem.replace('\n', "\\r\\n") + "\n";
            sees(ours.path(), ours.key_file.to_str().unwrap(), Pong);
            let latin_1 = [&ours.certificate_file, &ours.key_file];
            let latin_1 = latin_1.map(|pem| with_latin_1_comment(pem));
            sees(&latin_1[0], &latin_1[1], Pong);
            sees(&ours.pem(), &ours.key_pem(), Pong);
            sees(&ours.pem(), &traditional(&ours), Pong);
            sees(&one_line(ours.pem()), &one_line(ours.key_pem()), Pong);
            let attributes = "Bag Attributes\n    friendlyName: ENCRYPTED backup\n";
            sees(&ours.pem(), &(attributes.to_owned() + &ours.key_pem()), Pong);
            sees("", "", Error("set STUNNEL_CLIENT_CERT and STUNNEL_CLIENT_KEY"));
            let refused = Error("the server refuses the client certificate");
            sees(&stranger.pem(), &stranger.key_pem(), refused);
        }
    }
}

#[test]
fn the_app_learns_that_no_tls_version_suits_both_sides() {
    let server = Server::with_words(&["--tls-protocols", "TLSv1.2"]);
    let hold = |version| Launcher::hold_with(&server.url(), &[("STUNNEL_MIN_TLS", version)]);
    check(&hold("1.2"), Pong, "TLS 1.2");
    let none = "none of the allowed TLS versions; set STUNNEL_MIN_TLS";
    check(&hold("1.3"), Error(none), "TLS 1.3 required");

    let folder = tempfile::tempdir().unwrap();
    let options = ["-tls1", "-cipher", "ALL:@SECLEVEL=0"];
    let (_old, port) = s_server(folder.path(), &options);
    let held = Launcher::hold(&format!("rediss://127.0.0.1:{port}"));
    check(&held, Error(none), "a TLS 1.0 server");
}

fn client<'a>(cert: &'a str, key: &'a str) -> [(&'static str, &'a str); 2] {
    [("STUNNEL_CLIENT_CERT", cert), ("STUNNEL_CLIENT_KEY", key)]
}

#[test]
fn invalid_trust_settings_fail_at_start_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Certificate::self_signed(folder.path());
    let other_folder = tempfile::tempdir().unwrap();
    let other_key = Certificate::self_signed(other_folder.path()).key_pem();
    let cipher = openssl::symm::Cipher::aes_128_cbc();
    let pkcs1 = ours.key.rsa().unwrap().private_key_to_pem_passphrase(cipher, b"pw").unwrap();
    let pkcs8 = ours.key.private_key_to_pem_pkcs8_passphrase(cipher, b"pw").unwrap();
    let [pkcs1, pkcs8] = [pkcs1, pkcs8].map(|pem| String::from_utf8(pem).unwrap());
    let (good, key) = (ours.pem(), ours.key_pem());
    let [bad, bad_key] = [&good, &key].map(|pem| pem.replacen("MII", "xxx", 1));
    let second_bad = format!("{good}{bad}");
    let at_place_2 = "a certificate that cannot be read (certificate number 2)";
    let no_pem = folder.path().join("no-pem");
    fs::write(&no_pem, "hello").unwrap();
    let (no_pem, here) = (no_pem.to_str().unwrap(), folder.path().to_str().unwrap());
    let (ca_file, ca_pem, own_ca) = ("STUNNEL_CA_FILE", "STUNNEL_CA_PEM", "R_STUNNEL_CA_FILE");
    let [(cert_name, _), (key_name, _)] = client("", "");
    // Each case has the settings, the variable that the error must name, and a part of the error.
    for (settings, name, problem) in [
        (&[(ca_file, "/missing")][..], ca_file, "cannot be read"),
        (&[(ca_file, here)], ca_file, "cannot be read"),
        (&[(ca_file, "/dev/null")], ca_file, "holds no certificate"),
        (&[(ca_file, no_pem)], ca_file, "-----BEGIN CERTIFICATE-----"),
        (&[(ca_pem, &bad)], ca_pem, "cannot be read"),
        (&[(own_ca, "/missing")], own_ca, "cannot be read"),
        (&[("STUNNEL_PIN", "sha256//AAAA")], "STUNNEL_PIN", "base64 of 32 bytes"),
        (&client(&good, ""), key_name, "STUNNEL_CLIENT_CERT is"),
        (&client("", &key), cert_name, "STUNNEL_CLIENT_KEY is"),
        (&client(&good, &pkcs8), key_name, "openssl pkcs8 -topk8 -nocrypt"),
        (&client(&good, &pkcs1), key_name, "openssl pkcs8 -topk8 -nocrypt"),
        (&client(&good, &other_key), key_name, "does not match"),
        (&client(&good, &bad_key), key_name, "cannot be read"),
        (&client(&good, &good), key_name, "no private key"),
        (&client("/missing", &key), cert_name, "cannot be read"),
        (&client(&second_bad, &key), cert_name, at_place_2),
        (&[(ca_pem, &second_bad)], ca_pem, at_place_2),
        (&[("STUNNEL_SERVER_NAME", "no name")], "STUNNEL_SERVER_NAME", "host name"),
    ] {
        let launcher = Launcher::script("echo ran").env("R", "rediss://h");
        let log = launcher.env("REDIS_STUNNEL_URLS", "R").settings(settings).refused();
        assert_eq!(logged(&log, "config-error", "var"), [name], "{log}");
        assert!(log.contains(problem), "{problem} in {log}");
        for secret in [&key, &bad_key, &pkcs8] {
            let line = secret.lines().nth(1).unwrap();
            assert!(!log.contains(line), "a key in {log}");
        }
    }
}

#[test]
fn settings_override_tls_parameters_in_the_url() {
    let Issued { authority, server, folder: _folder, .. } = Issued::new(&Request::default());
    let ca = authority.root.path().replace('/', "%2F");
    let by_ca = format!("ssl_cert_reqs=required&ssl_ca_certs={ca}");
    let unknown = Error("unable to get local issuer certificate");
    for (query, level, expected) in [
        ("ssl_cert_reqs=required", "", unknown),
        (&by_ca, "", Pong),
        ("ssl_cert_reqs=none", "", Pong),
        ("ssl_cert_reqs=CERT_REQUIRED", "none", Pong),
        ("ssl_cert_reqs=none", "full", unknown),
    ] {
        let url = format!("{}?{query}", server.url());
        let held = Launcher::hold_with(&url, &[("STUNNEL_VERIFY", level)]);
        assert!(held.url.ends_with("/0"), "{}", held.url);
        check(&held, expected, &format!("{query} with '{level}'"));
    }
}

#[test]
fn missing_authentication_and_unused_cas_cause_warnings() {
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
    for ([certificate, key], reason) in [
        (&short, "security level refuses (certificate number 1): ee key too small"),
        (&sha1, "security level refuses (certificate number 1): ca md too weak"),
        (&chained, "security level refuses (certificate number 3): ca md too weak"),
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
    let request = Request { dns: &["redis.test"], ip: &[], ..Request::default() };
    let Issued { authority, server, folder, .. } = Issued::new(&request);
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.1 redis.test redis.test.\n") else {
        return;
    };
    let held = launcher
        .redis(&format!("rediss://redis.test.:{}", server.tls_port()))
        .env("STUNNEL_VERIFY", "full")
        .env("STUNNEL_CA_FILE", authority.root.path())
        .start_held();
    check(&held, Pong, "a final dot");
}

#[test]
fn a_hint_names_the_setting_to_change() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [ours, other] = folders.each_ref().map(|folder| Certificate::self_signed(folder.path()));
    let server = Server::with_certificate(&ours);
    let url = &*server.url();
    let plaintext = &*format!("rediss://127.0.0.1:{}", server.port);
    let asking = &*format!("{url}?ssl_cert_reqs=required");
    let in_url = "ssl_cert_reqs in REDIS_URL requires full verification: set STUNNEL_CA_FILE to";
    let no_ca = "set STUNNEL_CA_FILE to the server's CA, or set STUNNEL_VERIFY=none and \
                 STUNNEL_PIN to the server's pin (see start-stunnel --check)";
    let pinned = "STUNNEL_VERIFY requires a valid certificate chain, even if a pin is set: set \
                  STUNNEL_CA_FILE to the server's CA, or set STUNNEL_VERIFY=none to check only the \
                  pin";
    let other_ca = "no configured CA signed the server's certificate chain: set STUNNEL_CA_FILE to \
                    the chain's CA, or set STUNNEL_VERIFY=none";
    let no_tls = &*format!(
        "if TLS is on the next port, {}, change rediss:// to redis:// in REDIS_URL, which stands \
         for TLS on the next port; if TLS is on another port, put that port into REDIS_URL; if \
         this Redis has no TLS, write redis:// and set STUNNEL_ENABLED=false",
        server.port + 1
    );
    let no_offset = &*plaintext.replace("rediss", "redis");
    let no_tls_at_all = "if another port speaks TLS, set REDIS_URL_STUNNEL_PORT_OFFSET; if this \
                         Redis has no TLS, set STUNNEL_ENABLED=false";
    let new_pin = "set REDIS_URL_STUNNEL_PIN to the new pin";
    let instead = "remove --pin and set STUNNEL_PIN to the new pin";
    let (our_pin, other_pin) = (&*ours.pin(), &*other.pin());
    let (pin, own_pin, verify) = ("STUNNEL_PIN", "REDIS_URL_STUNNEL_PIN", "STUNNEL_VERIFY");
    for (url, options, settings, expected) in [
        (url, &[][..], &[(pin, other_pin)][..], "set STUNNEL_PIN to the new pin"),
        (url, &["--pin", other_pin], &[], instead),
        (url, &[], &[(own_pin, other_pin)], new_pin),
        (url, &["--pin", other_pin], &[(own_pin, other_pin)], new_pin),
        (url, &["--verify", "full"], &[], "set --verify=none and STUNNEL_PIN to"),
        (url, &[], &[("REDIS_URL_STUNNEL_VERIFY", "ca")], "set REDIS_URL_STUNNEL_VERIFY=none"),
        (url, &[], &[(verify, "full")], no_ca),
        (url, &[], &[(verify, "full"), (pin, our_pin)], pinned),
        (url, &[], &[(verify, "ca"), ("STUNNEL_CA_FILE", other.path())], other_ca),
        (asking, &[], &[], in_url),
        (plaintext, &[], &[], no_tls),
        (no_offset, &[], &[("STUNNEL_PORT_OFFSET", "0")], no_tls_at_all),
    ] {
        let words = [options, &["sh", "-c", HOLD]].concat();
        let held = Launcher::new(words).redis(url).settings(settings).start_held();
        let line = sees(&held).unwrap_err();
        let hint = logged(&held.finish().stderr, "connection-refused", "hint").remove(0);
        assert!(hint.contains(expected), "{expected}: {hint}");
        assert!(line.ends_with(&hint), "the app receives the same hint: {line}");
    }
}

#[test]
fn the_hint_explains_that_the_server_requires_sni() {
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
    let asking_for =
        |name| sees(&Launcher::hold_with(&peer.url(), &[("STUNNEL_SERVER_NAME", name)]));
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
fn a_missing_client_certificate_is_reported_within_a_second() {
    let server = Server::requiring_certificates("TLSv1.3");
    // With TLS 1.3, the server refuses the client only after the handshake, so the launcher may
    // have read the app's request already. If the launcher then waited for another request, the
    // reply would take two seconds. On a busy machine, several attempts may be necessary.
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

#[test]
fn a_late_refusal_answers_every_request_like_an_early_one() {
    // With TLS 1.2, the server refuses the client during the handshake. With TLS 1.3, the server
    // refuses the client after the handshake.
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let server = Server::requiring_certificates(protocols);
        let held = Launcher::hold(&server.url());
        let requests = ["*1\r\n$4\r\nPING\r\n", "PING\r\n", "*2\r\n$4\r\nECHO\r\n$1\r\na\r\n"];
        let refused = |app: &mut Client| match app.reply() {
            Ok(Reply::Line(line)) => line.starts_with("-ERR start-stunnel: "),
            _ => false,
        };
        // On a busy machine, the second request may come after the launcher's second of patience.
        let answered = (0..10).any(|_| {
            let mut app = held.open();
            let half = requests.concat() + "*1\r\n$4\r\nPI";
            app.stream.get_mut().write_all(half.as_bytes()).unwrap();
            assert!(requests.iter().all(|_| refused(&mut app)), "{protocols}");
            let rest_of_it = b"NG\r\n*1\r\n$4\r\nPING\r\n";
            app.stream.get_mut().write_all(rest_of_it).is_ok()
                && (0..2).all(|_| refused(&mut app))
                && rest(&mut app.stream) == (vec![], None)
        });
        assert!(answered, "{protocols}");
    }
}
