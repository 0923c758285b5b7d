//! Tests which variables get a tunnel, and which URLs COMMAND sees (docs/configuration.md).

mod support;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use support::launcher::{BINARY, Launcher, Outcome, logged};
use support::servers::{Front, PASSWORD, Server};
use support::status::StatusPage;

#[test]
fn command_sees_local_urls_and_no_other_change() {
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
fn url_expanded_by_the_shell_leads_through_the_tunnel() {
    let server = Server::start(Front::Redis);
    let script = format!("exec {BINARY} redis-cli --no-auth-warning -u $REDIS_URL client id");
    let ended = Launcher::of("sh", ["-c", &script]).redis(&server.url()).run();
    assert!(ended.stdout.trim().parse::<u32>().is_ok(), "{ended:?}");
    assert_eq!(logged(&ended.stderr, "argument-rewritten", "argument"), ["3"]);
    assert_eq!(logged(&ended.stderr, "argument-rewritten", "var"), ["REDIS_URL"]);
    assert_eq!(logged(&ended.stderr, "command-ended", "connections"), ["1"]);
}

#[test]
fn launcher_run_by_a_launcher_uses_the_outer_tunnel() {
    let server = Server::start(Front::Redis);
    let inner = "redis-cli --no-auth-warning -u \"$REDIS_URL\" ping; echo $REDIS_URL";
    let ended = Launcher::new([BINARY, "sh", "-c", inner]).redis(&server.url()).run();
    let ups = logged(&ended.stderr, "tunnel-up", "listen");
    assert_eq!(ups.len(), 1, "{}", ended.stderr);
    assert_eq!(ended.stdout, format!("PONG\nredis://default:{PASSWORD}@{}/0\n", ups[0]));
    assert!(!ended.stderr.contains("no-redis-url"), "{}", ended.stderr);
}

#[test]
fn print_env_masks_secrets_in_urls_and_warns() {
    let ended = Launcher::new(["--print-env"])
        .redis("redis://user:hunter2@h:6379/3?password=hunter2")
        .env("HEROKU_REDIS_OWN_URL", "rediss://:hunter2@own")
        .env("HEROKU_REDIS_OWN_URL_STUNNEL_REDISS", "passthrough")
        .env("CACHE_URL", "redis://c")
        .env("STUNNEL_VERIFY_IT", "full")
        .run();
    assert_eq!(ended.code(), 0);
    assert_eq!(logged(&ended.stderr, "not-tunnelled", "vars"), ["CACHE_URL"]);
    assert_eq!(logged(&ended.stderr, "unknown-setting", "vars"), ["STUNNEL_VERIFY_IT"]);
    let listen = &logged(&ended.stderr, "tunnel-up", "listen");
    assert!(listen.is_empty(), "no tunnel may open: {}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("REDIS_URL=redis://***:***@127.0.0.1:"), "{lines:?}");
    assert!(lines[0].ends_with("/3?password=***"), "{lines:?}");
    assert!(lines[1].starts_with("REDIS_URL_STUNNEL=redis://***:***@127.0.0.1:"), "{lines:?}");
    assert_eq!(lines[2], "HEROKU_REDIS_OWN_URL=rediss://:***@own:6379");
}

#[test]
fn print_env_explains_empty_output() {
    let ended = Launcher::new(["--print-env"]).run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""));
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("holds a Redis URL"), "{}", ended.stderr);
}

#[test]
fn log_says_how_to_tunnel_the_other_redis_urls() {
    let run = |settings: &[(&str, &str)]| {
        let launcher = Launcher::script("true")
            .env("REDISCLOUD_URL", "rediss://:hunter2@cloud")
            .env("SIDEKIQ_REDIS_URL", "valkey://:hunter2@sidekiq")
            .env("DATABASE_URL", "postgres://:hunter2@h")
            .env("npm_package-redis", "redis://odd");
        launcher.settings(settings).run().stderr
    };
    let beside = run(&[("REDIS_URL", "redis://h"), ("REDIS_URL_STUNNEL", "redis://stale")]);
    let names = "REDISCLOUD_URL SIDEKIQ_REDIS_URL npm_package-redis";
    assert_eq!(logged(&beside, "not-tunnelled", "vars"), [names]);
    assert!(
        beside.contains("REDIS_STUNNEL_URLS=REDIS_URL,REDISCLOUD_URL,SIDEKIQ_REDIS_URL"),
        "{beside}"
    );
    assert!(!beside.contains("hunter2") && !beside.contains("no-redis-url"), "{beside}");

    let alone = run(&[]);
    assert_eq!(logged(&alone, "not-tunnelled", "vars"), [names]);
    assert!(alone.contains("at=no-redis-url"), "{alone}");

    let listed = run(&[("REDIS_STUNNEL_URLS", "REDISCLOUD_URL,SIDEKIQ_REDIS_URL")]);
    assert_eq!(logged(&listed, "not-tunnelled", "vars"), ["npm_package-redis"]);
    let outer =
        run(&[("REDIS_URL", "redis://127.0.0.1:1"), ("REDIS_URL_STUNNEL", "redis://127.0.0.1:1")]);
    assert_eq!(logged(&outer, "not-tunnelled", "vars"), [names]);
}

