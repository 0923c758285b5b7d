//! `--check` (docs/trust.md), against servers that work and servers that do not.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use nix::libc;
use openssl::ssl::SslStream;
use serde_json::Value;
use support::launcher::{BINARY, Launcher, Outcome, logged, send_signal};
use support::peer::Peer;
use support::pki::{Authority, Certificate, Request};
use support::proc::core_limit;
use support::pty::Terminal;
use support::resp::Reply;
use support::servers::{Front, Options, PASSWORD, Server};
use support::two_free_ports;

fn check(url: &str, settings: &[(&str, &str)]) -> Outcome {
    let launcher = Launcher::new(["--check"]).redis(url);
    settings.iter().fold(launcher, |launcher, (name, value)| launcher.env(name, value)).run()
}

/// The report on one tunnel, and the exit code.
fn report(url: &str, settings: &[(&str, &str)]) -> (Value, i32) {
    let settings = [settings, &[("STUNNEL_LOG_FORMAT", "json")]].concat();
    let ended = check(url, &settings);
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    (serde_json::from_str(&ended.stdout).expect("one JSON object"), ended.code())
}

/// The states of all steps, in the order of the examination.
fn states(report: &Value) -> Vec<String> {
    ["look-up", "tcp", "tls", "pin", "ca", "full", "auth", "ping"]
        .iter()
        .map(|step| report["steps"][step]["state"].as_str().unwrap_or("absent").to_owned())
        .collect()
}

