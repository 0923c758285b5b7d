//! COMMAND's life (docs/operation.md): signals, exit codes, what it inherits, what it leaves
//! behind.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use support::launcher::{BINARY, Launcher, Running, logged, send_signal};
use support::proc::{children, command_of, core_limit, is_alive, state};
use support::resp::Reply;
use support::servers::{Front, Server};
use support::{Process, eventually};

/// Says "ready", then names every signal that arrives, until SIGKILL or the end of standard input.
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

/// A launcher without tunnels whose COMMAND records signals.
fn recorder(launcher: Launcher) -> Running {
    let mut running = launcher.start();
    assert_eq!(running.line(), "ready");
    running
}

fn record_signals() -> Launcher {
    Launcher::new(["perl", "-e", RECORDER])
}

#[test]
fn the_exit_code_is_the_commands() {
    for code in [0, 1, 2, 7, 78, 126, 127, 255] {
        assert_eq!(Launcher::script(&format!("exit {code}")).run().code(), code);
    }
}

#[test]
fn a_command_killed_by_a_signal_gives_128_plus_its_number() {
    for number in [1, 2, 6, 9, 11, 13, 15, 34, 64] {
        let script = format!("kill -{number} $$");
        let ended = Launcher::new(["perl", "-e", &format!("kill {number}, $$; sleep 60")]).run();
        assert_eq!(ended.code(), 128 + number, "{script}");
        assert_eq!(logged(&ended.stderr, "command-ended", "signal"), [number.to_string()]);
    }
}

#[test]
fn a_command_that_cannot_be_run_gives_126_or_127() {
    let folder = tempfile::tempdir().unwrap();
    let not_executable = folder.path().join("not-executable");
    fs::write(&not_executable, "#!/bin/sh\n").unwrap();
    for enabled in ["true", "false"] {
        let run = |command: &str| Launcher::new([command]).env("STUNNEL_ENABLED", enabled).run();
        for (command, hint) in [
            ("no-such-command", "no such command"),
            ("/no/such/command", "no such command"),
            ("", "COMMAND is empty"),
        ] {
            let ended = run(command);
            assert_eq!(ended.code(), 127, "{command}");
            assert!(ended.stderr.contains(hint), "{}", ended.stderr);
        }
        assert_eq!(run(not_executable.to_str().unwrap()).code(), 126);
        assert_eq!(run("/").code(), 126);
    }
}

#[test]
fn every_signal_is_passed_on_exactly_once() {
    let mut running = recorder(record_signals());
    // What ends or stops a process by default comes as any other; 32 and 33 belong to the C
    // library.
    let numbers = (1..=64).filter(|n| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(n));
    for number in numbers {
        running.signal(number);
        assert_eq!(running.line(), number.to_string());
    }
    let ended = running.finish();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("", 0), "nothing came twice");
}

#[test]
fn a_burst_of_realtime_signals_arrives_complete() {
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
fn a_signal_that_comes_before_the_command_runs_is_not_lost() {
    for _ in 0..20 {
        let running = record_signals().start();
        running.signal(libc::SIGTERM);
        // Either the launcher had not taken over yet and is gone, or COMMAND got it.
        let ended = running.finish();
        let code = ended.status.code();
        assert!(code.is_none() || code == Some(143) || ended.stdout.contains("15\n"), "{ended:?}");
    }
}

#[test]
fn sigterm_is_left_to_the_dyno_manager_on_a_dyno() {
    let cases = [
        (Some("web.1"), "auto", false),
        (Some("web.1"), "always", true),
        (Some("web.1"), "never", false),
        (None, "auto", true),
        (None, "always", true),
        (None, "never", false),
        (Some(""), "auto", true),
    ];
    for (dyno, setting, passed_on) in cases {
        let mut launcher = record_signals().env("STUNNEL_FORWARD_SIGNALS", setting);
        if let Some(dyno) = dyno {
            launcher = launcher.env("DYNO", dyno);
        }
        let mut running = recorder(launcher);
        running.signal(libc::SIGTERM);
        if passed_on {
            assert_eq!(running.line(), "15", "{dyno:?} {setting}");
        }
        if setting != "never" {
            // Another signal gets through, behind the one that did not.
            running.signal(libc::SIGUSR1);
            assert_eq!(running.line(), "10", "{dyno:?} {setting}");
        }
        assert_eq!(running.finish().stdout, "", "{dyno:?} {setting}");
    }
}

#[test]
fn the_tunnel_outlives_sigterm_until_the_command_has_ended() {
    let server = Server::start(Front::Redis);
    let script = "trap 'redis-cli --no-auth-warning -u \"$REDIS_URL\" set last word; exit 3' TERM; \
                  echo ready; while :; do sleep 0.01; done";
    let mut running = Launcher::script(script).redis(&server.url()).start();
    assert_eq!(running.line(), "ready");
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("OK\n", 3), "{}", ended.stderr);
    assert_eq!(server.direct().ask(&["GET", "last"]), Reply::bulk("word"));
}

