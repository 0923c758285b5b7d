//! `--pool on` with servers that answer `RESET` unlike Redis: the trial and the hand-over.

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use support::eventually;
use support::launcher::{Held, Launcher, logged};
use support::peer::Peer;
use support::pki::Certificate;
use support::resp::Reply;
use support::scripted::{Heard, redis, scripted};
use support::status::StatusPage;

fn hold(url: &str, settings: &[(&str, &str)]) -> Held {
    let launcher = Launcher::holding(url).env("STUNNEL_POOL", "on");
    launcher.env("STUNNEL_LOG_LEVEL", "debug").settings(settings).start_held()
}

fn ping(held: &Held) {
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
}

/// The numbers of the connections on which requests with this text arrived.
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
    // The replies to PING before RESET, to RESET, and to PING after it: of Kvrocks, of Redis 6.2,
    // of an older Redis, and with RESET renamed.
    for (before, reset, after) in [
        (noauth, "+RESET\r\n", "+PONG\r\n"),
        (noauth, noauth, noauth),
        ("+PONG\r\n", "-ERR unknown command `RESET`\r\n", "+PONG\r\n"),
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
fn a_server_that_closes_in_the_trial_harms_no_app() {
    let (peer, _) = scripted(|_, request| match request[0].as_str() {
        "RESET" => None,
        _ => Some(redis(request)),
    });
    let held = hold(&peer.url(), &[]);
    (0..5).for_each(|_| ping(&held));
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "pool-tried", "verdict"), ["Unclear"], "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn a_slow_trial_costs_no_app_its_connection() {
    let (peer, _) = scripted(|_, request| {
        thread::sleep(Duration::from_millis(1_200)); // Longer than the limit of a trial.
        Some(redis(request))
    });
    // The connect timeout limits the handshake, not replies.
    let held = hold(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "1s")]);
    ping(&held);
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "pool-tried", "verdict"), ["Unclear"], "{log}");
}

#[test]
fn a_wrong_reset_reply_between_two_apps_harms_neither() {
    for wrong in ["", "+RESE", "+RESET\r\n+OK\r\n", "+OK\r\n", "-ERR no\r\n"] {
        let is_tried = Arc::new(AtomicBool::new(false));
        let (peer, heard) = scripted(move |_, request| {
            Some(match request[0].as_str() {
                "RESET" if is_tried.swap(true, Ordering::SeqCst) => wrong.to_owned(),
                _ => redis(request),
            })
        });
        let held = hold(&peer.url(), &[]);
        for _ in 0..4 {
            assert_eq!(held.open().ask(&["ECHO", "mine"]), Reply::line("+OK"), "{wrong:?}");
        }
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
        let mut users = connections_of(&heard, "ECHO mine");
        users.dedup();
        assert_eq!(users.len(), 4, "{wrong:?}: {:?}", heard.all());
    }
}

/// A server that closes its first connection when the second user's `RESET` arrives; and a
/// launcher with these settings, to which this connection is idle.
fn closing_at_hand_over(settings: &[(&str, &str)]) -> (Peer<()>, Heard, Held) {
    let resets = Arc::new(AtomicUsize::new(0));
    let (peer, heard) = scripted(move |number, request| {
        // The first RESET is the trial's, the second follows the first user.
        let is_last =
            number == 0 && request[0] == "RESET" && resets.fetch_add(1, Ordering::SeqCst) == 2;
        (!is_last).then(|| redis(request))
    });
    let held = hold(&peer.url(), settings);
    ping(&held);
    eventually("it comes back", || (heard.count("0 RESET") == 2).then_some(()));
    (peer, heard, held)
}

