//! Command line, variables, URLs and logs (contract, sections 1, 2, 3 and 6), seen from outside.

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use start_stunnel::cli;
use support::launcher::{BINARY, HOLD, Launcher, logged};
use support::resp::Reply;
use support::servers::{Front, PASSWORD, Server};

fn run_binary(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY).args(words).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
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
    assert_eq!((code, version), (0, format!("start-stunnel {}\n", env!("CARGO_PKG_VERSION"))));
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
fn no_secret_is_in_any_output_at_debug_level_nor_in_the_command_line() {
    let server = Server::start(Front::Redis);
    let nobody = format!("rediss://us3r-name:{PASSWORD}@127.0.0.1:1/0?token={PASSWORD}");
    for format in ["logfmt", "json"] {
        for verify in ["none", "full"] {
            let mut held = Launcher::script(HOLD)
                .redis(&server.url())
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
fn a_warning_says_that_the_server_is_not_authenticated_unless_it_is() {
    let warned = |level: &str| {
        let launcher = Launcher::script("true").redis("redis://h").env("STUNNEL_VERIFY", level);
        launcher.run().stderr.lines().filter(|line| line.contains("at=not-authenticated")).count()
    };
    assert_eq!((warned("none"), warned("ca"), warned("full")), (1, 0, 0));
}

#[test]
fn a_log_that_nobody_reads_stops_neither_the_tunnel_nor_the_command() {
    let server = Server::start(Front::Redis);
    // Standard error is a pipe that nobody reads, and full.
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: F_SETPIPE_SZ takes a number and touches no memory.
    let size = unsafe { nix::libc::fcntl(writer.as_raw_fd(), nix::libc::F_SETPIPE_SZ, 4096) };
    writer.write_all(&vec![0; size as usize]).unwrap();
    let mut launcher = Launcher::script(HOLD).redis(&server.url()).env("STUNNEL_LOGLEVEL", "debug");
    launcher.command.stderr(writer);
    let held = launcher.start_held();
    for n in 1..=100 {
        assert_eq!(held.client().ask(&["INCR", "n"]), Reply::line(&format!(":{n}")));
    }
    assert_eq!(held.finish().code(), 0);
    drop(reader);
}

#[test]
fn the_readmes_table_of_settings_is_that_of_the_help() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, help, _) = run_binary(&["--help"]);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<Vec<String>> = readme
        .lines()
        .filter(|line| line.starts_with("| `--"))
        .map(|line| {
            line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect();
    for setting in cli::SETTINGS {
        let option = format!("--{}", setting.option);
        let row = rows.iter().find(|row| row[0] == option);
        let row = row.unwrap_or_else(|| panic!("{option} is not in the README's table"));
        assert_eq!(row[1], setting.variable, "{option}");
        if !setting.default.is_empty() {
            assert_eq!(row[2], setting.default, "{option}");
        }
        assert!(
            help.contains(&row[3]),
            "the README's words on {option} are not those of --help: {}",
            row[3]
        );
    }
    for row in &rows {
        assert!(help.contains(&row[0]), "{} is not an option", row[0]);
        assert!(help.contains(&row[3]), "{}: {}", row[0], row[3]);
    }
    let options = help.matches(" --").count();
    assert!(rows.len() >= cli::SETTINGS.len() && rows.len() <= options, "{} rows", rows.len());
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
