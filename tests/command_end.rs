//! Tests of the end of COMMAND and of the launcher (docs/command.md): exit codes, signals,
//! remaining processes, the drain.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use nix::libc;
use support::launcher::{BINARY, Launcher, Running, as_pid_1, logged, send_signal, with_mounted};
use support::proc::{children, command_of, is_alive, state, wait_until_reaped};
use support::resp::Reply;
use support::servers::{Front, Server};
use support::wait_until;

#[test]
fn the_launcher_exits_with_the_commands_exit_code() {
    for code in [0, 1, 2, 7, 78, 126, 127, 255] {
        assert_eq!(Launcher::script(&format!("exit {code}")).run().code(), code);
    }
}

#[test]
fn a_signal_that_kills_the_command_kills_the_launcher() {
    for number in [1, 2, 3, 6, 9, 11, 13, 15, 34, 64] {
        let ended = Launcher::new(["perl", "-e", &format!("kill {number}, $$; sleep 60")]).run();
        assert_eq!(ended.signal(), number);
        // The launcher writes the last log line before it dies.
        assert_eq!(logged(&ended.stderr, "command-ended", "signal"), [number.to_string()]);
    }
}

#[test]
fn the_launcher_dies_by_a_signal_without_a_core_dump() {
    let folder = tempfile::tempdir().unwrap();
    let script = "ulimit -Sc unlimited 2>/dev/null; exec \"$@\"";
    let die = "ulimit -c 0; kill -SEGV $$";
    let mut launcher = Launcher::of("sh", ["-c", script, "sh", BINARY, "sh", "-c", die]);
    launcher.command.current_dir(folder.path());
    let ended = launcher.run();
    assert_eq!((ended.signal(), ended.status.core_dumped()), (libc::SIGSEGV, false));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn launcher_unblocks_the_signal_that_killed_the_command() {
    // The launcher and COMMAND start with SIGHUP ignored and blocked. COMMAND removes both
    // settings, and then kills itself with SIGHUP.
    let scene = r#"
        use POSIX;
        $SIG{HUP} = 'IGNORE';
        POSIX::sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGHUP));
        exec @ARGV;
    "#;
    let die = r#"
        use POSIX;
        $SIG{HUP} = 'DEFAULT';
        POSIX::sigprocmask(SIG_UNBLOCK, POSIX::SigSet->new(SIGHUP));
        kill HUP => $$;
    "#;
    let ended = Launcher::of("perl", ["-e", scene, BINARY, "perl", "-e", die]).run();
    assert_eq!(ended.signal(), libc::SIGHUP);
}

#[test]
fn as_pid_1_the_launcher_exits_with_128_plus_the_signal() {
    for number in [libc::SIGTERM, libc::SIGKILL, 34] {
        // The launcher has exited. If a signal had killed the launcher, unshare(1) would die by the
        // same signal.
        if let Some(launcher) = as_pid_1(&format!("kill -{number} $$; sleep 60")) {
            assert_eq!(launcher.run().code(), 128 + number);
        }
    }
}

#[test]
fn sockets_are_removed_before_the_launcher_dies_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Launcher::script("kill -KILL $$")
        .redis("redis://h")
        .env("STUNNEL_LISTEN", "unix")
        .env("XDG_RUNTIME_DIR", folder.path())
        .run();
    assert_eq!(ended.signal(), libc::SIGKILL);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{}", ended.stderr);
}

#[test]
fn timeout_as_command_kills_the_children_of_its_job() {
    let script = "trap '' TERM; sleep 1000 & echo $!; sleep 1000";
    let words = ["timeout", "-s", "KILL", "1000", "sh", "-c", script];
    let mut running = Launcher::new(words).start();
    let child: i32 = running.line().parse().unwrap();
    // Wait until timeout(1) waits for its child, because an earlier SIGALRM could kill only
    // timeout(1) itself.
    let timeout = command_of(running.pid());
    wait_until("timeout(1) waits for its child", || state(timeout) == 'S');
    // SIGALRM is the signal that timeout(1) gets when its time limit has expired.
    running.signal(libc::SIGALRM);
    assert_eq!(running.finish().signal(), libc::SIGKILL);
    wait_until("the child is gone", || !is_alive(child));
}

#[test]
fn processes_left_in_the_commands_group_get_sigterm() {
    let mut running = Launcher::script("sleep 1000 & echo $!; exit 5").start();
    let remaining: i32 = running.line().parse().unwrap();
    assert_eq!(running.finish().code(), 5);
    wait_until("the remaining process is gone", || !is_alive(remaining));
}