#[test]
fn a_read_is_sent_again_if_redis_closes_at_the_hand_over() {
    let (_peer, heard, held) = closing_at_hand_over(&[]);
    assert_eq!(held.open().ask(&["GET", "key"]), Reply::bulk("value"));
    assert_eq!(heard.count("1 GET key"), 1, "{:?}", heard.all());
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn a_write_that_may_have_run_is_not_sent_twice() {
    let (_peer, heard, held) = closing_at_hand_over(&[]);
    let mut app = held.open();
    app.send(&["INCR", "key"]);
    assert!(app.reply().is_err(), "the app's connection ends");
    assert_eq!(held.open().ask(&["INCR", "other"]), Reply::line("+OK"));
    assert_eq!(heard.count_all("INCR key"), 0, "{:?}", heard.all());
}

#[test]
fn a_wrong_reset_reply_closes_the_connection_and_stops_reuse() {
    let resets = Arc::new(AtomicUsize::new(0));
    let count = resets.clone();
    let (peer, heard) = scripted(move |_, request| {
        let is_third = request[0] == "RESET" && count.fetch_add(1, Ordering::SeqCst) == 2;
        Some(if is_third { "-NOAUTH no\r\n".to_owned() } else { redis(request) })
    });
    let held = hold(&peer.url(), &[]);
    ping(&held);
    eventually("it comes back", || (heard.count("0 RESET") == 2).then_some(()));
    let mut app = held.open();
    app.send(&["PING"]);
    assert!(app.reply().is_err(), "the app gets no reply");
    (0..3).for_each(|_| ping(&held));
    held.finish();
    assert_eq!(resets.load(Ordering::SeqCst), 3, "no connection is reset any more");
}

#[test]
fn a_client_certificate_turns_the_pool_off() {
    // Like Redis 8 and Valkey 9 with login by certificate, where RESET selects the default user.
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
fn a_replaced_connection_stays_ahead_of_the_queue() {
    let settings = [("STUNNEL_MAX_CONNECTIONS", "1"), ("STUNNEL_STATUS_ADDRESS", "0")];
    let (_peer, _heard, held) = closing_at_hand_over(&settings);
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let metric = |name: &str| page.metric(&format!("start_stunnel_{name}")).unwrap();
    let mut first = held.open();
    eventually("the first app has the idle connection", || {
        let relaying = "upstream_connections{tunnel=\"REDIS_URL\",state=\"relaying\"}";
        (metric(relaying) == 1.0).then_some(())
    });
    let mut waiting = held.open();
    waiting.send(&["SET", "key", "second"]);
    eventually("the second one waits", || {
        (metric("connections_waiting{tunnel=\"REDIS_URL\"}") == 1.0).then_some(())
    });
    // The server closes the connection instead of answering, and GET is sent again.
    first.send(&["GET", "key"]);
    assert_eq!(first.reply().ok(), Some(Reply::bulk("value")), "the first app is served first");
    drop(first);
    assert_eq!(waiting.reply().unwrap(), Reply::line("+OK"));
}

#[test]
fn no_app_becomes_administrator_when_the_server_changes() {
    // Behind a virtual address, Kvrocks replaces Redis. There RESET makes the client an
    // administrator.
    let is_kvrocks = Arc::new(AtomicBool::new(false));
    let (replaced, ranks) = (is_kvrocks.clone(), Mutex::new(Vec::new()));
    let ranks = Arc::new(ranks);
    let (peer, heard) = scripted(move |number, request| {
        let (is_kvrocks, mut ranks) = (replaced.load(Ordering::SeqCst), ranks.lock().unwrap());
        let count = ranks.len().max(number + 1);
        ranks.resize(count, "");
        if is_kvrocks && number < 2 {
            return None;
        }
        Some(match (request[0].as_str(), ranks[number]) {
            ("RESET", _) => {
                ranks[number] = if is_kvrocks { "administrator" } else { "" };
                "+RESET\r\n".to_owned()
            }
            ("AUTH", _) => {
                ranks[number] = "user";
                "+OK\r\n".to_owned()
            }
            (_, "") => "-NOAUTH Authentication required.\r\n".to_owned(),
            (_, rank) => format!("+{rank}\r\n"),
        })
    });
    let held = hold(&peer.url_with_password(), &[]);
    let log_in = || {
        let mut app = held.open();
        assert_eq!(app.ask(&["AUTH", "pw"]), Reply::line("+OK"));
        app
    };
    let staying = [log_in(), log_in()];
    drop(staying);
    eventually("both come back", || (heard.count_all("RESET") == 3).then_some(()));
    is_kvrocks.store(true, Ordering::SeqCst);
    // The new server's first user logs in, and leaves.
    drop(log_in());
    for _ in 0..3 {
        let who = held.open().ask(&["GET", "key"]);
        assert_eq!(who, Reply::line("-NOAUTH Authentication required."));
    }
}
