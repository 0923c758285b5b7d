//! The benchmark runs, prints, and leaves nothing behind; how fast anything is, no test asks.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use support::launcher::{BINARY, send_signal};
use support::{Process, eventually};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The files of `bin/setup bench` that tests do not need otherwise.
const PEERS: [&str; 3] =
    ["/usr/sbin/haproxy", "/usr/sbin/nginx", "/usr/lib/nginx/modules/ngx_stream_module.so"];
/// Open files that a run asks for.
const DESCRIPTORS: u64 = 15_000;
/// What a full run writes.
const FILES: [&str; 3] = ["bench/RESULTS.md", "bench/results.json", "bench/ratios.svg"];

/// Says aloud, and returns `false`, when a run is not possible here.
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

/// A run of `bin/bench` in a folder of its own, which is its folder for temporary files as well.
struct Bench {
    folder: TempDir,
    process: Process,
}

impl Bench {
    /// The quick form, which measures the debug binary, with further `words`; in a process group
    /// of its own, as a shell would start it.
    fn start(words: &[&str]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        symlink(BINARY, folder.path().join("other")).unwrap();
        // Whoever runs tests in the background may ignore SIGINT.
        let mut bench = Command::new("env");
        bench.arg("--default-signal").arg(Path::new(ROOT).join("bin/bench"));
        bench.args(["--quick", "--binary", BINARY]).args(words);
        bench.current_dir(folder.path()).env("TMPDIR", folder.path()).process_group(0);
        bench.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = Process(bench.spawn().expect("bin/bench"));
        Bench { folder, process }
    }

    /// Processes that work in its folder, as everything does that it starts.
    fn running(&self) -> Vec<PathBuf> {
        let folder = self.folder.path().canonicalize().unwrap();
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let inside = |process: &PathBuf| {
            // Most processes in /proc are others', and some end meanwhile.
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&folder))
        };
        processes.filter(inside).collect()
    }

    /// Names of the temporary files that are there.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| name != "other").collect()
    }

    /// Of a run that has ended.
    fn assert_nothing_is_left(&self) {
        eventually("all has ended", || self.running().is_empty().then_some(()));
        assert_eq!(self.files(), Vec::<String>::new());
    }

    /// The rest of what it prints, standard output and error; reads until it has ended.
    fn output(&mut self) -> (String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // One after the other: what it prints to either fits into a pipe.
        self.process.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        self.process.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (stdout, stderr)
    }
}

/// The cells of the one row of a Markdown table that starts so.
fn row<'a>(table: &'a str, start: &str) -> Vec<&'a str> {
    let row = table.lines().find(|line| line.starts_with(start));
    let row = row.unwrap_or_else(|| panic!("no {start}\n{table}"));
    row.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn a_small_run_prints_figures_of_every_contender_and_leaves_nothing() {
    if !may_run() {
        return;
    }
    let published = || FILES.map(|file| fs::read(Path::new(ROOT).join(file)).unwrap());
    let before = published();
    let only = ["--rounds", "1", "--before", "./other", "--only", "one connection", "start-up"];
    let mut bench = Bench::start(&only);
    let (stdout, stderr) = bench.output();
    assert!(bench.process.wait().success(), "{stdout}{stderr}");

    let contenders = "start-stunnel before nginx haproxy stunnel TLS_directly plaintext";
    let contenders: Vec<String> =
        contenders.split(' ').map(|name| name.replace('_', " ")).collect();
    assert_eq!(row(&stdout, "| load |")[2..9], contenders);
    for figure in ["requests/s", "p50 ms", "p99 ms", "max ms", "Redis CPU s/million"] {
        let cells = row(&stdout, &format!("| one connection | {figure} |"));
        assert!(cells[2..9].iter().all(|cell| cell.contains(" to ")), "{cells:?}");
    }
    let cpu = row(&stdout, "| one connection | CPU s/million |");
    assert!(cpu[2..7].iter().all(|cell| cell.contains(" to ")), "{cpu:?}");
    assert!(cpu[7..9].iter().all(|cell| cell.is_empty()), "there is no proxy: {cpu:?}");
    for figure in ["launcher ms", "disabled ms"] {
        let cells = row(&stdout, &format!("| start-up | {figure} |"));
        assert!(cells[2..4].iter().all(|cell| cell.contains(" to ")), "{cells:?}");
    }
    let mut figures = stdout.lines().filter(|line| line.contains(" to "));
    let wanted = ["| one connection |", "| start-up |"];
    let is_wanted = |line: &str| wanted.iter().any(|load| line.starts_with(load));
    assert!(figures.all(is_wanted), "no other load: {stdout}");
    assert!(stderr.ends_with("....... one connection\n"), "{stderr}");

    bench.assert_nothing_is_left();
    assert!(published() == before, "the quick form writes no file");
}