/// Says "ready", "continued" for each SIGCONT, and whatever it is told, until the end of standard
/// input.
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

/// A launcher in a process group of its own: as a job of ours, which is not orphaned.
fn job(words: &[&str]) -> Running {
    let mut launcher = Launcher::new(words);
    launcher.command.process_group(0);
    recorder(launcher)
}

/// A launcher that leads a session without a terminal, as services do: its process group is
/// orphaned.
fn service(words: &[&str]) -> Running {
    recorder(Launcher::of("setsid", [&[BINARY][..], words].concat()))
}

/// What its parent, which waits for that, next learns of a launcher: that it was stopped, or
/// continued.
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
fn without_a_terminal_a_stop_signal_stops_launcher_and_command_and_sigcont_continues_both_once() {
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
    assert_eq!((ended.stdout.as_str(), ended.code()), ("", 0), "nothing came twice");
}

#[test]
fn a_script_with_job_control_stops_it_and_brings_it_back() {
    let folder = tempfile::tempdir().unwrap();
    // COMMAND waits for a file: standard input is the script's, and two would compete for its
    // lines.
    let end = folder.path().join("end");
    let script = format!(
        "set -m; \
         {BINARY} sh -c 'echo ready; until [ -e \"$0\" ]; do sleep 0.01; done; exit 7' '{}' & \
         read -r _; kill -TSTP %1; \
         while ! jobs | grep -q Stopped; do sleep 0.01; done; echo stopped; fg; echo code=$?",
        end.display()
    );
    let mut running = recorder(Launcher::of("bash", ["-c", &script]));
    running.say("stop\n");
    assert_eq!(running.line(), "stopped");
    assert!(running.line().contains(BINARY), "what fg prints");
    fs::write(end, "").unwrap();
    assert_eq!(running.line(), "code=7");
}

#[test]
fn sigterm_to_a_stopped_launcher_takes_effect_with_sigcont() {
    let running = job(&["perl", "-e", STOPPABLE]);
    running.signal(libc::SIGTSTP);
    assert!(matches!(job_event(running.pid()), WaitStatus::Stopped(..)));
    running.signal(libc::SIGTERM);
    running.signal(libc::SIGCONT);
    assert_eq!(running.finish().code(), 143);
}

#[test]
fn a_command_that_handles_a_stop_signal_and_goes_on_is_not_stopped_nor_is_the_launcher() {
    let mut running = job(&["perl", "-e", RECORDER]);
    for signal in STOPS {
        running.signal(signal as i32);
        assert_eq!(running.line(), (signal as i32).to_string());
        // The launcher works on.
        running.signal(libc::SIGUSR1);
        assert_eq!(running.line(), "10");
        assert_ne!(state(running.pid()), 'T');
    }
    assert_eq!(running.finish().stdout, "");
}

