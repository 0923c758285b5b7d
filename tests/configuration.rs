//! Tests options and variables (docs/configuration.md) with the real program.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use support::launcher::{BINARY, Launcher, logged, with_mounted};
use support::pki::{Authority, Certificate};
use support::proc::state;
use support::servers::Server;
use support::{full_pipe, two_free_ports, wait_until};

#[test]
fn error_says_that_the_limit_on_open_files_is_too_low() {
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
    for task in [&["touch", started.to_str().unwrap()][..], &["--check"], &["--print-env"]] {
        let log = Launcher::new([&["--min-tls", "1.1"], task].concat())
            .redis("redis://:hunter2@alpha,:hunter3@beta")
            .env("HEROKU_REDIS_GOLD_URL", "rediss://h:hunter2")
            .env("STUNNEL_ENABLED", "flase")
            .env("STUNNEL_VERIFY", "fulll")
            .env("STUNNEL_POL", "off")
            .env("STUNNEL_CONNECT_TIMEOUT", "soon")
            .env("HEROKU_REDIS_PLAN_URL", "redis://fine")
            .env("HEROKU_REDIS_PLAN_URL_STUNNEL_VERIFY", "nonne")
            .refused();
        assert!(!started.exists(), "COMMAND must not run");
        let mut names = logged(&log, "config-error", "var");
        names.sort();
        let expected = [
            "--min-tls",
            "HEROKU_REDIS_GOLD_URL",
            "HEROKU_REDIS_PLAN_URL_STUNNEL_VERIFY",
            "REDIS_URL",
            "STUNNEL_CONNECT_TIMEOUT",
            "STUNNEL_ENABLED",
            "STUNNEL_POL",
            "STUNNEL_VERIFY",
        ];
        assert_eq!(names, expected);
        assert!(!["hunter", "alpha", "beta"].iter().any(|part| log.contains(part)), "{log}");
    }
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
    assert!(log.contains("STUNNEL_LISTEN_PORT requires 127.0.0.1:80"), "{log}");
}

#[test]
fn wrong_usage_exits_with_2_and_help_and_version_with_0() {
    for (words, code) in
        [(&[][..], 2), (&["--no-such-option", "true"], 2), (&["--verify", "bogus", "true"], 78)]
    {
        assert_eq!(Launcher::new(words).run().code(), code, "{words:?}");
    }
    let help = Launcher::new(["--help"]).run().ok();
    assert!(help.contains("Usage: start-stunnel [OPTIONS] [--] COMMAND [ARG]..."), "{help}");
    let version = Launcher::new(["--version"]).run().ok();
    let lines: Vec<_> = version.lines().collect();
    assert_eq!(lines.len(), 2, "{version}");
    assert_eq!(lines[0], concat!("start-stunnel ", env!("CARGO_PKG_VERSION")));
    let (openssl, rest) = lines[1].split_once(", ").unwrap();
    assert!(openssl.starts_with("OpenSSL ") && openssl.split(' ').count() == 2, "{version}");
    assert!(rest.starts_with(&format!("{}-linux", std::env::consts::ARCH)), "{version}");
    assert_eq!(Launcher::new(["-V"]).run().ok(), format!("{}\n", lines[0]));
}

#[test]
fn a_taken_port_is_an_error_if_port_taken_is_fail() {
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
        let problem = format!("{name} requires 127.0.0.1:{port},");
        assert!(log.contains(&problem) && log.contains(remedy), "{log}");
    }
    assert_eq!(launcher().env("STUNNEL_PORT_TAKEN", "move").run().stdout, "ran\n");
    let free = launcher().env("STUNNEL_LISTEN_PORT", two_free_ports().to_string());
    assert_eq!(free.env("STUNNEL_PORT_TAKEN", "fail").run().stdout, "ran\n");

    let two =
        launcher().env("HEROKU_REDIS_TWO_URL", "redis://two").env("STUNNEL_LISTEN_PORT", "65535");
    let used_up = two.env("STUNNEL_PORT_TAKEN", "fail").refused();
    assert!(used_up.contains("STUNNEL_LISTEN_PORT"), "{used_up}");
}

#[test]
fn error_explains_a_wrong_command_and_shows_no_secret() {
    let cases: [(&[&str], &str, &str); 7] = [
        (&["redis-cli -u redis://:hunter2@h ping"], "redis-cli", "the whole command line a single"),
        (&["REDISCLI_AUTH=hunter2", "redis-cli"], "(not shown)", "Write env before"),
        (&["redis://:hunter2@h"], "(not shown)", "no such command"),
        (&["PASSWORD=hunter2 redis-cli"], "(not shown)", "a single word"),
        (&["/etc/hunter2@passwd"], "(not shown)", "no such command"),
        (&["bin/no-such_program.sh"], "bin/no-such_program.sh", "no such command"),
        (&["web:", "bundle", "exec", "puma"], "(not shown)", "the label of a line in a Procfile"),
    ];
    for (words, name, hint) in cases {
        for enabled in ["true", "false"] {
            let launcher = Launcher::new(words).redis("redis://:hunter2@h");
            let ended = launcher.env("STUNNEL_ENABLED", enabled).run();
            assert_eq!(ended.code(), 127);
            assert_eq!(logged(&ended.stderr, "command-failed", "command"), [name]);
            assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
            assert!(ended.stderr.contains(hint), "{}", ended.stderr);
        }
    }
}

