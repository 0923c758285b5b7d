//! Tests of COMMAND on a terminal (docs/command.md): keys, job control, resizes, hang-ups,
//! pipelines.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::{Pid, getpgid};
use support::launcher::{BINARY, as_pid_1, send_signal};
use support::proc::{cpu_ticks, is_alive};
use support::pty::{CTRL_Z, Terminal};
use support::servers::{Front, Server};
use support::{eventually, wait_until};

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_BACKSLASH: &str = "\x1c";

/// A command line whose COMMAND prints how often it has received `signal`, and exits with 5 when
/// the user presses Enter.
fn counter(signal: &str) -> String {
    format!(
        "{BINARY} perl -MPOSIX -e '$| = 1; sigaction(SIG{signal}, POSIX::SigAction->new(\
         sub {{ print \"got \", ++$n, \"!\\n\" }})); print \"rea\", \"dy\\n\"; \
         while (!defined($l = <STDIN>)) {{}} print \"total \", $n + 0, \".\\n\"; exit 5'"
    )
}

/// Starts a program, which may be the launcher, as the session leader of a new terminal.
fn leader<S: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = S>) -> Terminal {
    let mut command = Command::new(program);
    command.args(words).env("STUNNEL_LOGLEVEL", "crit").env("STUNNEL_LISTEN_PORT", "0");
    Terminal::start(command)
}

/// Types a line, and waits until the terminal and then `cat` have printed this line. `cat` can
/// answer only if it is in the terminal's foreground.
fn talk_to_cat(terminal: &mut Terminal, line: &str) {
    terminal.type_keys(&format!("{line}\n"));
    terminal.expect(line);
    terminal.expect(line);
}

#[test]
fn ctrl_c_reaches_the_command_once() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&counter("INT"));
    terminal.expect("ready");
    terminal.type_keys(CTRL_C);
    terminal.expect("got 1!");
    terminal.type_keys(CTRL_C);
    terminal.expect("got 2!");
    terminal.type_keys("\n");
    terminal.expect("total 2.");
    assert_eq!(terminal.exit_code(), "5");
}

#[test]
fn ctrl_c_and_ctrl_backslash_end_the_command() {
    let mut terminal = Terminal::shell(&[]);
    for (key, code) in [(CTRL_C, "130"), (CTRL_BACKSLASH, "131")] {
        terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec sleep 1000'"));
        terminal.expect("ready");
        terminal.type_keys(key);
        assert_eq!(terminal.exit_code(), code);
    }
}

#[test]
fn ctrl_c_ends_a_shell_loop_around_the_launcher() {
    let mut terminal = Terminal::shell(&[]);
    let rounds = format!("while :; do {BINARY} sh -c 'echo rea''dy; exec sleep 1000'; done");
    // The shell loop runs in the user's shell, and then in a script.
    for line in [rounds.clone(), format!("bash -c \"{rounds}\"")] {
        terminal.type_line(&line);
        terminal.expect("ready");
        terminal.type_keys(CTRL_C);
        assert_eq!(terminal.exit_code(), "130");
    }
}

#[test]
fn as_pid_1_ctrl_c_ends_the_command_and_ctrl_z_does_nothing() {
    // With `docker run -it`, too, pid 1 is the session leader of a terminal.
    // Pid 1 itself could not be stopped. So the launcher continues a COMMAND that stops itself.
    let script = "kill -STOP $$; echo ready; exec cat";
    let Some(launcher) = as_pid_1(script) else { return };
    let mut terminal = leader("unshare", launcher.command.get_args());
    terminal.expect("ready");
    terminal.type_keys(CTRL_Z);
    talk_to_cat(&mut terminal, "still here");
    terminal.type_keys(CTRL_C);
    // The launcher has exited. If a signal had killed the launcher, unshare(1) would die by the
    // same signal.
    assert_eq!(terminal.process.wait().code(), Some(130));
}

#[test]
fn fg_sends_a_stopped_command_one_sigcont() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&counter("CONT"));
    terminal.expect("ready");
    terminal.suspend();
    terminal.bring_to_foreground("got 1!");
    terminal.type_keys("\n");
    terminal.expect("total 1.");
}

#[test]
fn the_command_and_its_tunnel_work_after_each_ctrl_z_and_fg() {
    let server = Server::start(Front::Redis);
    let mut terminal = Terminal::shell(&[("REDIS_URL", &server.url())]);
    // `exec`: when COMMAND itself has stopped, redis-cli no longer reads the keys for the shell.
    let script = "exec redis-cli --no-auth-warning -u $REDIS_URL";
    terminal.type_line(&format!("{BINARY} sh -c '{script}'"));
    for round in 1..=25 {
        terminal.type_keys(&format!("echo round-{round}.\n"));
        terminal.expect(&format!("\"round-{round}.\""));
        terminal.suspend();
        terminal.bring_to_foreground("redis-cli");
    }
    terminal.type_keys("quit\n");
    assert_eq!(terminal.exit_code(), "0");
}

