//! Tests the modes of `--pool`: when the pool is on, and how many idle connections the pool keeps.

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use support::launcher::{HOLD, Held, Launcher};
use support::resp::{Client, Reply};
use support::servers::{Front, Server, accepted, calls, clients, connections};
use support::status::StatusPage;
use support::{faketime, wait_until};

/// With `--pool auto`, this number of short connections turns the pool on.
const MANY: usize = 16;

fn hold(server: &Server, settings: &[(&str, &str)]) -> Held {
    let launcher = Launcher::holding(&server.url()).env("STUNNEL_STATUS_ADDRESS", "0");
    launcher.settings(settings).start_held()
}

fn one_request(held: &Held) {
    assert_eq!(held.client().ask(&["ECHO", "short"]), Reply::bulk("short"));
}

/// The number of `RESET` and `PING` commands that Redis has executed. In these tests, only the
/// launcher sends these commands.
fn own_commands(direct: &mut Client) -> usize {
    calls(direct, "reset") + calls(direct, "ping")
}

/// Waits until the launcher has no connection to Redis.
fn wait_until_all_are_closed(direct: &mut Client) {
    wait_until("all connections are closed", || connections(direct) == 0);
}

/// Makes short connections until `--pool auto` has turned the pool on.
fn switch_pool_on(held: &Held, page: StatusPage) {
    wait_until("the pool is on", || {
        let before = page.upstream("relaying");
        one_request(held);
        wait_until("the app has left", || page.upstream("relaying") == before);
        page.upstream("idle") > 0.0
    });
}

#[test]
fn pool_off_never_sends_a_command_of_its_own() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let pings = own_commands(&mut direct);
    let before = accepted(&mut direct);
    let held = hold(&server, &[("STUNNEL_POOL", "off")]);
    (0..2 * MANY).for_each(|_| one_request(&held));
    assert_eq!(accepted(&mut direct) - before, 2 * MANY, "each app has its own connection");
    wait_until_all_are_closed(&mut direct);
    assert_eq!(own_commands(&mut direct), pings);
    assert!(!held.finish().stderr.contains("at=pool-"));
}

#[test]
fn pool_auto_turns_on_after_sixteen_short_connections() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let pings = own_commands(&mut direct);
    let before = accepted(&mut direct);
    let held = hold(&server, &[]);
    let page = held.page();
    for _ in 0..MANY {
        one_request(&held);
        wait_until_all_are_closed(&mut direct);
    }
    assert_eq!(accepted(&mut direct) - before, MANY);
    assert_eq!(own_commands(&mut direct), pings, "the pool was off until now");
    switch_pool_on(&held, page);
    let made = accepted(&mut direct);
    assert!(made - before <= MANY + 2, "the pool is on for all later connections");
    for _ in 0..10 {
        one_request(&held);
        page.wait_for_idle(1);
    }
    assert_eq!(accepted(&mut direct), made, "all apps share one connection");
}

#[test]
fn pool_auto_counts_only_connections_that_got_an_answer() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let pings = own_commands(&mut direct);
    let held = hold(&server, &[]);
    // These apps only connect, like a port scan or a simple health check.
    (0..2 * MANY).for_each(|_| drop(held.open()));
    wait_until_all_are_closed(&mut direct);
    (0..2).for_each(|_| one_request(&held));
    wait_until_all_are_closed(&mut direct);
    assert_eq!(own_commands(&mut direct), pings);
}

#[test]
fn a_connection_keeps_its_pool_mode_until_its_end() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server, &[]);
    let mut early = held.client();
    early.ask(&["CLIENT", "SETNAME", "early"]);
    let list = clients(&mut direct);
    let line = list.lines().find(|line| line.contains(" name=early ")).expect("a line");
    let id = line.split(' ').next().unwrap().to_owned();
    switch_pool_on(&held, held.page());
    drop(early);
    wait_until("the connection is closed, because the pool was off at its start", || {
        !clients(&mut direct).lines().any(|line| line.starts_with(&format!("{id} ")))
    });
}

#[test]
fn pool_auto_turns_off_after_a_minute_of_few_connections() {
    let Some(library) = faketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = Launcher::script(&format!("unset LD_PRELOAD; {HOLD}"))
        .redis(&server.url())
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("STUNNEL_STATUS_ADDRESS", "0")
        // The sandbox must be off, because libfaketime reads the file from inside the launcher.
        .env("STUNNEL_SANDBOX", "off")
        .start_held();
    switch_pool_on(&held, held.page());
    fs::write(&clock, "+61s").unwrap();
    wait_until_all_are_closed(&mut direct);
    let resets = calls(&mut direct, "reset");
    for _ in 0..3 {
        one_request(&held);
        wait_until_all_are_closed(&mut direct);
    }
    assert_eq!(calls(&mut direct, "reset"), resets, "the pool is off");
}

/// Connects `count` apps. Each app sends one request. Then all apps disconnect at the same time.
fn burst(held: &Held, count: usize) {
    let mut apps: Vec<Client> = (0..count).map(|_| held.client()).collect();
    for app in &mut apps {
        assert_eq!(app.ask(&["ECHO", "burst"]), Reply::bulk("burst"));
    }
}

/// Longer than the time after which surplus idle connections close.
const LONGER: Duration = Duration::from_millis(1_500);

#[test]
fn after_a_burst_two_idle_connections_stay_open() {
    // Redis allows 30 connections. After the burst of 25, the test opens 20 connections of its own.
    // Redis would refuse some of these if the launcher kept all connections of the burst.
    let server = Server::with_words(&["--maxclients", "30"]);
    let mut direct = server.direct();
    let before = accepted(&mut direct);
    let held = hold(&server, &[("STUNNEL_POOL", "on")]);
    // The first connection to Redis becomes idle before the other connections are opened.
    burst(&held, 1);
    let page = held.page();
    page.wait_for_idle(1);
    burst(&held, 25);
    assert_eq!(accepted(&mut direct) - before, 25, "one connection for each app of the burst");
    wait_until("two connections are left", || connections(&mut direct) == 2);
    let mut others: Vec<Client> = (0..20).map(|_| server.direct()).collect();
    assert!(others.iter_mut().all(|other| other.ask(&["ECHO", "mine"]) == Reply::bulk("mine")));
    thread::sleep(LONGER);
    assert_eq!(page.upstream("idle"), 2.0);
}

#[test]
fn with_max_connections_all_idle_connections_stay_open() {
    let server = Server::start(Front::Redis);
    let held = hold(&server, &[("STUNNEL_POOL", "on"), ("STUNNEL_MAX_CONNECTIONS", "6")]);
    burst(&held, 6);
    let page = held.page();
    page.wait_for_idle(6);
    thread::sleep(LONGER);
    assert_eq!(page.upstream("idle"), 6.0);
}