#[test]
fn verification_without_ca_certificates_is_an_error() {
    // An empty /etc/ssl/certs, as in an image without the package ca-certificates.
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
fn settings_without_effect_cause_a_warning() {
    let ended = Launcher::new(["--spares", "9", BINARY, "echo", "ran"])
        .redis("redis://h")
        .env("CACHE_URL", "redis://c")
        .env("CACHE_URL_STUNNEL_VERIFY", "full")
        .env("REDIS_URL_STUNNEL_POOL", "off")
        .env("REDIS_URL_STUNNEL_PINS", "hunter2")
        .env("STUNNEL_VERIFY_ALL", "full")
        .run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "ran\n"), "{}", ended.stderr);
    let names = logged(&ended.stderr, "unknown-setting", "vars");
    let both = ["REDIS_URL_STUNNEL_PINS STUNNEL_VERIFY_ALL", "CACHE_URL_STUNNEL_VERIFY"];
    // COMMAND is a second launcher, which uses the first launcher's tunnel and logs the same
    // warnings.
    assert_eq!(names, [both, both].concat(), "{}", ended.stderr);
    assert!(ended.stderr.contains("Variables with a tunnel: REDIS_URL"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    assert_eq!(logged(&ended.stderr, "retired-setting", "vars"), ["--spares"]);
}

#[test]
fn retired_variable_is_named_by_check_and_print_env() {
    for words in [["--check"], ["--print-env"]] {
        let launcher = Launcher::new(words).redis("redis://127.0.0.1:1");
        let ended = launcher.env("STUNNEL_SPARES", "many").run();
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("STUNNEL_SPARES") && said.contains("retired"), "{said}");
    }
    assert!(!Launcher::new(["--help"]).run().stdout.contains("pares"));
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
fn check_and_print_env_warn_that_they_ignore_command() {
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
fn a_full_non_blocking_pipe_gets_the_whole_output() {
    for words in [
        &["--help"][..],
        &["--no-such-option"],
        &["--print-shim"],
        &["--print-env"],
        &["--print-env", "true"],
    ] {
        let expected = Launcher::new(words).run();
        let (reader, writer) = full_pipe();
        let mut launcher = Launcher::new(words);
        launcher.command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let running = launcher.start();
        wait_until("the launcher waits or has ended", || state(running.pid()) != 'R');
        let output = std::io::read_to_string(reader).unwrap();
        assert_eq!(output.trim_start(), expected.stdout.clone() + &expected.stderr, "{words:?}");
        assert_eq!(running.finish().code(), expected.code(), "{words:?}");
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

fn verifying(settings: &[(&str, &str)]) -> Launcher {
    let launcher = Launcher::new(["echo", "ran"]).redis("rediss://h").env("STUNNEL_VERIFY", "full");
    launcher.settings(settings)
}

#[test]
fn unreadable_ssl_cert_file_or_dir_prevents_the_start() {
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
        assert!(log.contains(value.trim_end()), "{log}");
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
fn help_has_headings_and_a_short_form() {
    let help = Launcher::new(["--help"]).run().ok();
    for heading in ["Tunnel:", "Trust:", "Connections:", "Status:", "Log:", "Examples:"] {
        assert!(help.lines().any(|line| line == heading), "{heading} in {help}");
    }
    assert_eq!(help.matches("[default: none]").count(), 1, "only --verify has the default none");
    assert!(help.contains("Manual: "), "{help}");
    let examples = help.split("Examples:\n").nth(1).unwrap().lines();
    let examples: Vec<_> = examples.take_while(|line| !line.trim().is_empty()).collect();
    assert_eq!(examples.len(), 3, "{examples:?}");
    let short = Launcher::new(["-h"]).run().ok();
    assert!(short.lines().count() < 60 && short.len() < help.len() / 2, "{short}");
    for part in ["Usage:", "--verify", "--check", "start-stunnel --help"] {
        assert!(short.contains(part), "{part} in {short}");
    }
}

#[test]
fn ssl_cert_dir_replaces_the_systems_certificate_folder() {
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
    // The server's certificate is in the system's folder, but SSL_CERT_DIR names another folder.
    let Some(launcher) = with_mounted(Path::new(&certs), "/etc/ssl/certs", ["--check"]) else {
        return;
    };
    let refused = check(launcher, &[("SSL_CERT_DIR", &empty), ("SSL_CERT_FILE", &other)]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    let by_system = with_mounted(Path::new(&certs), "/etc/ssl/certs", ["--check"]).unwrap();
    let by_system = check(by_system, &[("SSL_CERT_FILE", &other)]);
    assert_eq!(by_system.code(), 0, "{by_system:?}");
}
