//! Command line and variables (docs/configuration.md), tested with the real program.

mod support;

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Stdio};

use start_stunnel::configuration::options;
use support::launcher::{BINARY, Launcher, logged, with_mounted};
use support::pki::{Authority, Certificate};
use support::servers::Server;

fn run_binary(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY).args(words).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn too_low_limit_on_open_files_is_named_as_the_problem() {
    let script = "ulimit -n 100; exec \"$0\" echo ran";
    let names: Vec<_> = (0..200).map(|number| format!("CACHE_{number}")).collect();
    let launcher = Launcher::of("sh", ["-c", script, BINARY]);
    let launcher = launcher.env("REDIS_STUNNEL_URLS", names.join(" "));
    let launcher = names.iter().enumerate().fold(launcher, |launcher, (number, name)| {
        launcher.env(name, format!("rediss://host-{number}"))
    });
    let log = launcher.refused();
    let problem = "need 200 tunnels, more than the limit on open files allows";
    assert!(log.contains(problem) && log.contains("ulimit -n"), "{log}");
    assert!(!log.contains("LISTEN_PORT"), "{log}");
}

#[test]
fn every_mistake_is_reported_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let log = Launcher::new(["--min-tls", "1.1", "touch", started.to_str().unwrap()])
        .redis("redis://:hunter2@")
        .env("HEROKU_REDIS_GOLD_URL", "rediss://h:hunter2")
        .env("STUNNEL_VERIFY", "fulll")
        .env("STUNNEL_CONNECT_TIMEOUT", "soon")
        .env("HEROKU_REDIS_PLAN_URL", "redis://fine")
        .env("HEROKU_REDIS_PLAN_URL_STUNNEL_VERIFY", "nonne")
        .refused();
    assert!(!started.exists(), "COMMAND ran");
    let mut names = logged(&log, "config-error", "var");
    names.sort();
    let expected = [
        "--min-tls",
        "HEROKU_REDIS_GOLD_URL",
        "HEROKU_REDIS_PLAN_URL_STUNNEL_VERIFY",
        "REDIS_URL",
        "STUNNEL_CONNECT_TIMEOUT",
        "STUNNEL_VERIFY",
    ];
    assert_eq!(names, expected);
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn port_that_cannot_be_bound_is_reported_at_any_log_level() {
    // An unprivileged user may not bind a port below 1024.
    let as_nobody = ["--reuid=65534", "--clear-groups"];
    let may_run = Command::new("setpriv").args(as_nobody).args([BINARY, "--version"]).output();
    if !may_run.is_ok_and(|output| output.status.success()) {
        support::skip("another user cannot run the launcher here");
        return;
    }
    let restricted = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if restricted.trim().parse::<u16>().unwrap() < 1024 {
        support::skip("every user may bind low ports here");
        return;
    }
    let words = as_nobody.into_iter().chain([BINARY, "echo", "ran"]);
    let log = Launcher::of("setpriv", words)
        .redis("redis://h")
        .env("STUNNEL_LISTEN_PORT", "80")
        .env("STUNNEL_LOGLEVEL", "emerg")
        .refused();
    assert!(log.contains("STUNNEL_LISTEN_PORT leads to 127.0.0.1:80"), "{log}");
}

#[test]
fn typo_in_stunnel_enabled_never_means_plaintext() {
    for value in ["flase", "2", "disabled", " false"] {
        let log = Launcher::script("echo ran").env("STUNNEL_ENABLED", value).refused();
        assert!(log.contains("STUNNEL_ENABLED"), "{log}");
    }
    assert_eq!(Launcher::script("echo ran").env("STUNNEL_ENABLED", "").run().stdout, "ran\n");
}

