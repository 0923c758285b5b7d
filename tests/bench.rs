//! Tests that `bin/bench` prints its figures, and leaves no process and no file. No test checks any
//! speed.

mod support;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use nix::libc;
use support::launcher::{BINARY, Outcome, send_signal};
use support::may_open;
use support::tool::Tool;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Starts `bin/bench --quick` with two pool modes. `None` if the test must be skipped.
fn start(words: &[&str]) -> Option<Tool> {
    let quick = ["--quick", "--modes", "auto", "off"];
    may_open(15_000).then(|| Tool::start("bench", &[&quick, words].concat()))
}

/// The cells of the table row for `load` and `figure`. Each proxy has one cell. The cells with
/// ratios are the last cells.
fn row(table: &str, load: &str, figure: &str) -> Vec<String> {
    let start = format!("| {load} | {figure} |");
    let row = table.lines().find_map(|line| line.strip_prefix(&start));
    let row = row.unwrap_or_else(|| panic!("no {start}\n{table}")).trim_end_matches('|');
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn quick_benchmark_prints_figures_of_every_proxy() {
    let results = || fs::read(Path::new(ROOT).join("bench/results.json")).unwrap();
    let before = results();
    let loads = ["one connection", "start-up", "app that", "storm"];
    let Some(bench) =
        start(&[&["--rounds", "1", "--before", BINARY, "--only"][..], &loads].concat())
    else {
        return;
    };
    let (code, table, stderr) = bench.finish();
    assert_eq!(code, 0, "{table}{stderr}");
    assert!(results() == before, "--quick changes no file of the project");

    // The last two of the nine columns are TLS without a proxy, and plaintext. Where a column has
    // no figure, the cell is empty.
    for (load, figure, measured) in [
        ("one connection", "requests/s", 9),
        ("one connection", "p50 ms", 9),
        ("one connection", "p99 ms", 9),
        ("one connection", "max ms", 9),
        ("one connection", "Redis CPU s/million", 9),
        ("one connection", "CPU s/million", 7),
        ("start-up", "launcher ms", 3),
        ("start-up", "disabled ms", 3),
        ("app that reconnects", "connections/s", 8),
        ("app that reconnects", "p50 ms", 8),
        ("app that reconnects", "paced p50 ms", 8),
        ("app that reconnects", "Redis CPU ms/connection", 8),
        ("app that reconnects", "CPU ms/connection", 7),
        ("storm of 10 x 20", "slowest first reply ms", 8),
        ("storm of 10 x 20", "Redis CPU ms", 8),
    ] {
        let cells = &row(&table, load, figure)[..9];
        let is_figure = |cell: &&String| {
            let median = cell.split(' ').next().unwrap().replace(',', "");
            // A small load may need less CPU time than the kernel's clock tick.
            let least = if figure.contains("CPU") { 0.0 } else { f64::MIN_POSITIVE };
            median.parse::<f64>().is_ok_and(|median| median >= least)
        };
        assert_eq!(cells.iter().filter(is_figure).count(), measured, "{load}: {cells:?}");
    }
}

#[test]
fn interrupted_benchmark_leaves_no_process_and_no_file() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let words = ["--rounds", "1000", "--only", "one connection"];
        let Some(mut bench) = start(&words) else { return };
        let mut dot = [0];
        bench.process.0.stderr.as_mut().unwrap().read_exact(&mut dot).expect("a measurement");
        assert_eq!(dot, *b".");
        assert!(bench.processes() > 5, "servers and peers run");
        // Send the signal to the whole process group, as a terminal does.
        send_signal(-bench.process.pid(), signal);
        let (code, stdout, stderr) = bench.finish();
        assert_eq!(code, -signal, "{stdout}{stderr}");
        assert!(stderr.trim_matches('.').is_empty(), "{stderr}");
    }
}

#[test]
fn published_benchmark_tables_and_picture_are_from_one_run() {
    let script = "import json, sys; sys.path.insert(0, sys.argv[1]); import report; \
        run = json.loads(report.DATA.read_text()); results = report.Results(run['values']); \
        files = report.files(results, run['rounds'], run['versions']); \
        print(*[path for path in files if path.read_text() != files[path]], len(files))";
    let bench = Path::new(ROOT).join("bench");
    let ended = Outcome::of(Command::new("python3").args(["-B", "-c", script]).arg(bench));
    assert_eq!(ended.ok(), "4\n", "files that bin/bench wrote");
}
