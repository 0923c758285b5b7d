//! The benchmark runs, prints its figures, and leaves nothing behind. No test checks any speed.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use support::launcher::{BINARY, Outcome, send_signal};
use support::proc::processes_in;
use support::{Process, eventually};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Files that `bin/setup bench` installs.
const PEERS: [&str; 3] =
    ["/usr/sbin/haproxy", "/usr/sbin/nginx", "/usr/lib/nginx/modules/ngx_stream_module.so"];
/// Open files that a run needs.
const DESCRIPTORS: u64 = 15_000;
/// The files that a full run writes.
const FILES: [&str; 3] = ["bench/RESULTS.md", "bench/results.json", "bench/ratios.svg"];

/// True if a run is possible here; prints the reason if not.
fn may_run() -> bool {
    if let Some(missing) = PEERS.iter().find(|file| !Path::new(file).exists()) {
        support::skip(&format!("there is no {missing} (see bin/setup bench)"));
        return false;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < DESCRIPTORS {
        support::skip(&format!(
            "{DESCRIPTORS} descriptors are needed, and the hard limit is {hard}"
        ));
        return false;
    }
    true
}

/// A run of `bin/bench` in a folder of its own, which is also its TMPDIR.
struct Bench {
    folder: TempDir,
    process: Process,
}

impl Bench {
    /// Starts `bin/bench --quick` with the debug binary, in a process group of its own, as a
    /// shell does.
    fn start(words: &[&str]) -> Bench {
        Bench::start_with(words, |_| ())
    }

    fn start_with(words: &[&str], change: impl FnOnce(&mut Command)) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        symlink(BINARY, folder.path().join("other")).unwrap();
        // The tests may run as a background job, which ignores SIGINT.
        let mut bench = Command::new("env");
        bench.arg("--default-signal").arg(Path::new(ROOT).join("bin/bench"));
        bench.args(["--quick", "--binary", BINARY, "--modes", "auto", "off"]).args(words);
        bench.current_dir(folder.path()).env("TMPDIR", folder.path()).process_group(0);
        bench.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        change(&mut bench);
        let process = Process(bench.spawn().expect("bin/bench"));
        Bench { folder, process }
    }

    /// Names of its temporary files.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| name != "other").collect()
    }

    /// Call this after the run.
    fn assert_nothing_is_left(&self) {
        eventually("all has ended", || (processes_in(self.folder.path()) == 0).then_some(()));
        assert_eq!(self.files(), Vec::<String>::new());
    }

    /// The rest of its standard output and standard error.
    fn output(&mut self) -> (String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // Standard output fits into a pipe while we read standard error.
        self.process.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        self.process.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (stdout, stderr)
    }
}

/// The cells of the first table row that begins with `start`.
fn row<'a>(table: &'a str, start: &str) -> Vec<&'a str> {
    let row = table.lines().find(|line| line.starts_with(start));
    let row = row.unwrap_or_else(|| panic!("no {start}\n{table}"));
    row.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn small_run_prints_figures_of_every_contender() {
    if !may_run() {
        return;
    }
    let published = || FILES.map(|file| fs::read(Path::new(ROOT).join(file)).unwrap());
    let before = published();
    let only = ["--rounds", "1", "--before", "./other", "--only", "one connection", "start-up"];
    let mut bench = Bench::start(&only);
    let (stdout, stderr) = bench.output();
    assert!(bench.process.wait().success(), "{stdout}{stderr}");

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
    assert_eq!(row(&stdout, "| load |")[2..], columns);
    for figure in ["requests/s", "p50 ms", "p99 ms", "max ms", "Redis CPU s/million"] {
        let cells = row(&stdout, &format!("| one connection | {figure} |"));
        assert!(cells[2..11].iter().all(|cell| cell.contains(" to ")), "{cells:?}");
    }
    let cpu = row(&stdout, "| one connection | CPU s/million |");
    assert!(cpu[2..9].iter().all(|cell| cell.contains(" to ")), "{cpu:?}");
    assert!(cpu[9..11].iter().all(|cell| cell.is_empty()), "there is no proxy: {cpu:?}");
    let ratio = |cell: &str| cell.parse::<f64>().is_ok_and(|ratio| ratio > 0.0);
    assert!(cpu[12].is_empty() && ratio(cpu[13]) && ratio(cpu[14]), "{cpu:?}");
    for figure in ["launcher ms", "disabled ms"] {
        let cells = row(&stdout, &format!("| start-up | {figure} |"));
        assert!(cells[2..5].iter().all(|cell| cell.contains(" to ")), "{cells:?}");
    }
    let mut figures = stdout.lines().filter(|line| line.contains(" to "));
    let wanted = ["| one connection |", "| start-up |"];
    let is_wanted = |line: &str| wanted.iter().any(|load| line.starts_with(load));
    assert!(figures.all(is_wanted), "no other load: {stdout}");
    assert!(stderr.ends_with("......... one connection\n"), "{stderr}");

    bench.assert_nothing_is_left();
    assert!(published() == before, "the quick form writes no file");
}