#[test]
fn wrong_usage_exits_with_2_and_help_and_version_with_0() {
    assert_eq!(run_binary(&[]).0, 2);
    assert_eq!(run_binary(&["--no-such-option", "true"]).0, 2);
    let (code, help, errors) = run_binary(&["--help"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(help.contains("Usage: start-stunnel [OPTIONS] [--] COMMAND [ARG]..."), "{help}");
    let (code, version, _) = run_binary(&["--version"]);
    let lines: Vec<_> = version.lines().collect();
    assert_eq!((code, lines.len()), (0, 2), "{version}");
    assert_eq!(lines[0], concat!("start-stunnel ", env!("CARGO_PKG_VERSION")));
    let (openssl, rest) = lines[1].split_once(", ").unwrap();
    assert!(openssl.starts_with("OpenSSL ") && openssl.split(' ').count() == 2, "{version}");
    assert!(rest.starts_with(&format!("{}-linux", std::env::consts::ARCH)), "{version}");
    assert_eq!(run_binary(&["-V"]), (0, format!("{}\n", lines[0]), String::new()));
    assert_eq!(run_binary(&["--verify", "bogus", "true"]).0, 78);
}

#[test]
fn taken_port_is_an_error_if_other_programs_rely_on_it() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let options = ["--port-taken", "fail", "--listen-port", &port, "echo", "ran"];
    let by_options = Launcher::new(options).redis("redis://h").refused();
    let launcher =
        || Launcher::script("echo ran").redis("redis://h").env("STUNNEL_LISTEN_PORT", &port);
    let by_variables = launcher().env("STUNNEL_PORT_TAKEN", "fail").refused();
    for (log, name, remedy) in [
        (by_options, "--listen-port", "--port-taken=move"),
        (by_variables, "STUNNEL_LISTEN_PORT", "STUNNEL_PORT_TAKEN=move"),
    ] {
        assert_eq!(logged(&log, "config-error", "var"), [name]);
        let problem = format!("{name} leads to 127.0.0.1:{port},");
        assert!(log.contains(&problem) && log.contains(remedy), "{log}");
    }
    assert_eq!(launcher().env("STUNNEL_PORT_TAKEN", "move").run().stdout, "ran\n");
    drop(taken);
    assert_eq!(launcher().env("STUNNEL_PORT_TAKEN", "fail").run().stdout, "ran\n");

    let two =
        launcher().env("HEROKU_REDIS_TWO_URL", "redis://two").env("STUNNEL_LISTEN_PORT", "65535");
    let used_up = two.env("STUNNEL_PORT_TAKEN", "fail").refused();
    assert!(used_up.contains("STUNNEL_LISTEN_PORT"), "{used_up}");
}

#[test]
fn command_line_in_one_word_is_recognized_and_not_shown() {
    let given = "redis-cli -u redis://:hunter2@h:6379 ping";
    for enabled in ["true", "false"] {
        let ended = Launcher::new([given])
            .redis("redis://:hunter2@h:6379")
            .env("STUNNEL_ENABLED", enabled)
            .run();
        assert_eq!(ended.code(), 127);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        assert_eq!(logged(&ended.stderr, "command-failed", "command"), ["redis-cli"]);
        assert!(ended.stderr.contains("the whole command line a single word"), "{}", ended.stderr);
    }
    let words: [(&[&str], &str); 4] = [
        (&["REDISCLI_AUTH=hunter2", "redis-cli"], "Write env before"),
        (&["redis://:hunter2@h"], "no such command"),
        (&["PASSWORD=hunter2 redis-cli"], "a single word"),
        (&["/etc/hunter2@passwd"], "no such command"),
    ];
    for (words, hint) in words {
        let ended = Launcher::new(words).run();
        assert_eq!(ended.code(), 127);
        assert_eq!(logged(&ended.stderr, "command-failed", "command"), ["(not shown)"]);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        assert!(ended.stderr.contains(hint), "{}", ended.stderr);
    }
    let plain = Launcher::new(["bin/no-such_program.sh"]).run();
    assert_eq!(logged(&plain.stderr, "command-failed", "command"), ["bin/no-such_program.sh"]);
}

#[test]
fn empty_value_of_an_option_is_an_error() {
    for (option, _) in options::with_option() {
        let option = format!("--{option}");
        let log = Launcher::new([&option, "", "echo", "ran"]).redis("redis://h").refused();
        assert_eq!(logged(&log, "config-error", "var"), [option]);
        assert!(log.contains("has an empty value"), "{log}");
    }
    let disabled =
        Launcher::new(["--pin", "", "echo", "ran"]).env("STUNNEL_ENABLED", "false").run();
    assert_eq!(disabled.stdout, "ran\n", "nothing but the switch is read");
}

#[test]
fn every_setting_for_one_url_is_read() {
    let garbage = OsString::from_vec(vec![0xff, 0xfe]);
    for setting in options::for_one_url() {
        let variable = setting.for_one("REDIS_URL");
        let log = Launcher::script("true").redis("redis://h").env(&variable, &garbage).refused();
        // For a certificate without a key, the error names both settings.
        assert!(log.contains(&variable), "{variable}: {log}");
    }
}

#[test]
fn verification_without_ca_certificates_is_an_error() {
    // As in an image without the package ca-certificates.
    let folder = tempfile::tempdir().unwrap();
    let Some(_) = with_mounted(folder.path(), "/etc/ssl/certs", ["true"]) else { return };
    let launcher = |settings: &[(&str, &str)]| {
        let words = ["echo", "ran"];
        let launcher = with_mounted(folder.path(), "/etc/ssl/certs", words).unwrap();
        launcher.redis("rediss://h/0?ssl_cert_reqs=required").settings(settings)
    };
    let general = ("STUNNEL_VERIFY", "none");
    for (settings, at_fault) in [
        (&[("STUNNEL_VERIFY", "full")][..], "STUNNEL_VERIFY"),
        (&[("STUNNEL_VERIFY", "ca")], "STUNNEL_VERIFY"),
        (&[general, ("REDIS_URL_STUNNEL_VERIFY", "ca")], "REDIS_URL_STUNNEL_VERIFY"),
        (&[], "ssl_cert_reqs in REDIS_URL"),
    ] {
        let log = launcher(settings).refused();
        assert_eq!(logged(&log, "config-error", "var"), [at_fault]);
        assert!(log.contains("install the package ca-certificates"), "{log}");
    }
    assert_eq!(launcher(&[general]).run().stdout, "ran\n");
}

#[test]
fn error_shows_a_wrong_pin_or_path_but_no_secret() {
    for (variable, value, shown) in [
        ("STUNNEL_PIN", "sha1//AAAA+/=", true),
        ("STUNNEL_PIN", "sha256//AAAA;sha256//BBBB", true),
        ("STUNNEL_PIN", "redis://:hunter2@h", false),
        ("STUNNEL_CA_FILE", "/no/such/ca.pem", true),
        ("STUNNEL_CA_FILE", "certs/ca.pem", true),
        ("STUNNEL_CA_FILE", "hunter2\nhunter2", false),
        ("STUNNEL_CLIENT_CERT", "/no/such/client.pem", true),
        ("STUNNEL_CLIENT_KEY", "/no/such/client.key", true),
        ("STUNNEL_CLIENT_KEY", "s3cretpem", false),
        ("STUNNEL_PIN", "MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u", false),
        (
            "STUNNEL_CLIENT_KEY",
            "MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u",
            false,
        ),
    ] {
        let launcher = Launcher::script("true")
            .redis("redis://h")
            .env("STUNNEL_CLIENT_CERT", "/no/such")
            .env("STUNNEL_CLIENT_KEY", "/no/such")
            .env(variable, value);
        let log = launcher.refused();
        assert_eq!(log.contains(&format!("'{value}'")), shown, "{log}");
        assert!(shown || !log.contains(&value[..7]), "{log}");
    }
}

#[test]
fn endless_ca_file_and_invalid_host_name_are_errors() {
    let launcher = || Launcher::script("true").redis("redis://h");
    let endless = launcher().env("STUNNEL_CA_FILE", "/dev/zero").refused();
    assert!(endless.contains("'/dev/zero', a file of more than"), "{endless}");
    let long = format!("{}.test", "x".repeat(250));
    for name in ["a,b", "a;b", "redis.test:6379", &long] {
        let log = launcher().env("STUNNEL_SERVER_NAME", name).refused();
        assert!(log.contains(&format!("'{name}'")) || name.len() > 250, "{log}");
    }
    launcher().redis(&format!("redis://{long}")).refused();
}

#[test]
fn procfile_label_before_the_command_is_recognized() {
    let ended = Launcher::new(["web:", "bundle", "exec", "puma"]).run();
    assert_eq!(ended.code(), 127);
    assert!(ended.stderr.contains("the label of a line in a Procfile"), "{}", ended.stderr);
}

#[test]
fn misspelt_setting_is_an_error_with_the_intended_name() {
    for (name, value, intended) in [
        ("STUNNEL_VERFIY", "full", "STUNNEL_VERIFY"),
        ("REDIS_URL_STUNNEL_VERIFIY", "ca", "REDIS_URL_STUNNEL_VERIFY"),
        ("REDIS_STUNNEL_URL", "CACHE_URL", "REDIS_STUNNEL_URLS"),
        ("STUNNEL_LOGLEVL", "debug", "STUNNEL_LOG_LEVEL"),
    ] {
        let launcher =
            Launcher::script("echo ran").redis("redis://h").env("CACHE_URL", "redis://c");
        let log = launcher.env(name, value).refused();
        assert_eq!(logged(&log, "config-error", "var"), [name]);
        assert!(log.contains(&format!("rename it to {intended}, or unset it")), "{log}");
    }
}

#[test]
fn unknown_setting_causes_a_warning() {
    let launcher = Launcher::script("true").redis("redis://h").env("STUNNEL_VERIFY_ALL", "full");
    let ended = launcher.env("REDIS_URL_STUNNEL_PINS", "hunter2").run();
    let names = logged(&ended.stderr, "unknown-setting", "vars");
    assert_eq!(names, ["REDIS_URL_STUNNEL_PINS STUNNEL_VERIFY_ALL"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    assert_eq!(ended.code(), 0);
}

#[test]
fn setting_for_a_variable_without_a_url_causes_a_warning() {
    let launcher = Launcher::script("true").redis("redis://h").env("CACHE_URL", "redis://c");
    let ended =
        launcher.env("CACHE_URL_STUNNEL_VERIFY", "full").env("REDIS_URL_STUNNEL_POOL", "off").run();
    assert_eq!(ended.code(), 0);
    let names = logged(&ended.stderr, "unknown-setting", "vars");
    assert_eq!(names, ["CACHE_URL_STUNNEL_VERIFY"], "{}", ended.stderr);
    assert!(ended.stderr.contains("Variables with a tunnel: REDIS_URL"), "{}", ended.stderr);
    let nested = Launcher::new([BINARY, "true"])
        .redis("redis://h")
        .env("REDIS_URL_STUNNEL_POOL", "off")
        .run();
    assert!(!nested.stderr.contains("unknown-setting"), "{}", nested.stderr);
}

#[test]
fn retired_spares_setting_is_ignored_with_a_warning() {
    let launcher = Launcher::new(["--spares", "9", "echo", "ran"]).redis("redis://h");
    let ended = launcher.env("STUNNEL_SPARES", "many").run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "ran\n"), "{}", ended.stderr);
    let names = logged(&ended.stderr, "retired-setting", "vars");
    assert_eq!(names, ["--spares STUNNEL_SPARES"]);
    for words in [["--check"], ["--print-env"]] {
        let ended = Launcher::new(words).redis("redis://127.0.0.1:1").env("STUNNEL_SPARES", "1");
        let ended = ended.run();
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("STUNNEL_SPARES") && said.contains("retired"), "{said}");
    }
    assert!(!run_binary(&["--help"]).1.contains("pares"));
}

