//! Tests faults of the launcher and of its machine.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::support::launcher::{BINARY, Launcher, send_signal};
use crate::support::proc::{command_of, cpu_ticks, descriptors, is_alive, state};
use crate::support::resp::{Client, Reply};
use crate::support::servers::{Front, PASSWORD, Server, connections};
use crate::support::{faketime, wait_until};
use crate::{HOLD_TWO, Scene, fault};

/// A launcher that the shell script `line` starts. In the script, `"$0" "$@"` is the launcher's
/// command line.
fn by_shell(line: &str) -> Launcher {
    Launcher::of("sh", ["-c", line, BINARY, "sh", "-c", HOLD_TWO])
}

#[test]
fn launcher_has_no_free_descriptor() {
    fault!("no file descriptor is left (`ulimit -n 65`)");
    let server = Server::start(Front::Redis);
    let launcher = by_shell("ulimit -n 65; exec \"$0\" \"$@\"");
    let mut scene = Scene::with(launcher, &server.url());
    let mut clients: Vec<Client> = (0..80).map(|_| scene.held.open()).collect();
    for client in &mut clients {
        client.send(&["AUTH", PASSWORD]);
    }
    wait_until("the descriptors are used up", || descriptors(scene.pid()) >= 63);
    let before = cpu_ticks(scene.pid());
    thread::sleep(Duration::from_secs(1)); // A busy loop would use CPU time meanwhile.
    let used = cpu_ticks(scene.pid()) - before;
    assert!(used < 50, "the launcher used {used} of 100 CPU ticks while it waited");
    scene.others_go_on();
    // Each closed connection frees descriptors for a waiting client.
    for mut client in clients {
        assert_eq!(client.reply().unwrap(), Reply::line("+OK"));
    }
    let log = scene.aftermath();
    assert!(log.contains("at=accept-failed") && !log.contains("at=connection-failed"), "{log}");
    assert!(log.contains("raise the limit on open files"), "{log}");
}

#[test]
fn clock_jumps_by_a_day_or_ten_years() {
    fault!("the clock jumps, by a day or by ten years");
    let Some(library) = faketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    let server = Server::start(Front::Redis);
    let launcher = Launcher::script(&format!("unset LD_PRELOAD; {HOLD_TWO}"))
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        // libfaketime runs inside the launcher, so the launcher's sandbox would not let libfaketime
        // read the file `clock`.
        .env("STUNNEL_SANDBOX", "off")
        // Real jumps of the system clock do not change the monotonic clock, so libfaketime must not
        // change the monotonic clock either.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut scene = Scene::with(launcher, &server.url());
    let mut client = scene.held.client();
    for jump in ["+1d", "-1d", "+10y", "-10y", "+0"] {
        fs::write(&clock, jump).unwrap();
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"), "{jump}");
        assert_eq!(scene.held.client().ask(&["PING"]), Reply::line("+PONG"), "{jump}");
        scene.others_go_on();
    }
    drop(client);
    let log = scene.aftermath();
    let years: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("at=connection-closed"))
        .map(|line| &line[3..7])
        .collect();
    assert!(years.iter().any(|year| *year != years[0]), "the clock has jumped: {years:?}");
}

#[test]
fn launcher_is_stopped_for_longer_than_the_connect_timeout() {
    fault!("SIGSTOP stops the launcher for longer than the connect timeout; SIGCONT follows");
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&server.url());
    let mut client = scene.held.client();
    let mut subscriber = scene.held.client();
    subscriber.ask(&["SUBSCRIBE", "news"]);
    scene.held.running.signal(libc::SIGSTOP);
    wait_until("the launcher is stopped", || state(scene.pid()) == 'T');
    client.send(&["ECHO", "asked meanwhile"]);
    let mut late = scene.held.open();
    late.send(&["AUTH", PASSWORD]);
    assert_eq!(server.direct().ask(&["PUBLISH", "news", "published meanwhile"]), Reply::line(":1"));
    thread::sleep(Duration::from_secs(11)); // The default connect timeout is 10 s.
    scene.held.running.signal(libc::SIGCONT);
    assert_eq!(client.reply().unwrap(), Reply::bulk("asked meanwhile"));
    assert_eq!(late.reply().unwrap(), Reply::line("+OK"));
    let news = ["message", "news", "published meanwhile"].map(Reply::bulk).to_vec();
    assert_eq!(subscriber.reply().unwrap(), Reply::Array(news));
    drop((client, subscriber, late));
    scene.aftermath();
}

/// Checks that 300 connections work if a shell starts the launcher with this redirection of the
/// log.
fn works_with_its_log(redirection: &str) {
    let server = Server::start(Front::Redis);
    let launcher = by_shell(&format!("exec \"$0\" \"$@\" {redirection}"));
    let scene = Scene::with(launcher.env("STUNNEL_LOGLEVEL", "debug"), &server.url());
    for _ in 0..300 {
        assert_eq!(scene.held.client().ask(&["PING"]), Reply::line("+PONG"));
    }
    scene.aftermath();
}

#[test]
fn log_cannot_be_written() {
    fault!("the disk to which the log goes is full");
    works_with_its_log("2>/dev/full");
    fault!("stderr is closed");
    works_with_its_log("2>&-");
}

#[test]
fn no_program_reads_the_log() {
    fault!("no program reads the launcher's stderr");
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // The test opens the pipe, but never reads from the pipe.
    let _reader = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    works_with_its_log(&format!("2>{}", pipe.display()));
}

#[test]
fn launcher_is_killed() {
    fault!("the launcher is killed by SIGKILL");
    let server = Server::start(Front::Redis);
    let script = "trap 'echo told; exit' TERM; echo $REDIS_URL; while :; do sleep 0.01; done";
    let mut held = Launcher::script(script).redis(&server.url()).start_held();
    let mut client = held.client();
    let command = command_of(held.running.pid());
    send_signal(held.running.pid(), libc::SIGKILL);
    let gone = client.reply().expect_err("the connection is gone").kind();
    assert!(matches!(gone, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{gone:?}");
    assert_eq!(held.running.line(), "told", "COMMAND gets SIGTERM");
    wait_until("COMMAND ends", || !is_alive(command));
    wait_until("Redis has lost the connection", || connections(&mut server.direct()) == 0);
}
