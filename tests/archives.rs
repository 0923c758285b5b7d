//! Tests the archives that `bin/package` builds in `dist/`: the archives' contents, README's
//! commands for the installation, and the oldest supported system.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::dist::{
    ROOT, VERSION, archive_name, buildpack_archive, packaged, unpack, unpack_binary,
};
use support::launcher::{Launcher, Outcome};
use support::links;
use support::servers::{Front, PASSWORD, Server};
use support::snippets::{snippet, with_ours};

/// The target of the archive that these tests open.
const GNU: &str = "x86_64-gnu";

/// Runs a program in the project's root folder. Returns the program's output, line by line.
fn names(program: &str, words: &[&str]) -> Vec<String> {
    let said = Outcome::of(Command::new(program).args(words).current_dir(ROOT)).ok();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn archives_contain_only_files_tracked_by_git() {
    let tracked = names("git", &["ls-files"]);
    let within = |archive: &Path, root: &str, folders: [&str; 2], home: &str| {
        let listing = names("tar", &["tzf", archive.to_str().unwrap()]);
        let inside = listing.iter().filter_map(|name| name.strip_prefix(root));
        let inside: Vec<_> = inside
            .filter(|name| folders.iter().any(|folder| name.starts_with(folder)))
            .filter(|name| !name.ends_with('/'))
            .collect();
        assert!(inside.len() > 4, "{listing:?}");
        for name in inside {
            assert!(tracked.contains(&format!("{home}{name}")), "{name} is not tracked by Git");
        }
    };
    let name = archive_name(GNU);
    let archive = packaged(&format!("{name}.tar.gz"));
    within(&archive, &format!("{name}/"), ["docs/", "examples/"], "");
    within(&buildpack_archive(), "./", ["bin/", "lib/"], "buildpack/");
}

#[test]
fn buildpack_has_licences_and_prefers_glibc_builds() {
    let folder = tempfile::tempdir().unwrap();
    unpack(&buildpack_archive(), folder.path());
    let launchers = folder.path().join("launcher");
    let folders = fs::read_dir(&launchers).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> = folders.filter(|entry| entry.is_dir()).collect();
    assert!(folders.contains(&launchers.join("x86_64")), "{folders:?}");
    for launcher in folders {
        let architecture = launcher.file_name().unwrap().to_str().unwrap();
        let gnu = archive_name(&format!("{architecture}-gnu"));
        let built_for_gnu = Path::new(ROOT).join(format!("dist/{gnu}.tar.gz")).exists();
        let licences = fs::read_to_string(launcher.join("THIRD-PARTY-LICENCES")).unwrap();
        assert!(licences.contains("\nziglang "), "{architecture}");
        let musl = licences.contains("\nmusl as a whole is licensed under");
        assert_eq!(musl, !built_for_gnu, "{architecture}");
        // A binary for glibc contains the path of a dynamic loader. A static binary contains no
        // such path.
        let binary = fs::read(launcher.join("start-stunnel")).unwrap();
        let loaded = binary.windows(10).any(|bytes| bytes == b"/ld-linux-");
        assert_eq!(loaded, built_for_gnu, "{architecture}");
    }
}

#[test]
fn archives_match_checksums_and_contain_the_manual() {
    let sums = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
        .current_dir(packaged("SHA256SUMS").parent().unwrap())
        .status();
    assert!(sums.unwrap().success());

    let folder = tempfile::tempdir().unwrap();
    let inside = unpack_binary(GNU, folder.path());
    let page = fs::read_to_string(inside.join("start-stunnel.1")).unwrap();
    let bash = fs::read_to_string(inside.join("completions/start-stunnel.bash")).unwrap();
    for (option, _) in start_stunnel::configuration::options::with_option() {
        let escaped = option.replace('-', "\\-");
        assert!(page.contains(&format!("\\-\\-{escaped}")), "{option} in the man page");
        assert!(bash.contains(&format!("--{option}")), "{option}");
    }
    let licences = fs::read_to_string(inside.join("THIRD-PARTY-LICENCES")).unwrap();
    for part in [
        "\ntokio ",
        "\nopenssl 3.",
        "\nrust-std ",
        "\nziglang ",
        "Apache License",
        "LLVM Exceptions to the Apache 2.0 License",
        "Copyright notices for The Rust Standard Library",
    ] {
        assert!(licences.contains(part), "{part:?}");
    }
    for name in ["LICENSE", "completions/_start-stunnel", "completions/start-stunnel.fish"] {
        assert!(inside.join(name).exists(), "{name}");
    }
    // The archive contains every file to which its pages link.
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let docs = fs::read_dir(inside.join("docs")).unwrap();
    let docs = docs.map(|page| format!("docs/{}", page.unwrap().file_name().display()));
    // Skip pictures, which contain no links.
    let docs = docs.filter(|name| name.ends_with(".md"));
    let pages: Vec<String> = top.map(str::to_owned).into_iter().chain(docs).collect();
    let (links, broken) = links::check(&inside, &pages);
    assert!(broken.is_empty() && links > 30, "{links} links\n{}", broken.join("\n"));
    assert!(fs::metadata(inside.join("start-stunnel")).unwrap().len() <= 7 << 20);
    let bash_file = inside.join("completions/start-stunnel.bash");
    assert!(Command::new("bash").arg("-n").arg(bash_file).status().unwrap().success());
    if Command::new("man").arg("--version").output().is_ok() {
        let page = inside.join("start-stunnel.1");
        let shown = Outcome::of(Command::new("man").arg("--warnings").arg(page)).ok();
        assert!(shown.contains("STUNNEL_VERIFY"));
    }
}

#[test]
fn readme_commands_install_the_binary() {
    let folder = tempfile::tempdir().unwrap();
    symlink(Path::new(ROOT).join("dist"), folder.path().join("dist")).unwrap();
    let target = folder.path().join("start-stunnel");
    let ours = [("sudo ", ""), ("/usr/local/bin/", target.to_str().unwrap())];
    let commands = with_ours(&snippet("install"), &ours);
    let mut shell = Command::new("sh");
    let ended = Outcome::of(shell.args(["-ec", &commands]).current_dir(folder.path()));
    assert!(ended.status.success(), "{commands}: {ended:?}");
    let version = Outcome::of(Command::new(target).arg("-V"));
    assert_eq!(version.ok(), format!("start-stunnel {VERSION}\n"));
}

#[test]
fn binary_runs_as_pid_1_on_the_oldest_supported_system() {
    if !support::is_root() {
        return;
    }
    // This root folder contains glibc 2.31, but no OpenSSL, no perl and no certificates.
    let made = Outcome::of(&mut Command::new(format!("{ROOT}/tests/support/oldest-system")));
    assert!(made.status.success(), "{}", made.stderr);
    let system = Path::new(made.stdout.trim_end());
    let folder = tempfile::tempdir_in(system.join("tmp")).unwrap();
    let binary = unpack_binary(GNU, folder.path()).join("start-stunnel");
    let inside = Path::new("/").join(binary.strip_prefix(system).unwrap());

    let server = Server::start(Front::Redis);
    let script = format!(
        "port=${{REDIS_URL##*:}}; exec 3<>/dev/tcp/127.0.0.1/${{port%%/*}}; \
         printf 'AUTH {PASSWORD}\\r\\nPING\\r\\n' >&3; \
         read -r authenticated <&3; read -r pong <&3; \
         echo \"$authenticated $pong parent $PPID\"; exit 9"
    );
    let mut launcher = Launcher::of("unshare", ["--pid", "--fork", "--kill-child"]);
    launcher.command.arg(format!("--root={}", system.display())).arg(&inside);
    launcher.command.args(["bash", "-c", &script]);
    let launcher = launcher.env("PATH", "/usr/bin:/bin").redis(&server.url());
    let ended = launcher.run();
    assert_eq!(ended.stdout, "+OK\r +PONG\r parent 1\n", "{}", ended.stderr);
    assert_eq!(ended.code(), 9);
}