#[test]
fn disabled_launcher_reads_no_other_setting() {
    let words = ["--verify", "bogus", "--pin", "", "--listen-port", "x", "echo", "ran"];
    let launcher = Launcher::new(words).redis("redis://").env("STUNNEL_ENABLED", "Off");
    let launcher = launcher.env("STUNNEL_VERFIY", "full").env("STUNNEL_LOG_FORMAT", "xml");
    let ended = launcher.env("STUNNEL_LOGLEVEL", "1").env("STUNNEL_LOG_LEVEL", "2").run();
    let outcome = (ended.code(), ended.stdout.as_str(), ended.stderr.as_str());
    assert_eq!(outcome, (0, "ran\n", ""));
    let by_option = Launcher::new(["--enabled", "no", "echo", "ran"]).env("STUNNEL_ENABLED", "x");
    assert_eq!(by_option.run().stdout, "ran\n");
}

#[test]
fn check_and_print_options_warn_that_command_is_ignored() {
    for option in ["--check", "--print-env", "--print-shim"] {
        let ended = Launcher::new([option, "redis-cli", "hunter2"]).redis("redis://127.0.0.1:1");
        let ended = ended.run();
        let expected = format!("{option} runs no command; the given command is ignored");
        assert!(ended.stderr.contains(&expected), "{option}: {}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"));
        let alone = Launcher::new([option]).redis("redis://127.0.0.1:1").run();
        assert!(!alone.stderr.contains("ignored"), "{option}: {}", alone.stderr);
    }
}