#[test]
fn a_working_server_is_described_with_how_to_authenticate_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let certificate = authority.issue(folder.path(), "leaf", &Request::default());
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
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
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(!table.contains('\x1b'), "no colour into a pipe");
    assert!(!table.contains(PASSWORD) && !ended.stderr.contains(PASSWORD));

    // With the advice followed, it is authenticated.
    let pinned = check(&server.url(), &[("STUNNEL_PIN", &certificate.pin())]);
    assert_eq!(pinned.code(), 0, "{pinned:?}");
    assert!(!pinned.stdout.contains("not authenticated"), "{}", pinned.stdout);
    let root = authority.root.certificate_file.to_str().unwrap();
    let (by_ca, code) =
        report(&server.url(), &[("STUNNEL_CA_FILE", root), ("STUNNEL_VERIFY", "full")]);
    assert_eq!(code, 0, "{by_ca}");
    assert_eq!(states(&by_ca), ["ok", "ok", "ok", "skipped", "ok", "ok", "ok", "ok"]);
    assert_eq!(by_ca["works"], true);
    assert_eq!(by_ca["certificate"]["pin"], certificate.pin());
    assert_eq!(by_ca["certificate"]["names"], serde_json::json!(["localhost", "127.0.0.1"]));
    assert!(by_ca["steps"]["tls"]["ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_the_settings_demand_decides_whether_it_works() {
    let server = Server::start(Front::Stunnel);
    let (report_none, code) = report(&server.url(), &[]);
    assert_eq!(states(&report_none), ["ok", "ok", "ok", "skipped", "failed", "failed", "ok", "ok"]);
    assert_eq!(code, 0);
    let (report_full, code) = report(&server.url(), &[("STUNNEL_VERIFY", "full")]);
    assert_eq!(code, 1);
    let reached = states(&report_full);
    assert_eq!(reached[5..], ["failed", "not reached", "not reached"], "no password to a stranger");
    let reason = report_full["steps"]["full"]["detail"].as_str().unwrap();
    assert!(reason.contains("self-signed"), "{reason}");

    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    let (report_pin, code) = report(&server.url(), &[("STUNNEL_PIN", &other)]);
    assert_eq!(code, 1);
    assert_eq!(states(&report_pin)[3], "failed");
    assert_eq!(states(&report_pin)[6], "not reached");
}

#[test]
fn each_step_that_fails_says_why_and_the_rest_is_not_reached() {
    let greeter = Peer::tcp(|mut stream| stream.write_all(b"220 no TLS here, sorry\r\n").unwrap());
    let nobody = two_free_ports();
    let cases = [
        ("rediss://no-such-host.invalid".to_owned(), 0, "look-up"),
        (format!("rediss://127.0.0.1:{nobody}"), 1, "connection refused"),
        (greeter.url(), 2, "speaks no TLS"),
    ];
    for (url, step, reason) in cases {
        let (report, code) = report(&url, &[]);
        assert_eq!(code, 1, "{report}");
        let states = states(&report);
        assert!(states[..step].iter().all(|state| state == "ok"), "{states:?}");
        assert_eq!(states[step], "failed", "{report}");
        assert!(states[step + 1..].iter().all(|state| state == "not reached"), "{states:?}");
        let name = ["look-up", "tcp", "tls"][step];
        let detail = report["steps"][name]["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{detail}");
        assert!(!report["advice"][0].as_str().unwrap().is_empty());
        let table = check(&url, &[]);
        assert_eq!(table.code(), 1);
        assert!(table.stdout.lines().all(|line| line.chars().count() <= 80), "{}", table.stdout);
    }
}

#[test]
fn what_redis_answers_is_told_apart() {
    let server = Server::start(Front::Redis);
    let mut redis = server.direct();
    redis.ask(&["ACL", "SETUSER", "shy", "on", ">pw", "~*", "+get"]);
    redis.ask(&["ACL", "SETUSER", "open", "on", "nopass", "~*", "+@all"]);
    let url = |userinfo: &str| format!("redis://{userinfo}127.0.0.1:{}", server.port);
    let cases = [
        (format!("default:{PASSWORD}@"), "auth", "ok", "", 0),
        (format!(":{PASSWORD}@"), "auth", "ok", "", 0),
        (":wrong@".to_owned(), "auth", "failed", "wrong user or password", 1),
        ("nobody:pw@".to_owned(), "auth", "failed", "wrong user or password", 1),
        (String::new(), "auth", "skipped", "no password in the URL", 1),
        (String::new(), "ping", "failed", "wants a password", 1),
        ("shy:pw@".to_owned(), "ping", "ok", "ACL does not allow", 0),
        ("open:any@".to_owned(), "ping", "ok", "", 0),
    ];
    for (userinfo, step, state, detail, expected) in cases {
        let (report, code) = report(&url(&userinfo), &[]);
        assert_eq!(report["steps"][step]["state"], state, "{userinfo}: {report}");
        let said = report["steps"][step]["detail"].as_str().unwrap_or_default();
        assert!(said.contains(detail), "{userinfo}: {said}");
        assert_eq!(code, expected, "{userinfo}: {report}");
        let first = report["advice"][0].as_str().unwrap();
        let about_password = first.starts_with("compare the user and password");
        assert_eq!(about_password, step == "auth" && state == "failed", "{userinfo}: {first}");
        let lacks_password =
            first.starts_with("put the provider's user and password into REDIS_URL");
        assert_eq!(lacks_password, userinfo.is_empty(), "{first}");
    }

    let loading = Peer::tls(|mut tls| {
        use std::io::Read;
        let mut request = [0; 1024];
        while tls.read(&mut request).is_ok_and(|read| read > 0) {
            tls.write_all(b"-LOADING Redis is loading the dataset in memory\r\n").unwrap();
        }
    });
    let (report, code) = report(&loading.url(), &[]);
    assert_eq!(report["steps"]["ping"]["detail"], "the server is still loading its data");
    assert_eq!(code, 1);
}

/// Answers as Redis 5 does, which knows no users.
fn redis_5(mut tls: SslStream<TcpStream>) {
    let mut request = [0; 1024];
    while let Ok(read @ 1..) = tls.read(&mut request) {
        let answer: &[u8] = match &request[..read] {
            request if request.starts_with(b"*3\r\n$4\r\nAUTH\r\n") => {
                b"-ERR wrong number of arguments for 'auth' command\r\n"
            }
            b"*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n" => b"+OK\r\n",
            request if request.starts_with(b"*2\r\n$4\r\nAUTH\r\n") => b"-ERR invalid password\r\n",
            b"*1\r\n$4\r\nPING\r\n" => b"+PONG\r\n",
            _ => b"$-1\r\n",
        };
        if tls.write_all(answer).is_err() {
            return;
        }
    }
}

#[test]
fn user_in_the_url_of_an_old_redis_is_no_failure() {
    let old = Peer::tls(redis_5);
    let url = |userinfo: &str| format!("rediss://{userinfo}@127.0.0.1:{}", old.port);
    let (right, code) = report(&url("h:pw"), &[]);
    assert_eq!((code, right["steps"]["auth"]["state"].as_str()), (0, Some("ok")), "{right}");
    let detail = right["steps"]["auth"]["detail"].as_str().unwrap();
    assert!(detail.starts_with("with the password alone: this Redis (5 or older)"), "{detail}");
    let (wrong, code) = report(&url("h:other"), &[]);
    assert_eq!((code, wrong["steps"]["auth"]["state"].as_str()), (1, Some("failed")), "{wrong}");
    assert_eq!(wrong["steps"]["auth"]["detail"], "wrong user or password");
    let (without, code) = report(&url(":pw"), &[]);
    assert_eq!((code, &without["steps"]["auth"]["detail"]), (0, &Value::Null), "{without}");
}

#[test]
fn a_redis_down_behind_stunnel_is_not_blamed_on_the_password() {
    let server = Server::start(Front::Stunnel);
    send_signal(server.pid(), libc::SIGKILL);
    support::eventually("it is gone", || {
        std::net::TcpStream::connect(("127.0.0.1", server.port)).is_err().then_some(())
    });
    let without_password = server.url().replace(&format!("default:{PASSWORD}@"), "");
    for (url, step) in [(server.url(), "auth"), (without_password, "ping")] {
        let (report, code) = report(&url, &[]);
        assert_eq!((code, report["steps"][step]["state"].as_str()), (1, Some("failed")));
        let first = report["advice"][0].as_str().unwrap();
        assert!(first.starts_with("Redis may be down, starting or full behind"), "{report}");
        assert!(!report["advice"].to_string().contains("password"), "{report}");
    }
}

#[test]
fn a_full_server_is_not_blamed_on_the_password() {
    let full = Peer::tls(|mut tls| {
        // Whoever only looks at the certificate has gone.
        let _ = tls.write_all(b"-ERR max number of clients reached\r\n");
        support::rest(&mut tls);
    });
    let (report, code) = report(&full.url_with_password(), &[]);
    assert_eq!((code, report["steps"]["auth"]["state"].as_str()), (1, Some("failed")), "{report}");
    let first = report["advice"][0].as_str().unwrap();
    assert!(first.contains("client limit") && !first.contains("password"), "{first}");
}

#[test]
fn a_certificate_for_another_name_is_advised_on_as_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let request =
        Request { name: "other.example", dns: &["other.example"], ip: &[], ..Request::default() };
    let certificate = authority.issue(folder.path(), "leaf", &request);
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let root = authority.root.certificate_file.to_str().unwrap();
    let (under_full, code) =
        report(&server.url(), &[("STUNNEL_VERIFY", "full"), ("STUNNEL_CA_FILE", root)]);
    assert_eq!(code, 1);
    let first = under_full["advice"][0].as_str().unwrap();
    assert_eq!(
        first, "set STUNNEL_SERVER_NAME to a name on the certificate, or STUNNEL_VERIFY=ca",
        "{under_full}"
    );
    // Without a demand, what the server passes is recommended.
    let (under_none, code) = report(&server.url(), &[("STUNNEL_CA_FILE", root)]);
    assert_eq!(code, 0);
    let first = under_none["advice"][0].as_str().unwrap();
    assert!(first.ends_with(" STUNNEL_VERIFY=ca"), "{under_none}");
    let (followed, code) =
        report(&server.url(), &[("STUNNEL_VERIFY", "ca"), ("STUNNEL_CA_FILE", root)]);
    assert!(code == 0 && !followed["advice"].to_string().contains("STUNNEL_"), "{followed}");
}