#[test]
fn a_pipe_ends_with_the_command_despite_leftover_processes() {
    // COMMAND leaves a process behind, which ignores SIGTERM and has closed its standard streams.
    let script = "trap '' TERM; sleep 1000 >&- 2>&- <&- & echo $!; exit 0";
    let started = Instant::now();
    let ended = Launcher::script(script).run();
    let remaining: i32 = ended.stdout.trim().parse().unwrap();
    assert!(is_alive(remaining), "the process ignores SIGTERM");
    send_signal(remaining, libc::SIGKILL);
    assert!(started.elapsed() < support::PATIENCE);
}

#[test]
fn a_command_that_closes_its_output_ends_the_pipe() {
    let empty = tempfile::tempdir().unwrap();
    let words = ["sh", "-c", "echo last; exec >&-; read -r _; exit 3"];
    let without_devices = with_mounted(empty.path(), "/dev", words);
    for launcher in [Some(Launcher::new(words)), without_devices].into_iter().flatten() {
        let mut running = launcher.start();
        assert_eq!(running.line(), "last");
        assert_eq!(running.line(), "", "the pipe has ended");
        assert!(is_alive(command_of(running.pid())));
        assert_eq!(running.finish().code(), 3);
    }
}

#[test]
fn the_launcher_leaves_no_process_and_no_open_port() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    let (pid, port) = (held.running.pid(), held.port);
    let command = command_of(pid);
    assert_eq!(held.finish().code(), 0);
    assert!(!is_alive(pid) && !is_alive(command));
    let again = Launcher::holding(&server.url()).env("STUNNEL_LISTEN_PORT", port.to_string());
    assert_eq!(again.start_held().port, port, "the next launcher gets the same port");
}

#[test]
fn the_exit_code_is_known_even_if_sigchld_was_ignored() {
    let script = format!("$SIG{{CHLD}} = 'IGNORE'; exec '{BINARY}', 'sh', '-c', 'exit 8'");
    assert_eq!(Launcher::of("perl", ["-e", &script]).run().code(), 8);
}

#[test]
fn a_closed_pipeline_ends_the_command_with_sigpipe() {
    let script = format!("{BINARY} yes | head -n 1; echo ${{PIPESTATUS[@]}}");
    assert_eq!(Launcher::of("bash", ["-c", &script]).run().stdout, "y\n141 0\n");
}

#[test]
fn a_signal_at_the_commands_end_does_not_change_the_exit_code() {
    for round in 0..100 {
        let mut running = Launcher::script("echo ready; read -r _; exit 5").start();
        assert_eq!(running.line(), "ready");
        // COMMAND ends when its input ends. Each round waits a little longer before the signal.
        drop(running.stdin.take());
        (0..round * 500).for_each(|_| std::hint::spin_loop());
        running.signal(libc::SIGTERM);
        let ended = running.finish();
        let killed = ended.status.signal() == Some(libc::SIGTERM);
        assert!(killed || ended.code() == 5, "round {round}: {ended:?}");
    }
}

