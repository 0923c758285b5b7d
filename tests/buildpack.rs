//! Tests of the buildpack in `dist/`, which is a classic and a Cloud Native buildpack. Builds run
//! as an unprivileged user, with an empty environment.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::libc;
use nix::unistd::Uid;
use support::dist::{ROOT, VERSION, buildpack_archive, unpack};
use support::launcher::{Launcher, Outcome, logged, send_signal};
use support::proc::{command_of, is_alive};
use support::resp::Reply;
use support::servers::{Front, PASSWORD, Server};
use support::{all_files, wait_until, write_executable};
use tempfile::TempDir;

/// The user id of the system's user `nobody`.
const UNPRIVILEGED: u32 = 65_534;
const SHIM: &str = include_str!("../src/shim.sh");
/// An app that stores its first argument in Redis, and uses Redis again on SIGTERM.
const APP: &str = r#"#!/bin/sh
redis() { redis-cli --no-auth-warning -u "$REDIS_URL" "$@" >/dev/null; }
trap 'redis set farewell "after SIGTERM"; exit 5' TERM
redis set greeting "$1"
echo ready
while :; do sleep 0.02; done
"#;

/// A folder that contains everything a build needs: the unpacked buildpack, an app, and folders for
/// the cache and for layers.
struct Site {
    folder: TempDir,
    /// The first folder on PATH, with programs that replace programs of the system.
    path: Option<PathBuf>,
}

