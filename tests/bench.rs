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
fn start(words: &[&str], settings: &[(&str, &str)]) -> Option<Tool> {
    let quick = ["--quick", "--modes", "auto", "off"];
    may_open(15_000).then(|| Tool::start("bench", &[&quick, words].concat(), settings))
}

/// The cells of the table row for `load` and `figure`. Each proxy has one cell. The cells with
/// ratios are the last cells.
fn row(table: &str, load: &str, figure: &str) -> Vec<String> {
    let start = format!("| {load} | {figure} |");
    let row = table.lines().find_map(|line| line.strip_prefix(&start));
    let row = row.unwrap_or_else(|| panic!("no {start}\n{table}")).trim_end_matches('|');
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// True if each cell contains a median, a minimum and a maximum.
fn are_measured(cells: &[String]) -> bool {
    cells.iter().all(|cell| cell.contains(" to "))
}

#[test]
fn quick_benchmark_prints_figures_of_every_proxy() {
    let results = || fs::read(Path::new(ROOT).join("bench/results.json")).unwrap();
    let before = results();
    let only = ["--rounds", "1", "--before", BINARY, "--only", "one connection", "start-up"];
    let Some(bench) = start(&only, &[]) else { return };
    let (code, table, stderr) = bench.finish();
    assert_eq!(code, 0, "{table}{stderr}");
    assert!(stderr.ends_with("......... one connection\n"), "{stderr}");
    assert!(results() == before, "--quick changes no file of the project");

    let columns = [
        "start-stunnel",
        "start-stunnel, off",
        "before",
        "nginx",
        "nginx TLS 1.3",
        "haproxy",
        "stunnel",
        "TLS directly",
        "plaintext",
        "ours / best peer",
        "ours / plaintext",
        "off / before",
        "off / nginx TLS 1.3",
    ];
    let heading = table.lines().find(|line| line.starts_with("| load |")).expect("a table");
    assert!(heading.contains(&format!("| {} |", columns.join(" | "))), "{heading}");
    for figure in ["requests/s", "p50 ms", "p99 ms", "max ms", "Redis CPU s/million"] {
        let cells = row(&table, "one connection", figure);
        assert!(are_measured(&cells[..9]), "{cells:?}");
    }
    let cpu = row(&table, "one connection", "CPU s/million");
    assert!(are_measured(&cpu[..7]), "{cpu:?}");
    assert_eq!(
        [&cpu[7], &cpu[8], &cpu[10]],
        ["", "", ""],
        "these proxies must have no such figure: {cpu:?}"
    );
    let is_ratio = |cell: &String| cell.parse::<f64>().is_ok_and(|ratio| ratio > 0.0);
    assert!(cpu[11..].iter().all(is_ratio), "{cpu:?}");
    for figure in ["launcher ms", "disabled ms"] {
        let cells = row(&table, "start-up", figure);
        assert!(are_measured(&cells[..3]), "{cells:?}");
    }
    let figures = table.lines().filter(|line| line.contains(" to "));
    let loads = figures.map(|line| line.split(" | ").next().unwrap());
    assert!(loads.into_iter().all(|load| ["| one connection", "| start-up"].contains(&load)));
}

#[test]
fn benchmark_of_new_connections_measures_every_proxy() {
    let only = ["--rounds", "1", "--peers", "nginx", "--only", "app that", "storm"];
    let Some(bench) = start(&only, &[]) else { return };
    let (code, table, stderr) = bench.finish();
    assert_eq!(code, 0, "{table}{stderr}");
    // The table has the columns start-stunnel, start-stunnel with the pool off, nginx, and
    // plaintext.
    for (load, figure, columns) in [
        ("app that reconnects", "connections/s", 4),
        ("app that reconnects", "p50 ms", 4),
        ("app that reconnects", "paced p50 ms", 4),
        ("app that reconnects", "Redis CPU ms/connection", 4),
        ("app that reconnects", "CPU ms/connection", 3),
        ("storm of 10 x 20", "slowest first reply ms", 4),
        ("storm of 10 x 20", "Redis CPU ms", 4),
    ] {
        for cell in &row(&table, load, figure)[..columns] {
            let figure = cell.split(' ').next().unwrap().replace(',', "");
            assert!(figure.parse::<f64>().is_ok_and(|figure| figure > 0.0), "{load}: {cell}");
        }
    }
}

#[test]
fn interrupted_benchmark_leaves_no_process_and_no_file() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let words = ["--rounds", "1000", "--only", "one connection"];
        let Some(mut bench) = start(&words, &[]) else { return };
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
fn benchmark_fails_if_the_launcher_does_not_start() {
    let only = ["--rounds", "1", "--peers", "--only", "one connection"];
    let Some(bench) = start(&only, &[("STUNNEL_VERIFY", "nonsense")]) else { return };
    let (code, stdout, stderr) = bench.finish();
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains("STUNNEL_VERIFY is 'nonsense'"), "{stderr}");
    assert!(stderr.ends_with("bin/bench: start-stunnel ended instead of starting\n"), "{stderr}");
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
