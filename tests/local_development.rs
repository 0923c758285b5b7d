//! Where no buildpack ran: the shim of an app's repository, process managers, and the examples.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::launcher::{BINARY, Launcher, Outcome};
use support::servers::{Front, Server};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// An app's checkout with the shim in its `bin/`, and a folder for programs.
struct Checkout {
    folder: TempDir,
}

impl Checkout {
    fn new() -> Checkout {
        let shim = Command::new(BINARY).arg("--print-shim").env_clear().output().unwrap();
        assert_eq!((shim.status.code(), shim.stderr.as_slice()), (Some(0), &b""[..]));
        let checkout = Checkout { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(checkout.at("programs")).unwrap();
        fs::create_dir_all(checkout.at("app/bin")).unwrap();
        fs::write(checkout.shim(), shim.stdout).unwrap();
        fs::set_permissions(checkout.shim(), fs::Permissions::from_mode(0o755)).unwrap();
        checkout
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn shim(&self) -> PathBuf {
        self.at("app/bin/start-stunnel")
    }

    /// As after an installation of the launcher.
    fn install(&self) {
        symlink(BINARY, self.at("programs/start-stunnel")).unwrap();
    }

    /// The shim with these words, with the app's own `bin/` first on PATH.
    fn launcher(&self, words: &[&str]) -> Launcher {
        let path = format!(
            "{}:{}::/usr/bin:/bin",
            self.at("app/bin").display(),
            self.at("programs").display()
        );
        let mut launcher = Launcher::of(self.shim().to_str().unwrap(), words).env("PATH", path);
        launcher.command.current_dir(self.at("app/bin"));
        launcher
    }
}

#[test]
fn the_shim_is_short_and_runs_in_any_posix_shell() {
    let shim = fs::read_to_string(Checkout::new().shim()).unwrap();
    assert!(shim.lines().count() <= 15 && shim.starts_with("#!/bin/sh\n"), "{shim}");
}

#[test]
fn the_shim_runs_the_launcher_that_is_on_path_and_never_itself() {
    let checkout = Checkout::new();
    checkout.install();
    // Another app's shim, before the launcher on PATH.
    fs::create_dir(checkout.at("programs/other")).unwrap();
    fs::copy(checkout.shim(), checkout.at("programs/other/start-stunnel")).unwrap();
    let path = format!(
        "{}:{}:{}:/usr/bin:/bin",
        checkout.at("app/bin").display(),
        checkout.at("programs/other").display(),
        checkout.at("programs").display()
    );
    let server = Server::start(Front::Redis);
    let script = r#"redis-cli --no-auth-warning -u "$REDIS_URL" ping; printf '%s|' "$@"; exit 3"#;
    let words = ["--drain-timeout", "1s", "sh", "-c", script, "sh", "a b", "", "*"];
    let ended = checkout.launcher(&words).env("PATH", path).redis(&server.url()).run();
    assert_eq!(ended.stdout, "PONG\na b||*|", "{}", ended.stderr);
    assert_eq!(ended.code(), 3);
}

#[test]
fn without_a_launcher_the_shim_runs_the_command_as_it_is_when_disabled() {
    let checkout = Checkout::new();
    let script = r#"printf '%s|' "$REDIS_URL" "$@"; exit 3"#;
    for disabled in ["false", "0", "No", "OFF", "False"] {
        for options in [&[][..], &["--"], &["--verify", "full", "--port-offset=0", "--"]] {
            let words = [options, &["sh", "-c", script, "sh", "a b", "", "*"]].concat();
            let launcher = checkout.launcher(&words).redis("redis://h/3");
            let ended = launcher.env("STUNNEL_ENABLED", disabled).run();
            assert_eq!(ended.stdout, "redis://h/3|a b||*|", "{}", ended.stderr);
            assert_eq!((ended.code(), ended.stderr.as_str()), (3, ""));
        }
    }
}

#[test]
fn without_a_launcher_the_shim_says_how_to_install_it_and_runs_nothing() {
    for enabled in ["", "true", "flase"] {
        let ended = Checkout::new()
            .launcher(&["sh", "-c", "echo ran"])
            .env("STUNNEL_ENABLED", enabled)
            .run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (127, ""));
        assert!(ended.stderr.contains("no start-stunnel on PATH"), "{}", ended.stderr);
        assert!(ended.stderr.contains("STUNNEL_ENABLED=false"), "{}", ended.stderr);
    }
}

/// foreman runs a Procfile as on a laptop.
fn foreman(checkout: &Checkout, procfile: &str, redis_url: &str) -> Outcome {
    fs::write(checkout.at("app/Procfile"), procfile).unwrap();
    fs::write(checkout.at("app/.env"), format!("REDIS_URL={redis_url}\n")).unwrap();
    let mut launcher = Launcher::of("foreman", ["start", "--timeout", "10"]);
    launcher.command.current_dir(checkout.at("app"));
    launcher.command.env_remove("STUNNEL_LISTEN_PORT");
    launcher
        .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", checkout.at("programs").display()))
        .run()
}

#[test]
fn several_procfile_lines_on_one_machine_do_not_fight_over_ports() {
    let checkout = Checkout::new();
    checkout.install();
    let server = Server::start(Front::Redis);
    // Each waits for the other, so that both tunnels are up at once.
    let script = r#"
        redis() { redis-cli --no-auth-warning -u "$REDIS_URL" "$@" >/dev/null; }
        redis rpush "for-$1" "$REDIS_URL"; redis blpop "for-$2" 20; echo "$1 met $2 at $REDIS_URL"
        redis rpush "done-$1" x; redis blpop "done-$2" 20
    "#;
    fs::write(checkout.at("app/meet"), script).unwrap();
    let procfile =
        "web: bin/start-stunnel sh meet web worker\nworker: bin/start-stunnel sh meet worker web\n";
    let ended = foreman(&checkout, procfile, &server.url());
    let url_of = |name: &str| {
        let line = ended.stdout.lines().find(|line| line.contains(&format!("{name} met")));
        let line = line.unwrap_or_else(|| panic!("{name}: {ended:?}"));
        line.rsplit(" at ").next().unwrap().to_owned()
    };
    assert_ne!(url_of("web"), url_of("worker"));
}

#[test]
fn the_systemd_unit_is_valid() {
    let available = Command::new("systemd-analyze").arg("--version").output();
    if available.is_err() {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    // The unit's program is installed nowhere here: another stands for it.
    let folder = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(Path::new(ROOT).join("examples/systemd/worker.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/start-stunnel "), "{unit}");
    let file = folder.path().join("worker.service");
    fs::write(&file, unit.replace("/usr/local/bin/start-stunnel", BINARY)).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let verified = verified.unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_the_unit: Vec<_> =
        said.lines().filter(|line| line.contains("worker.service")).collect();
    assert!(verified.status.success() && about_the_unit.is_empty(), "{said}");
}

#[test]
fn the_examples_name_this_version_and_are_well_formed() {
    let read = |name: &str| fs::read_to_string(Path::new(ROOT).join(name)).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for archive in ["*-linux-gnu", "$(uname -m)-linux-gnu"] {
        let archive = format!("start-stunnel-{version}-{archive}");
        assert!(read("examples/docker/Dockerfile").contains(&archive), "{archive}");
    }
    let parse = "import sys, yaml\nfor name in sys.argv[1:]: yaml.safe_load(open(name))";
    let parsed = Command::new("/usr/bin/python3")
        .args(["-c", parse, "examples/docker/compose.yaml"])
        .args([".github/workflows/test.yml", ".github/workflows/release.yml"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
}