#[test]
fn printing_into_a_closed_pipe_is_no_error() {
    for option in ["--print-env", "--print-shim", "--check"] {
        for url in ["redis://127.0.0.1:1", ""] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let mut launcher = Launcher::new([option]).redis(url);
            launcher.command.stdout(writer.try_clone().unwrap());
            let ended = launcher.run();
            for word in ["internal", "panicked", "roken pipe"] {
                assert!(!ended.stderr.contains(word), "{option}: {}", ended.stderr);
            }
            let expected = match (option, url) {
                ("--check", "") => 78,
                ("--check", _) => 1,
                _ => 0,
            };
            assert_eq!(ended.code(), expected, "{option} {url}");
            let mut launcher = Launcher::new([option, "true"]).redis(url);
            launcher.command.stdout(Stdio::null()).stderr(writer);
            let code = launcher.run().code();
            assert!([0, 1, 78].contains(&code), "{option}: {code}");
        }
    }
}

/// A launcher with `verify=full` and these settings.
fn verifying(settings: &[(&str, &str)]) -> Launcher {
    let launcher = Launcher::new(["echo", "ran"]).redis("rediss://h").env("STUNNEL_VERIFY", "full");
    launcher.settings(settings)
}

#[test]
fn unreadable_system_roots_end_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("ca.pem"), Certificate::self_signed(folder.path()).pem()).unwrap();
    fs::write(path("text"), "no certificate").unwrap();
    fs::create_dir(path("certs")).unwrap();
    let (missing, text, bundle, certs) = (path("no"), path("text"), path("ca.pem"), path("certs"));
    let list = format!("{missing}:{certs}");
    let missing_list = format!("{missing}:{text}");
    for (name, value) in [
        ("SSL_CERT_FILE", &missing),
        ("SSL_CERT_FILE", &certs),
        ("SSL_CERT_FILE", &text),
        ("SSL_CERT_DIR", &missing),
        ("SSL_CERT_DIR", &missing_list),
    ] {
        let log = verifying(&[(name, value)]).refused();
        assert_eq!(logged(&log, "config-error", "var"), [name], "{name}={value}");
        assert!(log.contains(&missing) || value != &missing, "{log}");
    }
    for settings in [
        &[("SSL_CERT_FILE", bundle.as_str())][..],
        &[("SSL_CERT_FILE", &bundle), ("SSL_CERT_DIR", &list)],
        &[("SSL_CERT_FILE", &missing), ("STUNNEL_VERIFY", "none")],
        &[("SSL_CERT_FILE", &missing), ("STUNNEL_CA_FILE", &bundle)],
        &[("SSL_CERT_FILE", &missing), ("STUNNEL_REDISS", "passthrough")],
        &[("SSL_CERT_FILE", "")],
    ] {
        let ended = verifying(settings).run();
        assert_eq!(ended.stdout, "ran\n", "{settings:?}: {}", ended.stderr);
    }
}