impl Site {
    fn new() -> Site {
        let site = Site { folder: tempfile::tempdir().unwrap(), path: None };
        unpack(&buildpack_archive(), &site.at("buildpack"));
        for name in ["app", "cache", "env", "layers", "platform"] {
            fs::create_dir(site.at(name)).unwrap();
        }
        site.write("app/Procfile", "web: bin/start-stunnel ./serve web\n");
        site.write("app/serve", APP);
        site
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes an executable file.
    fn write(&self, name: &str, text: &str) {
        let file = self.at(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        write_executable(&file, text);
    }

    /// A command that runs `program` with an empty environment, as an unprivileged user who owns
    /// all files of the site.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if Uid::effective().is_root() {
            let owner = format!("{UNPRIVILEGED}:{UNPRIVILEGED}");
            let owned = Command::new("chown").args(["-R", &owner]).arg(self.folder.path()).status();
            assert!(owned.unwrap().success());
            command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        let mut path = "/usr/local/bin:/usr/bin:/bin".to_owned();
        if let Some(first) = &self.path {
            path = format!("{}:{path}", first.display());
        }
        command.env_clear().env("PATH", path);
        command.env("HOME", self.at("app")).env("STACK", "heroku-24").current_dir(self.at("app"));
        command
    }

    /// Runs a script of the classic buildpack.
    fn classic(&self, script: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.command(&self.at("buildpack/bin").join(script));
        command.args(arguments.iter().map(|name| self.at(name)));
        Outcome::of(&mut command)
    }

    fn compile(&self) -> Outcome {
        self.classic("compile", &["app", "cache", "env"])
    }

    /// Runs a script of the Cloud Native buildpack as the Cloud Native lifecycle does.
    fn cloud_native(&self, script: &str) -> Outcome {
        let mut command = self.command(&self.at("buildpack/bin").join(script));
        command.env("CNB_BUILDPACK_DIR", self.at("buildpack"));
        command.env("CNB_PLATFORM_DIR", self.at("platform"));
        command.env("CNB_TARGET_OS", "linux").env("CNB_TARGET_ARCH", "amd64");
        match script {
            "detect" => command.env("CNB_BUILD_PLAN_PATH", self.at("platform/plan.toml")),
            _ => command
                .env("CNB_LAYERS_DIR", self.at("layers"))
                .env("CNB_BP_PLAN_PATH", self.at("platform/plan.toml")),
        };
        Outcome::of(&mut command)
    }

    /// Replaces uname(1) by a script that prints this architecture.
    fn pretend_to_be(&mut self, architecture: &str) {
        self.write("other/uname", &format!("#!/bin/sh\necho {architecture}\n"));
        self.path = Some(self.at("other"));
    }

    /// Updates the file SHA256SUMS after the test has replaced the launcher in the buildpack.
    fn sign_launcher(&self, architecture: &str) {
        let launcher = self.at("buildpack/launcher");
        let mut sums = Command::new("sha256sum");
        sums.arg(format!("{architecture}/start-stunnel"));
        let sums = sums.current_dir(&launcher).output().unwrap();
        fs::write(launcher.join("SHA256SUMS"), sums.stdout).unwrap();
    }

    /// The paths and contents of all files in the app.
    fn app(&self) -> Vec<(PathBuf, Vec<u8>)> {
        files(&self.at("app"))
    }

    /// Asserts that the build fails, changes nothing, and prints an error that contains these
    /// words. Each line of the error must begin with ` !     `, as in Heroku's own buildpacks.
    fn refuses(&self, build: impl Fn(&Site) -> Outcome, words: &[&str]) {
        let before = self.app();
        let said = build(self);
        assert_eq!(said.code(), 1, "{said:?}");
        assert!(said.stderr.lines().all(|line| line.starts_with(" !     ")), "{said:?}");
        for word in words {
            assert!(said.stderr.contains(word), "{word}: {said:?}");
        }
        assert_eq!(self.app(), before, "the build changed the app");
        assert!(files(&self.at("layers")).is_empty());
    }
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let content = |path: PathBuf| (path.clone(), fs::read(path).unwrap_or_default());
    all_files(folder).into_iter().map(content).collect()
}

/// Runs the Procfile's `web` line, and sends SIGTERM to all processes, as Heroku does when a dyno
/// ends. Asserts that the app has written its values to Redis.
fn run_as_a_dyno(mut command: Command, server: &Server) {
    command.args(["-c", "exec bin/start-stunnel ./serve web"]);
    command.env("DYNO", "web.1").env("REDIS_URL", server.url());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Launcher { command }.start();
    assert_eq!(running.line(), "ready");
    let processes = [running.pid(), command_of(running.pid())];
    for process in &processes {
        send_signal(*process, libc::SIGTERM);
    }
    let ended = running.finish();
    assert_eq!(ended.code(), 5, "{}", ended.stderr);
    let mut redis = server.direct();
    assert_eq!(redis.ask(&["GET", "greeting"]), Reply::bulk("web"));
    assert_eq!(redis.ask(&["GET", "farewell"]), Reply::bulk("after SIGTERM"));
    assert_eq!(logged(&ended.stderr, "tunnel-up", "var"), ["REDIS_URL"]);
    assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
    wait_until("every process is gone", || processes.iter().all(|process| !is_alive(*process)));
}

#[test]
fn classic_build_makes_a_slug_that_works_on_a_dyno() {
    let site = Site::new();
    assert_eq!(site.classic("detect", &["app"]).ok(), "start-stunnel\n");
    // The build ignores this setting, because the launcher reads the setting at run time.
    fs::write(site.at("env/STUNNEL_ENABLED"), "false").unwrap();
    let said = site.compile().ok();
    let expected = format!("-----> start-stunnel\n       Installed bin/start-stunnel {VERSION}\n");
    assert_eq!(said, expected);
    assert_eq!(site.classic("release", &["app"]).ok(), "--- {}\n");
    assert!(files(&site.at("cache")).is_empty(), "the build does not use the cache");

    // On a dyno, the app is in another folder than during the build, and the buildpack does not
    // exist.
    fs::rename(site.at("app"), site.at("slug")).unwrap();
    fs::remove_dir_all(site.at("buildpack")).unwrap();
    let mut dyno = site.command(Path::new("bash"));
    dyno.env("HOME", site.at("slug")).current_dir(site.at("slug"));
    run_as_a_dyno(dyno, &Server::start(Front::Redis));
}

#[test]
fn build_replaces_a_linked_shim_but_not_its_target() {
    let site = Site::new();
    site.write("app/tools/shim", SHIM);
    fs::create_dir(site.at("app/bin")).unwrap();
    symlink("../tools/shim", site.at("app/bin/start-stunnel")).unwrap();
    site.compile().ok();
    assert_eq!(fs::read_to_string(site.at("app/tools/shim")).unwrap(), SHIM);
    assert!(!site.at("app/bin/start-stunnel").is_symlink());
}

/// A function that builds the app, and a word that a successful build prints at its end.
type Build = (fn(&Site) -> Outcome, &'static str);
const BUILDS: [Build; 2] =
    [(Site::compile, "Installed"), (|site| site.cloud_native("build"), "start-stunnel ")];

/// Asserts that the build succeeded, and that its warnings contain `words`. If `words` is empty,
/// the build must print no warning.
#[track_caller]
fn warned(said: Outcome, done: &str, words: &[&str]) {
    assert_eq!(said.code(), 0, "{said:?}");
    assert!(said.stdout.contains(done), "{said:?}");
    assert!(said.stderr.lines().all(|line| line.starts_with(" !     ")), "{said:?}");
    assert_eq!(said.stderr.is_empty(), words.is_empty(), "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{word}: {said:?}");
    }
}

#[test]
fn build_warns_of_another_launcher_and_of_retired_scripts() {
    let older_shim = "#!/bin/sh\n\
                      # Stands in for it. Made by: start-stunnel --print-shim > bin/start-stunnel\n\
                      exec start-stunnel \"$@\"\n";
    // The retired buildpack heroku/redis installs a script of this kind.
    let other = "#!/usr/bin/env bash\nn=1\nbin/stunnel-conf.sh\n";
    let warning = ["replaces another bin/start-stunnel", "heroku buildpacks:remove heroku/redis"];
    for (build, done) in BUILDS {
        let site = Site::new();
        site.write("app/bin/.hidden", "x");
        for (replaced, words) in [(SHIM, &[][..]), (older_shim, &[]), (other, &warning)] {
            site.write("app/bin/start-stunnel", replaced);
            warned(build(&site), done, words);
            let installed = [".hidden", "start-stunnel"].map(|name| site.at("app/bin").join(name));
            let (names, contents): (Vec<_>, Vec<_>) =
                files(&site.at("app/bin")).into_iter().unzip();
            assert!(names == installed && contents[1].starts_with(b"\x7fELF"), "{names:?}");
            // A build that replaces the launcher of an earlier build prints no warning.
            warned(build(&site), done, &[]);
            fs::remove_file(site.at("app/bin/start-stunnel")).unwrap();
        }
        site.write("app/bin/stunnel-conf.sh", "#!/usr/bin/env bash\n");
        warned(build(&site), done, &["bin/stunnel-conf.sh", warning[1]]);
        assert!(site.at("app/bin/stunnel-conf.sh").exists(), "the build removed a file of the app");
    }
}

#[test]
fn build_refuses_a_broken_link_named_bin() {
    let site = Site::new();
    symlink("../elsewhere/bin", site.at("app/bin")).unwrap();
    for (build, _) in BUILDS {
        site.refuses(build, &["bin is a broken link", "../elsewhere/bin"]);
    }
    // The build accepts a link to a folder of the app.
    fs::remove_file(site.at("app/bin")).unwrap();
    fs::create_dir(site.at("app/scripts")).unwrap();
    symlink("scripts", site.at("app/bin")).unwrap();
    for (build, done) in BUILDS {
        warned(build(&site), done, &[]);
        assert!(site.at("app/scripts/start-stunnel").exists());
    }
}

#[test]
fn build_prints_a_hint_if_no_process_uses_the_launcher() {
    let site = Site::new();
    let prints_hint = || {
        let said = site.compile().ok();
        let hint = "       No process in the Procfile uses start-stunnel yet.";
        let example = "           web: bin/start-stunnel bundle exec puma";
        assert!(said.contains(hint) && said.contains(example), "{said}");
    };
    fs::write(site.at("app/Procfile"), "web: bundle exec puma\n# bin/start-stunnel\n").unwrap();
    prints_hint();
    fs::remove_file(site.at("app/Procfile")).unwrap();
    prints_hint();
}

#[test]
fn build_refuses_a_damaged_package() {
    for (build, _) in BUILDS {
        let site = Site::new();
        site.write("app/bin/start-stunnel", "the shim");
        let launcher = site.at("buildpack/launcher/x86_64/start-stunnel");
        let mut bytes = fs::read(&launcher).unwrap();
        bytes.pop();
        fs::write(&launcher, bytes).unwrap();
        site.refuses(build, &["differs from its checksum"]);
        fs::write(site.at("buildpack/launcher/SHA256SUMS"), "").unwrap();
        site.refuses(build, &["differs from its checksum"]);
    }
}

#[test]
fn build_error_names_the_systems_that_the_binary_supports() {
    let mut site = Site::new();
    // Replace the launcher by a file that cannot run, and update the checksum.
    site.write("buildpack/launcher/x86_64/start-stunnel", "#!/no/such/interpreter\n");
    site.sign_launcher("x86_64");
    site.refuses(Site::compile, &["does not run on this system (stack heroku-24)", "glibc 2.31"]);
    site.pretend_to_be("riscv64");
    let words = ["aarch64/ x86_64/", "not for riscv64", "supports x86_64 and aarch64"];
    site.refuses(Site::compile, &words);
}

#[test]
fn build_error_names_a_folder_that_is_not_writable() {
    let site = Site::new();
    fs::create_dir(site.at("app/bin")).unwrap();
    fs::set_permissions(site.at("app/bin"), fs::Permissions::from_mode(0o555)).unwrap();
    site.refuses(Site::compile, &["cannot write", "/app/bin"]);
    site.refuses(|site| site.cloud_native("build"), &["cannot write", "/app/bin"]);
    fs::set_permissions(site.at("app/bin"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(site.at("app/bin/start-stunnel")).unwrap();
    site.refuses(Site::compile, &["bin/start-stunnel is a folder"]);
    fs::remove_dir_all(site.at("app/bin")).unwrap();
    fs::write(site.at("app/bin"), "").unwrap();
    site.refuses(Site::compile, &["bin is not a folder"]);
}

#[test]
fn build_from_a_checkout_fails_and_names_the_archive_to_use() {
    let site = Site::new();
    fs::remove_dir_all(site.at("buildpack/launcher")).unwrap();
    let archive = format!("start-stunnel-buildpack-{VERSION}.tgz");
    // Each row contains the repository's address in release.conf, and the text of the error.
    for (repository, source) in [
        ("", format!("{archive}, which bin/package makes")),
        ("https://example.com/it", format!("/it/releases/download/v{VERSION}/{archive}.")),
    ] {
        fs::write(site.at("buildpack/release.conf"), format!("REPOSITORY={repository}\n")).unwrap();
        for (build, _) in BUILDS {
            site.refuses(build, &["contains no start-stunnel binary", "a checkout", &source]);
        }
    }
    // If a user passes the repository's address to `heroku buildpacks:add`, Heroku runs the scripts
    // in the repository's folder `bin`.
    let script = |name: &str| Command::new(Path::new(ROOT).join("bin").join(name));
    let detected = Outcome::of(script("detect").arg(site.at("app")));
    assert_eq!(detected.ok(), "start-stunnel\n");
    let built = Outcome::of(script("compile").args([site.at("app"), site.at("cache")]));
    assert!(built.code() == 1 && built.stderr.contains(&archive), "{built:?}");
}

#[test]
fn build_on_arm64_installs_the_arm64_binary() {
    for (build, done) in BUILDS {
        let mut site = Site::new();
        site.pretend_to_be("aarch64");
        let launcher = site.at("buildpack/launcher/aarch64/start-stunnel");
        // The number 183 in an ELF header means aarch64 (EM_AARCH64).
        assert_eq!(fs::read(&launcher).unwrap()[18], 183);
        // Replace the binary by a script that runs the binary with QEMU.
        fs::rename(&launcher, site.at("launcher")).unwrap();
        let script = format!(
            "#!/bin/sh\nexec qemu-aarch64-static -L /usr/aarch64-linux-gnu {} \"$@\"\n",
            site.at("launcher").display()
        );
        site.write("buildpack/launcher/aarch64/start-stunnel", &script);
        site.sign_launcher("aarch64");
        warned(build(&site), done, &[]);
        assert_eq!(fs::read_to_string(site.at("app/bin/start-stunnel")).unwrap(), script);
    }
}

fn toml(file: &Path) -> toml::Table {
    fs::read_to_string(file).unwrap().parse().unwrap()
}

/// Asserts that a TOML table contains only keys that the buildpack specification allows.
fn keys(table: &toml::Table, allowed: &[&str]) {
    for key in table.keys() {
        assert!(allowed.contains(&key.as_str()), "the specification has no key {key}: {table:?}");
    }
}

#[test]
fn classic_procfile_also_works_after_a_cloud_native_build() {
    let site = Site::new();
    assert_eq!(site.cloud_native("detect").code(), 0);
    let said = site.cloud_native("build").ok();
    assert_eq!(said, format!("-----> start-stunnel\n       Installed start-stunnel {VERSION}\n"));

    // In Buildpack API 0.10, <layer>.toml contains the tables [types] and [metadata].
    let layer = toml(&site.at("layers/start-stunnel.toml"));
    keys(&layer, &["types", "metadata"]);
    let types: toml::Table = "launch = true\nbuild = false\ncache = true".parse().unwrap();
    assert_eq!(layer["types"].as_table(), Some(&types));
    assert_eq!(layer["metadata"]["version"].as_str(), Some(VERSION));
    // The build writes no launch.toml, because users could start the process types of launch.toml
    // by accident.
    assert_eq!(
        fs::read_dir(site.at("layers")).unwrap().count(),
        2,
        "the build writes a layer and its TOML file"
    );

    // At run time, the layer's folder bin/ is on PATH, and the app's bin/start-stunnel is a link to
    // the launcher in the layer.
    let mut on_path = site.command(Path::new("start-stunnel"));
    on_path.arg("-V");
    let bin = site.at("layers/start-stunnel/bin");
    on_path.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    assert_eq!(Outcome::of(&mut on_path).ok(), format!("start-stunnel {VERSION}\n"));
    run_as_a_dyno(site.command(Path::new("bash")), &Server::start(Front::Stunnel));
}

#[test]
fn cloud_native_rebuild_verifies_the_cached_layer() {
    let site = Site::new();
    site.cloud_native("build").ok();
    let (layer, binary) =
        (site.at("layers/start-stunnel.toml"), site.at("layers/start-stunnel/bin/start-stunnel"));
    let first = toml(&layer);
    // Before another build, the lifecycle restores the layer's [metadata], but not its [types].
    let metadata = toml::Table::from_iter([("metadata".to_owned(), first["metadata"].clone())]);
    let restore = || {
        fs::write(&layer, metadata.to_string()).unwrap();
        fs::remove_file(site.at("app/bin/start-stunnel")).unwrap();
    };
    restore();
    let said = site.cloud_native("build").ok();
    assert!(said.contains("from the cache"), "{said}");
    assert_eq!(toml(&layer), first);
    assert!(site.at("app/bin/start-stunnel").exists());

    restore();
    fs::write(&binary, "an older version").unwrap();
    let said = site.cloud_native("build").ok();
    assert!(said.contains("Installed"), "{said}");
    assert!(fs::read(&binary).unwrap().starts_with(b"\x7fELF"));
}

#[test]
fn buildpack_toml_follows_the_specification() {
    let site = Site::new();
    let description = toml(&site.at("buildpack/buildpack.toml"));
    keys(&description, &["api", "buildpack", "targets"]);
    assert_eq!(description["api"].as_str(), Some("0.10"));
    let buildpack = description["buildpack"].as_table().unwrap();
    let known =
        ["id", "version", "name", "description", "keywords", "clear-env", "licenses", "homepage"];
    keys(buildpack, &known);
    assert_eq!(buildpack["version"].as_str(), Some(VERSION));
    let id = buildpack["id"].as_str().unwrap();
    assert!(id.contains('/'), "{id} contains no slash, as a unique id should");
    let targets = "targets = [{ os = 'linux', arch = 'amd64' }, { os = 'linux', arch = 'arm64' }]";
    let targets: toml::Table = targets.parse().unwrap();
    assert_eq!(description["targets"], targets["targets"]);
}
