//! Tests of a running COMMAND (docs/command.md): signals, stops, orphans. Tests of COMMAND's start
//! are in command_start.rs, and tests of its end are in command_end.rs.

mod support;

use std::os::unix::process::{CommandExt, ExitStatusExt};

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use support::launcher::{BINARY, Launcher, Running, as_pid_1, send_signal};
use support::proc::{command_of, state, wait_until_reaped};
use support::resp::Reply;
use support::servers::{Front, Server};
use support::{eventually, wait_until};

/// A perl script that prints "ready", and then the number of each signal that it receives, until
/// its standard input ends.
const RECORDER: &str = r#"
    use POSIX; $| = 1;
    for my $n (1 .. 64) {
        next if $n == 9 || $n == 19 || $n == 32 || $n == 33;
        # POSIX::sigaction calls the handler at once, for each signal.
        POSIX::sigaction($n, POSIX::SigAction->new(sub { syswrite(STDOUT, "$n\n") }));
    }
    syswrite(STDOUT, "ready\n");
    while (1) {
        my $read = sysread(STDIN, my $byte, 1);
        last if defined($read) && !$read;
    }
"#;

/// Starts a launcher, and waits until its COMMAND has printed "ready".
fn recorder(launcher: Launcher) -> Running {
    let mut running = launcher.start();
    assert_eq!(running.line(), "ready");
    running
}

fn record_signals() -> Launcher {
    Launcher::new(["perl", "-e", RECORDER])
}

#[test]
fn every_signal_is_forwarded_exactly_once() {
    // A launcher with a tunnel has several threads. Each thread must block all signals.
    let mut running = recorder(record_signals().redis("redis://h"));
    // All signals except SIGKILL, SIGSTOP, and the signals that the C library uses (32 and 33).
    let numbers = (1..=64).filter(|n| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(n));
    for number in numbers {
        running.signal(number);
        assert_eq!(running.line(), number.to_string());
    }
    let ended = running.finish();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("", 0), "COMMAND received a signal twice");
}

#[test]
fn every_signal_of_a_realtime_burst_reaches_the_command() {
    const BURST: usize = 100;
    let mut running = recorder(record_signals());
    for _ in 0..BURST {
        running.signal(40);
    }
    for _ in 0..BURST {
        assert_eq!(running.line(), "40");
    }
    assert_eq!(running.finish().stdout, "");
}

#[test]
fn a_signal_before_the_commands_start_is_forwarded_later() {
    for _ in 0..20 {
        let mut running = record_signals().start();
        running.signal(libc::SIGTERM);
        // If SIGTERM arrives before the launcher blocks signals, the launcher dies. Otherwise
        // COMMAND gets SIGTERM, and dies or prints 15. Keep COMMAND's standard input open until
        // then, because its end would end COMMAND, too.
        let mut last = "ready".to_owned();
        while last == "ready" {
            last = running.line();
        }
        let ended = running.finish();
        let killed = ended.status.signal() == Some(libc::SIGTERM);
        assert!(killed || last == "15", "{last} {ended:?}");
    }
}

#[test]
fn an_alarm_from_before_the_launchers_start_ends_the_command() {
    let words = ["-e", "alarm 1; exec @ARGV", BINARY, "sleep", "60"];
    assert_eq!(Launcher::of("perl", words).run().signal(), libc::SIGALRM);
}

#[test]
fn on_a_dyno_sigterm_is_not_forwarded() {
    let cases = [
        (Some("web.1"), "auto", false),
        (Some("web.1"), "always", true),
        (Some("web.1"), "never", false),
        (None, "auto", true),
        (None, "always", true),
        (None, "never", false),
        (Some(""), "auto", true),
    ];
    for (dyno, setting, forwarded) in cases {
        let mut launcher = record_signals().env("STUNNEL_FORWARD_SIGNALS", setting);
        if let Some(dyno) = dyno {
            launcher = launcher.env("DYNO", dyno);
        }
        let mut running = recorder(launcher);
        running.signal(libc::SIGTERM);
        if forwarded {
            assert_eq!(running.line(), "15", "{dyno:?} {setting}");
        }
        // The launcher forwards signals in order. So SIGTERM was not forwarded if only SIGUSR1
        // arrives.
        running.signal(libc::SIGUSR1);
        if setting != "never" {
            assert_eq!(running.line(), "10", "{dyno:?} {setting}");
        }
        assert_eq!(running.finish().stdout, "", "{dyno:?} {setting}");
    }
}