#[test]
fn text_that_is_no_pem_is_an_error() {
    for variable in ["STUNNEL_CA_PEM", "REDIS_URL_STUNNEL_CA_PEM"] {
        for value in ["foo", "/etc/ssl/certs/ca-certificates.crt"] {
            let log = verifying(&[(variable, value)]).refused();
            assert!(log.contains("is not PEM text") && log.contains("STUNNEL_CA_FILE"), "{log}");
            assert!(!log.contains(value), "{log}");
        }
    }
}

#[test]
fn help_has_headings_and_a_short_form() {
    let (code, help, _) = run_binary(&["--help"]);
    assert_eq!(code, 0);
    for heading in ["Tunnel:", "Trust:", "Connections:", "Status:", "Log:", "Examples:"] {
        assert!(help.lines().any(|line| line == heading), "{heading} in {help}");
    }
    assert_eq!(help.matches("[default: none]").count(), 1, "only --verify has a value none");
    assert!(help.contains("Manual: "), "{help}");
    let examples = help.split("Examples:\n").nth(1).unwrap().lines();
    let examples: Vec<_> = examples.take_while(|line| !line.trim().is_empty()).collect();
    assert_eq!(examples.len(), 3, "{examples:?}");
    let (code, short, _) = run_binary(&["-h"]);
    assert_eq!(code, 0);
    assert!(short.lines().count() < 60 && short.len() < help.len() / 2, "{short}");
    for part in ["Usage:", "--verify", "--check", "start-stunnel --help"] {
        assert!(short.contains(part), "{part} in {short}");
    }
}

