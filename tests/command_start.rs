//! Tests of COMMAND's start (docs/command.md): what COMMAND inherits, and exit codes and messages
//! if COMMAND cannot be executed.

mod support;

use std::ffi::CString;
use std::fs;
use std::os::unix::process::CommandExt;

use support::launcher::{BINARY, Launcher, logged, with_mounted};
use support::proc::is_alive;
use support::servers::{Front, Server};
use support::write_executable;
use tempfile::TempDir;

/// Makes an executable file in `folder`.
fn executable(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let file = folder.path().join(name);
    write_executable(&file, content);
    file.to_str().unwrap().to_owned()
}

/// The bytes of /bin/true, changed so that the program names a dynamic loader that does not exist.
fn without_loader() -> Vec<u8> {
    let mut program = fs::read("/bin/true").unwrap();
    let place = program.windows(4).position(|bytes| bytes == b"/ld-").unwrap();
    program[place..place + 4].copy_from_slice(b"/no-");
    program
}

/// Each case has a command and some words. Asserts that the launcher exits with `exit_code` for
/// this command, and logs a hint that contains these words. Tests an enabled and a disabled
/// launcher.
fn none_is_executed<S: AsRef<str>>(cases: &[(S, &str)], exit_code: i32) {
    for enabled in ["true", "false"] {
        for (command, words) in cases {
            let launcher = Launcher::new([command.as_ref()]).env("STUNNEL_ENABLED", enabled);
            let ended = launcher.run();
            assert_eq!(ended.code(), exit_code, "{}", ended.stderr);
            let hints = logged(&ended.stderr, "command-failed", "hint");
            assert!(hints.len() == 1 && hints[0].contains(words), "{}", ended.stderr);
        }
    }
}

#[test]
fn launcher_exits_with_127_if_the_command_is_missing() {
    let cases = [
        ("no-such-command", "no such command"),
        ("/no/such/command", "no such command"),
        ("", "COMMAND is empty"),
        ("help", "did you mean start-stunnel --help?"),
        ("version", "did you mean start-stunnel --version?"),
        ("status", "did you mean start-stunnel --status?"),
    ];
    none_is_executed(&cases, 127);
}

#[test]
fn launcher_exits_with_127_and_names_a_missing_interpreter() {
    let folder = tempfile::tempdir().unwrap();
    let inner = executable(&folder, "inner", "#!/no/such/interpreter\n");
    let cases = [
        (executable(&folder, "script", "#! /no/such/interpreter -x\n"), "/no/such/interpreter"),
        (executable(&folder, "outer", format!("#!{inner}\n")), "/no/such/interpreter"),
        (executable(&folder, "windows", "#!/bin/sh\r\necho\r\n"), "dos2unix"),
        (executable(&folder, "elf", without_loader()), "/no-"),
    ];
    none_is_executed(&cases, 127);
}

#[test]
fn launcher_exits_with_126_if_the_command_is_not_executable() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain").to_str().unwrap().to_owned();
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Machine 22 in an ELF header is IBM's s390x, on which these tests never run.
    let mut foreign = fs::read("/bin/true").unwrap();
    foreign[18..20].copy_from_slice(&22u16.to_ne_bytes());
    let cases = [
        (executable(&folder, "foreign", foreign), "built for s390x"),
        (executable(&folder, "mac", b"\xcf\xfa\xed\xfe\x07\0\0\x01"), "built for macOS"),
        (executable(&folder, "data", b"a\0b"), "neither a script nor a program"),
        (executable(&folder, "script", format!("#!{plain}\n")), "chmod +x"),
        (plain, "chmod +x"),
        ("/".to_owned(), "is a directory"),
        (pipe.to_str().unwrap().to_owned(), "is not a regular file"),
    ];
    none_is_executed(&cases, 126);
}

#[test]
fn a_command_is_looked_up_in_path_like_a_shell_does() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["first", "second"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let path = format!("{0}/first:{0}/second:/usr/bin:/bin", folder.path().display());
    let in_first = folder.path().join("first/my-script");
    fs::write(&in_first, "exit 1").unwrap();
    let run = |enabled: &str| {
        let launcher = Launcher::new(["my-script", "x"]).env("PATH", &path);
        launcher.env("STUNNEL_ENABLED", enabled).run()
    };
    let ended = run("true");
    assert_eq!(ended.code(), 126);
    assert!(ended.stderr.contains(in_first.to_str().unwrap()), "{}", ended.stderr);
    // The script in the second folder is executable, but needs a shell, because the script has no
    // `#!` line.
    let in_second = executable(&folder, "second/my-script", "echo \"$0 $1\"; exit 6");
    for enabled in ["true", "false"] {
        let ended = run(enabled);
        assert_eq!((ended.code(), ended.stdout), (6, format!("{in_second} x\n")));
    }
}