/// A perl script that prints "ready", and then "continued" for each SIGCONT. Copies its standard
/// input to its standard output until the input ends.
const STOPPABLE: &str = r#"
    use POSIX; $| = 1;
    POSIX::sigaction(SIGCONT, POSIX::SigAction->new(sub { syswrite(STDOUT, "continued\n") }));
    syswrite(STDOUT, "ready\n");
    while (1) {
        my $read = sysread(STDIN, my $text, 100);
        last if defined($read) && !$read;
        syswrite(STDOUT, $text) if $read;
    }
"#;

/// Starts a launcher in a process group of its own. The group is not orphaned, because this test is
/// the launcher's parent.
fn job(words: &[&str]) -> Running {
    let mut launcher = Launcher::new(words);
    launcher.command.process_group(0);
    recorder(launcher)
}

/// Starts a launcher as the leader of a session without a terminal, like a service. The launcher's
/// process group is orphaned.
fn service(words: &[&str]) -> Running {
    recorder(Launcher::of("setsid", [&[BINARY][..], words].concat()))
}

/// Waits until a launcher, which is a child of this test, is stopped or continued.
fn job_event(pid: i32) -> WaitStatus {
    let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED | WaitPidFlag::WNOHANG;
    eventually("the launcher is stopped or continued", || {
        match waitpid(Pid::from_raw(pid), Some(flags)).unwrap() {
            WaitStatus::StillAlive => None,
            event => Some(event),
        }
    })
}

const STOPS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

#[test]
fn one_sigcont_continues_launcher_and_command() {
    let mut running = job(&["perl", "-e", STOPPABLE]);
    let pid = Pid::from_raw(running.pid());
    let command = command_of(running.pid());
    for signal in STOPS {
        running.signal(signal as i32);
        assert_eq!(job_event(running.pid()), WaitStatus::Stopped(pid, signal));
        assert_eq!((state(running.pid()), state(command)), ('T', 'T'));
        running.signal(libc::SIGCONT);
        assert_eq!(job_event(running.pid()), WaitStatus::Continued(pid));
        assert_eq!(running.line(), "continued");
        running.say("on we go\n");
        assert_eq!(running.line(), "on we go");
    }
    let ended = running.finish();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("", 0), "COMMAND received a signal twice");
}

#[test]
fn sigterm_to_a_stopped_launcher_takes_effect_after_sigcont() {
    let running = job(&["perl", "-e", STOPPABLE]);
    running.signal(libc::SIGTSTP);
    assert!(matches!(job_event(running.pid()), WaitStatus::Stopped(..)));
    let command = command_of(running.pid());
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGCONT);
    // Wait until SIGTERM has ended COMMAND. `finish` then closes COMMAND's standard input, which
    // would end COMMAND, too.
    wait_until_reaped(command);
    assert_eq!(running.finish().signal(), libc::SIGTERM);
}

#[test]
fn a_stop_signal_that_the_command_handles_does_not_stop_it() {
    let mut running = job(&["perl", "-e", RECORDER]);
    for signal in STOPS {
        running.signal(signal as i32);
        assert_eq!(running.line(), (signal as i32).to_string());
        // The launcher still runs.
        running.signal(libc::SIGUSR1);
        assert_eq!(running.line(), "10");
        assert_ne!(state(running.pid()), 'T');
    }
    assert_eq!(running.finish().stdout, "");
}