#[test]
fn ssl_cert_dir_replaces_the_directories_of_the_system() {
    let folder = tempfile::tempdir().unwrap();
    let [certs, empty] = ["certs", "empty"].map(|name| folder.path().join(name));
    for directory in [&certs, &empty] {
        fs::create_dir(directory).unwrap();
    }
    let certificate = Certificate::self_signed(&certs);
    let rehashed = Command::new("openssl").arg("rehash").arg(&certs).status().unwrap();
    assert!(rehashed.success());
    let server = Server::with_certificate(&certificate);
    let other = folder.path().join("other.pem");
    fs::write(&other, Authority::named(folder.path(), "other").root.pem()).unwrap();
    let [certs, empty, other] =
        [certs, empty, other].map(|path| path.into_os_string().into_string().unwrap());
    let list = format!("/no/such:{certs}");

    let check = |launcher: Launcher, settings: &[(&str, &str)]| {
        launcher.redis(&server.url()).env("STUNNEL_VERIFY", "ca").settings(settings).run()
    };
    let trusted = check(Launcher::new(["--check"]), &[("SSL_CERT_DIR", &list)]);
    assert_eq!(trusted.code(), 0, "{trusted:?}");
    // The system's directory contains the server's certificate, but SSL_CERT_DIR replaces it.
    let Some(launcher) = with_mounted(Path::new(&certs), "/etc/ssl/certs", ["--check"]) else {
        return;
    };
    let refused = check(launcher, &[("SSL_CERT_DIR", &empty), ("SSL_CERT_FILE", &other)]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    let by_system = with_mounted(Path::new(&certs), "/etc/ssl/certs", ["--check"]).unwrap();
    let by_system = check(by_system, &[("SSL_CERT_FILE", &other)]);
    assert_eq!(by_system.code(), 0, "{by_system:?}");
}
