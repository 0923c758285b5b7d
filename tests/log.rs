//! Tests the lines that the launcher logs (docs/operation.md).

mod support;

use std::fs::{self, File};
use std::io;

use support::launcher::{Launcher, logged};
use support::servers::{Front, PASSWORD, Server};
use support::{full_pipe, wait_until};

#[test]
fn the_debug_log_contains_no_user_name_and_no_password() {
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
            // Under the verify level `full`, the reply is an error about the server's certificate.
            held.open().ask(&["AUTH", PASSWORD]);
            let pid = held.running.pid();
            let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert!(!command_line.contains(PASSWORD));
            held.running.say("end\n");
            let log = held.finish().stderr;
            assert!(
                log.contains("connection-accepted"),
                "the log has no line of the level debug: {log}"
            );
            assert!(!log.contains(PASSWORD) && !log.contains("us3r-name"), "{log}");
        }
    }
}

/// The log of a launcher whose COMMAND sends one PING to Redis.
fn log_of(server: &Server, level: &str, format: &str) -> String {
    Launcher::script("redis-cli --no-auth-warning -u \"$REDIS_URL\" ping")
        .redis(&server.url())
        .env("STUNNEL_LOG_FORMAT", format)
        .env("STUNNEL_LOGLEVEL", level)
        .run()
        .stderr
}

#[test]
fn json_and_logfmt_lines_have_the_same_keys() {
    let server = Server::start(Front::Redis);
    let json = log_of(&server, "info", "json");
    let parsed: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let events: Vec<_> = parsed.iter().map(|line| line["at"].as_str().unwrap()).collect();
    assert_eq!(events, ["tunnel-up", "not-authenticated", "connection-closed", "command-ended"]);
    assert_eq!(parsed[0]["upstream"], format!("127.0.0.1:{}", server.tls_port()));
    assert!(parsed[2]["sent"].as_u64().unwrap() > 0 && parsed[2]["received"].as_u64().unwrap() > 0);
    assert_eq!(parsed[3]["code"], 0);
    assert_eq!(parsed[3]["sent"], parsed[2]["sent"]);

    for (line, parsed) in log_of(&server, "info", "logfmt").lines().zip(&parsed) {
        for key in parsed.as_object().unwrap().keys() {
            assert!(format!(" {line}").contains(&format!(" {key}=")), "{key} in {line}");
        }
        assert!(line.starts_with("ts=2"), "{line}");
    }
}

#[test]
fn the_log_level_hides_less_severe_lines() {
    let server = Server::start(Front::Redis);
    for (level, expected) in [
        ("emerg", ""),
        ("2", ""),
        ("err", ""),
        ("warning", "not-authenticated"),
        ("5", "tunnel-up not-authenticated command-ended"),
    ] {
        let log = log_of(&server, level, "logfmt");
        let events = log.split(" at=").skip(1).map(|line| line.split(' ').next().unwrap());
        assert_eq!(events.collect::<Vec<_>>().join(" "), expected, "{level}");
    }
}

#[test]
fn one_warning_names_every_variable_without_a_verify_setting() {
    let run = |settings: &[(&str, &str)]| {
        let launcher = Launcher::script("true")
            .redis("redis://h")
            .env("HEROKU_REDIS_GOLD_URL", "redis://gold")
            .env("HEROKU_REDIS_SAME_URL", "redis://h");
        logged(&launcher.settings(settings).run().stderr, "not-authenticated", "vars")
    };
    let (first, others) = ("REDIS_URL", "HEROKU_REDIS_GOLD_URL HEROKU_REDIS_SAME_URL");
    assert_eq!(run(&[]), [format!("{first} {others}")]);
    assert_eq!(run(&[("STUNNEL_VERIFY", "")]), [format!("{first} {others}")]);
    assert_eq!(run(&[("REDIS_URL_STUNNEL_VERIFY", "none")]), [others]);
    for meant in ["none", "ca", "full"] {
        assert!(run(&[("STUNNEL_VERIFY", meant)]).is_empty(), "{meant}");
    }
    let by_option = Launcher::new(["--verify", "none", "true"]).redis("redis://h").run();
    assert!(!by_option.stderr.contains("not-authenticated"), "{}", by_option.stderr);
}

#[test]
fn every_line_names_start_stunnel_as_its_logger() {
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

/// The name of an event in a log line.
fn event(line: &str) -> &str {
    line.split_once(" at=").expect("an event").1.split(' ').next().unwrap()
}

#[test]
fn a_full_non_blocking_stderr_loses_no_line() {
    let (reader, writer) = full_pipe();
    // The line `not-tunnelled` contains this name twice, so the line is longer than a pipe.
    let name = format!("URL_{}", "X".repeat(50_000));
    let mut launcher = Launcher::holding("redis://h").env(&name, "redis://other");
    launcher.command.stderr(writer);
    let held = launcher.start_held();
    let log = std::thread::spawn(move || io::read_to_string(reader).unwrap());
    assert_eq!(held.finish().code(), 0);
    wait_until("all writers have closed stderr", || log.is_finished());
    let log = log.join().unwrap();
    let events: Vec<&str> = log.trim_start().lines().map(event).collect();
    assert_eq!(events, ["not-tunnelled", "tunnel-up", "not-authenticated", "command-ended"]);
    assert_eq!(logged(&log, "not-tunnelled", "vars"), [name]);
}

#[test]
fn lines_that_stderr_refuses_count_as_dropped() {
    let mut launcher = Launcher::holding("redis://h").env("STUNNEL_STATUS_ADDRESS", "0");
    launcher.command.stderr(File::options().write(true).open("/dev/full").unwrap());
    let held = launcher.start_held();
    let page = held.page();
    wait_until("tunnel-up, status-up and not-authenticated are counted", || {
        page.metric("start_stunnel_log_lines_dropped_total") == Some(3.0)
    });
    assert_eq!(held.finish().code(), 0);
}