/// Runs the launcher with these entries as its whole environment. Returns the entries of COMMAND's
/// environment.
fn environment_of_command(entries: &[&str]) -> Vec<String> {
    let c_strings = |words: &[&str]| -> Vec<CString> {
        words.iter().map(|word| CString::new(*word).unwrap()).collect()
    };
    let words = c_strings(&[BINARY, "cat", "/proc/self/environ"]);
    let environment = c_strings(entries);
    let mut launcher = Launcher::new([""; 0]);
    // SAFETY: the closure only calls execve(2), with strings that already exist.
    unsafe {
        launcher.command.pre_exec(move || {
            let error = nix::unistd::execve(&words[0], &words, &environment).unwrap_err();
            Err(error.into())
        });
    }
    let ended = launcher.run();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    ended.stdout.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn command_gets_the_first_entry_of_each_variable_in_order() {
    let (first, second) = ("REDIS_URL=redis://h:6379/1", "REDIS_URL=redis://h:6379/2");
    let found = ["Z=1", "odd", first, "A=1", "A=2", second, "=x", "PATH=/usr/bin:/bin"];
    // A disabled launcher changes nothing. Like getenv(3), it reads the first of several entries.
    let off = [&found[..], &["STUNNEL_ENABLED=off", "STUNNEL_ENABLED=on"]].concat();
    assert_eq!(environment_of_command(&off), off);

    let settings = ["STUNNEL_LISTEN_PORT=0", "STUNNEL_LISTEN_PORT=bogus"];
    let command = environment_of_command(&[&found[..], &settings].concat());
    let local = command[2].strip_prefix("REDIS_URL=redis://127.0.0.1:").unwrap();
    assert!(local.ends_with("/1"), "{local}");
    let (url, copy) = (&command[2], format!("REDIS_URL_STUNNEL=redis://127.0.0.1:{local}"));
    let expected = ["Z=1", "odd", url, "A=1", "=x", "PATH=/usr/bin:/bin", settings[0], &copy];
    assert_eq!(command, expected);
    // A shell reads the last entry, so a second URL would be used without a tunnel.
    let plain = ["REDIS_URL=", second, "HEROKU_REDIS_A_URL=none", "HEROKU_REDIS_A_URL=redis://h"];
    assert_eq!(environment_of_command(&plain), [plain[0], plain[2]]);
}

#[test]
fn systemds_variables_hold_the_commands_pid() {
    let print = "echo $$ $LISTEN_PID $WATCHDOG_PID ${LISTEN_PIDFDID-none}";
    let run = |assignments: &str| {
        let script = format!("exec env {assignments} LISTEN_PIDFDID=5 {BINARY} sh -c '{print}'");
        let printed = Launcher::of("sh", ["-c", &script]).run().stdout;
        let words: Vec<String> = printed.split_whitespace().map(str::to_owned).collect();
        <[String; 4]>::try_from(words).unwrap()
    };
    let [pid, listen, watchdog, pidfd] = run("LISTEN_PID=$$ WATCHDOG_PID=$$");
    assert_eq!([&*listen, &*watchdog, &*pidfd], [&*pid, &*pid, "none"]);
    // If a variable contains the pid of another process, the launcher does not change this
    // variable.
    let [_, listen, watchdog, pidfd] = run("LISTEN_PID=1 WATCHDOG_PID=1");
    assert_eq!([&*listen, &*watchdog, &*pidfd], ["1", "1", "5"]);
    // A disabled launcher becomes COMMAND with the same pid, so all variables stay.
    let [pid, listen, _, pidfd] = run("LISTEN_PID=$$ WATCHDOG_PID=1 STUNNEL_ENABLED=no");
    assert_eq!([&*listen, &*pidfd], [&*pid, "5"]);
}

/// A shell script that prints its own signal mask, ignored signals, limits and descriptors.
const PRINT_STATE: &str = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ulimit -a; ulimit -Ha; \
                             for fd in /proc/self/fd/*; do \
                             n=${fd##*/}; [ \"$n\" -le 20 ] && echo \"$n\"; done; true";

#[test]
fn the_launcher_keeps_locked_files_but_no_pipe_open() {
    let lock = "import fcntl, os, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, 6)\n\
                os.set_inheritable(file.fileno(), True); os.execvp(sys.argv[2], sys.argv[2:])";
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    let script = r#"exec 9>&1 >/dev/null; exec "$0" sh -c 'exec 9>&-; exec cat >/dev/null'"#;
    let words = ["-c", lock, file, "sh", "-c", script, BINARY];
    let mut running = Launcher::of("python3", words).start();
    assert_eq!(running.line(), "", "COMMAND has closed the pipe, and the launcher keeps no copy");
    assert!(is_alive(running.pid()));
    // A process loses its lock when it closes any descriptor of the file (fcntl(2)).
    let second = Launcher::of("python3", ["-c", lock, file, "true"]).run();
    assert!(second.stderr.contains("BlockingIOError"), "{}", second.stderr);
    assert_eq!(running.finish().code(), 0);
}

#[test]
fn the_command_inherits_signal_masks_limits_and_descriptors() {
    let server = Server::start(Front::Redis);
    // perl blocks two signals, ignores three signals and opens descriptor 9. sh then lowers a
    // limit, and executes the launcher. A shell alone cannot block signals.
    let scene = r#"
        use POSIX;
        POSIX::sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, SIGTERM));
        $SIG{$_} = 'IGNORE' for qw(PIPE HUP CHLD);
        POSIX::dup2(1, 9);
        exec 'sh', '-c', 'ulimit -Sn 100; ulimit -Sc unlimited 2>/dev/null; exec "$@"', 'sh', @ARGV;
    "#;
    let run = |words: &[&str], enabled: &str| {
        let words = [&["-e", scene], words].concat();
        Launcher::of("perl", words)
            .redis(&server.url())
            .env("STUNNEL_ENABLED", enabled)
            .run()
            .stdout
    };
    let bare = run(&["sh", "-c", PRINT_STATE], "true");
    assert!(bare.contains("100") && bare.contains("\n9\n"), "{bare}");
    for enabled in ["true", "false"] {
        assert_eq!(run(&[BINARY, "sh", "-c", PRINT_STATE], enabled), bare, "enabled: {enabled}");
    }
}

