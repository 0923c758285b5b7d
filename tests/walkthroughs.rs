//! Runs the commands that README and the manual show.

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::libc;
use support::launcher::{BINARY, Launcher, Outcome};
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{Front, PASSWORD, Server};
use support::snippets::{page, printed, snippet, with_ours};
use support::{eventually, two_free_ports, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn app_json_and_project_toml_list_the_buildpack() {
    let ours = format!("/start-stunnel-buildpack-{}.tgz", env!("CARGO_PKG_VERSION"));
    let app: serde_json::Value = serde_json::from_str(&snippet("app.json")).unwrap();
    let buildpacks = app["buildpacks"].as_array().unwrap();
    assert!(buildpacks[0]["url"].as_str().unwrap().ends_with(&ours), "{buildpacks:?}");
    assert!(app["scripts"]["postdeploy"].as_str().unwrap().starts_with("bin/start-stunnel "));

    let project: toml::Table = snippet("project.toml").parse().unwrap();
    assert_eq!(project["_"]["schema-version"].as_str(), Some("0.2"));
    let group = project["io"]["buildpacks"]["group"].as_array().unwrap();
    let uris: Vec<_> = group.iter().filter_map(|one| one.get("uri")).collect();
    assert_eq!(uris.len(), 1);
    assert!(uris[0].as_str().unwrap().ends_with(&ours), "{uris:?}");
    // The last buildpack decides the app's process types, so heroku/procfile must be the last.
    assert_eq!(group.last().unwrap()["id"].as_str(), Some("heroku/procfile"));
}

/// A new folder that contains only the launcher, so that the folder can be on PATH.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    symlink(BINARY, folder.path().join("start-stunnel")).unwrap();
    folder
}

/// A shell that runs a command line of the manual. `programs` is the first folder on PATH.
fn shell(words: &str, programs: &Path) -> Launcher {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
    Launcher::of("sh", ["-c", words]).env("PATH", path)
}

#[test]
fn the_manuals_command_computes_the_pin_of_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let command = with_ours(&snippet("pin"), &[("next.crt", certificate.path())]);
    let computed = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&computed.stdout).trim(), certificate.pin());
}

#[test]
fn app_with_host_and_port_reaches_redis() {
    let server = Server::start(Front::Redis);
    let programs = installed();
    let ping = format!("redis-cli --no-auth-warning -a {PASSWORD}");
    let port = two_free_ports();
    let fixed = with_ours(
        &snippet("fixed-port"),
        &[
            ("--listen-port 6379", &format!("--listen-port {port}")),
            ("COMMAND", &format!("sh -c '{ping} -h 127.0.0.1 -p {port} ping'")),
        ],
    );
    let from_url = with_ours(
        &snippet("host-and-port"),
        &[("COMMAND", &format!("{ping} -h \"$REDIS_HOST\" -p \"$REDIS_PORT\" ping"))],
    );
    let tls = format!("127.0.0.1:{}", server.tls_port());
    for line in [fixed, from_url] {
        for url in [
            format!("rediss://default:{PASSWORD}@{tls}/3?timeout=5"),
            format!("rediss://{tls}"),
            format!("rediss://{tls}?timeout=5"),
        ] {
            let ended = shell(&line, programs.path()).redis(&url).run();
            assert_eq!(ended.stdout, "PONG\n", "{url}: {line}: {}", ended.stderr);
        }
    }
}

/// Enqueues a job and runs Sidekiq. Both programs load this initializer. Returns true if Sidekiq
/// performed the job.
fn sidekiq_works(initializer: &str, server: &Server, enabled: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app.rb");
    let job = "class Job\n include Sidekiq::Worker\n def perform(key)\n \
               Sidekiq.redis { |redis| redis.set(key, 'done') }\n end\nend\n";
    fs::write(&app, format!("require 'sidekiq'\n{initializer}\n{job}")).unwrap();
    let app = app.to_str().unwrap();
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/0", server.tls_port());
    let run = |words: &[&str]| Launcher::new(words).redis(&url).env("STUNNEL_ENABLED", enabled);
    let mut redis = server.direct();
    redis.ask(&["DEL", "job"]);
    if run(&["ruby", "-r", app, "-e", "Job.perform_async('job')"]).run().code() != 0 {
        return false;
    }
    let worker = run(&["sidekiq", "-r", app, "-c", "2"]).start();
    wait_until("the job is done", || redis.ask(&["GET", "job"]) == Reply::bulk("done"));
    worker.signal(libc::SIGTERM);
    worker.finish().code() == 0
}