#[test]
fn an_explicit_verify_none_is_not_called_a_mistake() {
    let server = Server::start(Front::Redis);
    let (by_default, _) = report(&server.url(), &[]);
    let first = by_default["advice"][0].as_str().unwrap();
    assert!(first.starts_with("the server is not authenticated: set STUNNEL_PIN="), "{first}");
    let (on_purpose, _) = report(&server.url(), &[("STUNNEL_VERIFY", "none")]);
    let first = on_purpose["advice"][0].as_str().unwrap();
    let expected = "the server is not authenticated, as you wish; if it should be: STUNNEL_PIN=";
    assert!(first.starts_with(expected), "{first}");
}

#[test]
fn a_setting_that_was_given_as_an_option_is_advised_as_one() {
    let server = Server::start(Front::Redis);
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    let ended = Launcher::new(["--check", "--pin", &other]).redis(&server.url()).run();
    let (_, pin) = copied(&ended.stdout, "--pin");
    let followed = Launcher::new(["--check", "--pin", pin]).redis(&server.url()).run();
    assert_eq!((ended.code(), followed.code()), (1, 0), "{}", followed.stdout);
}

#[test]
fn a_refused_certificate_gets_a_caution_before_the_pin() {
    let server = Server::start(Front::Redis);
    for level in ["ca", "full"] {
        let (report, code) = report(&server.url(), &[("STUNNEL_VERIFY", level)]);
        assert_eq!(code, 1);
        let advice = report["advice"][0].as_str().unwrap();
        let at = |part: &str| advice.find(part).unwrap_or_else(|| panic!("{part} in {advice}"));
        assert!(at("someone may be in between") < at("STUNNEL_CA_FILE"));
        assert!(at("STUNNEL_CA_FILE") < at("over a connection that you trust"));
        assert!(at("over a connection that you trust") < at("STUNNEL_PIN=sha256//"));
    }
}