#[test]
fn in_an_orphaned_process_group_a_stop_signal_freezes_nothing() {
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
fn a_command_that_is_stopped_alone_keeps_its_tunnel_until_somebody_continues_it() {
    let server = Server::start(Front::Redis);
    let script = ["perl", "-e", STOPPABLE];
    let mut launcher = Launcher::new(["sh", "-c", "echo \"$REDIS_URL\"; exec \"$@\"", "sh"]);
    launcher.command.args(script).process_group(0);
    let mut held = launcher.redis(&server.url()).start_held();
    assert_eq!(held.running.line(), "ready");
    let command = command_of(held.running.pid());
    // Whoever continues it may not know that there is a launcher.
    for continued in [command, held.running.pid()] {
        send_signal(command, libc::SIGSTOP);
        eventually("COMMAND stops", || (state(command) == 'T').then_some(()));
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
fn stop_and_continue_without_a_pause_leave_it_running() {
    let mut running = job(&["perl", "-e", "$| = 1; print \"ready\\n\"; print while <STDIN>"]);
    for round in 0..200 {
        running.signal(libc::SIGTSTP);
        (0..round * 200).for_each(|_| std::hint::spin_loop());
        running.signal(libc::SIGCONT);
    }
    // A stop that begins in the very moment of a SIGCONT discards it, in any process; the next one
    // counts.
    let command = command_of(running.pid());
    eventually("both run", || {
        running.signal(libc::SIGCONT);
        (state(running.pid()) != 'T' && state(command) != 'T').then_some(())
    });
    running.say("on we go\n");
    assert_eq!(running.line(), "on we go");
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn a_killed_launcher_takes_its_command_along() {
    let mut running =
        Launcher::script("trap 'echo told; exit' TERM; echo ready; while :; do sleep 0.01; done")
            .start();
    assert_eq!(running.line(), "ready");
    let command = command_of(running.pid());
    running.signal(libc::SIGKILL);
    assert_eq!(running.line(), "told");
    eventually("COMMAND ends", || (!is_alive(command)).then_some(()));
}

#[test]
fn what_is_left_of_the_commands_process_group_gets_sigterm() {
    let mut running = Launcher::script("sleep 1000 & echo $!; exit 5").start();
    let leftover: i32 = running.line().parse().unwrap();
    assert_eq!(running.finish().code(), 5);
    eventually("the leftover is gone", || (!is_alive(leftover)).then_some(()));
}

#[test]
fn output_captured_by_a_pipe_returns_when_the_command_ends() {
    // A leftover that ignores SIGTERM and has closed its streams keeps nothing open.
    let script = "trap '' TERM; sleep 1000 >&- 2>&- <&- & echo $!; exit 0";
    let started = Instant::now();
    let ended = Launcher::script(script).run();
    let leftover: i32 = ended.stdout.trim().parse().unwrap();
    assert!(is_alive(leftover), "it ignores SIGTERM");
    send_signal(leftover, libc::SIGKILL);
    assert!(started.elapsed() < support::PATIENCE);
}

#[test]
fn a_command_that_closes_its_output_ends_the_pipe() {
    let mut running = Launcher::script("echo last; exec >&-; exec cat >/dev/null").start();
    let mut all = String::new();
    running.stdout.as_mut().unwrap().read_to_string(&mut all).unwrap();
    assert_eq!(all, "last\n", "the pipe ended while COMMAND still ran");
    assert!(is_alive(command_of(running.pid())));
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn orphans_behind_a_shells_exec_are_reaped() {
    // The shell's child becomes the launcher's.
    let script =
        format!("sleep 0.05 & echo $!; exec {BINARY} sh -c 'echo ready; exec cat >/dev/null'");
    let mut running = Launcher::of("sh", ["-c", &script]).start();
    let orphan: i32 = running.line().parse().unwrap();
    assert_eq!(running.line(), "ready");
    eventually("no zombie is left", || {
        (!fs::exists(format!("/proc/{orphan}")).unwrap()).then_some(())
    });
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn nothing_of_the_launcher_stays_when_it_ends() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    let (pid, port) = (held.running.pid(), held.port);
    let command = command_of(pid);
    assert_eq!(held.finish().code(), 0);
    assert!(!is_alive(pid) && !is_alive(command));
    let again = Launcher::holding(&server.url()).env("STUNNEL_LISTEN_PORT", port.to_string());
    assert_eq!(again.start_held().port, port, "the port is free at once");
}

/// Signal mask and ignored signals, limits and descriptors, as a process sees them.
const WHAT_IT_FOUND: &str = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ulimit -a; ulimit -Ha; \
                             for fd in /proc/self/fd/*; do \
                             n=${fd##*/}; [ \"$n\" -le 20 ] && echo \"$n\"; done; true";

#[test]
fn the_command_finds_mask_dispositions_limits_and_descriptors_as_the_launcher_did() {
    let server = Server::start(Front::Redis);
    // perl sets the scene, since a shell cannot block signals: blocked USR1 and TERM, ignored PIPE,
    // HUP and CHLD, a low soft limit, and descriptor 9.
    let scene = r#"
        use POSIX;
        POSIX::sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, SIGTERM));
        $SIG{$_} = 'IGNORE' for qw(PIPE HUP CHLD);
        POSIX::dup2(1, 9);
        exec 'sh', '-c', 'ulimit -Sn 100; exec "$@"', 'sh', @ARGV;
    "#;
    let run = |words: &[&str], enabled: &str| {
        let words = [&["-e", scene], words].concat();
        Launcher::of("perl", words)
            .redis(&server.url())
            .env("STUNNEL_ENABLED", enabled)
            .run()
            .stdout
    };
    let bare = run(&["sh", "-c", WHAT_IT_FOUND], "true");
    assert!(bare.contains("100") && bare.contains("\n9\n"), "{bare}");
    for enabled in ["true", "false"] {
        assert_eq!(run(&[BINARY, "sh", "-c", WHAT_IT_FOUND], enabled), bare, "enabled: {enabled}");
    }
}

#[test]
fn closed_standard_streams_stay_closed_for_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let result = folder.path().join("result");
    for enabled in ["true", "false"] {
        let script = format!(
            "exec {BINARY} sh -c \
             'for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && echo $n; done >{}; true' <&- >&- 2>&-",
            result.display()
        );
        let ended = Launcher::of("sh", ["-c", &script]).env("STUNNEL_ENABLED", enabled).run();
        assert_eq!(ended.code(), 0);
        // The redirection of the loop's own output is on descriptor 1.
        assert_eq!(fs::read_to_string(&result).unwrap(), "1\n", "enabled: {enabled}");
    }
}

#[test]
fn disabled_it_becomes_the_command_and_touches_nothing() {
    for value in ["0", "false", "No", "OFF"] {
        let launcher = Launcher::script("echo $$; env; exit 6")
            .env("STUNNEL_ENABLED", value)
            .env("REDIS_URL", "not even a URL")
            .env("STUNNEL_VERIFY", "bogus");
        let running = launcher.start();
        let pid = running.pid();
        let ended = running.finish();
        assert_eq!(ended.code(), 6);
        assert!(ended.stdout.starts_with(&format!("{pid}\n")), "the same pid: {}", ended.stdout);
        assert!(ended.stdout.contains("REDIS_URL=not even a URL\n"));
        assert!(!ended.stdout.contains("REDIS_URL_STUNNEL"));
        assert_eq!(ended.stderr, "");
    }
    let by_option = Launcher::new(["--enabled=off", "--verify=bogus", "sh", "-c", "echo $$"]).run();
    assert_eq!((by_option.code(), by_option.stderr.as_str()), (0, ""));
}

#[test]
fn without_a_terminal_the_command_has_a_process_group_of_its_own() {
    let script = "set -- $(cat /proc/$$/stat); echo $1 $5";
    let ended = Launcher::script(script).run();
    let (pid, group) = ended.stdout.trim().split_once(' ').unwrap();
    assert_eq!(pid, group);
}

#[test]
fn a_command_without_any_redis_url_runs_with_a_warning() {
    let ended = Launcher::script("echo fine").run();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("fine\n", 0));
    assert!(
        ended.stderr.contains("level=warning logger=start-stunnel at=no-redis-url"),
        "{}",
        ended.stderr
    );
}

/// As pid 1 of a pid namespace of its own; `None`, said aloud, where that is not allowed.
fn as_pid_1(script: &str) -> Option<Launcher> {
    let words = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let allowed = Command::new("unshare").args(words).arg("true").stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        support::skip("unshare may not make a pid namespace here");
        return None;
    }
    Some(Launcher::of("unshare", words.iter().copied().chain([BINARY, "sh", "-c", script])))
}