#[test]
fn a_resized_terminal_sends_the_command_one_sigwinch() {
    let mut terminal = Terminal::shell(&[]);
    terminal.resize(24, 80);
    terminal.type_line(&counter("WINCH"));
    terminal.expect("ready");
    terminal.resize(40, 100);
    terminal.expect("got 1!");
    terminal.type_keys("\n");
    terminal.expect("total 1.");
}

#[test]
fn ctrl_z_stops_a_whole_pipeline() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec cat' </dev/tty | tr a-z A-Z"));
    terminal.expect("READY");
    terminal.suspend();
    terminal.bring_to_foreground("tr a-z A-Z");
    terminal.type_keys("through the pipe\n");
    terminal.type_keys(CTRL_D);
    terminal.expect("THROUGH THE PIPE");
    assert_eq!(terminal.exit_code(), "0");
}

#[test]
fn command_and_launcher_share_the_foreground_process_group() {
    let mut terminal = Terminal::shell(&[]);
    let script = "set -- $(cat /proc/$PPID/stat) $(cat /proc/$$/stat); echo same=$(($5 == ${57}))";
    terminal.type_line(&format!("{BINARY} bash -c '{script}' | cat"));
    terminal.expect("same=1");
}

#[test]
fn a_background_job_can_be_brought_to_the_foreground() {
    for (job, key, code) in [
        (format!("{BINARY} cat"), CTRL_C, "130"),
        // These jobs have processes besides the launcher, which must stop with the launcher.
        (format!("sh -c '{BINARY} cat; exit 7'"), CTRL_D, "7"),
        (format!("{BINARY} cat | cat"), CTRL_D, "0"),
    ] {
        let mut terminal = Terminal::shell(&[]);
        terminal.type_line(&format!("{job} &"));
        // The kernel stops cat, because cat reads the terminal from the background. So the job
        // stops.
        terminal.type_line("while ! jobs | grep -q Stopped; do :; done; echo sto''pped");
        terminal.expect("stopped");
        terminal.expect("$ ");
        terminal.bring_to_foreground(&job);
        talk_to_cat(&mut terminal, "from the background");
        terminal.suspend();
        terminal.bring_to_foreground(&job);
        talk_to_cat(&mut terminal, "once more");
        terminal.type_keys(key);
        assert_eq!(terminal.exit_code(), code, "{job}");
    }
}

#[test]
fn keys_reach_a_command_that_left_the_process_group() {
    let mut terminal = Terminal::shell(&[]);
    // timeout(1) puts itself into a process group of its own.
    let ticks = "while sleep 0.05; do echo ti\"\"ck; done";
    terminal.type_line(&format!("{BINARY} timeout 60 sh -c '{ticks}'"));
    terminal.expect("tick");
    terminal.suspend();
    terminal.bring_to_foreground("timeout 60");
    terminal.expect("tick");
    terminal.type_keys(CTRL_C);
    assert_eq!(terminal.exit_code(), "130");
}

#[test]
fn ctrl_z_does_nothing_if_no_shell_could_continue_timeout() {
    let words = ["timeout", "60", "sh", "-c", "while sleep 0.05; do echo tick; done"];
    let mut terminal = leader(BINARY, words);
    terminal.expect("tick");
    terminal.type_keys(CTRL_Z);
    terminal.expect("^Z");
    terminal.expect("tick");
    terminal.type_keys(CTRL_C);
    assert_eq!(terminal.process.wait().signal(), Some(2));
}

#[test]
fn a_script_can_continue_a_command_that_stopped_itself() {
    let mut terminal = Terminal::shell(&[]);
    let stops = format!("{BINARY} sh -c \"kill -TSTP \\$\\$; exit 7\" & p=$!");
    let continues = "until grep -q State:.T /proc/$p/status; do :; done; kill -CONT $p";
    terminal.type_line(&format!("sh -c '{stops}; {continues}; wait $p; echo co\"\"de=$?' &"));
    terminal.expect("code=7");
}

#[test]
fn an_interactive_shell_as_command_has_job_control() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("PS1='inner> ' {BINARY} bash --norc --noediting -i"));
    terminal.expect("inner> ");
    terminal.type_line("cat");
    talk_to_cat(&mut terminal, "hello");
    terminal.type_keys(CTRL_Z);
    terminal.expect("Stopped");
    terminal.expect("inner> ");
    terminal.type_line("fg");
    talk_to_cat(&mut terminal, "hello again");
    terminal.type_keys(CTRL_C);
    terminal.expect("inner> ");
    terminal.type_line("exit 12");
    assert_eq!(terminal.exit_code(), "12");
}