#[test]
fn closed_standard_streams_stay_closed_for_the_command() {
    let (folder, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let result = folder.path().join("result");
    for enabled in ["true", "false"] {
        let script = format!(
            "STUNNEL_ENABLED={enabled} exec {BINARY} sh -c \
             'for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && echo $n; done >{}; true' <&- >&- 2>&-",
            result.display()
        );
        let shell = ["--enabled=no", "sh", "-c", &script];
        let without_devices = with_mounted(empty.path(), "/dev", shell);
        for launcher in [Some(Launcher::new(shell)), without_devices].into_iter().flatten() {
            assert_eq!(launcher.run().code(), 0);
            // Only descriptor 1 exists, because the script writes its output to a file.
            assert_eq!(fs::read_to_string(&result).unwrap(), "1\n", "enabled: {enabled}");
            fs::remove_file(&result).unwrap();
        }
    }
}

#[test]
fn a_disabled_launcher_becomes_the_command() {
    for value in ["0", "false", "No", "OFF"] {
        let launcher = Launcher::script("echo $$; env; exit 6")
            .env("STUNNEL_ENABLED", value)
            .env("REDIS_URL", "not even a URL")
            .env("STUNNEL_VERIFY", "bogus");
        let running = launcher.start();
        let pid = running.pid();
        let ended = running.finish();
        assert_eq!(ended.code(), 6);
        assert!(
            ended.stdout.starts_with(&format!("{pid}\n")),
            "COMMAND has another pid than the launcher: {}",
            ended.stdout
        );
        assert!(ended.stdout.contains("REDIS_URL=not even a URL\n"));
        assert!(!ended.stdout.contains("REDIS_URL_STUNNEL"));
        assert_eq!(ended.stderr, "");
    }
    let by_option = Launcher::new(["--enabled=off", "--verify=bogus", "sh", "-c", "echo $$"]).run();
    assert_eq!((by_option.code(), by_option.stderr.as_str()), (0, ""));
}