/// Starts a launcher. COMMAND is a bash script that starts a daemon. Then the script runs the shell
/// commands `end`. The daemon has its own session and keeps a connection open, so the launcher
/// drains for up to an hour after COMMAND's end. The daemon prints its pid. When its connection
/// ends, the daemon prints "closed" or "reset". `launcher` makes a launcher for the script.
fn start_with_daemon(server: &Server, end: &str, launcher: impl Fn(&str) -> Launcher) -> Running {
    let daemon = r#"
        open(my $redis, "+<&=3"); open(my $out, ">&=4"); syswrite(STDOUT, "$$\n"); close(STDOUT);
        my $read = sysread($redis, my $reply, 1);
        syswrite($out, defined($read) ? "closed\n" : "reset\n")
    "#;
    // COMMAND reads the daemon's pid, so COMMAND ends only after the daemon has its own session.
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/${{REDIS_URL##*:}} 4>&1; \
         printf 'PING\\r\\n' >&3; read -r reply <&3; \
         read -r daemon < <(exec setsid perl -e '{daemon}'); echo \"$daemon\"; {end}"
    );
    let url = format!("redis://127.0.0.1:{}", server.port);
    let launcher = launcher(&script).redis(&url).env("STUNNEL_DRAIN_TIMEOUT", "1h");
    launcher.start()
}

#[test]
fn a_signal_ends_the_drain_but_keeps_the_exit_status() {
    let server = Server::start(Front::Redis);
    let killed = "kill -USR1 $$; sleep 60";
    let others = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCONT, libc::SIGUSR1];
    // nohup(1) ignores SIGHUP, and a shell ignores SIGINT and SIGQUIT for a background job.
    let (ignoring, ignored) =
        ("trap '' HUP INT QUIT;", [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT]);
    // The signals `others` do not end the drain. On a dyno, SIGTERM is such a signal.
    for (dyno, scene, others, signal, end, code) in [
        ("", "", &others[..], libc::SIGTERM, "exit 6", Some(6)),
        ("", "", &others, libc::SIGINT, "exit 6", Some(6)),
        ("", "", &others, libc::SIGQUIT, killed, None),
        ("", "", &others, libc::SIGHUP, "exit 6", Some(6)),
        ("", ignoring, &ignored, libc::SIGTERM, "exit 6", Some(6)),
        ("web.1", "", &[libc::SIGTERM], libc::SIGINT, "exit 6", Some(6)),
    ] {
        let mut running = start_with_daemon(&server, end, |script| {
            let scene = format!("{scene} exec {BINARY} bash -c \"$1\"");
            Launcher::of("sh", ["-c", &scene, "sh", script]).env("DYNO", dyno)
        });
        let _daemon: i32 = running.line().parse().unwrap();
        let pid = running.pid();
        wait_until("COMMAND has ended", || children(pid).is_empty());
        for number in others.iter().chain([&signal]) {
            running.signal(*number);
        }
        assert_eq!(running.line(), "reset", "{signal}");
        let ended = running.finish();
        let by_signal = code.is_none().then_some(libc::SIGUSR1);
        assert_eq!((ended.status.code(), ended.status.signal()), (code, by_signal), "{ended:?}");
        let cut = logged(&ended.stderr, "drain-cut", "signal");
        assert_eq!(cut, [signal.to_string()], "{}", ended.stderr);
    }
}

#[test]
fn orphans_are_reaped_during_the_drain() {
    let server = Server::start(Front::Redis);
    let mut running = start_with_daemon(&server, "exit 6", |script| {
        // The shell starts sleep, and then executes the launcher. So sleep is a child of the
        // launcher, and still runs after COMMAND's end.
        let scene = format!("sleep 1000 >&- 2>&- & echo $!; exec {BINARY} bash -c \"$1\"");
        Launcher::of("sh", ["-c", &scene, "sh", script])
    });
    let orphan: i32 = running.line().parse().unwrap();
    let _daemon: i32 = running.line().parse().unwrap();
    let pid = running.pid();
    wait_until("the orphan is the launcher's only child", || children(pid) == [orphan]);
    send_signal(orphan, libc::SIGKILL);
    wait_until_reaped(orphan);
    assert!(is_alive(pid), "the launcher still drains");
    running.signal(libc::SIGTERM);
    assert_eq!(running.line(), "reset");
    assert_eq!(running.finish().code(), 6);
}

#[test]
fn the_tunnel_works_after_sigterm_until_the_commands_last_byte() {
    let server = Server::start(Front::Redis);
    let script = format!(
        "trap '' TERM; port=${{REDIS_URL##*:}}; exec 3<>/dev/tcp/127.0.0.1/${{port%%/*}}; \
         printf 'AUTH {}\\r\\nCLIENT REPLY OFF\\r\\n' >&3; read -r ok <&3; echo ready; read -r _; \
         redis-cli --no-auth-warning -u \"$REDIS_URL\" set new connection; \
         printf 'INCR n\\r\\n%.0s' $(seq 1000) >&3; exit 3",
        support::servers::PASSWORD
    );
    let mut running = Launcher::new(["bash", "-c", &script]).redis(&server.url()).start();
    assert_eq!(running.line(), "ready");
    for _ in 0..20 {
        running.signal(libc::SIGTERM);
    }
    // COMMAND has ignored SIGTERM. Now COMMAND opens a new connection through the tunnel, and then
    // uses its old connection again.
    running.say("go on\n");
    let ended = running.finish();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("OK\n", 3), "{}", ended.stderr);
    assert_eq!(server.direct().ask(&["GET", "n"]), Reply::bulk("1000"));
}

#[test]
fn a_daemon_that_the_command_started_survives() {
    // Signals to COMMAND's process group do not reach the daemon, because the daemon has its own
    // session.
    let script = "setsid sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1' & read -r _; exit 2";
    let mut running = Launcher::script(script).start();
    let daemon: i32 = running.line().parse().unwrap();
    drop(running.stdin.take());
    assert_eq!(running.process.wait().code(), Some(2));
    assert!(is_alive(daemon));
    send_signal(daemon, libc::SIGKILL);
}
