//! Tests of the portable binaries in `dist/`. QEMU runs binaries for other architectures. Static
//! binaries also run in a root folder without shared libraries.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use nix::libc;
use support::dist::{ROOT, VERSION, unpack_binary};
use support::launcher::{HOLD, Launcher, Outcome, logged};
use support::release_setting;
use support::resp::{Client, Reply};
use support::servers::{FRONTS, Front, PASSWORD, Server};
use tempfile::TempDir;

/// The environment variable with the targets to test, separated by spaces. `dist/` must contain an
/// archive for each target.
const TARGETS: &str = "PORTABLE_TARGETS";
/// The targets that `bin/test` packages. The two targets cover both architectures and both C
/// libraries.
const DEFAULT_TARGETS: &str = "x86_64-gnu aarch64-musl";

/// A binary that was unpacked from an archive in `dist/`.
struct Binary {
    target: String,
    file: PathBuf,
}

impl Binary {
    /// All binaries to test.
    fn all() -> &'static [Binary] {
        static UNPACKED: OnceLock<(TempDir, Vec<Binary>)> = OnceLock::new();
        &UNPACKED.get_or_init(unpack).1
    }

    fn architecture(&self) -> &str {
        self.target.split('-').next().unwrap()
    }

    /// A launcher with the command line `words`. If the binary is for another architecture, QEMU
    /// runs the binary.
    fn launcher(&self, words: &[&str]) -> Launcher {
        let architecture = self.architecture();
        if architecture == std::env::consts::ARCH {
            return Launcher::of(self.file.to_str().unwrap(), words);
        }
        let mut launcher = Launcher::of(&format!("qemu-{architecture}-static"), [""; 0]);
        // Debian's package libc6-ARCH-cross installs the other architecture's glibc in this folder.
        launcher.command.arg("-L").arg(format!("/usr/{architecture}-linux-gnu"));
        launcher.command.arg(&self.file).args(words);
        launcher
    }

    fn script(&self, script: &str) -> Launcher {
        self.launcher(&["sh", "-c", script])
    }
}

fn unpack() -> (TempDir, Vec<Binary>) {
    let wanted = std::env::var(TARGETS).unwrap_or_else(|_| DEFAULT_TARGETS.to_owned());
    let folder = tempfile::tempdir().unwrap();
    let binary = |target: &str| {
        let file = unpack_binary(target, folder.path()).join("start-stunnel");
        Binary { target: target.to_owned(), file }
    };
    let binaries = wanted.split_whitespace().map(binary).collect();
    (folder, binaries)
}

#[track_caller]
fn ended_with(ended: &Outcome, code: i32, stdout: &str, target: &str) {
    assert_eq!((ended.code(), ended.stdout.as_str()), (code, stdout), "{target}: {}", ended.stderr);
}

#[test]
fn version_names_openssl_target_and_commit() {
    let head = ["rev-parse", "HEAD"];
    let commit = Outcome::of(Command::new("git").args(head).current_dir(ROOT)).ok();
    for binary in Binary::all() {
        let ended = binary.launcher(&["--version"]).run();
        let lines: Vec<_> = ended.stdout.lines().collect();
        assert_eq!(lines[0], format!("start-stunnel {VERSION}"));
        let [openssl, target, built]: [&str; 3] =
            lines[1].split(", ").collect::<Vec<_>>().try_into().unwrap();
        let branch = format!("OpenSSL {}.", release_setting("OPENSSL_BRANCH"));
        assert!(openssl.starts_with(&branch), "{openssl}");
        assert_eq!(target, binary.target.replace('-', "-linux-"));
        let built = built.strip_prefix("commit ").unwrap().trim_end_matches("-dirty");
        assert!(
            commit.starts_with(built),
            "{built}: packaged from {commit}: run bin/package again"
        );
    }
}

#[test]
fn the_pin_that_check_prints_works_and_another_pin_fails() {
    let server = Server::start(Front::Redis);
    let other = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for binary in Binary::all() {
        let report = binary.launcher(&["--check"]).redis(&server.url()).run();
        assert_eq!(report.code(), 0, "{}: {}{}", binary.target, report.stdout, report.stderr);
        let pin = report.stdout.split_once("sha256//").expect("a pin").1;
        let pin = format!("sha256//{}", pin.split_whitespace().next().unwrap());
        let script = "redis-cli --no-auth-warning -u \"$REDIS_URL\" ping";
        let pinned = binary.script(script).redis(&server.url()).env("STUNNEL_PIN", &pin).run();
        ended_with(&pinned, 0, "PONG\n", &binary.target);
        let refused = binary.script(script).redis(&server.url()).env("STUNNEL_PIN", other).run();
        assert!(!refused.stdout.contains("PONG"), "{}: {refused:?}", binary.target);
        assert!(refused.stderr.contains(&pin), "{}: {refused:?}", binary.target);
    }
}

