//! Command line, variables and URLs (docs/configuration.md), and the log (docs/operation.md), seen
//! from outside.

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use start_stunnel::configuration::options::{self, Scope};
use support::launcher::{BINARY, Launcher, logged, with_mounted};
use support::resp::Reply;
use support::servers::{Front, PASSWORD, Server};

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
    let ended = launcher.run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
    let problem = "name 200 servers, more than the limit on open files allows";
    assert!(ended.stderr.contains(problem) && ended.stderr.contains("ulimit -n"), "{ended:?}");
    assert!(!ended.stderr.contains("LISTEN_PORT"), "{}", ended.stderr);
}

#[test]
fn every_mistake_is_reported_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let ended = Launcher::new(["--min-tls", "1.1", "touch", started.to_str().unwrap()])
        .redis("redis://:hunter2@")
        .env("HEROKU_REDIS_GOLD_URL", "rediss://h:hunter2")
        .env("STUNNEL_VERIFY", "fulll")
        .env("STUNNEL_CONNECT_TIMEOUT", "soon")
        .env("HEROKU_REDIS_PLAN_URL", "redis://fine")
        .env("HEROKU_REDIS_PLAN_URL_STUNNEL_VERIFY", "nonne")
        .run();
    assert_eq!(ended.code(), 78);
    assert_eq!(ended.stdout, "");
    assert!(!started.exists(), "COMMAND ran");
    let names = logged(&ended.stderr, "config-error", "var");
    let expected = [
        "STUNNEL_CONNECT_TIMEOUT",
        "--min-tls",
        "STUNNEL_VERIFY",
        "REDIS_URL",
        "HEROKU_REDIS_GOLD_URL",
        "HEROKU_REDIS_PLAN_URL_STUNNEL_VERIFY",
    ];
    for name in expected {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    assert_eq!(names.len(), expected.len(), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[test]
fn a_port_that_cannot_be_bound_is_a_configuration_error_at_any_level() {
    // A port below 1024, as an unprivileged user.
    let script = format!("exec setpriv --reuid=65534 --clear-groups {BINARY} sh -c 'echo ran'");
    let may_switch =
        Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "true"]).status();
    if !may_switch.is_ok_and(|status| status.success()) {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let restricted = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if restricted.trim().parse::<u16>().unwrap() < 1024 {
        eprintln!("skipped: every user may bind low ports here");
        return;
    }
    let binary_is_reachable = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", BINARY, "--version"])
        .status();
    if !binary_is_reachable.is_ok_and(|status| status.success()) {
        eprintln!("skipped: the build folder is not readable for another user");
        return;
    }
    let ended = Launcher::of("sh", ["-c", &script])
        .redis("redis://h")
        .env("STUNNEL_LISTEN_PORT", "80")
        .env("STUNNEL_LOGLEVEL", "emerg")
        .run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("STUNNEL_LISTEN_PORT leads to 127.0.0.1:80"), "{}", ended.stderr);
}