#[test]
fn in_an_orphaned_process_group_a_stop_signal_has_no_effect() {
    let mut running = service(&["perl", "-e", STOPPABLE]);
    for signal in STOPS {
        running.signal(signal as i32);
        assert_eq!(running.line(), "continued");
        running.say("still here\n");
        assert_eq!(running.line(), "still here");
        assert_ne!(state(running.pid()), 'T');
    }
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn sigstop_to_the_command_alone_does_not_stop_the_tunnel() {
    let server = Server::start(Front::Redis);
    let script = ["perl", "-e", STOPPABLE];
    let mut launcher = Launcher::new(["sh", "-c", "echo \"$REDIS_URL\"; exec \"$@\"", "sh"]);
    launcher.command.args(script).process_group(0);
    let mut held = launcher.redis(&server.url()).start_held();
    assert_eq!(held.running.line(), "ready");
    let command = command_of(held.running.pid());
    // SIGCONT goes to COMMAND alone, and then to the launcher alone.
    for continued in [command, held.running.pid()] {
        send_signal(command, libc::SIGSTOP);
        wait_until("COMMAND stops", || state(command) == 'T');
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        assert_ne!(state(held.running.pid()), 'T');
        send_signal(continued, libc::SIGCONT);
        assert_eq!(held.running.line(), "continued");
    }
    held.running.say("on we go\n");
    assert_eq!(held.running.line(), "on we go");
    assert_eq!(held.finish().code(), 0);
}

#[test]
fn after_rapid_stops_and_continues_the_command_runs() {
    let mut running = job(&["perl", "-e", "$| = 1; print \"ready\\n\"; print while <STDIN>"]);
    for round in 0..200 {
        running.signal(libc::SIGTSTP);
        (0..round * 200).for_each(|_| std::hint::spin_loop());
        running.signal(libc::SIGCONT);
    }
    // Send SIGCONT again, because the kernel may lose a SIGCONT that arrives at the moment of a
    // stop.
    let command = command_of(running.pid());
    wait_until("both run", || {
        running.signal(libc::SIGCONT);
        state(running.pid()) != 'T' && state(command) != 'T'
    });
    running.say("on we go\n");
    assert_eq!(running.line(), "on we go");
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn the_launcher_reaps_children_of_the_shell_it_replaced() {
    // The shell starts sleep, and then executes the launcher. So sleep is a child of the launcher.
    let script =
        format!("sleep 0.05 & echo $!; exec {BINARY} sh -c 'echo ready; exec cat >/dev/null'");
    let mut running = Launcher::of("sh", ["-c", &script]).start();
    let orphan: i32 = running.line().parse().unwrap();
    assert_eq!(running.line(), "ready");
    wait_until_reaped(orphan);
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn as_pid_1_on_a_dyno_the_launcher_forwards_sigterm() {
    let script = "trap 'echo told; exit 4' TERM; echo ready; while :; do sleep 0.01; done";
    if let Some(launcher) = as_pid_1(script) {
        let mut running = launcher.env("DYNO", "web.1").start();
        assert_eq!(running.line(), "ready");
        let pid_1 = command_of(running.pid());
        send_signal(pid_1, libc::SIGTERM);
        let ended = running.finish();
        assert_eq!((ended.stdout.as_str(), ended.code()), ("told\n", 4));
    }
}

#[test]
fn as_pid_1_the_launcher_reaps_two_thousand_orphans() {
    // perl starts 2,000 processes whose parent ends at once. COMMAND waits until only pid 1 and
    // COMMAND itself are left.
    let script = "perl -e 'for (1 .. 2000) { if (!fork) { fork && exit; exit } wait }'; \
                  set -- /proc/[0-9]*; \
                  while [ $# -gt 2 ]; do sleep 0.01; set -- /proc/[0-9]*; done; echo clean; exit 4";
    if let Some(launcher) = as_pid_1(script) {
        let ended = launcher.run();
        assert_eq!((ended.stdout.as_str(), ended.code()), ("clean\n", 4), "{}", ended.stderr);
    }
}
