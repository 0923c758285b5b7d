//! Tests the reports of `--check` (docs/check.md) about servers that work and servers that fail.

mod support;

use std::io::Write;
use std::process::Command;

use serde_json::Value;
use support::launcher::{BINARY, Launcher, Outcome};
use support::peer::Peer;
use support::pki::{Certificate, Request};
use support::proc::core_limit;
use support::pty::Terminal;
use support::scripted::{redis, scripted};
use support::servers::{Front, Issued, PASSWORD, Server};
use support::snippets::printed;
use support::two_free_ports;

fn check(url: &str, settings: &[(&str, &str)]) -> Outcome {
    Launcher::new(["--check"]).redis(url).settings(settings).run()
}

/// The report about one tunnel as JSON, and the exit code.
#[derive(Debug)]
struct Report {
    json: Value,
    code: i32,
}

fn report(url: &str, settings: &[(&str, &str)]) -> Report {
    let settings = [settings, &[("STUNNEL_LOG_FORMAT", "json")]].concat();
    let ended = check(url, &settings);
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    Report { json: serde_json::from_str(&ended.stdout).unwrap(), code: ended.code() }
}

impl Report {
    fn state(&self, step: &str) -> &str {
        self.json["steps"][step]["state"].as_str().unwrap_or("absent")
    }

    /// The states of all steps except SELECT, in the order of the steps.
    fn states(&self) -> Vec<&str> {
        let steps = ["lookup", "tcp", "tls", "pin", "ca", "full", "auth", "ping"];
        steps.iter().map(|step| self.state(step)).collect()
    }

    fn detail(&self, step: &str) -> &str {
        self.json["steps"][step]["detail"].as_str().unwrap_or_default()
    }

    fn first_advice(&self) -> &str {
        self.json["advice"][0].as_str().unwrap_or_default()
    }

    fn advice(&self) -> String {
        self.json["advice"].to_string()
    }
}

/// True if every line has at most 80 characters, or consists of a single value to copy.
fn fits_a_terminal(table: &str) -> bool {
    table.lines().all(|line| line.chars().count() <= 80 || !line.trim().contains(' '))
}

