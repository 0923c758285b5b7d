//! Tests `bin/jobs` with short runs. `bin/jobs` counts the lost and doubled jobs of real job
//! systems.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::is_root;
use support::launcher::Outcome;
use support::tool::Tool;

/// The figures in one row of `table`: the only row that begins with `start`.
fn figures(table: &str, start: &str) -> Vec<u64> {
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix(start)).collect();
    let [row] = rows[..] else { panic!("no single row {start}\n{table}") };
    row.trim_matches('|').split('|').map(|cell| cell.trim().parse().unwrap()).collect()
}

/// Runs a short scenario twice: in plaintext without the launcher, and through the launcher with
/// the pool off. Returns true if neither run lost or doubled a job.
fn is_lossless(system: &str, scenario: &str, once: &str) -> bool {
    let words = ["--modes", "off", "--systems", system, "--scenarios", scenario, once, "1"];
    let run = Tool::start("jobs", &[&words[..], &["--linger", "0"]].concat());
    let (code, table, stderr) = run.finish();
    println!("{table}{stderr}");
    assert_eq!(code, 0);
    ["plaintext", "off"].into_iter().all(|mode| {
        let row = figures(&table, &format!("| {system} | {scenario} | {mode} "));
        // The first three columns count the enqueued jobs, the lost jobs and the doubled jobs.
        assert!(row[0] >= 20, "too few jobs");
        row[1..3] == [0, 0]
    })
}

#[test]
fn sidekiq_loses_no_job_when_its_workers_restart() {
    assert!(is_lossless("sidekiq", "restarts", "--restarts"));
}

#[test]
fn bullmq_loses_no_job_when_redis_restarts() {
    assert!(is_lossless("bullmq", "redis-restarts", "--redis-restarts"));
}

#[test]
fn celery_loses_no_job_when_its_workers_restart() {
    assert!(is_lossless("celery", "restarts", "--restarts"));
}

#[test]
fn sidekiq_loses_no_job_in_a_fail_over() {
    if !is_root() {
        return;
    }
    // A fail-over may lose a job even without the launcher: Redis takes the job from the queue, but
    // the reply does not reach the worker. So one of three runs without a lost job is enough.
    let mut runs = (0..3).map(|_| is_lossless("sidekiq", "fail-overs", "--fail-overs"));
    assert!(runs.any(|is_lossless| is_lossless), "each of three runs lost or doubled a job");
}

#[test]
fn bin_jobs_counts_lost_doubled_and_rejected_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let enqueued = "ok a\nok b\nok c\nfailed d OSError: gone\n";
    fs::write(folder.path().join("enqueued"), enqueued).unwrap();
    // The last line is incomplete, because an app is still writing the line.
    fs::write(folder.path().join("done"), "a\nc\na\nd\nb").unwrap();
    let script = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; \
        from ledger import Counts, Ledger; found = Ledger(Path(sys.argv[2])).counts(); \
        print(found.enqueued, found.lost, found.doubled, found.rejected, dict(found.errors)); \
        none = Counts(); print(found.worse_than(none, 0), found.worse_than(none, None), \
        found.worse_than(none, 1), none.worse_than(found, 0))";
    let mut python = Command::new("python3");
    python
        .args(["-B", "-c", script])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs"))
        .arg(folder.path());
    let expected = "3 1 1 1 {'OSError: gone': 1}\n\
        ['lost', 'doubled', 'rejected'] ['lost', 'doubled'] ['lost', 'doubled'] []\n";
    assert_eq!(Outcome::of(&mut python).ok(), expected);
}