#[test]
fn right_pin_under_full_is_advised_the_level_that_passes() {
    let server = Server::start(Front::Redis);
    let pin = {
        let (report, _) = report(&server.url(), &[]);
        report["certificate"]["pin"].as_str().unwrap().to_owned()
    };
    let asking = format!("{}?ssl_cert_reqs=required", server.url());
    for (url, settings) in [
        (&server.url(), &[("STUNNEL_VERIFY", "full"), ("STUNNEL_PIN", &pin)][..]),
        (&asking, &[("STUNNEL_PIN", &pin)]),
    ] {
        let before = check(url, settings);
        assert_eq!(before.code(), 1);
        assert!(!before.stdout.contains("STUNNEL_PIN="), "it is set already: {}", before.stdout);
        let mut changed = settings.to_vec();
        changed.push(copied(&before.stdout, "STUNNEL_VERIFY"));
        assert_eq!(check(url, &changed).code(), 0, "{}", before.stdout);
    }
}

#[test]
fn a_database_that_the_server_does_not_have_fails_the_check() {
    let server = Server::start(Front::Redis);
    let url = |path: &str| server.url().replace("/0", path);
    for (path, state, code) in
        [("", None, 0), ("/0", None, 0), ("/15", Some("ok"), 0), ("/99", Some("failed"), 1)]
    {
        let (report, ended) = report(&url(path), &[]);
        assert_eq!(report["steps"]["select"]["state"].as_str(), state, "{path}: {report}");
        assert_eq!(ended, code, "{path}: {report}");
    }
    let table = check(&url("/99"), &[]).stdout;
    assert!(table.contains("SELECT") && table.contains("database 99"), "{table}");
    // Two variables of one tunnel: the database of each.
    let launcher = Launcher::new(["--check"]).redis(&url("/1"));
    let both = launcher.env("HEROKU_REDIS_SAME_URL", url("/99")).run();
    assert_eq!(both.code(), 1, "{}", both.stdout);
    assert!(both.stdout.contains("database 99"), "{}", both.stdout);
}