#[test]
fn as_pid_1_it_reaps_orphans_and_keeps_the_exit_code() {
    // The orphan's zombie would stay in /proc, and the script in its loop.
    let script = "orphan=$(sh -c 'sleep 0.05 >&- & echo $!'); \
                  while [ -e /proc/$orphan ]; do sleep 0.01; done; \
                  cat /proc/1/comm; exit 9";
    if let Some(launcher) = as_pid_1(script) {
        let ended = launcher.run();
        assert_eq!(ended.code(), 9, "{ended:?}");
        assert_eq!(ended.stdout, "start-stunnel\n");
    }
}

#[test]
fn as_pid_1_on_a_dyno_it_passes_sigterm_on() {
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
fn a_launcher_found_with_sigchld_ignored_still_learns_the_exit_code() {
    let script = format!("$SIG{{CHLD}} = 'IGNORE'; exec '{BINARY}', 'sh', '-c', 'exit 8'");
    assert_eq!(Launcher::of("perl", ["-e", &script]).run().code(), 8);
}

#[test]
fn every_thread_of_the_launcher_leaves_signals_to_the_one_that_waits_for_them() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    for task in fs::read_dir(format!("/proc/{}/task", held.running.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        let blocked = u64::from_str_radix(blocked, 16).unwrap();
        for signal in [Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGINT, Signal::SIGCONT] {
            assert_ne!(blocked & (1 << (signal as i32 - 1)), 0, "{signal} in\n{status}");
        }
    }
}

#[test]
fn twenty_launchers_end_cleanly_when_their_commands_end_at_once() {
    let server = Server::start(Front::Redis);
    let start = |n: i32| {
        let script = format!("redis-cli --no-auth-warning -u \"$REDIS_URL\" ping; exit {n}");
        Launcher::script(&script).redis(&server.url()).start()
    };
    let running: Vec<_> = (0..20).map(start).collect();
    for (n, running) in running.into_iter().enumerate() {
        let ended = running.finish();
        assert_eq!((ended.stdout.as_str(), ended.code()), ("PONG\n", n as i32), "{}", ended.stderr);
    }
}

#[test]
fn a_pipeline_that_reads_no_more_ends_the_command_with_sigpipe() {
    let script = format!("{BINARY} yes | head -n 1; echo ${{PIPESTATUS[@]}}");
    assert_eq!(Launcher::of("bash", ["-c", &script]).run().stdout, "y\n141 0\n");
}

#[test]
fn five_hundred_sigterms_do_no_more_than_one() {
    let script =
        "trap 'done=1' TERM; echo ready; while [ -z \"$done\" ]; do sleep 0.01; done; exit 9";
    let mut running = Launcher::script(script).start();
    assert_eq!(running.line(), "ready");
    for _ in 0..500 {
        running.signal(libc::SIGTERM);
    }
    assert_eq!(running.finish().code(), 9);
}

#[test]
fn a_session_without_a_terminal_is_no_obstacle() {
    let mut command = Command::new(BINARY);
    command
        .args(["sh", "-c", "exit 3"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid(2) is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
    assert_eq!(Process(command.spawn().unwrap()).wait().code(), Some(3));
}

#[test]
fn a_command_that_ends_while_a_signal_arrives_gives_its_own_code_or_the_signals() {
    for round in 0..100 {
        let mut running = Launcher::script("echo ready; read -r _; exit 5").start();
        assert_eq!(running.line(), "ready");
        // The end of its input, and a signal, which comes a little later in each round.
        drop(running.stdin.take());
        (0..round * 500).for_each(|_| std::hint::spin_loop());
        running.signal(libc::SIGTERM);
        let code = running.finish().code();
        assert!([5, 128 + libc::SIGTERM].contains(&code), "round {round}: {code}");
    }
}

/// A launcher whose COMMAND has ended with code 6 and that drains, for longer than any test lasts:
/// a daemon of a session of its own keeps a connection open, and says how that ends.
fn draining(server: &Server, launcher: fn(&str) -> Launcher) -> Running {
    let daemon = r#"
        open(my $redis, "+<&=3"); open(my $out, ">&=4"); syswrite(STDOUT, "$$\n"); close(STDOUT);
        my $read = sysread($redis, my $reply, 1);
        syswrite($out, defined($read) ? "closed\n" : "reset\n")
    "#;
    // COMMAND ends once the daemon has left its session.
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/${{REDIS_URL##*:}} 4>&1; \
         printf 'PING\\r\\n' >&3; read -r reply <&3; \
         read -r daemon < <(exec setsid perl -e '{daemon}'); echo \"$daemon\"; exit 6"
    );
    let url = format!("redis://127.0.0.1:{}", server.port);
    let launcher = launcher(&script).redis(&url).env("STUNNEL_DRAIN_TIMEOUT", "1h");
    launcher.start()
}

/// Waits until the launcher has no child left.
fn command_has_ended(pid: i32) {
    eventually("COMMAND has ended", || children(pid).is_empty().then_some(()));
}

#[test]
fn a_signal_cuts_the_drain_short() {
    let server = Server::start(Front::Redis);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        let mut running = draining(&server, |script| Launcher::new(["bash", "-c", script]));
        let _daemon: i32 = running.line().parse().unwrap();
        command_has_ended(running.pid());
        // None of these does: a shell's Ctrl-Z finds nothing to stop, and the rest is not meant for
        // us.
        for other in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCONT, libc::SIGUSR1] {
            running.signal(other);
        }
        running.signal(signal);
        assert_eq!(running.line(), "reset", "{signal}");
        let ended = running.finish();
        assert_eq!(ended.code(), 6, "{}", ended.stderr);
        let cut = logged(&ended.stderr, "drain-cut", "signal");
        assert_eq!(cut, [signal.to_string()], "{}", ended.stderr);
    }
}

#[test]
fn on_a_dyno_the_managers_sigterm_does_not_cut_the_drain() {
    let server = Server::start(Front::Redis);
    let mut running = draining(&server, |script| {
        Launcher::new(["bash", "-c", script]).env("DYNO", "web.1").env("STUNNEL_LOGLEVEL", "debug")
    });
    let _daemon: i32 = running.line().parse().unwrap();
    command_has_ended(running.pid());
    for signal in [libc::SIGTERM, libc::SIGINT] {
        running.signal(signal);
    }
    let ended = running.finish();
    assert_eq!(ended.code(), 6);
    assert_eq!(logged(&ended.stderr, "drain-cut", "signal"), ["2"], "{}", ended.stderr);
}

#[test]
fn orphans_are_reaped_while_it_drains() {
    let server = Server::start(Front::Redis);
    let mut running = draining(&server, |script| {
        // The shell's child becomes the launcher's, and outlives COMMAND.
        let scene = format!("sleep 1000 >&- 2>&- & echo $!; exec {BINARY} bash -c \"$1\"");
        Launcher::of("sh", ["-c", &scene, "sh", script])
    });
    let orphan: i32 = running.line().parse().unwrap();
    let _daemon: i32 = running.line().parse().unwrap();
    let pid = running.pid();
    eventually("the orphan is all that is left", || (children(pid) == [orphan]).then_some(()));
    send_signal(orphan, libc::SIGKILL);
    eventually("no zombie is left", || {
        (!fs::exists(format!("/proc/{orphan}")).unwrap()).then_some(())
    });
    assert!(is_alive(pid), "it drains still");
    running.signal(libc::SIGTERM);
    assert_eq!(running.line(), "reset");
    assert_eq!(running.finish().code(), 6);
}

#[test]
fn as_pid_1_it_survives_a_storm_of_short_lived_orphans() {
    // Each of the 2,000 is orphaned at once, and most end before the next is born.
    let script = "perl -e 'for (1 .. 2000) { if (!fork) { fork && exit; exit } wait }'; \
                  set -- /proc/[0-9]*; \
                  while [ $# -gt 2 ]; do sleep 0.01; set -- /proc/[0-9]*; done; echo clean; exit 4";
    if let Some(launcher) = as_pid_1(script) {
        let ended = launcher.run();
        assert_eq!((ended.stdout.as_str(), ended.code()), ("clean\n", 4), "{}", ended.stderr);
    }
}

#[test]
fn a_command_that_ignores_sigterm_is_waited_for_and_its_last_bytes_arrive() {
    let server = Server::start(Front::Redis);
    let script = format!(
        "trap '' TERM; port=${{REDIS_URL##*:}}; exec 3<>/dev/tcp/127.0.0.1/${{port%%/*}}; \
         printf 'AUTH {}\\r\\nCLIENT REPLY OFF\\r\\n' >&3; read -r ok <&3; echo ready; read -r _; \
         printf 'INCR n\\r\\n%.0s' $(seq 1000) >&3; exit 3",
        support::servers::PASSWORD
    );
    let mut running = Launcher::new(["bash", "-c", &script]).redis(&server.url()).start();
    assert_eq!(running.line(), "ready");
    for _ in 0..20 {
        running.signal(libc::SIGTERM);
    }
    // It is still there, and so is the tunnel.
    running.say("go on\n");
    assert_eq!(running.finish().code(), 3);
    assert_eq!(server.direct().ask(&["GET", "n"]), Reply::bulk("1000"));
}

#[test]
fn a_command_that_closes_every_descriptor_is_supervised_all_the_same() {
    let script = "import os, time, signal\n\
                  signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n\
                  print('ready', flush=True)\n\
                  os.closerange(0, 4096)\n\
                  while True: time.sleep(1)";
    let mut running = Launcher::new(["/usr/bin/python3", "-c", script]).start();
    assert_eq!(running.line(), "ready");
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().code(), 7);
}

#[test]
fn a_command_that_becomes_another_user_still_gets_signals_and_the_tunnel() {
    if !nix::unistd::Uid::effective().is_root() {
        support::skip("only root can become another user");
        return;
    }
    let server = Server::start(Front::Redis);
    let inner = "redis-cli --no-auth-warning -u \"$REDIS_URL\" ping; id -u; \
                 trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done";
    let user =
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", inner];
    let mut running = Launcher::new(user).redis(&server.url()).start();
    let lines: Vec<String> = (0..3).map(|_| running.line()).collect();
    assert_eq!(lines, ["PONG", "65534", "ready"]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().code(), 8);
}

#[test]
fn a_command_that_daemonizes_ends_the_launcher_and_its_daemon_lives_on() {
    // A daemon has a session of its own: nobody's process group reaches it, as without the
    // launcher.
    let script = "setsid sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1' & read -r _; exit 2";
    let mut running = Launcher::script(script).start();
    let daemon: i32 = running.line().parse().unwrap();
    drop(running.stdin.take());
    assert_eq!(running.process.wait().code(), Some(2));
    assert!(is_alive(daemon));
    send_signal(daemon, libc::SIGKILL);
}

#[test]
fn the_launcher_dumps_no_core_and_the_command_may() {
    let script =
        "ulimit -Sc 4096 2>/dev/null || ulimit -Sc 0; exec \"$0\" sh -c 'ulimit -c; read -r _'";
    let mut running = Launcher::of("sh", ["-c", script, BINARY]).start();
    let commands = running.line();
    let own = core_limit(running.pid());
    assert!(["0", "1"].contains(&own.as_str()), "{own}");
    assert_eq!(commands, if own == "1" { "4096" } else { "0" });
    assert_eq!(running.finish().code(), 1);
}

#[test]
fn every_descriptor_of_the_launchers_is_closed_on_exec() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let client = held.client();
    let pid = held.running.pid();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let entry = entry.unwrap();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let info = fs::read_to_string(entry.path()).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        let what = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        // What the test itself left open for the launcher is the launcher's to pass on.
        let inherited = fs::read_link(format!("/proc/{}/fd/{number}", command_of(pid))).ok();
        if number > 2 && inherited.as_ref() != Some(&what) {
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{number}: {what:?}");
        }
    }
    drop(client);
}