#[test]
fn thousand_requests_on_ten_connections_are_answered() {
    for front in FRONTS {
        let server = Server::start(front);
        for binary in Binary::all() {
            let script = format!("({HOLD}); exit 7");
            let held = binary.script(&script).redis(&server.url()).start_held();
            let mut clients: Vec<Client> = (0..10).map(|_| held.client()).collect();
            for n in 0..100 {
                for client in &mut clients {
                    client.send(&["ECHO", &format!("{}-{n}", binary.target)]);
                }
                for client in &mut clients {
                    let expected = Reply::bulk(&format!("{}-{n}", binary.target));
                    assert_eq!(client.reply().unwrap(), expected);
                }
            }
            drop(clients);
            let ended = held.finish();
            ended_with(&ended, 7, "", &binary.target);
            assert_eq!(logged(&ended.stderr, "tunnel-up", "var"), ["REDIS_URL"]);
            assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
        }
    }
}

#[test]
fn signals_reserved_by_c_libraries_are_forwarded() {
    for binary in Binary::all() {
        let script = "for n in 10 34 64; do trap \"echo $n\" $n; done; \
                      trap 'echo 15; exit 9' TERM; echo ready; while :; do sleep 0.01; done";
        let mut running = binary.script(script).start();
        assert_eq!(running.line(), "ready", "{}", binary.target);
        // musl itself uses signal 34, which glibc leaves to programs. QEMU cannot forward real-time
        // signals.
        let native = binary.architecture() == std::env::consts::ARCH;
        let numbers: &[i32] = if native { &[libc::SIGUSR1, 34, 64] } else { &[libc::SIGUSR1] };
        for number in numbers {
            running.signal(*number);
            assert_eq!(running.line(), number.to_string(), "{}", binary.target);
        }
        running.signal(libc::SIGTERM);
        assert_eq!(running.line(), libc::SIGTERM.to_string(), "{}", binary.target);
        ended_with(&running.finish(), 9, "", &binary.target);
    }
}

/// A root folder that contains a static shell and no library.
fn bare_system() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["bin", "dev", "etc", "tmp"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    // Debian's package busybox-static installs this program.
    support::copy_executable("/bin/busybox".as_ref(), &folder.path().join("bin/busybox"));
    for name in ["sh", "cat", "printf"] {
        symlink("busybox", folder.path().join("bin").join(name)).unwrap();
    }
    fs::write(folder.path().join("dev/null"), "").unwrap();
    fs::write(folder.path().join("etc/hosts"), "127.0.0.1 redis.example\n").unwrap();
    folder
}

#[test]
fn static_binary_runs_without_any_library() {
    if !support::is_root() {
        return;
    }
    let needs = Outcome::of(Command::new("readelf").args(["--dynamic", "/bin/busybox"]));
    assert!(!needs.stdout.contains("NEEDED"), "install busybox-static");
    let server = Server::start(Front::Redis);
    for binary in Binary::all().iter().filter(|binary| binary.target.ends_with("-musl")) {
        let system = bare_system();
        let inside = |name: &str| system.path().join(name);
        support::copy_executable(&binary.file, &inside("bin/start-stunnel"));
        let mut words = vec![format!("--root={}", system.path().display())];
        if binary.architecture() != std::env::consts::ARCH {
            let qemu = format!("command -v qemu-{}-static", binary.architecture());
            let found = Outcome::of(Command::new("sh").args(["-c", &qemu])).ok();
            support::copy_executable(found.trim().as_ref(), &inside("bin/qemu"));
            words.push("/bin/qemu".to_owned());
        }
        words.extend(["/bin/start-stunnel", "sh", "-c", HOLD].map(str::to_owned));
        // The binary's C library finds this name in /etc/hosts of the root folder.
        let url = server.url().replace("127.0.0.1", "redis.example");
        let launcher = Launcher::of("unshare", words).env("PATH", "/bin").redis(&url);
        let held = launcher.start_held();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"), "{}", binary.target);
        ended_with(&held.finish(), 0, "", &binary.target);
    }
}