#[test]
fn what_a_run_would_warn_of_is_in_the_report() {
    let server = Server::start(Front::Redis);
    let run = |format: &str| {
        Launcher::new(["--check"])
            .redis(&server.url())
            .env("CACHE_URL", "redis://:hunter2@cache.example")
            .env("STUNNEL_VERIFY_IT", "full")
            .env("STUNNEL_LOG_FORMAT", format)
            .run()
    };
    let table = run("logfmt").stdout;
    for text in ["CACHE_URL", "REDIS_STUNNEL_URLS=", "STUNNEL_VERIFY_IT", "unknown settings"] {
        assert!(table.contains(text), "{text} in\n{table}");
    }
    assert!(fits_a_terminal(&table), "{table}");
    let json = run("json");
    assert_eq!(json.stdout.lines().count(), 1, "one object a tunnel: {}", json.stdout);
    for event in ["not-tunnelled", "unknown-setting"] {
        assert!(json.stderr.contains(&format!(r#""at":"{event}""#)), "{}", json.stderr);
    }
    assert!(!format!("{table}{json:?}").contains("hunter2"));
}

#[test]
fn credentials_that_the_server_repeats_are_masked() {
    // "unknown command 'AUTH', with args beginning with: …": a proxy, or Redis with AUTH renamed.
    let options = Options { words: &["--rename-command", "AUTH", ""], ..Options::default() };
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let options = Options { certificate: Some(&certificate), ..options };
    let server = Server::start_with(Front::Redis, options);
    let url = server.url().replace("default:", "app-user:");
    for settings in [&[][..], &[("STUNNEL_LOG_FORMAT", "json")]] {
        let ended = check(&url, settings);
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stdout.contains("unknown command"), "{ended:?}");
        for secret in [PASSWORD, "app-user"] {
            assert!(!ended.stdout.contains(secret), "{ended:?}");
            assert!(!ended.stderr.contains(secret), "{ended:?}");
        }
    }
}

#[test]
fn a_silent_server_is_given_up_after_the_connect_timeout() {
    let silent = Peer::tcp(|stream| {
        drop(stream.peek(&mut [0; 1]).and_then(|_| {
            use std::io::Read;
            (&stream).read_to_end(&mut Vec::new())
        }))
    });
    let (report, code) = report(&silent.url(), &[("STUNNEL_CONNECT_TIMEOUT", "2s")]);
    assert_eq!(code, 1);
    let detail = report["steps"]["tls"]["detail"].as_str().unwrap();
    assert!(detail.contains("timed out"), "{report}");
}

#[test]
fn a_missing_client_certificate_shows_where_redis_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let server = Server::for_clients_of(&authority.root, protocols);
        let (report, code) = report(&server.url(), &[]);
        assert_eq!(code, 1, "{report}");
        assert!(report.to_string().contains("client certificate"), "{protocols}: {report}");
        let first = report["advice"][0].as_str().unwrap_or_default();
        let expected = "set STUNNEL_CLIENT_CERT and STUNNEL_CLIENT_KEY";
        assert!(first.starts_with(expected), "{protocols}: {report}");
    }
}

#[test]
fn every_tunnel_is_examined_and_each_gets_a_pin_of_its_own() {
    let (one, two) = (Server::start(Front::Redis), Server::start(Front::Redis));
    let launcher =
        Launcher::new(["--check"]).redis(&one.url()).env("HEROKU_REDIS_TWO_URL", two.url());
    let ended = launcher.env("HEROKU_REDIS_DEAD_URL", "rediss://127.0.0.1:1").run();
    assert_eq!(ended.code(), 1);
    let titles: Vec<_> = ended.stdout.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(titles.len(), 3, "{}", ended.stdout);
    assert!(titles[0].starts_with("REDIS_URL") && titles[1].starts_with("HEROKU_REDIS_DEAD_URL"));
    for name in ["REDIS_URL_STUNNEL_PIN=sha256//", "HEROKU_REDIS_TWO_URL_STUNNEL_PIN=sha256//"] {
        assert!(ended.stdout.contains(name), "{name} in\n{}", ended.stdout);
    }
}

