//! COMMAND on a terminal (contract, section 4): keys, job control, resizes, pipelines.

mod support;

use std::process::Command;

use support::launcher::{BINARY, send_signal};
use support::pty::Terminal;
use support::servers::{Front, Server};
use support::{eventually, is_alive};

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";

/// Counts a signal, and ends when it is told to.
fn counter(signal: &str) -> String {
    format!(
        "{BINARY} perl -MPOSIX -e '$| = 1; sigaction(SIG{signal}, POSIX::SigAction->new(\
         sub {{ print \"got \", ++$n, \"!\\n\" }})); print \"rea\", \"dy\\n\"; \
         while (!defined($l = <STDIN>)) {{}} print \"total \", $n + 0, \".\\n\"; exit 5'"
    )
}

/// Types a line for a `cat` that is, or is about to be, in the foreground, and waits for its answer
/// behind the terminal's own echo: then it really is there.
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
    terminal.type_line("echo code=$?");
    terminal.expect("code=5");
}

#[test]
fn ctrl_c_and_ctrl_backslash_end_a_command_as_without_the_launcher() {
    let mut terminal = Terminal::shell(&[]);
    for (key, code) in [(CTRL_C, "130"), (CTRL_BACKSLASH, "131")] {
        terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec sleep 1000'"));
        terminal.expect("ready");
        terminal.type_keys(key);
        terminal.expect("$ ");
        terminal.type_keys("echo code=$?\n");
        terminal.expect(&format!("code={code}"));
    }
}

#[test]
fn ctrl_z_gives_the_shell_back_and_fg_goes_on() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec cat'"));
    terminal.expect("ready");
    for round in 1..=3 {
        terminal.type_keys(CTRL_Z);
        terminal.expect("Stopped");
        terminal.expect("$ ");
        terminal.type_line("jobs");
        terminal.expect("Stopped");
        terminal.type_keys("fg\n");
        terminal.expect("exec cat'");
        talk_to_cat(&mut terminal, &format!("round {round}"));
    }
    terminal.type_keys(CTRL_D);
    terminal.expect("$ ");
    terminal.type_line("echo code=$?");
    terminal.expect("code=0");
}

#[test]
fn fg_sends_a_stopped_command_one_sigcont_only() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&counter("CONT"));
    terminal.expect("ready");
    terminal.type_keys(CTRL_Z);
    terminal.expect("Stopped");
    terminal.type_keys("fg\n");
    terminal.expect("got 1!");
    terminal.type_keys("\n");
    terminal.expect("total 1.");
}

#[test]
fn a_tunnel_works_again_after_ctrl_z_and_fg() {
    let server = Server::start(Front::Redis);
    let mut terminal = Terminal::shell(&[("REDIS_URL", &server.url())]);
    terminal.type_line(&format!("{BINARY} sh -c 'redis-cli --no-auth-warning -u $REDIS_URL'"));
    terminal.expect("> ");
    for _ in 0..2 {
        terminal.type_keys("ping\n");
        terminal.expect("PONG");
        terminal.type_keys(CTRL_Z);
        terminal.expect("Stopped");
        terminal.expect("$ ");
        terminal.type_keys("fg\n");
    }
    terminal.type_keys("echo done\n");
    terminal.expect("\"done\"");
    terminal.type_keys("quit\n");
    terminal.expect("$ ");
}

#[test]
fn a_resize_reaches_the_command_once() {
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
fn a_pipeline_works_and_ctrl_z_stops_all_of_it() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec cat' </dev/tty | tr a-z A-Z"));
    terminal.expect("READY");
    terminal.type_keys(CTRL_Z);
    terminal.expect("Stopped");
    terminal.expect("$ ");
    terminal.type_keys("fg\n");
    terminal.expect("tr a-z A-Z");
    terminal.type_keys("through the pipe\n");
    terminal.type_keys(CTRL_D);
    terminal.expect("THROUGH THE PIPE");
    terminal.expect("$ ");
    terminal.type_line("echo code=$?");
    terminal.expect("code=0");
}

#[test]
fn in_the_foreground_the_command_shares_the_launchers_process_group() {
    let mut terminal = Terminal::shell(&[]);
    let script = "set -- $(cat /proc/$PPID/stat) $(cat /proc/$$/stat); echo same=$(($5 == ${57}))";
    terminal.type_line(&format!("{BINARY} bash -c '{script}' | cat"));
    terminal.expect("same=1");
}

#[test]
fn a_background_job_can_be_brought_to_the_foreground() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec cat' &"));
    terminal.expect("ready");
    // cat reads the terminal, and is stopped for that; so is the job.
    terminal.type_line("while ! jobs | grep -q Stopped; do :; done; echo sto''pped");
    terminal.expect("stopped");
    terminal.expect("$ ");
    terminal.type_keys("fg\n");
    terminal.expect("exec cat'");
    talk_to_cat(&mut terminal, "from the background");
    terminal.type_keys(CTRL_Z);
    terminal.expect("Stopped");
    terminal.expect("$ ");
    terminal.type_keys("fg\n");
    terminal.expect("exec cat'");
    talk_to_cat(&mut terminal, "once more");
    terminal.type_keys(CTRL_C);
    terminal.expect("$ ");
    terminal.type_line("echo code=$?");
    terminal.expect("code=130");
}

#[test]
fn an_interactive_shell_as_the_command_has_job_control_of_its_own() {
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
    terminal.expect("$ ");
    terminal.type_line("echo code=$?");
    terminal.expect("code=12");
}

#[test]
fn nothing_stays_when_the_terminal_is_closed() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy $$ $PPID; exec cat'"));
    terminal.expect("ready ");
    let pids = terminal.expect("\r\n");
    let pids: Vec<i32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    // What a shell gets when its terminal's window is closed.
    send_signal(terminal.process.pid(), nix::libc::SIGHUP);
    for pid in pids {
        eventually("COMMAND and launcher are gone", || (!is_alive(pid)).then_some(()));
    }
}

#[test]
fn where_no_shell_could_resume_it_ctrl_z_freezes_nothing() {
    let mut command = Command::new(BINARY);
    command.args(["sh", "-c", "echo ready; exec cat"]).env("STUNNEL_LOGLEVEL", "crit");
    let mut terminal = Terminal::start(command);
    terminal.expect("ready");
    terminal.type_keys(CTRL_Z);
    talk_to_cat(&mut terminal, "still here");
    terminal.type_keys(CTRL_D);
    assert_eq!(terminal.process.wait().code(), Some(0));
}

#[test]
fn stopping_and_continuing_in_a_loop_loses_no_key_and_no_signal() {
    let mut terminal = Terminal::shell(&[]);
    terminal.type_line(&format!("{BINARY} sh -c 'echo rea''dy; exec cat'"));
    terminal.expect("ready");
    for round in 1..=25 {
        terminal.type_keys(CTRL_Z);
        terminal.expect("Stopped");
        terminal.expect("$ ");
        terminal.type_keys("fg\n");
        terminal.expect("exec cat'");
        talk_to_cat(&mut terminal, &format!("round {round}."));
    }
    terminal.type_keys(CTRL_C);
    terminal.expect("$ ");
    terminal.type_line("echo code=$?");
    terminal.expect("code=130");
}
