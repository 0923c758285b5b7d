//! `bin/suites` runs the test suites of Redis and redis-py with and without the launcher, and
//! compares the results. In the tests below, a stub replaces redis-py's suite.

mod support;

use std::fs;
use std::process::Command;

use support::launcher::{BINARY, Outcome};

/// Runs `bin/suites`. The shell script `pytest` replaces redis-py's suite, and writes its report
/// with `test_case NAME RESULT`. If the suite runs without the launcher, `$STUNNEL_POOL` is empty.
fn suites(ways: &str, pytest: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    fs::create_dir(path("tests")).unwrap();
    fs::write(path("tests/conftest.py"), "").unwrap();
    fs::write(path("explained.md"), "`tests.a::counts_clients`: the pool has some").unwrap();
    // bin/suites first runs this program with -c, to check that some modules are installed.
    let python = format!(
        "#!/bin/sh\n[ \"$1\" != -c ] || exit 0\n\
         while [ \"$1\" != --junit-xml ]; do shift; done\nexec 3>\"$2\"\n\
         test_case() {{ echo \"<testcase classname='tests.a' name='$1'>$2</testcase>\" >&3; }}\n\
         echo '<testsuites>' >&3; {pytest}; echo '</testsuites>' >&3; exit ${{code:-0}}\n"
    );
    support::write_executable(&path("python"), python);
    let mut suites = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bin/suites"));
    suites.args(["--binary", BINARY, "--ways", ways, "--redis-py"]).arg(folder.path());
    suites.arg("--python").arg(path("python"));
    Outcome::of(suites.arg("--accepted").arg(path("explained.md")))
}

#[test]
fn bin_suites_fails_if_a_suite_gives_no_full_result() {
    for (pytest, error) in [
        // If pytest cannot import a test module, pytest exits with code 2.
        ("test_case one '<error/>'; code=2", "the suite stopped before its end (exit code 2)\n"),
        ("test_case one '<failure/>'; code=1", "no test passed\n"),
    ] {
        let ended = suites("direct", pytest);
        assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
        assert!(ended.stderr.ends_with(&format!("redis-py, direct: {error}")), "{ended:?}");
    }
}

#[test]
fn bin_suites_fails_if_a_different_result_is_unexplained() {
    let failing_in = |modes: &str, more: &str| {
        format!(
            "case $STUNNEL_POOL in {modes}) failed='<failure/>'; code=1 ;; esac\n\
             test_case always; test_case counts_clients \"$failed\"; {more}"
        )
    };
    let only_in_auto = "[ \"$STUNNEL_POOL\" != auto ] || test_case sets \"$failed\"";
    let ended = suites("direct off auto", &failing_in("auto | off", only_in_auto));
    assert_eq!(ended.code(), 1, "{ended:?}");
    // If the pool is off, bin/suites accepts no explanation for a different result.
    let off = "\n  tests.a::counts_clients: direct passed, off failed\n\
        redis-py, off: 1 of 2 results differ from the results with direct; unexplained: 1\n";
    let auto = "\n  tests.a::counts_clients: direct passed, auto failed (explained)\n  \
        tests.a::sets: direct absent, auto failed\n\
        redis-py, auto: 2 of 3 results differ from the results with direct; unexplained: 1\n";
    assert!(ended.stdout.contains(off) && ended.stdout.ends_with(auto), "{ended:?}");

    let explained = suites("direct auto", &failing_in("auto", ":")).ok();
    assert!(explained.ends_with("unexplained: 0\n"), "{explained}");
}