/// What a user copies from a table: the one line that begins with `name=`, whole.
fn copied<'a>(table: &'a str, name: &str) -> (&'a str, &'a str) {
    let setting = format!("{name}=");
    let lines: Vec<_> =
        table.lines().map(str::trim).filter(|line| line.starts_with(&setting)).collect();
    let [line] = lines[..] else { panic!("{name} on {} lines:\n{table}", lines.len()) };
    line.split_once('=').unwrap()
}

/// Lines are short, but for those that hold one value alone.
fn fits_a_terminal(table: &str) -> bool {
    table.lines().all(|line| line.chars().count() <= 80 || !line.trim().contains(' '))
}

#[test]
fn a_pin_copied_from_the_table_works_for_any_variable_name() {
    let (one, two) = (Server::start(Front::Redis), Server::start(Front::Redis));
    let long = "HEROKU_REDIS_CHARCOAL_OF_THE_REPORTING_TEAM_URL";
    let cases = [
        ("REDIS_URL", None, "STUNNEL_PIN"),
        ("REDIS_URL", Some(two.url()), "REDIS_URL_STUNNEL_PIN"),
        (long, Some(two.url()), "HEROKU_REDIS_CHARCOAL_OF_THE_REPORTING_TEAM_URL_STUNNEL_PIN"),
    ];
    for (variable, other, setting) in cases {
        let urls = |launcher: Launcher| {
            let launcher = launcher.env(variable, one.url());
            let second = if variable == long { "REDIS_URL" } else { long };
            match &other {
                Some(url) => launcher.env(second, url),
                None => launcher,
            }
        };
        let checked = urls(Launcher::new(["--check"])).run();
        assert!(fits_a_terminal(&checked.stdout), "{}", checked.stdout);
        let (name, pin) = copied(&checked.stdout, setting);
        let script = format!("printf '%s\\n' \"${variable}\"; exec cat >/dev/null");
        let held = urls(Launcher::script(&script)).env(name, pin).start_held();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        let log = held.finish().stderr;
        let unauthenticated = logged(&log, "not-authenticated", "var").concat();
        assert!(!unauthenticated.split(' ').any(|name| name == variable), "{log}");
    }
}

#[test]
fn what_a_changed_key_needs_is_copied_line_by_line() {
    let server = Server::start(Front::Redis);
    let folder = tempfile::tempdir().unwrap();
    let other = Certificate::self_signed(folder.path()).pin();
    // The pin of another key; and a certificate that no CA vouches for where one is demanded.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 3] = [
        (&[("STUNNEL_PIN", &other)], &["STUNNEL_PIN"]),
        (&[("REDIS_URL_STUNNEL_PIN", &other)], &["REDIS_URL_STUNNEL_PIN"]),
        (&[("STUNNEL_VERIFY", "full")], &["STUNNEL_PIN", "STUNNEL_VERIFY"]),
    ];
    for (settings, advised) in cases {
        let before = check(&server.url(), settings);
        assert_eq!(before.code(), 1);
        assert!(fits_a_terminal(&before.stdout), "{}", before.stdout);
        let mut changed = settings.to_vec();
        changed.extend(advised.iter().map(|name| copied(&before.stdout, name)));
        let after = check(&server.url(), &changed);
        assert_eq!(after.code(), 0, "{}", after.stdout);
    }
}