#[test]
fn the_check_of_a_working_server_prints_the_pin_to_set() {
    let Issued { authority, certificate, server, folder: _folder } =
        Issued::new(&Request::default());
    let ended = check(&server.url(), &[]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    let table = &ended.stdout;
    for text in [
        &format!("REDIS_URL -> 127.0.0.1:{} (verify none)", server.tls_port()),
        "CN=localhost",
        "CN=Test Intermediate",
        "localhost, 127.0.0.1",
        &certificate.pin(),
        "not authenticated",
        &format!("STUNNEL_PIN={}", certificate.pin()),
        "AUTH",
        "PING",
    ] {
        assert!(table.contains(text), "{text} in\n{table}");
    }
    assert!(fits_a_terminal(table), "{table}");
    assert!(!table.contains('\x1b'), "no colours in a pipe");
    assert!(!table.contains(PASSWORD) && !ended.stderr.contains(PASSWORD));

    let root = ("STUNNEL_CA_FILE", authority.root.path());
    let by_ca = report(&server.url(), &[root, ("STUNNEL_VERIFY", "full")]);
    assert_eq!((by_ca.code, &by_ca.json["works"]), (0, &Value::Bool(true)), "{by_ca:?}");
    assert_eq!(by_ca.states(), ["ok", "ok", "ok", "skipped", "ok", "ok", "ok", "ok"]);
    assert_eq!(by_ca.json["certificate"]["pin"], certificate.pin());
    assert_eq!(by_ca.json["certificate"]["names"], serde_json::json!(["localhost", "127.0.0.1"]));
    assert!(by_ca.json["steps"]["tls"]["ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_failed_optional_step_does_not_fail_the_check() {
    let server = Server::start(Front::Stunnel);
    let none = report(&server.url(), &[]);
    let expected = ["ok", "ok", "ok", "skipped", "failed", "failed", "ok", "ok"];
    assert_eq!((none.states(), none.code), (expected.to_vec(), 0));
    let full = report(&server.url(), &[("STUNNEL_VERIFY", "full")]);
    assert_eq!(full.code, 1);
    // The check must not send the password to an unverified server.
    assert_eq!(full.states()[5..], ["failed", "not reached", "not reached"]);
    assert!(full.detail("full").contains("self-signed"), "{full:?}");

    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    let pinned = report(&server.url(), &[("STUNNEL_PIN", &other)]);
    let states = [pinned.state("pin"), pinned.state("auth")];
    assert_eq!((states, pinned.code), (["failed", "not reached"], 1));
}

#[test]
fn a_failed_step_has_a_reason_and_ends_the_check() {
    let greeter = Peer::tcp(|mut stream| stream.write_all(b"220 no TLS here, sorry\r\n").unwrap());
    let silent = Peer::tcp(|mut stream| support::rest(&mut stream));
    let nobody = two_free_ports();
    let cases = [
        ("rediss://no-such-host.invalid".to_owned(), 0, "lookup"),
        (format!("rediss://127.0.0.1:{nobody}"), 1, "connection refused"),
        (greeter.url(), 2, "does not speak TLS"),
        (silent.url(), 2, "timed out"),
    ];
    for (url, step, reason) in cases {
        let settings = [("STUNNEL_CONNECT_TIMEOUT", "2s")];
        let report = report(&url, &settings);
        assert_eq!(report.code, 1, "{report:?}");
        let states = report.states();
        assert!(states[..step].iter().all(|state| *state == "ok"), "{states:?}");
        assert_eq!(states[step], "failed", "{report:?}");
        assert!(states[step + 1..].iter().all(|state| *state == "not reached"), "{states:?}");
        let detail = report.detail(["lookup", "tcp", "tls"][step]);
        assert!(detail.contains(reason), "{detail}");
        assert!(!report.first_advice().is_empty());
        let table = check(&url, &settings);
        assert_eq!(table.code(), 1);
        assert!(fits_a_terminal(&table.stdout), "{}", table.stdout);
    }
}

#[test]
fn the_check_explains_each_error_reply_of_redis() {
    let server = Server::start(Front::Redis);
    let mut redis = server.direct();
    redis.ask(&["ACL", "SETUSER", "shy", "on", ">pw", "~*", "+get"]);
    redis.ask(&["ACL", "SETUSER", "open", "on", "nopass", "~*", "+@all"]);
    let wrong = "check that the URL contains the provider's user and password";
    let missing = "put the provider's user and password into REDIS_URL";
    let cases = [
        (format!("default:{PASSWORD}@"), "auth", "ok", "", "the server is not authenticated"),
        (format!(":{PASSWORD}@"), "auth", "ok", "", "the server is not authenticated"),
        (":wrong@".to_owned(), "auth", "failed", "wrong user or password", wrong),
        ("nobody:pw@".to_owned(), "auth", "failed", "wrong user or password", wrong),
        (String::new(), "auth", "skipped", "no password in the URL", missing),
        (String::new(), "ping", "failed", "requires a password", missing),
        ("shy:pw@".to_owned(), "ping", "ok", "ACL does not allow", "the server is not"),
        ("open:any@".to_owned(), "ping", "ok", "", "the server is not authenticated"),
    ];
    for (userinfo, step, state, detail, advice) in cases {
        let report = report(&format!("redis://{userinfo}127.0.0.1:{}", server.port), &[]);
        assert_eq!(report.state(step), state, "{userinfo}: {report:?}");
        assert!(report.detail(step).contains(detail), "{userinfo}: {report:?}");
        assert!(report.first_advice().starts_with(advice), "{userinfo}: {report:?}");
        assert_eq!(report.code, i32::from([wrong, missing].contains(&advice)), "{report:?}");
        // `--check` learns the mode from INFO, which the user `shy` may not call.
        let knows_mode = report.json["mode"] == "standalone";
        assert_eq!(knows_mode, report.code == 0 && !userinfo.starts_with("shy"), "{report:?}");
    }
}

#[test]
fn an_unavailable_redis_is_not_reported_as_a_wrong_password() {
    for (line, detail, advice) in [
        ("-LOADING Redis is loading the dataset\r\n", "is still loading its data", ""),
        ("-ERR max number of clients reached\r\n", "max number of clients", "client limit"),
        ("220 a mail server\r\n", "the server may not be Redis", ""),
    ] {
        let (peer, _) = scripted(move |_, _| Some(line.to_owned()));
        let report = report(&peer.url().replace("//", "//:pw@"), &[]);
        assert_eq!((report.state("auth"), report.code), ("failed", 1), "{report:?}");
        assert!(report.detail("auth").contains(detail), "{report:?}");
        let advised = report.advice();
        let is_advised = report.json["advice"] != serde_json::json!([]);
        assert_eq!(is_advised, !advice.is_empty(), "{report:?}");
        assert!(advised.contains(advice) && !advised.contains("password"), "{report:?}");
    }
}

/// Answers like Redis 5, which has no users.
fn redis_5(request: &[String]) -> String {
    match request.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["AUTH", _, _] => "-ERR wrong number of arguments for 'auth' command\r\n".to_owned(),
        ["AUTH", "pw"] => "+OK\r\n".to_owned(),
        ["AUTH", _] => "-ERR invalid password\r\n".to_owned(),
        _ => redis(request),
    }
}

#[test]
fn the_check_tries_the_passwords_of_all_urls_of_a_tunnel() {
    let server = Server::start(Front::Redis);
    let wrong = server.url().replace(PASSWORD, "wrong-secret");
    let report = report(&server.url(), &[("HEROKU_REDIS_B_URL", &wrong)]);
    assert_eq!((report.code, report.state("auth")), (1, "failed"), "{report:?}");
    assert!(report.detail("auth").starts_with("HEROKU_REDIS_B_URL: wrong user"), "{report:?}");
}

#[test]
fn redis_5_passes_the_check_although_the_url_has_a_user() {
    let (old, _) = scripted(|_, request| Some(redis_5(request)));
    let alone = "logged in with the password only: this Redis (5 or older)";
    for (userinfo, state, detail, code) in [
        ("h:pw", "ok", alone, 0),
        ("h:other", "failed", "wrong user or password", 1),
        (":pw", "ok", "", 0),
    ] {
        let report = report(&format!("rediss://{userinfo}@127.0.0.1:{}", old.port), &[]);
        assert_eq!((report.state("auth"), report.code), (state, code), "{userinfo}: {report:?}");
        assert!(report.detail("auth").starts_with(detail), "{userinfo}: {report:?}");
        assert_eq!(report.detail("auth").is_empty(), detail.is_empty(), "{report:?}");
    }
}

#[test]
fn check_reports_that_redis_behind_stunnel_may_be_down() {
    let mut server = Server::start(Front::Stunnel);
    server.stop();
    let without_password = server.url().replace(&format!("default:{PASSWORD}@"), "");
    for (url, step) in [(server.url(), "auth"), (without_password, "ping")] {
        let report = report(&url, &[]);
        assert_eq!((report.state(step), report.code), ("failed", 1), "{report:?}");
        let expected = "Redis may be down, starting or at its client limit";
        assert!(report.first_advice().starts_with(expected), "{report:?}");
        assert!(!report.advice().contains("password"), "{report:?}");
    }
}

#[test]
fn advice_for_a_certificate_with_another_name_works() {
    let name = "other.example";
    let request = Request { name, dns: &[name], ip: &[], ..Request::default() };
    let Issued { authority, server, folder: _folder, .. } = Issued::new(&request);
    let root = ("STUNNEL_CA_FILE", authority.root.path());
    let under_full = report(&server.url(), &[("STUNNEL_VERIFY", "full"), root]);
    assert_eq!(under_full.code, 1);
    assert_eq!(
        under_full.first_advice(),
        "set STUNNEL_SERVER_NAME to a name in the certificate, or set STUNNEL_VERIFY=ca"
    );
    // With STUNNEL_VERIFY=none, the report recommends a verify level that the server's certificate
    // passes.
    let under_none = report(&server.url(), &[root]);
    let first = under_none.first_advice();
    assert!(under_none.code == 0 && first.ends_with(" STUNNEL_VERIFY=ca"), "{under_none:?}");
    let followed = report(&server.url(), &[("STUNNEL_VERIFY", "ca"), root]);
    assert!(followed.code == 0 && !followed.advice().contains("STUNNEL_"), "{followed:?}");
}

#[test]
fn advice_about_an_untrusted_server_fits_the_verify_level() {
    let server = Server::start(Front::Redis);
    let intercepted = [
        "someone may be intercepting this connection",
        "STUNNEL_CA_FILE",
        "over a connection that you trust",
        "STUNNEL_PIN=sha256//",
    ];
    for (level, code, parts) in [
        (
            "",
            0,
            &["the server is not authenticated. To authenticate the server, set STUNNEL_PIN="][..],
        ),
        ("none", 0, &["the server is not authenticated. To authenticate the server, set"]),
        ("ca", 1, &intercepted),
        ("full", 1, &intercepted),
    ] {
        let report = report(&server.url(), &[("STUNNEL_VERIFY", level)]);
        assert_eq!(report.code, code, "{report:?}");
        let advice = report.first_advice();
        let place = |part: &&str| advice.find(part).unwrap_or_else(|| panic!("{part}: {advice}"));
        assert!(parts.iter().map(place).is_sorted(), "{advice}");
    }
}

#[test]
fn check_advises_to_set_a_ca_only_if_the_ca_is_unknown() {
    let good = Request::default();
    for (request, advice) in [
        (
            Request { valid: (-9, -3), ..good.clone() },
            "replace the expired certificate (the server's, or one in your CA file). Until",
        ),
        (Request { valid: (3, 9), ..good.clone() }, "check this machine's clock, or wait"),
        (Request { for_clients: true, ..good }, "replace the server's certificate chain. Until"),
    ] {
        let Issued { authority, server, folder: _folder, .. } = Issued::new(&request);
        for level in ["ca", "full"] {
            let settings = [("STUNNEL_VERIFY", level), ("STUNNEL_CA_FILE", authority.root.path())];
            let report = report(&server.url(), &settings);
            let first = report.first_advice();
            assert!(first.contains(advice) && first.contains("STUNNEL_PIN="), "{report:?}");
            assert!(!first.contains("STUNNEL_CA_FILE"), "{report:?}");
        }
    }
}

#[test]
fn a_database_that_redis_does_not_have_fails_the_check() {
    let server = Server::start(Front::Redis);
    let url = |path: &str| server.url().replace("/0", path);
    for (path, state, code) in
        [("", "absent", 0), ("/0", "absent", 0), ("/15", "ok", 0), ("/99", "failed", 1)]
    {
        let report = report(&url(path), &[]);
        assert_eq!((report.state("select"), report.code), (state, code), "{path}: {report:?}");
    }
    // The two variables share a tunnel. The check selects the databases of both URLs.
    let both = check(&url("/1"), &[("HEROKU_REDIS_SAME_URL", &url("/99"))]);
    assert_eq!(both.code(), 1, "{}", both.stdout);
    let (step, detail) = ("SELECT", "database 99");
    assert!(both.stdout.contains(step) && both.stdout.contains(detail), "{}", both.stdout);
}

#[test]
fn the_check_lists_urls_without_tunnel_and_unknown_settings() {
    let server = Server::start(Front::Redis);
    let run = |format: &str| {
        let settings = [
            ("CACHE_URL", "redis://:hunter2@cache.example"),
            ("STUNNEL_VERIFY_IT", "full"),
            ("STUNNEL_LOG_FORMAT", format),
        ];
        check(&server.url(), &settings)
    };
    let table = run("logfmt").stdout;
    for text in ["CACHE_URL", "REDIS_STUNNEL_URLS=", "STUNNEL_VERIFY_IT", "unknown settings"] {
        assert!(table.contains(text), "{text} in\n{table}");
    }
    assert!(fits_a_terminal(&table), "{table}");
    let json = run("json");
    assert_eq!(json.stdout.lines().count(), 1, "one object for each tunnel: {}", json.stdout);
    for event in ["not-tunnelled", "unknown-setting"] {
        assert!(json.stderr.contains(&format!(r#""at":"{event}""#)), "{}", json.stderr);
    }
    assert!(!format!("{table}{json:?}").contains("hunter2"));
}

#[test]
fn user_and_password_in_a_servers_error_are_masked() {
    // This Redis answers: "unknown command 'AUTH', with args beginning with: …".
    let server = Server::with_words(&["--rename-command", "AUTH", ""]);
    let url = server.url().replace("default:", "app-user:");
    for settings in [&[][..], &[("STUNNEL_LOG_FORMAT", "json")]] {
        let ended = check(&url, settings);
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stdout.contains("unknown command"), "{ended:?}");
        let all = ended.stdout + &ended.stderr;
        assert!(!all.contains(PASSWORD) && !all.contains("app-user"), "{all}");
    }
}

#[test]
fn the_check_names_the_settings_for_a_client_certificate() {
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let server = Server::requiring_certificates(protocols);
        let report = report(&server.url(), &[]);
        assert_eq!(report.code, 1, "{report:?}");
        assert!(report.json["steps"].to_string().contains("client certificate"), "{report:?}");
        let expected = "set STUNNEL_CLIENT_CERT and STUNNEL_CLIENT_KEY";
        assert!(report.first_advice().contains(expected), "{protocols}: {report:?}");
    }
}

#[test]
fn the_check_passes_with_the_settings_that_it_advises() {
    let server = Server::start(Front::Redis);
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    let pin = report(&server.url(), &[]).json["certificate"]["pin"].as_str().unwrap().to_owned();
    let asking = format!("{}?ssl_cert_reqs=required", server.url());
    let full = ("STUNNEL_VERIFY", "full");
    // Each case has the settings with which `--check` runs first, and the names of the settings
    // that the first run advises.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&[], &["STUNNEL_PIN"]),
        (&[("STUNNEL_PIN", &other)], &["STUNNEL_PIN"]),
        (&[("REDIS_URL_STUNNEL_PIN", &other)], &["REDIS_URL_STUNNEL_PIN"]),
        (&[full], &["STUNNEL_PIN", "STUNNEL_VERIFY"]),
        (&[full, ("STUNNEL_PIN", &pin)], &["STUNNEL_VERIFY"]),
        (&[("REDIS_URL", &asking), ("STUNNEL_PIN", &pin)], &["STUNNEL_VERIFY"]),
    ];
    for (settings, advised) in cases {
        let before = check(&server.url(), settings);
        assert_eq!(before.code(), i32::from(!settings.is_empty()));
        assert!(fits_a_terminal(&before.stdout), "{}", before.stdout);
        let is_pin_advised = before.stdout.contains("STUNNEL_PIN=");
        assert_eq!(is_pin_advised, advised[0].ends_with("PIN"), "{}", before.stdout);
        let mut changed = settings.to_vec();
        changed.extend(advised.iter().map(|name| (*name, printed(&before.stdout, name))));
        let after = check(&server.url(), &changed);
        assert_eq!(after.code(), 0, "{}", after.stdout);
        assert!(!after.stdout.contains("not authenticated"), "{}", after.stdout);
    }
    let by_option = |pin: &str| Launcher::new(["--check", "--pin", pin]).redis(&server.url()).run();
    let before = by_option(&other);
    let pin = printed(&before.stdout, "--pin");
    assert_eq!((before.code(), by_option(pin).code()), (1, 0), "{}", before.stdout);
}

#[test]
fn each_variable_gets_its_pin_although_one_server_is_down() {
    let (one, two) = (Server::start(Front::Redis), Server::start(Front::Redis));
    let (url, other_url) = (one.url(), two.url());
    let mut settings = vec![
        ("REDIS_URL", &*url),
        ("HEROKU_REDIS_SAME_URL", &url),
        ("HEROKU_REDIS_CHARCOAL_OF_THE_REPORTING_TEAM_URL", &other_url),
        ("HEROKU_REDIS_DEAD_URL", "rediss://127.0.0.1:1"),
    ];
    let before = Launcher::new(["--check"]).settings(&settings).run();
    assert_eq!(before.code(), 1);
    assert!(fits_a_terminal(&before.stdout), "{}", before.stdout);
    let titles = before.stdout.lines().filter(|line| line.contains(" -> "));
    let first = titles.map(|title| title.split(' ').next().unwrap()).collect::<Vec<_>>();
    let long = "HEROKU_REDIS_CHARCOAL_OF_THE_REPORTING_TEAM_URL";
    assert_eq!(first, ["REDIS_URL", long, "HEROKU_REDIS_DEAD_URL"]);
    settings.pop();
    let pins =
        ["REDIS_URL", "HEROKU_REDIS_SAME_URL", long].map(|name| format!("{name}_STUNNEL_PIN"));
    settings.extend(pins.iter().map(|name| (&**name, printed(&before.stdout, name))));
    let after = Launcher::new(["--check"]).settings(&settings).run();
    assert_eq!(after.code(), 0, "{}", after.stdout);
    assert!(!after.stdout.contains("not authenticated"), "{}", after.stdout);
}

#[test]
fn only_terminals_get_colours_and_no_color_turns_them_off() {
    let server = Server::start(Front::Redis);
    for (no_color, coloured) in [("", true), ("1", false)] {
        let mut command = Command::new(BINARY);
        command.arg("--check").env_clear().env("REDIS_URL", server.url()).env("NO_COLOR", no_color);
        let mut terminal = Terminal::start(command);
        let shown = terminal.expect("not authenticated");
        assert_eq!(shown.contains("\x1b[32m"), coloured, "{shown:?}");
        assert_eq!(terminal.process.wait().code(), Some(0));
    }
}

#[test]
fn check_of_a_cluster_node_says_that_tunnels_miss_other_nodes() {
    let server = Server::with_words(&["--cluster-enabled", "yes"]);
    let report = report(&server.url(), &[]);
    assert_eq!((report.code, report.json["mode"].as_str()), (0, Some("cluster")), "{report:?}");
    for word in ["a node of a Redis Cluster", "MOVED", "STUNNEL_REDISS=passthrough"] {
        assert!(report.advice().contains(word), "{word}: {report:?}");
    }
}

#[test]
fn the_check_of_a_sentinel_advises_to_use_the_master() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let port = two_free_ports();
    let configuration = folder.path().join("sentinel.conf");
    let lines = [
        format!("port 0\ntls-port {port}\ntls-auth-clients no\nbind 127.0.0.1\n"),
        format!("tls-cert-file {}\n", certificate.certificate_file.display()),
        format!("tls-key-file {}\n", certificate.key_file.display()),
        format!("tls-ca-cert-file {}\n", certificate.certificate_file.display()),
        format!("dir {}\nsentinel monitor mymaster 127.0.0.1 1 1\n", folder.path().display()),
    ];
    std::fs::write(&configuration, lines.concat()).unwrap();
    let mut sentinel = Command::new("redis-server");
    sentinel.arg(&configuration).args(["--sentinel", "--logfile", "sentinel.log"]);
    let _sentinel = support::Process(sentinel.spawn().unwrap());
    support::eventually("the sentinel accepts connections", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let report = report(&format!("rediss://127.0.0.1:{port}"), &[]);
    assert_eq!((report.code, report.json["mode"].as_str()), (0, Some("sentinel")), "{report:?}");
    assert!(report.advice().contains("tells the client the master's address"), "{report:?}");
}

#[test]
fn a_check_writes_no_core_dump() {
    // The server never answers, so the check runs until the test ends.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("rediss://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let script = "ulimit -Sc 4096 2>/dev/null; exec \"$0\" --check";
    let running = Launcher::of("sh", ["-c", script, BINARY]).redis(&url).start();
    let (_waiting, _) = silent.accept().unwrap();
    let limit = core_limit(running.pid());
    assert!(["0", "1"].contains(&limit.as_str()), "{limit}");
}