#[test]
fn reconnecting_app_and_storm_measure_every_contender() {
    if !may_run() {
        return;
    }
    let only = ["--rounds", "1", "--peers", "nginx", "--only", "app that", "storm"];
    let mut bench = Bench::start(&only);
    let (stdout, stderr) = bench.output();
    assert!(bench.process.wait().success(), "{stdout}{stderr}");

    let told = |load: &str, figure: &str, columns: &[usize]| {
        let cells = row(&stdout, &format!("| {load} | {figure} |"));
        for column in columns {
            let figure = cells[*column].split(' ').next().unwrap().replace(',', "");
            assert!(figure.parse::<f64>().is_ok_and(|figure| figure > 0.0), "{cells:?}");
        }
    };
    // Columns: start-stunnel, start-stunnel off, nginx, plaintext.
    for figure in ["connections/s", "p50 ms", "paced p50 ms", "Redis CPU ms/connection"] {
        told("app that reconnects", figure, &[2, 3, 4, 5]);
    }
    told("app that reconnects", "CPU ms/connection", &[2, 3, 4]);
    told("storm of 10 x 20", "slowest first reply ms", &[2, 3, 4, 5]);
    told("storm of 10 x 20", "Redis CPU ms", &[2, 3, 4, 5]);
    bench.assert_nothing_is_left();
}

#[test]
fn interrupted_run_leaves_no_process_and_no_file() {
    if !may_run() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut bench = Bench::start(&["--rounds", "1000", "--only", "one connection"]);
        let mut dot = [0];
        let stderr = bench.process.0.stderr.as_mut().unwrap();
        stderr.read_exact(&mut dot).expect("it measures");
        assert_eq!(dot, *b".");
        assert!(processes_in(bench.folder.path()) > 5, "servers and peers run");
        // Like a terminal, signal the whole group.
        send_signal(-bench.process.pid(), signal);
        let (stdout, stderr) = bench.output();
        assert_eq!(bench.process.wait().signal(), Some(signal), "{stdout}{stderr}");
        assert!(stderr.trim_matches('.').is_empty(), "{stderr}");
        bench.assert_nothing_is_left();
    }
}

#[test]
fn launcher_that_does_not_start_ends_the_run() {
    if !may_run() {
        return;
    }
    let only = ["--rounds", "1", "--peers", "--only", "one connection"];
    let mut bench = Bench::start_with(&only, |bench| {
        bench.env("STUNNEL_VERIFY", "nonsense");
    });
    let (stdout, stderr) = bench.output();
    assert_eq!(bench.process.wait().code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("STUNNEL_VERIFY is 'nonsense'"), "{stderr}");
    assert!(stderr.ends_with("bin/bench: start-stunnel ended instead of starting\n"), "{stderr}");
    bench.assert_nothing_is_left();
}

#[test]
fn missing_launcher_is_a_usage_error() {
    // Without the peers, bin/bench would begin to install them.
    if !may_run() {
        return;
    }
    let mut bench = Bench::start(&["--before", "./nothing"]);
    let (stdout, stderr) = bench.output();
    assert_eq!(bench.process.wait().code(), Some(2), "{stdout}{stderr}");
    assert!(stderr.ends_with("argument --before: ./nothing is not a program\n"), "{stderr}");
}

#[test]
fn published_tables_and_picture_are_from_one_run() {
    let script = "import json, sys; sys.path.insert(0, sys.argv[1]); import report; \
        run = json.loads(report.DATA.read_text()); results = report.Results(run['values']); \
        files = report.files(results, run['rounds'], run['versions']); \
        print(*[path for path in files if path.read_text() != files[path]], len(files))";
    let bench = Path::new(ROOT).join("bench");
    let ended = Outcome::of(Command::new("python3").args(["-B", "-c", script]).arg(bench));
    assert_eq!(ended.ok(), "4\n", "files that bin/bench wrote");
}