#[test]
fn without_a_shell_ctrl_z_has_no_effect() {
    let mut terminal = leader(BINARY, ["sh", "-c", "echo ready; exec cat"]);
    terminal.expect("ready");
    terminal.type_keys(CTRL_Z);
    talk_to_cat(&mut terminal, "still here");
    terminal.type_keys(CTRL_D);
    assert_eq!(terminal.process.wait().code(), Some(0));
}

/// A COMMAND that writes each signal that it receives, and the signal's sender, into a file.
/// COMMAND cannot print the signals on its terminal, because the terminal hangs up. After SIGTERM,
/// COMMAND exits with 5.
struct Notes {
    folder: tempfile::TempDir,
}

impl Notes {
    fn new() -> Notes {
        Notes { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("notes")
    }

    /// COMMAND's perl script, which writes each of these signals into the file. The script contains
    /// no single quote, so that a shell can put the script in single quotes.
    fn script(&self, signals: &str) -> String {
        let script = r#"
            use POSIX;
            open(my $notes, ">>", "FILE");
            # Handlers with SA_SIGINFO interrupt perl anywhere, which is unsafe. So signals are
            # blocked, except while perl waits for a signal.
            my $all = POSIX::SigSet->new(SIGHUP, SIGCONT, SIGTERM);
            sigprocmask(SIG_BLOCK, $all);
            for my $name (qw(NOTED)) {
                my $action = POSIX::SigAction->new(sub {
                    my $sender = $_[1]{code} == 128 ? "kernel" : $_[1]{pid};
                    syswrite($notes, "$name $sender\n");
                    exit 5 if $name eq "TERM";
                }, $all, SA_SIGINFO);
                POSIX::sigaction(POSIX->can("SIG$name")->(), $action);
            }
            syswrite($notes, "ready $$ " . getppid . "\n");
            sigsuspend(POSIX::SigSet->new) while 1;
        "#;
        script.replace("FILE", self.file().to_str().unwrap()).replace("NOTED", signals)
    }

    /// Waits until COMMAND is ready. Returns the pids of COMMAND and of its parent.
    fn pids(&self) -> (i32, i32) {
        let line = self.wait_for("ready");
        let mut pids = line.split(' ').skip(1).map(|pid| pid.parse().unwrap());
        (pids.next().unwrap(), pids.next().unwrap())
    }

    fn wait_for(&self, start: &str) -> String {
        eventually(start, || self.all().into_iter().find(|line| line.starts_with(start)))
    }

    fn all(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(str::to_owned).collect()
    }

    /// The senders of all signals `name`, which are pids or the word `kernel`.
    fn senders(&self, name: &str) -> Vec<String> {
        let senders = self.all();
        senders
            .iter()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
            .collect()
    }
}

/// A perl script that puts another process group into the foreground, and becomes the launcher.
const TO_BACKGROUND: &str = r#"
    use POSIX;
    $SIG{TTOU} = "IGNORE";
    my $other = fork // die;
    if (!$other) { setpgid(0, 0); sleep 1000; exit }
    setpgid($other, $other);
    tcsetpgrp(0, $other) or die;
    $SIG{TTOU} = "DEFAULT";
    exec @ARGV;
"#;

#[test]
fn as_session_leader_a_hang_up_reaches_the_command_once() {
    let in_background = ["-e", TO_BACKGROUND, BINARY];
    for (program, words) in [(BINARY, &[][..]), ("perl", &in_background)] {
        let notes = Notes::new();
        let script = notes.script("HUP CONT TERM");
        let mut terminal = leader(program, [words, &["perl", "-e", &script]].concat());
        let (command, launcher) = notes.pids();
        assert_eq!(launcher, terminal.process.pid());
        let group = getpgid(Some(Pid::from_raw(command))).unwrap().as_raw();
        assert_eq!(group, if program == BINARY { launcher } else { command });
        terminal.hang_up();
        // When a terminal hangs up, the kernel sends SIGHUP and SIGCONT to the session leader.
        // Without the launcher, COMMAND would be the session leader.
        notes.wait_for("HUP");
        notes.wait_for("CONT");

        // COMMAND still runs. The launcher waits for COMMAND without using CPU time.
        let before = cpu_ticks(launcher);
        sleep(Duration::from_millis(200));
        assert!(cpu_ticks(launcher) - before < 10, "the launcher uses CPU time while it waits");
        send_signal(launcher, nix::libc::SIGTERM);
        assert_eq!(terminal.process.wait().code(), Some(5));
        assert_eq!(["HUP", "CONT", "TERM"].map(|name| notes.senders(name).len()), [1, 1, 1]);
    }
}

#[test]
fn as_session_leader_a_hang_up_ends_the_command() {
    let notes = Notes::new();
    let mut terminal = leader(BINARY, ["perl", "-e", &notes.script("CONT TERM")]);
    let (command, _) = notes.pids();
    terminal.hang_up();
    assert_eq!(terminal.process.wait().signal(), Some(nix::libc::SIGHUP));
    assert!(!is_alive(command));
}

#[test]
fn a_command_that_ignores_sighup_survives_a_hang_up() {
    let notes = Notes::new();
    let script = format!("trap '' HUP; exec perl -e '{}'", notes.script("CONT TERM"));
    let mut terminal = leader(BINARY, ["sh", "-c", &script]);
    let (_, launcher) = notes.pids();
    terminal.hang_up();
    notes.wait_for("CONT");
    send_signal(launcher, nix::libc::SIGTERM);
    assert_eq!(terminal.process.wait().code(), Some(5));
}

/// Starts the launcher as a job of a shell, and closes the terminal. Returns who sent a SIGHUP to
/// COMMAND: "shell", "kernel" or "launcher", separated by spaces.
fn hang_up_a_shells_job(ampersand: &str) -> String {
    let notes = Notes::new();
    let script = notes.folder.path().join("script");
    fs::write(&script, notes.script("HUP CONT TERM")).unwrap();
    let mut terminal = Terminal::shell(&[]);
    let shell = terminal.process.pid().to_string();
    terminal.type_keys(&format!("{BINARY} perl {} {ampersand}\n", script.display()));
    let (command, launcher) = notes.pids();
    terminal.hang_up();
    notes.wait_for("HUP");
    // Wait until the shell ends, because the kernel may send COMMAND another SIGHUP then.
    terminal.process.wait();
    send_signal(launcher, nix::libc::SIGTERM);
    notes.wait_for("TERM");
    wait_until("COMMAND ends", || !is_alive(command));
    let senders = notes.senders("HUP").join(" ");
    senders.replace(&shell, "shell").replace(&launcher.to_string(), "launcher")
}

#[test]
fn a_shells_job_gets_one_sighup_when_the_terminal_hangs_up() {
    assert_eq!(hang_up_a_shells_job("&"), "launcher");
    // A foreground job gets SIGHUP from the shell, and another SIGHUP from the kernel when the
    // shell ends. If COMMAND has not handled the first SIGHUP before the second SIGHUP arrives,
    // COMMAND gets only one SIGHUP.
    let senders = hang_up_a_shells_job("");
    assert!(["shell", "shell kernel"].contains(&&*senders), "{senders}");
}

#[test]
fn ctrl_c_after_fg_ends_the_whole_job() {
    let mut terminal = Terminal::shell(&[]);
    // The shell inside the launcher would print "not reached" if Ctrl-C ended only sleep. A shell
    // that is just starting a program may lose Ctrl-C, so the program itself prints "ready".
    let sleep = "sh -c \"echo rea\"\"dy; exec sleep 1000\"";
    terminal.type_line(&format!("{BINARY} sh -c '{sleep}; echo not reached' &"));
    terminal.expect("ready");
    terminal.bring_to_foreground("not reached'");
    terminal.type_keys(CTRL_C);
    assert_eq!(terminal.exit_code(), "130");
}

#[test]
fn ctrl_c_before_the_command_starts_ends_the_command() {
    // SIGINT is pending when the launcher starts, because perl blocks SIGINT, waits until SIGINT
    // has arrived, and then executes the launcher.
    let before = "$| = 1; my $int = POSIX::SigSet->new(SIGINT); sigprocmask(SIG_BLOCK, $int); \
                  print \"rea\", \"dy\\n\"; my $seen = POSIX::SigSet->new; \
                  do { select(undef, undef, undef, 0.01); sigpending($seen) } \
                  until $seen->ismember(SIGINT); exec @ARGV";
    let command = "sigprocmask(SIG_UNBLOCK, POSIX::SigSet->new(SIGINT)); sleep 1000";
    let mut terminal = Terminal::shell(&[]);
    terminal
        .type_keys(&format!("perl -MPOSIX -e '{before}' {BINARY} perl -MPOSIX -e '{command}'\n"));
    terminal.expect("ready");
    terminal.type_keys(CTRL_C);
    assert_eq!(terminal.exit_code(), "130");
}