#[test]
fn two_variables_of_one_tunnel_each_get_a_setting_to_copy() {
    let (one, two) = (Server::start(Front::Redis), Server::start(Front::Redis));
    let urls = |launcher: Launcher| {
        let launcher = launcher.redis(&one.url()).env("HEROKU_REDIS_SAME_URL", one.url());
        launcher.env("HEROKU_REDIS_TWO_URL", two.url())
    };
    let table = urls(Launcher::new(["--check"])).run().stdout;
    let settings = ["REDIS_URL", "HEROKU_REDIS_SAME_URL", "HEROKU_REDIS_TWO_URL"]
        .map(|variable| format!("{variable}_STUNNEL_PIN"));
    let launcher = settings.iter().fold(urls(Launcher::new(["--check"])), |launcher, name| {
        let (name, pin) = copied(&table, name);
        launcher.env(name, pin)
    });
    let after = launcher.run();
    assert_eq!(after.code(), 0, "{}", after.stdout);
    assert!(!after.stdout.contains("not authenticated"), "{}", after.stdout);
}

#[test]
fn a_long_name_on_a_certificate_is_shown_whole() {
    // What STUNNEL_SERVER_NAME is set to.
    let name = "clustercfg.a-cache-with-a-long-name.abc123.use1.cache.test";
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let request = Request { name: "short", dns: &[name], ip: &[], ..Request::default() };
    let certificate = authority.issue(folder.path(), "leaf", &request);
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let table = check(&server.url(), &[]).stdout;
    assert!(table.lines().any(|line| line.split_whitespace().any(|word| word == name)), "{table}");
    assert!(fits_a_terminal(&table), "{table}");
}

#[test]
fn without_a_tunnel_there_is_nothing_to_check() {
    let ended = Launcher::new(["--check"]).run();
    assert_eq!(ended.code(), 78);
    assert!(ended.stdout.contains("No tunnel to check"), "{ended:?}");
    let wrong = Launcher::new(["--check"]).redis("redis://").run();
    assert_eq!(wrong.code(), 78);
}

#[test]
fn colour_is_for_terminals_that_want_it() {
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
fn a_cluster_node_is_reported_with_what_works_and_what_fails() {
    let options = Options { words: &["--cluster-enabled", "yes"], ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let (report, code) = report(&server.url(), &[]);
    assert_eq!((code, report["mode"].as_str()), (0, Some("cluster")), "{report}");
    let advice = report["advice"].to_string();
    for word in ["MOVED", "past the tunnel", "STUNNEL_REDISS=passthrough", "cluster mode disabled"]
    {
        assert!(advice.contains(word), "{word}: {advice}");
    }
    let table = check(&server.url(), &[]).stdout;
    assert!(table.contains("> a node of a Redis Cluster"), "{table}");
    // What it says is so: a key of a slot that this node does not have is refused.
    let held = Launcher::hold(&server.url());
    let Reply::Line(line) = held.client().ask(&["GET", "k"]) else { panic!() };
    assert!(line.starts_with("-CLUSTERDOWN") || line.starts_with("-MOVED"), "{line}");
}

#[test]
fn a_sentinel_is_told_with_what_to_do() {
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
    support::eventually("the sentinel answers", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let (report, code) = report(&format!("rediss://127.0.0.1:{port}"), &[]);
    assert_eq!((code, report["mode"].as_str()), (0, Some("sentinel")), "{report}");
    assert!(report["advice"].to_string().contains("names the master's address"), "{report}");
}

#[test]
fn a_user_who_may_not_ask_for_the_mode_is_no_failure() {
    let words = ["--user", "low", "on", ">low", "~*", "-@all", "+ping", "+auth"];
    let options = Options { words: &words, ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let url = server.url().replace(&format!("default:{PASSWORD}"), "low:low");
    let (report, code) = report(&url, &[]);
    assert_eq!((code, &report["mode"]), (0, &Value::Null), "{report}");
}

#[test]
fn a_check_dumps_no_core() {
    // Accepts, and says nothing: the check waits for it.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("rediss://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let script = "ulimit -Sc 4096 2>/dev/null; exec \"$0\" --check";
    let running = Launcher::of("sh", ["-c", script, BINARY]).redis(&url).start();
    let (_waiting, _) = silent.accept().unwrap();
    let limit = core_limit(running.pid());
    assert!(["0", "1"].contains(&limit.as_str()), "{limit}");
}
