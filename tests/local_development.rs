//! Tests start-stunnel on a laptop, without a buildpack: the shim in an app's repository, and
//! foreman.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use support::launcher::{BINARY, Launcher, Outcome};
use support::servers::{Front, Server};
use tempfile::TempDir;

/// A folder that contains the folders `app` and `programs`. `app` is the repository of an app,
/// whose `bin/` contains the shim. `programs` is on PATH.
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
        support::write_executable(&checkout.shim(), shim.stdout);
        checkout
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn shim(&self) -> PathBuf {
        self.at("app/bin/start-stunnel")
    }

    /// Installs the launcher in `programs`.
    fn install(&self) {
        symlink(BINARY, self.at("programs/start-stunnel")).unwrap();
    }

    /// Runs the shim with these arguments. The app's `bin/`, which contains the shim, is the first
    /// folder on PATH.
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
fn print_shim_prints_a_short_shell_script() {
    let shim = fs::read_to_string(Checkout::new().shim()).unwrap();
    assert!(shim.lines().count() <= 30 && shim.starts_with("#!/bin/sh\n"), "{shim}");
    let home = concat!("\nshim_from='", env!("CARGO_PKG_REPOSITORY"), "' ");
    assert!(shim.contains(home), "{shim}");
}

#[test]
fn shim_runs_the_launcher_on_path_and_no_other_shim() {
    let checkout = Checkout::new();
    checkout.install();
    // On PATH, another app's shim comes before the launcher.
    fs::create_dir(checkout.at("programs/other")).unwrap();
    // This shim is of another version.
    let other = fs::read_to_string(checkout.shim()).unwrap() + "# end\n";
    support::write_executable(&checkout.at("programs/other/start-stunnel"), other);
    let path = format!(
        "{}:{}:{}:/usr/bin:/bin",
        checkout.at("app/bin").display(),
        checkout.at("programs/other").display(),
        checkout.at("programs").display()
    );
    let server = Server::start(Front::Redis);
    let script = r#"redis-cli --no-auth-warning -u "$REDIS_URL" ping; printf '%s|' "$@"; exit 3"#;
    let words = ["--drain-timeout", "1s", "sh", "-c", script, "sh", "a b", "", "*"];
    // A user may insert a line, for example a copyright notice.
    let shim = fs::read_to_string(checkout.shim()).unwrap();
    for shim in [shim.clone(), shim.replacen('\n', "\n# Copyright\n", 1)] {
        support::write_executable(&checkout.shim(), shim);
        let ended = checkout.launcher(&words).env("PATH", &path).redis(&server.url()).run();
        assert_eq!(ended.stdout, "PONG\na b||*|", "{}", ended.stderr);
        assert_eq!(ended.code(), 3);
    }
}

#[test]
fn shim_without_launcher_runs_the_command_if_disabled() {
    let checkout = Checkout::new();
    let script = r#"printf '%s|' "$REDIS_URL" "$launcher" "$@"; exit 3"#;
    let command = ["sh", "-c", script, "sh", "a b", "", "*"];
    let options = [
        &[][..],
        &["--"],
        &["--verify", "full", "--port-offset=0", "--"],
        &["--enabled", "off", "--verify", "full"],
    ];
    for disabled in ["false", "0", "No", "OFF", "False"] {
        for options in options {
            let launcher = checkout.launcher(&[options, &command].concat()).redis("redis://h/3");
            // COMMAND gets the app's variables, although the shim uses variables, too.
            let launcher = launcher.env("launcher", "app").env("STUNNEL_ENABLED", disabled);
            let ended = launcher.run();
            assert_eq!(ended.stdout, "redis://h/3|app|a b||*|", "{}", ended.stderr);
            assert_eq!((ended.code(), ended.stderr.as_str()), (3, ""));
        }
    }
    // The option --enabled overrides the variable STUNNEL_ENABLED.
    let words = [&["--enabled=no"][..], &command].concat();
    let ended = checkout.launcher(&words).redis("redis://h").env("STUNNEL_ENABLED", "yes").run();
    assert_eq!(ended.code(), 3, "{}", ended.stderr);
    let words = [&["--enabled", "yes"][..], &command].concat();
    let ended = checkout.launcher(&words).redis("redis://h").env("STUNNEL_ENABLED", "no").run();
    assert_eq!((ended.code(), ended.stdout.as_str()), (127, ""));
}

#[test]
fn shim_without_launcher_says_to_install_the_launcher() {
    for enabled in ["", "true", "flase"] {
        let ended = Checkout::new()
            .launcher(&["sh", "-c", "echo ran"])
            .env("STUNNEL_ENABLED", enabled)
            .run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (127, ""));
        assert!(ended.stderr.contains("start-stunnel is not on PATH"), "{}", ended.stderr);
        assert!(ended.stderr.contains("STUNNEL_ENABLED=false"), "{}", ended.stderr);
    }
}

/// Every option that takes no value, such as `--check` and `-h`.
fn flags() -> Vec<String> {
    let mut command = start_stunnel::configuration::cli::command();
    command.build();
    let flags = command.get_arguments().filter(|arg| !arg.get_action().takes_values());
    let names = flags.flat_map(|flag| {
        let short = flag.get_short().map(|short| format!("-{short}"));
        [short, flag.get_long().map(|long| format!("--{long}"))]
    });
    names.flatten().collect()
}

#[test]
fn shim_without_launcher_runs_no_command_for_check_or_help() {
    let checkout = Checkout::new();
    let flags = flags();
    assert!(flags.iter().any(|flag| flag == "--check") && flags.len() > 5, "{flags:?}");
    for flag in &flags {
        for words in [&[flag.as_str()][..], &[flag, "echo", "ran"]] {
            let ended = checkout.launcher(words).env("STUNNEL_ENABLED", "false").run();
            assert_eq!((ended.code(), ended.stdout.as_str()), (127, ""), "{words:?}");
            // The user has already disabled the tunnel, so the error must not tell the user to
            // disable the tunnel.
            assert!(!ended.stderr.contains("STUNNEL_ENABLED"), "{words:?}: {}", ended.stderr);
            assert_eq!(ended.stderr.lines().count(), 1, "{words:?}: {}", ended.stderr);
        }
    }
    // The value of --verify is missing.
    let ended = checkout.launcher(&["--verify"]).env("STUNNEL_ENABLED", "false").run();
    assert_eq!((ended.code(), ended.stderr.lines().count()), (127, 1), "{}", ended.stderr);
}

/// Runs the processes of a Procfile with foreman.
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
fn foreman_runs_two_launchers_on_different_ports() {
    let checkout = Checkout::new();
    checkout.install();
    let server = Server::start(Front::Redis);
    // Each process waits for the other process, so that both tunnels are open at the same time.
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