#[test]
fn sidekiq_works_before_and_after_the_documented_change() {
    let server = Server::start(Front::Redis);
    let (before, after) = (snippet("sidekiq-before"), snippet("sidekiq-after"));
    assert!(snippet("sidekiq-procfile").starts_with("worker: bin/start-stunnel "));
    for (initializer, enabled, works) in [
        (before.as_str(), "false", true),
        (&after, "false", false),
        (&after, "true", true),
        ("", "true", true),
        (&before, "true", true),
    ] {
        let worked = sidekiq_works(initializer, &server, enabled);
        assert_eq!(worked, works, "STUNNEL_ENABLED={enabled} with the initializer {initializer:?}");
    }
}

#[test]
fn sidecar_serves_an_app_that_it_did_not_start() {
    let server = Server::start(Front::Redis);
    let port = two_free_ports();
    let line = with_ours(
        &snippet("sidecar"),
        &[
            ("default:PASSWORD@", &format!("default:{PASSWORD}@")),
            ("redis.example.com:6379", &format!("127.0.0.1:{}", server.tls_port())),
            ("--listen-port 6379 ", &format!("--listen-port {port} ")),
        ],
    );
    let programs = installed();
    let running = shell(&format!("exec env {line}"), programs.path()).start();
    eventually("the port is open", || TcpStream::connect(("127.0.0.1", port)).ok());
    let mut app = Client::connect(port, PASSWORD);
    assert_eq!(app.ask(&["PING"]), Reply::line("+PONG"));

    // A second launcher fails, because the port is taken and the app would not find another port.
    let second = shell(&line, programs.path()).run();
    assert_eq!(second.code(), 78, "{}", second.stderr);

    drop(app);
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert!(!ended.status.success(), "{}", ended.stderr);
}

#[test]
fn all_sidecar_examples_have_the_same_command() {
    let line = snippet("sidecar");
    let (_, words) = line.trim_end().split_once("start-stunnel ").unwrap();
    let list: Vec<String> = words.split(' ').map(|word| format!("\"{word}\"")).collect();
    let list = format!("[{}]\n", list.join(", "));
    assert!(snippet("kubernetes-sidecar").contains(&format!("args: {list}")));
    assert!(page("examples/docker/sidecar.yaml").contains(&format!("command: {list}")));
    let unit = page("examples/systemd/redis-tunnel.service");
    assert!(unit.contains(&format!("ExecStart=/usr/local/bin/start-stunnel {words}\n")), "{unit}");
}

#[test]
fn examples_for_containers_and_systemd_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let pods = [snippet("kubernetes"), snippet("kubernetes-sidecar")];
    for pod in &pods {
        let address = "STUNNEL_STATUS_ADDRESS, value: \"0.0.0.0:9121\"";
        assert!(pod.contains(address) && pod.contains("{ path: /healthz, port: 9121 }"), "{pod}");
    }
    let php = snippet("compose-php");
    let list = r#"command: ["--listen-port", "6379", "--port-taken", "fail", "sleep", "infinity"]"#;
    assert!(php.contains(list));
    fs::write(folder.path().join("pods.yaml"), pods.join("---\n")).unwrap();
    fs::write(folder.path().join("php.yaml"), php).unwrap();
    let parse = "import sys, yaml\n\
                 for name in sys.argv[1:]: assert all(yaml.safe_load_all(open(name)))\n\
                 services = yaml.safe_load(open('php.yaml'))['services']\n\
                 assert services['php']['network_mode'] == 'service:tunnel'\n\
                 assert [name for name in services if 'ports' in services[name]] == ['nginx']";
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", parse, "pods.yaml"]).current_dir(folder.path());
    for name in ["sidecar", "compose"] {
        python.arg(format!("{ROOT}/examples/docker/{name}.yaml"));
    }
    Outcome::of(&mut python).ok();
    let dockerfile = page("examples/docker/Dockerfile");
    // `full` and `ca` need CA certificates, which a slim image lacks.
    assert!(dockerfile.contains(" ca-certificates "));
    // With runAsNonRoot, Kubernetes accepts a user only by number.
    assert!(dockerfile.contains("\nUSER 65534\n"));

    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        support::skip("there is no systemd-analyze");
        return;
    }
    for name in ["worker.service", "redis-tunnel.service"] {
        let unit = page(&format!("examples/systemd/{name}"));
        let file = folder.path().join(name);
        fs::write(&file, with_ours(&unit, &[("/usr/local/bin/start-stunnel", BINARY)])).unwrap();
        let verify = ["verify", "--man=no"];
        let said = Outcome::of(Command::new("systemd-analyze").args(verify).arg(&file));
        let is_named = said.stderr.lines().any(|line| line.contains(name));
        assert!(said.status.success() && !is_named, "{said:?}");
    }
}

