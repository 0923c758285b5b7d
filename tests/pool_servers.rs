//! Tests `--pool on` with servers that do not answer `RESET` like Redis.

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use support::launcher::{Held, Launcher, logged};
use support::peer::Peer;
use support::pki::Certificate;
use support::resp::Reply;
use support::scripted::{Heard, redis, scripted};

fn hold(url: &str, settings: &[(&str, &str)]) -> Held {
    let launcher = Launcher::holding(url).env("STUNNEL_POOL", "on");
    launcher.env("STUNNEL_LOG_LEVEL", "debug").settings(settings).start_held()
}

/// For each request with this text: the number of the connection on which the server received the
/// request.
fn connections_of(heard: &Heard, request: &str) -> Vec<String> {
    let all = heard.all();
    let lines = all.iter().filter_map(|line| line.split_once(' '));
    lines.filter(|(_, text)| *text == request).map(|(number, _)| number.to_owned()).collect()
}

/// A server whose replies depend on the command, and on whether the connection was reset.
fn changed_by_reset(
    answer: impl Fn(&str, bool) -> &'static str + Send + Sync + Clone + 'static,
) -> (Peer<()>, Heard) {
    let was_reset = Arc::new(Mutex::new(HashSet::new()));
    scripted(move |number, request| {
        let mut was_reset = was_reset.lock().unwrap();
        if request[0] == "RESET" {
            was_reset.insert(number);
        }
        Some(answer(&request[0], was_reset.contains(&number)).to_owned())
    })
}

#[test]
fn a_server_whose_reset_differs_is_not_pooled() {
    let noauth = "-NOAUTH Authentication required.\r\n";
    // Each server has three replies: to a PING before RESET, to RESET, and to a PING after RESET.
    for (before, reset, after) in [
        // Kvrocks.
        (noauth, "+RESET\r\n", "+PONG\r\n"),
        // Redis 6.2.
        (noauth, noauth, noauth),
        // Redis before 6.2.
        ("+PONG\r\n", "-ERR unknown command `RESET`\r\n", "+PONG\r\n"),
        // A server on which another command has the name RESET.
        ("+PONG\r\n", "+OK\r\n", "+PONG\r\n"),
    ] {
        let (peer, heard) = changed_by_reset(move |request, was_reset| match request {
            "RESET" => reset,
            "PING" if was_reset => after,
            "PING" => before,
            _ => "+OK\r\n",
        });
        let held = hold(&peer.url(), &[]);
        for _ in 0..6 {
            assert_eq!(held.open().ask(&["ECHO", "mine"]), Reply::line("+OK"));
        }
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "pool-tried", "verdict"), ["Failed"], "{log}");
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
        assert_eq!(heard.count_all("RESET"), 1, "{:?}", heard.all());
        let mut users = connections_of(&heard, "ECHO mine");
        users.dedup();
        assert_eq!(users.len(), 6, "each app has its own connection: {:?}", heard.all());
        assert!(!users.contains(&"0".to_owned()), "no app gets the tried connection: {users:?}");
    }
}

#[test]
fn a_server_that_does_not_answer_the_trial_harms_no_app() {
    // In reply to RESET, the server closes the connection or stays silent.
    for answer in [None, Some("")] {
        let (peer, _) = scripted(move |_, request| match request[0].as_str() {
            "RESET" => answer.map(str::to_owned),
            _ => Some(redis(request)),
        });
        let held = hold(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "1s")]);
        let replies = [(); 3].map(|()| held.open().ask(&["PING"]));
        assert_eq!(replies, [(); 3].map(|()| Reply::line("+PONG")));
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "pool-tried", "verdict"), ["Unclear"], "{log}");
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
    }
}

