//! One short round of `bin/jobs`, which counts the lost and doubled jobs of real job systems.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use support::launcher::{BINARY, Outcome, send_signal};
use support::proc::processes_in;
use support::{Process, eventually};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs `bin/jobs` with these arguments.
fn jobs(arguments: &[&str]) -> Outcome {
    let program = Path::new(ROOT).join("bin/jobs");
    Outcome::of(Command::new(program).args(["--binary", BINARY]).args(arguments))
}

/// The figures in the only row of a table that begins with `start`.
fn figures(table: &str, start: &str) -> Vec<u64> {
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix(start)).collect();
    let [row] = rows[..] else { panic!("no single row {start}\n{table}") };
    row.trim_matches('|').split('|').map(|cell| cell.trim().parse().unwrap()).collect()
}

/// Runs one short scenario with the pool off and in plaintext.
fn run_once(system: &str, scenario: &str, once: &str) -> Outcome {
    let words = ["--modes", "off", "--systems", system, "--scenarios", scenario, once, "1"];
    jobs(&[&words[..], &["--linger", "0"]].concat())
}

/// Runs one short scenario with the pool off and in plaintext. No job may be lost or doubled.
fn loses_nothing(system: &str, scenario: &str, once: &str) {
    let ended = run_once(system, scenario, once);
    assert_eq!(ended.code(), 0, "{ended:?}");
    for mode in ["plaintext", "off"] {
        let row = figures(&ended.stdout, &format!("| {system} | {scenario} | {mode} "));
        // Columns: enqueued, lost, doubled and more.
        assert!(row[0] >= 20, "{ended:?}");
        assert_eq!(row[1..3], [0, 0], "{ended:?}");
    }
}

#[test]
fn sidekiq_loses_no_job_when_its_workers_restart() {
    loses_nothing("sidekiq", "restarts", "--restarts");
}

#[test]
fn bullmq_loses_no_job_when_redis_restarts() {
    loses_nothing("bullmq", "redis-restarts", "--redis-restarts");
}

#[test]
fn celery_loses_no_job_when_its_workers_restart() {
    loses_nothing("celery", "restarts", "--restarts");
}

#[test]
fn sidekiq_loses_no_job_in_a_fail_over() {
    if !nix::unistd::geteuid().is_root() {
        support::skip("only root can make a mount namespace");
        return;
    }
    // Redis may take a job from the queue and lose the reply, in plaintext too: such a run proves
    // nothing, and is repeated.
    let columns = ["plaintext", "off"].map(|mode| format!("| sidekiq | fail-overs | {mode} "));
    let is_lossless = |run: &Outcome| {
        assert_eq!(run.code(), 0, "{run:?}");
        let rows = columns.each_ref().map(|start| figures(&run.stdout, start));
        rows.iter().all(|row| row[0] >= 20 && row[1..3] == [0, 0])
    };
    let mut runs = (0..3).map(|_| run_once("sidekiq", "fail-overs", "--fail-overs"));
    assert!(runs.any(|run| is_lossless(&run)), "each of three runs lost or doubled a job");
}

#[test]
fn lost_doubled_and_rejected_jobs_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let enqueued = "ok a\nok b\nok c\nfailed d OSError: gone\n";
    fs::write(folder.path().join("enqueued"), enqueued).unwrap();
    // The last line is incomplete, as while an app writes it.
    fs::write(folder.path().join("done"), "a\nc\na\nd\nb").unwrap();
    let script = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; \
        from ledger import Counts, Ledger; found = Ledger(Path(sys.argv[2])).counts(); \
        print(found.enqueued, found.lost, found.doubled, found.rejected, dict(found.errors)); \
        none = Counts(); print(found.worse_than(none, 0), found.worse_than(none, None), \
        found.worse_than(none, 1), none.worse_than(found, 0))";
    let mut python = Command::new("python3");
    python.args(["-B", "-c", script]).arg(Path::new(ROOT).join("jobs")).arg(folder.path());
    let expected = "3 1 1 1 {'OSError: gone': 1}\n\
        ['lost', 'doubled', 'rejected'] ['lost', 'doubled'] ['lost', 'doubled'] []\n";
    assert_eq!(Outcome::of(&mut python).ok(), expected);
}

#[test]
fn interrupted_run_leaves_no_process_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    // The tests may run as a background job, which ignores SIGINT.
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(Path::new(ROOT).join("bin/jobs"));
    command.args(["--binary", BINARY, "--systems", "celery", "--scenarios", "restarts"]);
    command.current_dir(&folder).env("TMPDIR", folder.path()).process_group(0);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = Process(command.spawn().unwrap());
    // All processes of a run have this folder, or a folder in it, as working directory.
    let running = || processes_in(folder.path());
    // bin/jobs, Redis, and two workers with two child processes each.
    eventually("the workers run", || (running() >= 8).then_some(()));
    send_signal(-run.pid(), libc::SIGINT);
    assert_eq!(run.wait().code(), Some(1));
    let mut stderr = String::new();
    run.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "bin/jobs: interrupted\n");
    eventually("all has ended", || (running() == 0).then_some(()));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "no file is left");
}

#[test]
fn unknown_scenario_is_a_usage_error() {
    let ended = jobs(&["--scenarios", "floods"]);
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("--scenarios: invalid choice: 'floods'"), "{ended:?}");
}