#[test]
fn log_asks_whether_a_similar_name_was_meant_to_be_redis_url() {
    for (settings, is_asked) in [
        (&[("REDIS_URI", "rediss://h")][..], true),
        (&[("REDS_URL", "rediss://h"), ("HEROKU_REDIS_A_URL", "rediss://a")], true),
        (&[("REDIS_URI", "rediss://h"), ("REDIS_URL", "")], true),
        (&[("REDIS_URI", "rediss://h"), ("REDIS_URL", "rediss://h")], false),
        (&[("REDIS_URI", "rediss://h"), ("REDIS_STUNNEL_URLS", "A"), ("A", "rediss://a")], false),
        (&[("REDIS_URI", "http://h"), ("CACHE_URL", "rediss://h")], false),
    ] {
        let log = Launcher::script("true").settings(settings).run().stderr;
        assert_eq!(log.contains("Did you mean REDIS_URL?"), is_asked, "{settings:?}: {log}");
    }
}

/// Runs `--status` as COMMAND of a launcher. The launcher has its own network namespace, so that
/// `--status` finds no other launcher.
fn status_from_inside(environment: &[(&str, &str)]) -> Outcome {
    let script = format!(
        "until {BINARY} --status >/dev/null; [ $? -ne 3 ]; do :; done; {BINARY} --status; exit $?"
    );
    let words = ["--user", "--map-root-user", "--net", BINARY, "sh", "-c", &script];
    Launcher::of("unshare", words).settings(environment).run()
}

/// The HTTP status and the body of `/readyz`.
fn readiness(environment: &[(&str, &str)]) -> (u16, String) {
    let launcher = Launcher::script("echo up; exec cat").env("STUNNEL_STATUS_ADDRESS", "0");
    let mut running = launcher.settings(environment).start();
    assert_eq!(running.line(), "up");
    let answer = StatusPage::of(running.pid(), &[]).get("/readyz");
    running.finish();
    (answer.code, answer.body)
}

/// Two environments with a Redis URL that needs no tunnel. The first environment tells the launcher
/// to pass the URL through. In the second environment, the URL leads to the tunnel of another
/// launcher.
const WITHOUT_TUNNEL: [[(&str, &str); 2]; 2] = [
    [("REDIS_URL", "rediss://127.0.0.1:1"), ("STUNNEL_REDISS", "passthrough")],
    [("REDIS_URL", "redis://127.0.0.1:1"), ("REDIS_URL_STUNNEL", "redis://127.0.0.1:1")],
];
/// An environment in which the user has misspelt the name of the variable with the Redis URL.
const MISNAMED: [(&str, &str); 1] = [("REDISS_URL", "redis://127.0.0.1:1")];

#[test]
fn health_checks_fail_if_no_variable_holds_a_redis_url() {
    let run = |words: &[&str], environment: &[(&str, &str)]| {
        Launcher::new(words).settings(environment).run()
    };
    let table = run(&["--check"], &MISNAMED);
    assert_eq!(table.code(), 78, "{table:?}");
    assert!(
        table.stdout.contains("none of the variables REDIS_URL, HEROKU_REDIS_*"),
        "{}",
        table.stdout
    );
    let json = run(&["--log-format", "json", "--check"], &MISNAMED);
    assert_eq!((json.code(), json.stdout.as_str()), (78, ""), "{json:?}");
    assert!(json.stderr.contains("none of the variables REDIS_URL"), "{}", json.stderr);
    let (code, body) = readiness(&MISNAMED);
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("none of the variables REDIS_URL"), "{body}");
    let fixed_port = ["--port-taken", "fail", "echo", "ran"];
    let log = Launcher::new(fixed_port).settings(&MISNAMED).refused();
    assert_eq!(logged(&log, "config-error", "var"), ["--port-taken"]);

    for environment in WITHOUT_TUNNEL {
        assert_eq!(run(&["--check"], &environment).code(), 0, "{environment:?}");
        assert_eq!(readiness(&environment), (200, "ready\n".to_owned()), "{environment:?}");
        assert_eq!(run(&fixed_port, &environment).stdout, "ran\n", "{environment:?}");
    }
}

#[test]
fn status_fails_if_no_variable_holds_a_redis_url() {
    let failing = status_from_inside(&MISNAMED);
    if failing.stderr.contains("unshare failed") {
        support::skip("unshare may not make a namespace here");
        return;
    }
    assert_eq!(failing.code(), 1, "{failing:?}");
    assert!(failing.stdout.contains("NO REDIS URL"), "{failing:?}");
    for environment in WITHOUT_TUNNEL {
        let ended = status_from_inside(&environment);
        assert_eq!(ended.code(), 0, "{environment:?}: {ended:?}");
    }
}

#[test]
fn log_and_check_say_that_a_url_is_passed_through() {
    let environment = &WITHOUT_TUNNEL[0];
    let started = Launcher::script("true").settings(environment).run();
    assert_eq!(logged(&started.stderr, "left-alone", "vars"), ["REDIS_URL"]);
    assert!(started.stderr.contains("STUNNEL_REDISS=passthrough"), "{}", started.stderr);
    let checked = Launcher::new(["--check"]).settings(environment).run().stdout;
    assert!(checked.contains("REDIS_URL") && checked.contains("passthrough"), "{checked}");
}