#[test]
fn an_app_gets_a_new_connection_if_reset_fails() {
    // Each case has the server's reply to every RESET except the first, with which the launcher
    // tests the server, and the number of RESETs that three apps cause.
    for (wrong, resets) in [
        // The launcher assumes that Redis may have restarted, and makes a new trial, which fails.
        (Some(""), 3),
        (Some("+RESE"), 3),
        (Some("+RESET\r\n+OK\r\n"), 3),
        (None, 3),
        // This server does not answer RESET like Redis, so the pool reuses no connection.
        (Some("+OK\r\n"), 2),
        (Some("-ERR no\r\n"), 2),
    ] {
        let is_tried = Arc::new(AtomicBool::new(false));
        let (peer, heard) = scripted(move |_, request| match request[0].as_str() {
            "RESET" if is_tried.swap(true, Ordering::SeqCst) => wrong.map(str::to_owned),
            _ => Some(redis(request)),
        });
        // With this limit, each new connection needs the slot of the discarded connection.
        let settings = [("STUNNEL_MAX_CONNECTIONS", "1"), ("STUNNEL_STATUS_ADDRESS", "0")];
        let held = hold(&peer.url(), &settings);
        let page = held.page();
        for _ in 0..3 {
            assert_eq!(held.open().ask(&["INCR", "key"]), Reply::line("+OK"), "{wrong:?}");
            page.wait_until_all_is_idle();
        }
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
        let mut users = connections_of(&heard, "INCR key");
        users.dedup();
        assert_eq!(users.len(), 3, "{wrong:?}: {:?}", heard.all());
        assert_eq!(heard.count_all("RESET"), resets, "{wrong:?}: {:?}", heard.all());
    }
}

#[test]
fn a_client_certificate_turns_the_pool_off() {
    // Redis 8 and Valkey 9 can log a client in by its certificate. After such a login, RESET
    // logs the client in as the default user.
    let (peer, heard) = changed_by_reset(|request, was_reset| match request {
        "RESET" => "+RESET\r\n",
        "ACL" if was_reset => "+default\r\n",
        "ACL" => "+tenant\r\n",
        _ => "+PONG\r\n",
    });
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let settings =
        [("STUNNEL_CLIENT_CERT", certificate.pem()), ("STUNNEL_CLIENT_KEY", certificate.key_pem())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let held = hold(&peer.url(), &settings);
    for _ in 0..5 {
        assert_eq!(held.open().ask(&["ACL", "WHOAMI"]), Reply::line("+tenant"));
    }
    held.finish();
    assert_eq!(heard.count_all("RESET"), 0, "{:?}", heard.all());
}

#[test]
fn a_server_that_replaces_redis_gets_a_new_trial() {
    // Kvrocks replaces Redis at the same address. On Kvrocks, RESET makes a client an
    // administrator.
    let is_kvrocks = Arc::new(AtomicBool::new(false));
    let (is_replaced, was_reset) = (is_kvrocks.clone(), Arc::new(Mutex::new(HashSet::new())));
    let (peer, heard) = scripted(move |number, request| {
        let (is_kvrocks, mut was_reset) =
            (is_replaced.load(Ordering::SeqCst), was_reset.lock().unwrap());
        let of_redis = number < 2;
        if is_kvrocks && of_redis {
            return None;
        }
        let answer = match request[0].as_str() {
            "AUTH" => "+OK\r\n",
            "RESET" => {
                was_reset.insert(number);
                "+RESET\r\n"
            }
            _ if is_kvrocks && was_reset.contains(&number) => "+PONG\r\n",
            _ => "-NOAUTH Authentication required.\r\n",
        };
        Some(answer.to_owned())
    });
    let held = hold(&peer.url(), &[("STUNNEL_STATUS_ADDRESS", "0")]);
    let log_in = || {
        let mut app = held.open();
        assert_eq!(app.ask(&["AUTH", "pw"]), Reply::line("+OK"));
        app
    };
    drop([log_in(), log_in()]);
    held.page().wait_for_idle(2);
    is_kvrocks.store(true, Ordering::SeqCst);
    (0..3).for_each(|_| drop(log_in()));
    assert_eq!(logged(&held.finish().stderr, "pool-tried", "verdict"), ["Passed", "Failed"]);
    let mut users = connections_of(&heard, "AUTH pw");
    users.dedup();
    assert_eq!(users.len(), 5, "each app has its own connection: {:?}", heard.all());
}