#[test]
fn loads_of_new_connections_tell_what_each_contender_and_redis_did() {
    if !may_run() {
        return;
    }
    let only = ["--rounds", "1", "--peers", "nginx", "--only", "PHP", "50 at once", "storm"];
    let mut bench = Bench::start(&only);
    let (stdout, stderr) = bench.output();
    assert!(bench.process.wait().success(), "{stdout}{stderr}");

    let told = |load: &str, figure: &str, contenders: &[usize]| {
        let cells = row(&stdout, &format!("| {load} | {figure} |"));
        for contender in contenders {
            let figure = cells[*contender].split(' ').next().unwrap().replace(',', "");
            // A peer does something for each connection, as Redis does.
            assert!(figure.parse::<f64>().is_ok_and(|figure| figure > 0.0), "{cells:?}");
        }
    };
    // Columns: start-stunnel, nginx, plaintext.
    for figure in ["connections/s", "p50 ms", "Redis CPU ms/connection"] {
        told("PHP", figure, &[2, 3, 4]);
    }
    told("PHP", "CPU ms/connection", &[2, 3]);
    for load in ["50 at once", "storm of 10 x 20"] {
        for when in ["first", "again"] {
            told(load, &format!("{when}: worst first reply ms"), &[2, 3, 4]);
            told(load, &format!("{when}: Redis CPU ms"), &[2, 3, 4]);
            told(load, &format!("{when}: connections at Redis"), &[3, 4]);
        }
    }
    let storm = row(&stdout, "| storm of 10 x 20 | first: connections at Redis |");
    assert!(storm[3].starts_with("200 ") && storm[4].starts_with("200 "), "{storm:?}");
    bench.assert_nothing_is_left();
}

#[test]
fn a_run_that_is_interrupted_leaves_nothing() {
    if !may_run() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut bench = Bench::start(&["--rounds", "1000", "--only", "one connection"]);
        let mut dot = [0];
        let stderr = bench.process.0.stderr.as_mut().unwrap();
        stderr.read_exact(&mut dot).expect("it measures");
        assert_eq!(dot, *b".");
        assert!(bench.running().len() > 5, "servers and peers run");
        // To the group, as a terminal sends it.
        send_signal(-bench.process.pid(), signal);
        let (stdout, stderr) = bench.output();
        assert_eq!(bench.process.wait().signal(), Some(signal), "{stdout}{stderr}");
        assert!(stderr.trim_matches('.').is_empty(), "{stderr}");
        bench.assert_nothing_is_left();
    }
}

#[test]
fn a_launcher_that_does_not_exist_is_wrong_usage() {
    // bin/setup would install them.
    if !may_run() {
        return;
    }
    let mut bench = Bench::start(&["--before", "./nothing"]);
    let (stdout, stderr) = bench.output();
    assert_eq!(bench.process.wait().code(), Some(2), "{stdout}{stderr}");
    assert!(stderr.ends_with("argument --before: ./nothing is no program\n"), "{stderr}");
}

#[test]
fn the_published_tables_and_picture_are_of_one_run() {
    let script = "import json, sys; sys.path.insert(0, sys.argv[1]); import report; \
        run = json.loads(report.DATA.read_text()); results = report.Results(run['values']); \
        files = report.files(results, run['rounds'], run['versions']); \
        print(*[path for path in files if path.read_text() != files[path]], len(files))";
    let bench = Path::new(ROOT).join("bench");
    let output = Command::new("python3").args(["-B", "-c", script]).arg(bench).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("4\n", ""), "files that bin/bench wrote");
}