#[test]
fn new_server_key_needs_a_new_pin_as_the_manual_says() {
    let folder = tempfile::tempdir().unwrap();
    let old = Certificate::self_signed(folder.path()).pin();
    let server = Server::start(Front::Redis);
    let url = server.url();

    // The app and the log get the messages that docs/trust.md quotes.
    let held = Launcher::holding(&url).env("STUNNEL_PIN", &old).start_held();
    let Reply::Line(said) = held.open().ask(&["PING"]) else { panic!("the app must get an error") };
    let trust = page("docs/trust.md");
    let words = ["-ERR start-stunnel: ", "the server's key differs from the pin"];
    assert!(trust.contains(&format!("`{}… {} …`", words[0], words[1])));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(held.finish().stderr.contains(" at=connection-refused "));

    // --check prints the new pin. The new pin works alone, and together with the old pin.
    let checked = Launcher::new(["--check"]).redis(&url).env("STUNNEL_PIN", &old).run();
    let new = printed(&checked.stdout, "STUNNEL_PIN");
    let both = "'STUNNEL_PIN=sha256//OLD;sha256//NEW'";
    assert!(trust.contains(&format!("`heroku config:set {both}`")));
    let both = with_ours(both, &[("sha256//OLD", &old), ("sha256//NEW", new)]);
    let programs = installed();
    for setting in [format!("'STUNNEL_PIN={new}'"), both] {
        let line = format!(
            "env {setting} start-stunnel sh -c 'redis-cli --no-auth-warning -u \"$REDIS_URL\" ping'"
        );
        let ended = shell(&line, programs.path()).redis(&url).run();
        assert_eq!((ended.code(), ended.stdout.trim()), (0, "PONG"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("not-authenticated"), "{}", ended.stderr);
    }
}

/// Runs the code in a row of the table in `docs/migrate.md`.
struct TableRow {
    /// The program that runs the code, for example `ruby -e`.
    program: &'static str,
    /// Code to run before the code in the table.
    before: &'static str,
    /// The first words of the code in the table.
    begins: &'static str,
    /// Code that the test appends to this code of the manual.
    behind: &'static str,
    /// For a client that fails if the app keeps a TLS setting: the end of the code in the table,
    /// and the text that replaces this end to add the TLS setting.
    left_in: Option<(&'static str, &'static str)>,
}

const TABLE: [TableRow; 4] = [
    TableRow {
        program: "ruby -e",
        before: "require 'redis'; r = ",
        begins: "Redis.new(url: ",
        behind: "; puts r.ping",
        left_in: None,
    },
    TableRow {
        program: "node -e",
        before: "const Redis = require('ioredis'); const r = ",
        begins: "new Redis(process",
        behind: "; r.ping().then(said => { console.log(said); r.disconnect(); })",
        left_in: None,
    },
    TableRow {
        program: "node -e",
        before: "const { createClient } = require('redis'); const r = ",
        begins: "createClient({",
        behind: "; r.connect().then(() => r.ping())\
                 .then(said => { console.log(said); r.destroy(); })",
        left_in: Some((" })", ", socket: { tls: true, rejectUnauthorized: false } })")),
    },
    TableRow {
        program: "target/clients/python/bin/python -c",
        before: "import os, redis; r = ",
        begins: "redis.from_url(",
        behind: "; print(r.execute_command('ECHO', 'PONG').decode())",
        left_in: Some(("\"])", "\"], ssl_cert_reqs=None)")),
    },
];

#[test]
fn client_settings_in_the_migration_table_work() {
    let server = Server::start(Front::Redis);
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/0", server.tls_port());
    let table = page("docs/migrate.md");
    let prose = table.split_whitespace().collect::<Vec<_>>().join(" ");
    for row in TABLE {
        let (_, code) = table
            .split_once(&format!("| `{}", row.begins))
            .unwrap_or_else(|| panic!("the table lacks {}", row.begins));
        let code = format!("{}{}", row.begins, code.split('`').next().unwrap());
        let run = |code: &str| {
            let script = format!("{}{code}{}", row.before, row.behind);
            let words = row.program.split(' ').chain([script.as_str()]);
            let mut launcher = Launcher::new(words);
            launcher.command.current_dir(ROOT);
            let modules = Path::new(ROOT).join("target/clients/node_modules");
            launcher.redis(&url).env("NODE_PATH", modules).run()
        };
        let stays = run(&code);
        assert_eq!(stays.stdout, "PONG\n", "{code}: {} (bin/setup clients)", stays.stderr);
        if let Some((end, with)) = row.left_in {
            let left_in = run(&code.replace(end, with));
            assert_ne!(left_in.code(), 0, "{code} must fail with {with}");
            assert!(!left_in.stdout.contains("PONG"));
            let says = ["which is mismatch", "unexpected keyword argument 'ssl_cert_reqs'"];
            let said = says.iter().find(|words| left_in.stderr.contains(*words));
            assert!(prose.contains(said.unwrap_or_else(|| panic!("{}", left_in.stderr))));
        }
    }
}
