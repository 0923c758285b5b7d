//! `bin/suites`, which compares results of other projects' test suites. A stub replaces redis-py's
//! suite here.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use support::launcher::{BINARY, Outcome};
use tempfile::TempDir;

/// A checkout of redis-py, a Python whose pytest is a shell script, and a page of explanations.
struct Suite {
    folder: TempDir,
}

impl Suite {
    /// `pytest` is the script's body. It writes its report to `$report`; `$STUNNEL_POOL` is empty
    /// where the suite runs without the launcher.
    fn new(pytest: &str) -> Suite {
        let suite = Suite { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(suite.path("tests")).unwrap();
        fs::write(suite.path("tests/conftest.py"), "").unwrap();
        fs::write(suite.path("explained.md"), "`tests.a::counts_clients`: the pool has some")
            .unwrap();
        // bin/suites first checks by -c that some modules are installed.
        let python = format!(
            "#!/bin/sh\n[ \"$1\" != -c ] || exit 0\n\
             while [ \"$1\" != --junit-xml ]; do shift; done\nreport=$2\n\
             test_case() {{ echo \"<testcase classname='tests.a' name='$1'>$2</testcase>\"; }}\n\
             {pytest}\n"
        );
        fs::write(suite.path("python"), python).unwrap();
        fs::set_permissions(suite.path("python"), fs::Permissions::from_mode(0o755)).unwrap();
        suite
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, ways: &str) -> Outcome {
        let mut suites = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bin/suites"));
        suites.args(["--binary", BINARY, "--ways", ways, "--redis-py"]).arg(self.folder.path());
        suites.arg("--python").arg(self.path("python"));
        Outcome::of(suites.arg("--accepted").arg(self.path("explained.md")))
    }
}

#[test]
fn suite_that_stops_during_collection_fails() {
    // What pytest does when a test module cannot be imported.
    let pytest = "echo 'ERROR tests/a.py: No module named mock'\n\
        { echo '<testsuites>'; for n in 1 2 3 4; do test_case \"$n\" '<error/>'; done\n\
        echo '</testsuites>'; } >\"$report\"\nexit 2";
    let ended = Suite::new(pytest).run("direct off");
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    for way in ["direct", "off"] {
        let line = format!("redis-py, {way}: the suite stopped before its end (exit code 2)");
        assert!(ended.stderr.contains(&line), "{ended:?}");
    }
    assert!(ended.stderr.contains("No module named mock"), "the suite's output: {ended:?}");
}

#[test]
fn suite_in_which_no_test_passes_fails() {
    let pytest = "{ echo '<testsuites>'; test_case one '<failure/>'; echo '</testsuites>'; } \
        >\"$report\"\nexit 1";
    let ended = Suite::new(pytest).run("direct");
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.ends_with("redis-py, direct: no test passed\n"), "{ended:?}");
}

/// A suite whose test `test` fails if the launcher runs with one of these pool modes.
fn failing(test: &str, modes: &str) -> Suite {
    Suite::new(&format!(
        "outcome=; case $STUNNEL_POOL in {modes}) outcome='<failure/>' ;; esac\n\
         {{ echo '<testsuites>'; test_case always; test_case {test} \"$outcome\"\n\
         echo '</testsuites>'; }} >\"$report\"\n[ -z \"$outcome\" ]"
    ))
}

#[test]
fn test_that_ends_differently_fails_unless_it_is_explained() {
    let all_pass = failing("sets", "none").run("direct off auto").ok();
    assert!(all_pass.contains("redis-py, off: 0 of 2 tests end differently"), "{all_pass}");

    let unexplained = failing("sets", "auto").run("direct off auto");
    assert_eq!(unexplained.code(), 1, "{unexplained:?}");
    let line = "\n  tests.a::sets: direct passed, auto failed\n\
        redis-py, auto: 1 of 2 tests end differently than with direct; not explained: 1\n";
    assert!(unexplained.stdout.ends_with(line), "{unexplained:?}");

    let explained = failing("counts_clients", "auto").run("direct off auto").ok();
    let line = "\n  tests.a::counts_clients: direct passed, auto failed (explained)\n";
    assert!(explained.contains(line), "{explained}");

    // With the pool off, no explanation counts.
    let off = failing("counts_clients", "off").run("direct off");
    assert_eq!(off.code(), 1, "{off:?}");
}