#[test]
fn a_typo_in_the_switch_never_means_plaintext() {
    for value in ["flase", "2", "disabled", " false"] {
        let ended = Launcher::script("echo ran").env("STUNNEL_ENABLED", value).run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{value}");
        assert!(ended.stderr.contains("STUNNEL_ENABLED"), "{}", ended.stderr);
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
fn the_command_sees_local_urls_and_everything_else_as_it_was() {
    let garbage = OsString::from_vec(vec![b'a', 0xff, 0xfe]);
    let ended = Launcher::script("env")
        .redis("rediss://us%40er:p%2Fw@h.example:6379/3?x=1&ssl_cert_reqs=none")
        .env("HEROKU_REDIS_GOLD_URL", "valkey://other.example")
        .env("HEROKU_REDIS_GOLD_URL_STUNNEL", "stale")
        .env("UNRELATED", "redis://h.example:6379")
        .env("GARBAGE", &garbage)
        .run();
    let port = |n: usize| logged(&ended.stderr, "tunnel-up", "listen")[n].clone();
    let first = format!("redis://us%40er:p%2Fw@{}/3?x=1", port(0));
    let second = format!("valkey://{}", port(1));
    for line in [
        format!("REDIS_URL={first}"),
        format!("REDIS_URL_STUNNEL={first}"),
        format!("HEROKU_REDIS_GOLD_URL={second}"),
        format!("HEROKU_REDIS_GOLD_URL_STUNNEL={second}"),
        "UNRELATED=redis://h.example:6379".to_owned(),
        "GARBAGE=a\u{fffd}\u{fffd}".to_owned(),
        "STUNNEL_LISTEN_PORT=0".to_owned(),
    ] {
        assert!(ended.stdout.lines().any(|found| found == line), "{line} in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("SSL_CERT_FILE"), "{}", ended.stdout);
    let upstreams = logged(&ended.stderr, "tunnel-up", "upstream");
    assert_eq!(upstreams, ["h.example:6379", "other.example:6380"]);
}

#[test]
fn fifty_urls_get_fifty_ports() {
    let mut launcher = Launcher::script("env | grep '^HEROKU_REDIS_.*_URL=' | sort");
    for n in 10..60 {
        launcher = launcher.env(&format!("HEROKU_REDIS_{n}_URL"), format!("redis://h{n}"));
    }
    let ended = launcher.run();
    let mut ports: Vec<&str> =
        ended.stdout.lines().map(|line| line.rsplit(':').next().unwrap()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 50, "{}", ended.stdout);
}

#[test]
fn a_url_expanded_by_the_procfiles_shell_leads_through_the_tunnel() {
    let server = Server::start(Front::Redis);
    let script = format!("exec {BINARY} redis-cli --no-auth-warning -u $REDIS_URL client id");
    let ended = Launcher::of("sh", ["-c", &script]).redis(&server.url()).run();
    assert!(ended.stdout.trim().parse::<u32>().is_ok(), "{ended:?}");
    assert_eq!(logged(&ended.stderr, "argument-rewritten", "argument"), ["3"]);
    assert_eq!(logged(&ended.stderr, "argument-rewritten", "var"), ["REDIS_URL"]);
    assert_eq!(logged(&ended.stderr, "command-ended", "connections"), ["1"]);
}

#[test]
fn a_nested_launcher_does_no_harm() {
    let server = Server::start(Front::Redis);
    let inner = "redis-cli --no-auth-warning -u \"$REDIS_URL\" ping; echo $REDIS_URL";
    let ended = Launcher::new([BINARY, "sh", "-c", inner]).redis(&server.url()).run();
    let ups = logged(&ended.stderr, "tunnel-up", "listen");
    assert_eq!(ups.len(), 1, "{}", ended.stderr);
    assert_eq!(ended.stdout, format!("PONG\nredis://default:{PASSWORD}@{}/0\n", ups[0]));
    assert!(!ended.stderr.contains("no-redis-url"), "{}", ended.stderr);
}

#[test]
fn print_env_shows_what_the_command_would_get_with_secrets_masked() {
    let ended = Launcher::new(["--print-env"])
        .redis("redis://user:hunter2@h:6379/3?password=hunter2")
        .env("HEROKU_REDIS_OWN_URL", "rediss://:hunter2@own")
        .env("HEROKU_REDIS_OWN_URL_STUNNEL_REDISS", "passthrough")
        .run();
    assert_eq!(ended.code(), 0);
    let listen = &logged(&ended.stderr, "tunnel-up", "listen");
    assert!(listen.is_empty(), "nothing is up: {}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("REDIS_URL=redis://***:***@127.0.0.1:"), "{lines:?}");
    assert!(lines[0].ends_with("/3?password=***"), "{lines:?}");
    assert!(lines[1].starts_with("REDIS_URL_STUNNEL=redis://***:***@127.0.0.1:"), "{lines:?}");
    assert_eq!(lines[2], "HEROKU_REDIS_OWN_URL=rediss://:***@own:6379");
}

#[test]
fn print_env_says_why_it_prints_nothing_and_what_a_run_would_warn_of() {
    let ended = Launcher::new(["--print-env"]).run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""));
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("holds a Redis URL"), "{}", ended.stderr);
    let launcher = Launcher::new(["--print-env"]).redis("redis://h").env("CACHE_URL", "redis://c");
    let ended = launcher.env("STUNNEL_VERIFI", "full").run();
    assert_eq!(ended.stdout.lines().count(), 2, "{}", ended.stdout);
    assert_eq!(logged(&ended.stderr, "not-tunnelled", "vars"), ["CACHE_URL"]);
    assert_eq!(logged(&ended.stderr, "unknown-setting", "vars"), ["STUNNEL_VERIFI"]);
}

#[test]
fn a_port_that_is_taken_is_blamed_on_the_option_that_names_it() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let options = ["--port-taken", "fail", "--listen-port", &port, "true"];
    let by_options = Launcher::new(options).redis("redis://h").run();
    let launcher = Launcher::new(["true"]).redis("redis://h").env("STUNNEL_LISTEN_PORT", &port);
    let by_variables = launcher.env("STUNNEL_PORT_TAKEN", "fail").run();
    for (ended, port, taken) in [
        (by_options, "--listen-port", "--port-taken=move"),
        (by_variables, "STUNNEL_LISTEN_PORT", "STUNNEL_PORT_TAKEN=move"),
    ] {
        assert_eq!(ended.code(), 78, "{ended:?}");
        assert_eq!(logged(&ended.stderr, "config-error", "var"), [port]);
        let message = &logged(&ended.stderr, "config-error", "msg")[0];
        assert!(message.starts_with(port) && message.contains(taken), "{message}");
    }
}

#[test]
fn no_secret_is_in_any_output_at_debug_level_nor_in_the_command_line() {
    let server = Server::start(Front::Redis);
    let nobody = format!("rediss://us3r-name:{PASSWORD}@127.0.0.1:1/0?token={PASSWORD}");
    for format in ["logfmt", "json"] {
        for verify in ["none", "full"] {
            let mut held = Launcher::holding(&server.url())
                .env("HEROKU_REDIS_DEAD_URL", &nobody)
                .env("STUNNEL_LOGLEVEL", "debug")
                .env("STUNNEL_LOG_FORMAT", format)
                .env("STUNNEL_VERIFY", verify)
                .start_held();
            let mut client = held.open();
            client.send(&["AUTH", PASSWORD]);
            client.reply().unwrap();
            drop(client);
            let pid = held.running.pid();
            let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert!(!command_line.contains(PASSWORD));
            held.running.say("end\n");
            let log = held.finish().stderr;
            assert!(log.contains("connection-accepted"), "this is the debug level: {log}");
            assert!(!log.contains(PASSWORD) && !log.contains("us3r-name"), "{log}");
        }
    }
}

#[test]
fn json_lines_have_the_same_keys() {
    let server = Server::start(Front::Redis);
    let script = "redis-cli --no-auth-warning -u \"$REDIS_URL\" ping";
    let run = |format: &str| {
        Launcher::script(script)
            .redis(&server.url())
            .env("STUNNEL_LOG_FORMAT", format)
            .env("STUNNEL_LOGLEVEL", "info")
            .run()
            .stderr
    };
    let json = run("json");
    let parsed: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let events: Vec<_> = parsed.iter().map(|line| line["at"].as_str().unwrap()).collect();
    assert_eq!(events, ["tunnel-up", "not-authenticated", "connection-closed", "command-ended"]);
    assert_eq!(parsed[0]["upstream"], format!("127.0.0.1:{}", server.tls_port()));
    assert!(parsed[2]["sent"].as_u64().unwrap() > 0 && parsed[2]["received"].as_u64().unwrap() > 0);
    assert_eq!(parsed[3]["code"], 0);
    assert_eq!(parsed[3]["sent"], parsed[2]["sent"]);

    let logfmt = run("logfmt");
    for (line, parsed) in logfmt.lines().zip(&parsed) {
        for key in parsed.as_object().unwrap().keys() {
            assert!(format!(" {line}").contains(&format!(" {key}=")), "{key} in {line}");
        }
        assert!(line.starts_with("ts=2"), "{line}");
    }
}

#[test]
fn the_level_decides_what_is_logged() {
    let server = Server::start(Front::Redis);
    let events = |level: &str| {
        let script = "redis-cli --no-auth-warning -u \"$REDIS_URL\" ping";
        let launcher = Launcher::script(script).redis(&server.url()).env("STUNNEL_LOGLEVEL", level);
        let log = launcher.run().stderr;
        log.lines()
            .map(|line| line.split(" at=").nth(1).unwrap().split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(events("emerg").is_empty() && events("2").is_empty() && events("err").is_empty());
    assert_eq!(events("warning"), ["not-authenticated"]);
    assert_eq!(events("5"), ["tunnel-up", "not-authenticated", "command-ended"]);
    assert!(events("info").contains(&"connection-closed".to_owned()));
    assert!(events("debug").contains(&"command-started".to_owned()));
}

#[test]
fn standard_output_is_the_commands_alone() {
    let server = Server::start(Front::Redis);
    let ended = Launcher::script("echo out; echo err >&2").redis(&server.url()).run();
    assert_eq!(ended.stdout, "out\n");
    assert!(ended.stderr.contains("err\n"));
}

#[test]
fn one_warning_names_every_variable_whose_server_is_not_authenticated_unless_that_is_meant() {
    let run = |settings: &[(&str, &str)]| {
        let launcher = Launcher::script("true").redis("redis://h");
        let launcher = launcher
            .env("HEROKU_REDIS_GOLD_URL", "redis://gold")
            .env("HEROKU_REDIS_SAME_URL", "redis://h");
        let launcher =
            settings.iter().fold(launcher, |launcher, (name, value)| launcher.env(name, value));
        logged(&launcher.run().stderr, "not-authenticated", "vars")
    };
    let all = "REDIS_URL HEROKU_REDIS_GOLD_URL HEROKU_REDIS_SAME_URL";
    assert_eq!(run(&[]), [all]);
    assert_eq!(run(&[("STUNNEL_VERIFY", "")]), [all]);
    assert_eq!(
        run(&[("REDIS_URL_STUNNEL_VERIFY", "none")]),
        [all.trim_start_matches("REDIS_URL ")]
    );
    for meant in ["none", "ca", "full"] {
        assert!(run(&[("STUNNEL_VERIFY", meant)]).is_empty(), "{meant}");
    }
    let by_option = Launcher::new(["--verify", "none", "true"]).redis("redis://h").run();
    assert!(!by_option.stderr.contains("not-authenticated"), "{}", by_option.stderr);
}

#[test]
fn every_line_says_who_wrote_it() {
    for (format, mark) in
        [("logfmt", " logger=start-stunnel at="), ("json", r#""logger":"start-stunnel","at":""#)]
    {
        let runs = [
            Launcher::script("true").redis("redis://h"),
            Launcher::script("true").redis("redis://"),
            Launcher::new(["no-such-program"]).env("STUNNEL_ENABLED", "false"),
        ];
        for launcher in runs {
            let log = launcher.env("STUNNEL_LOG_FORMAT", format).run().stderr;
            assert!(!log.is_empty());
            assert!(log.lines().all(|line| line.contains(mark)), "{log}");
        }
    }
}

#[test]
fn redis_urls_that_are_not_tunnelled_are_named_with_the_setting_that_would_tunnel_them() {
    let run = |settings: &[(&str, &str)]| {
        let launcher = Launcher::script("true")
            .env("REDISCLOUD_URL", "rediss://:hunter2@cloud")
            .env("SIDEKIQ_REDIS_URL", "valkey://:hunter2@sidekiq")
            .env("DATABASE_URL", "postgres://:hunter2@h")
            .env("npm_package-redis", "redis://odd");
        let launcher =
            settings.iter().fold(launcher, |launcher, (name, value)| launcher.env(name, value));
        launcher.run().stderr
    };
    let beside = run(&[("REDIS_URL", "redis://h"), ("REDIS_URL_STUNNEL", "redis://stale")]);
    let names = "REDISCLOUD_URL SIDEKIQ_REDIS_URL npm_package-redis";
    assert_eq!(logged(&beside, "not-tunnelled", "vars"), [names]);
    assert!(
        beside.contains("REDIS_STUNNEL_URLS=\\\"REDIS_URL REDISCLOUD_URL SIDEKIQ_REDIS_URL\\\""),
        "{beside}"
    );
    assert!(!beside.contains("hunter2") && !beside.contains("no-redis-url"), "{beside}");

    let alone = run(&[]);
    assert_eq!(logged(&alone, "not-tunnelled", "vars"), [names]);
    assert!(alone.contains("at=no-redis-url") && !alone.contains("no variable holds"), "{alone}");

    let listed = run(&[("REDIS_STUNNEL_URLS", "REDISCLOUD_URL,SIDEKIQ_REDIS_URL")]);
    assert_eq!(logged(&listed, "not-tunnelled", "vars"), ["npm_package-redis"]);
    let outer =
        run(&[("REDIS_URL", "redis://127.0.0.1:1"), ("REDIS_URL_STUNNEL", "redis://127.0.0.1:1")]);
    assert_eq!(logged(&outer, "not-tunnelled", "vars"), [names]);
}

#[test]
fn a_whole_command_line_in_one_word_is_told_apart_and_shows_no_password() {
    let given = "redis-cli -u redis://:hunter2@h:6379 ping";
    for enabled in ["true", "false"] {
        let ended = Launcher::new([given])
            .redis("redis://:hunter2@h:6379")
            .env("STUNNEL_ENABLED", enabled)
            .run();
        assert_eq!(ended.code(), 127);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        assert_eq!(logged(&ended.stderr, "command-failed", "command"), ["redis-cli"]);
        assert!(ended.stderr.contains("the whole command line is one word"), "{}", ended.stderr);
    }
    let words: [(&[&str], &str); 4] = [
        (&["REDISCLI_AUTH=hunter2", "redis-cli"], "put env before it"),
        (&["redis://:hunter2@h"], "no such command"),
        (&["PASSWORD=hunter2 redis-cli"], "one word"),
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

/// A program called `redis-cli` that prints its words and the password that it finds.
fn redis_cli_that_tells(folder: &Path) -> String {
    let path = folder.join("redis-cli");
    fs::write(&path, "#!/bin/sh\necho \"${REDISCLI_AUTH-none}: $*\"\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_redis_cli_that_may_leave_the_server_gets_no_password() {
    let folder = tempfile::tempdir().unwrap();
    let program = redis_cli_that_tells(folder.path());
    let run = |words: &[&str]| {
        let words = [&[program.as_str()], words].concat();
        Launcher::new(words).redis("redis://default:hunter2@h/3").run().stdout
    };
    for left_alone in
        [&["-c", "get", "k"][..], &["--cluster", "info", "h:1"], &["-3", "-c"], &["-n"]]
    {
        assert_eq!(run(left_alone), format!("none: {}\n", left_alone.join(" ")));
    }
    let helped = run(&["--raw", "-n", "7", "get", "-c"]);
    assert!(helped.starts_with("hunter2: -h 127.0.0.1 -p "), "{helped}");
    assert!(helped.ends_with(" --user default --raw -n 7 get -c\n"), "{helped}");
    assert!(!helped.contains("-n 3"), "{helped}");
}

#[test]
fn a_url_that_equals_its_stunnel_copy_is_tunnelled_unless_it_leads_to_a_tunnel() {
    for (url, tunnelled) in [
        ("redis://:hunter2@h:6379", true),
        ("rediss://127.0.0.1:6371", true),
        ("redis://127.0.0.2:6371", true),
        ("redis://localhost:6371", true),
        ("redis://127.0.0.1:6371", false),
        ("valkey://u:p@127.0.0.1:1/2", false),
        ("unix:///run/start-stunnel-x/redis0.sock", false),
    ] {
        let ended = Launcher::script("true").redis(url).env("REDIS_URL_STUNNEL", url).run();
        assert_eq!(ended.stderr.contains("at=tunnel-up"), tunnelled, "{url}: {}", ended.stderr);
    }
}

#[test]
fn an_empty_value_of_an_option_is_refused_and_undoes_nothing() {
    for (option, _) in options::with_option() {
        let option = format!("--{option}");
        let ended = Launcher::new([&option, "", "echo", "ran"]).redis("redis://h").run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{option}: {}", ended.stderr);
        assert_eq!(logged(&ended.stderr, "config-error", "var"), [option]);
        assert!(ended.stderr.contains("has an empty value"), "{}", ended.stderr);
    }
    let disabled =
        Launcher::new(["--pin", "", "echo", "ran"]).env("STUNNEL_ENABLED", "false").run();
    assert_eq!(disabled.stdout, "ran\n", "nothing but the switch is read");
}

#[test]
fn every_setting_of_one_url_is_read() {
    let garbage = OsString::from_vec(vec![0xff, 0xfe]);
    for setting in options::ALL.iter().filter(|setting| setting.scope == Scope::OneUrlToo) {
        let variable = setting.for_one("REDIS_URL");
        let ended = Launcher::script("true").redis("redis://h").env(&variable, &garbage).run();
        assert_eq!(ended.code(), 78, "{variable}: {}", ended.stderr);
        // A certificate without a key is found first: that error names both.
        assert!(ended.stderr.contains(&variable), "{variable}: {}", ended.stderr);
    }
}

#[test]
fn a_url_that_can_be_read_in_two_ways_is_refused_and_not_shown() {
    for url in [
        "redis://:p@ss/word@host:6379/0",
        "redis://:hunter2@alpha,redis://:hunter3@beta",
        "redis://:hunter2@alpha,:hunter3@beta",
        "redis://alpha,beta:6379",
        "redis://alpha;beta",
        "redis://:hunter2@alpha/0?next=u@beta",
    ] {
        for words in [&["true"][..], &["--print-env"], &["--check"]] {
            let ended = Launcher::new(words).redis(url).run();
            assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{url}");
            for part in ["ss", "word@", "host:", "hunter", "alpha", "beta"] {
                let message = ended.stderr.split(" msg=").nth(1).unwrap();
                let message = message.replace("password", "");
                assert!(
                    !message.contains(part) || part == "ss" && message.contains("address"),
                    "{message}"
                );
            }
            assert!(ended.stderr.contains("percent-encoded"), "{}", ended.stderr);
        }
    }
}

#[test]
fn verification_without_any_ca_certificate_is_refused_at_start() {
    // As an image without the package has it.
    let folder = tempfile::tempdir().unwrap();
    let Some(_) = with_mounted(folder.path(), "/etc/ssl/certs", ["true"]) else { return };
    let run = |settings: &[(&str, &str)]| {
        let words = ["echo", "ran"];
        let launcher = with_mounted(folder.path(), "/etc/ssl/certs", words).unwrap();
        let launcher = launcher.redis("rediss://h/0?ssl_cert_reqs=required");
        settings.iter().fold(launcher, |launcher, (name, value)| launcher.env(name, value)).run()
    };
    let general = ("STUNNEL_VERIFY", "none");
    for (settings, at_fault) in [
        (&[("STUNNEL_VERIFY", "full")][..], "STUNNEL_VERIFY"),
        (&[("STUNNEL_VERIFY", "ca")], "STUNNEL_VERIFY"),
        (&[general, ("REDIS_URL_STUNNEL_VERIFY", "ca")], "REDIS_URL_STUNNEL_VERIFY"),
        (&[], "ssl_cert_reqs in REDIS_URL"),
    ] {
        let ended = run(settings);
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{}", ended.stderr);
        assert_eq!(logged(&ended.stderr, "config-error", "var"), [at_fault]);
        assert!(ended.stderr.contains("install the package ca-certificates"), "{}", ended.stderr);
    }
    assert_eq!(run(&[general]).stdout, "ran\n");
}

#[test]
fn a_wrong_pin_or_path_is_shown_and_a_secret_in_its_place_is_not() {
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
        let ended = launcher.run();
        assert_eq!(ended.code(), 78, "{variable}={value}");
        assert_eq!(ended.stderr.contains(&format!("'{value}'")), shown, "{}", ended.stderr);
        assert!(shown || !ended.stderr.contains(&value[..7]), "{}", ended.stderr);
    }
}

#[test]
fn a_taken_port_is_refused_where_others_know_it() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let launcher =
        || Launcher::script("echo ran").redis("redis://h").env("STUNNEL_LISTEN_PORT", &port);
    let refused = launcher().env("STUNNEL_PORT_TAKEN", "fail").run();
    assert_eq!((refused.code(), refused.stdout.as_str()), (78, ""), "{}", refused.stderr);
    for part in ["STUNNEL_LISTEN_PORT", &format!("127.0.0.1:{port}"), "STUNNEL_PORT_TAKEN=move"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let moved = launcher().env("STUNNEL_PORT_TAKEN", "move").run();
    assert_eq!(moved.stdout, "ran\n");
    drop(taken);
    assert_eq!(launcher().env("STUNNEL_PORT_TAKEN", "fail").run().stdout, "ran\n");

    let two =
        launcher().env("HEROKU_REDIS_TWO_URL", "redis://two").env("STUNNEL_LISTEN_PORT", "65535");
    let used_up = two.env("STUNNEL_PORT_TAKEN", "fail").run();
    assert_eq!((used_up.code(), used_up.stdout.as_str()), (78, ""), "{}", used_up.stderr);
    assert!(used_up.stderr.contains("STUNNEL_LISTEN_PORT"), "{}", used_up.stderr);
}

#[test]
fn a_ca_file_without_end_and_a_name_that_no_certificate_can_have_are_refused() {
    let endless =
        Launcher::script("true").redis("redis://h").env("STUNNEL_CA_FILE", "/dev/zero").run();
    assert_eq!(endless.code(), 78);
    assert!(endless.stderr.contains("'/dev/zero', a file of more than"), "{}", endless.stderr);
    let long = format!("{}.test", "x".repeat(250));
    for name in ["a,b", "a;b", "redis.test:6379", &long] {
        let ended =
            Launcher::script("true").redis("redis://h").env("STUNNEL_SERVER_NAME", name).run();
        assert_eq!(ended.code(), 78, "{name}");
        assert!(
            ended.stderr.contains(&format!("'{name}'")) || name.len() > 250,
            "{}",
            ended.stderr
        );
    }
    assert_eq!(Launcher::script("true").redis(&format!("redis://{long}")).run().code(), 78);
}

#[test]
fn a_log_that_nobody_reads_stops_neither_the_tunnel_nor_the_command() {
    let server = Server::start(Front::Redis);
    // Standard error is a pipe that nobody reads, and full.
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: F_SETPIPE_SZ takes a number and touches no memory.
    let size = unsafe { nix::libc::fcntl(writer.as_raw_fd(), nix::libc::F_SETPIPE_SZ, 4096) };
    writer.write_all(&vec![0; size as usize]).unwrap();
    let mut launcher = Launcher::holding(&server.url()).env("STUNNEL_LOGLEVEL", "debug");
    launcher.command.stderr(writer);
    let held = launcher.start_held();
    for n in 1..=100 {
        assert_eq!(held.client().ask(&["INCR", "n"]), Reply::line(&format!(":{n}")));
    }
    assert_eq!(held.finish().code(), 0);
    drop(reader);
}

#[test]
fn the_log_is_complete_when_the_launcher_has_ended() {
    let log = Launcher::script("exit 2").redis("redis://h").run().stderr;
    let last = log.lines().last().unwrap();
    assert!(
        last.contains("at=command-ended code=2 connections=0 sent=0 received=0 failed=0"),
        "{log}"
    );
}

#[test]
fn a_misspelt_setting_is_named_instead_of_having_no_effect_in_silence() {
    let launcher = Launcher::script("true").redis("redis://h").env("STUNNEL_VERIFIY", "full");
    let ended = launcher.env("REDIS_URL_STUNNEL_PINS", "hunter2").run();
    let names = logged(&ended.stderr, "unknown-setting", "vars");
    assert_eq!(names, ["REDIS_URL_STUNNEL_PINS STUNNEL_VERIFIY"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    assert_eq!(ended.code(), 0);
}

#[test]
fn urls_that_stay_without_a_tunnel_are_named_with_the_reason() {
    let passthrough = |words: &[&str]| {
        let launcher = Launcher::new(words).redis("rediss://:hunter2@h");
        launcher.env("STUNNEL_REDISS", "passthrough").run()
    };
    let started = passthrough(&["true"]);
    assert_eq!(logged(&started.stderr, "left-alone", "vars"), ["REDIS_URL"]);
    assert!(started.stderr.contains("STUNNEL_REDISS=passthrough"), "{}", started.stderr);
    let checked = passthrough(&["--check"]).stdout;
    assert!(checked.contains("REDIS_URL") && checked.contains("passthrough"), "{checked}");
    let nothing = Launcher::new(["--check"]).run().stdout;
    assert!(nothing.contains("none of REDIS_URL HEROKU_REDIS_*"), "{nothing}");
}

#[test]
fn a_procfiles_label_in_front_of_the_command_is_recognised() {
    let ended = Launcher::new(["web:", "bundle", "exec", "puma"]).run();
    assert_eq!(ended.code(), 127);
    assert!(ended.stderr.contains("the label of a Procfile's line"), "{}", ended.stderr);
}
