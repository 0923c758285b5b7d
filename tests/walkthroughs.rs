//! Runs the commands that README and the manual show, step by step.

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::libc;
use support::launcher::{BINARY, Launcher, Outcome, logged, with_hosts};
use support::pki::{Authority, Certificate, Request};
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server};
use support::snippets::{page, printed, snippet, with_ours};
use support::{eventually, rest, two_free_ports};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Ruby program that pings Redis.
const RUBY: &str = "require 'redis'; puts Redis.new(url: ENV.fetch('REDIS_URL')).ping";

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
    // The last buildpack decides the process types.
    assert_eq!(group.last().unwrap()["id"].as_str(), Some("heroku/procfile"));
}

#[test]
fn demo_prints_help_and_exits() {
    for (word, code) in [("--help", 0), ("-h", 0), ("--bogus", 2)] {
        let ended = Launcher::of(&format!("{ROOT}/bin/demo"), [word]).run();
        assert_eq!(ended.code(), code, "{}", ended.stderr);
        assert!(!ended.stdout.contains("Building"), "{}", ended.stdout);
        assert_eq!(ended.stdout.contains("\nbin/demo --help"), code == 0, "{}", ended.stdout);
    }
}

#[test]
fn compose_example_publishes_the_ports_of_nginx_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("compose.yaml");
    fs::write(&file, snippet("compose-php")).unwrap();
    let parse = "import sys, yaml; services = yaml.safe_load(open(sys.argv[1]))['services']; \
                 php = services['php']; assert php['network_mode'] == 'service:tunnel'; \
                 print([name for name in services if 'ports' in services[name]])";
    let parsed = Outcome::of(Command::new("/usr/bin/python3").args(["-c", parse]).arg(file));
    assert_eq!(parsed.ok(), "['nginx']\n");
    let list = r#"command: ["--listen-port", "6379", "--port-taken", "fail", "sleep", "infinity"]"#;
    assert!(snippet("compose-php").contains(list));
}

#[test]
fn certificate_verify_failed_is_gone_with_the_launcher() {
    let server = Server::start(Front::Redis);
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/0", server.tls_port());
    let run = |enabled: &str| {
        Launcher::new(["ruby", "-e", RUBY]).redis(&url).env("STUNNEL_ENABLED", enabled).run()
    };
    // Without the launcher, as after an upgrade of the plan; then with the launcher.
    let before = run("false");
    assert!(before.stderr.contains("certificate verify failed"), "{}", before.stderr);
    let after = run("true");
    assert_eq!(after.stdout, "PONG\n", "{}", after.stderr);
}

#[test]
fn elasticache_url_works_with_full_verification() {
    // A public CA signs ElastiCache's certificates for the name in the URL. This test has a CA of
    // its own instead.
    let folder = tempfile::tempdir().unwrap();
    let name = "master.cache.test";
    let authority = Authority::new(folder.path());
    let request = Request { name, dns: &[name], ip: &[], ..Request::default() };
    let certificate = authority.issue(folder.path(), "leaf", &request);
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, &format!("127.0.0.1 {name}\n")) else { return };
    let held = launcher
        .redis(&format!("rediss://default:{PASSWORD}@{name}:{}/0", server.tls_port()))
        .env("STUNNEL_VERIFY", "full")
        .env("STUNNEL_CA_FILE", authority.root.certificate_file.clone())
        .start_held();
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    assert_eq!(logged(&held.finish().stderr, "tunnel-up", "verify"), ["full"]);
}

#[test]
fn privatelink_url_works_without_settings() {
    let server = Server::start(Front::Redis);
    let url = format!("redis://default:{PASSWORD}@127.0.0.1:{}", server.tls_port());
    let script = "redis-cli --no-auth-warning -u \"$REDIS_ENDPOINT_BLUE_URL\" ping";
    let ended = Launcher::script(script).env("REDIS_ENDPOINT_BLUE_URL", &url).run();
    assert_eq!(ended.stdout, "PONG\n", "{}", ended.stderr);
}

/// A folder for PATH that contains the launcher.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    symlink(BINARY, folder.path().join("start-stunnel")).unwrap();
    folder
}

/// A shell that runs a command line of the manual, with the launcher on PATH.
fn shell(words: &str, programs: &Path) -> Launcher {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
    Launcher::of("sh", ["-c", words]).env("PATH", path)
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

/// Runs Sidekiq with this initializer and one job. Returns whether the job was enqueued and done.
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
    eventually("the job is done", || {
        (redis.ask(&["GET", "job"]) == Reply::bulk("done")).then_some(())
    });
    worker.signal(libc::SIGTERM);
    worker.finish().code() == 0
}

#[test]
fn sidekiq_works_before_and_after_the_documented_change() {
    let server = Server::start(Front::Redis);
    let (before, after) = (snippet("sidekiq-before"), snippet("sidekiq-after"));
    assert!(snippet("sidekiq-procfile").starts_with("worker: bin/start-stunnel "));
    assert!(sidekiq_works(&before, &server, "false"), "as it was");
    assert!(!sidekiq_works(&after, &server, "false"), "its own TLS needs the settings");
    assert!(sidekiq_works(&after, &server, "true"), "as the manual says");
    assert!(sidekiq_works("", &server, "true"), "without an initializer");
    assert!(sidekiq_works(&before, &server, "true"), "the old settings do no harm");
}

#[test]
fn kubernetes_probes_reach_the_status_page_by_pod_ip() {
    let server = Server::start(Front::Redis);
    let port = two_free_ports();
    for marker in ["kubernetes", "kubernetes-sidecar"] {
        let pod = snippet(marker);
        let address = "STUNNEL_STATUS_ADDRESS, value: \"0.0.0.0:9121\"";
        assert!(pod.contains(address) && pod.contains("{ path: /healthz, port: 9121 }"), "{pod}");
    }
    let held = Launcher::holding(&server.url());
    let held = held.env("STUNNEL_STATUS_ADDRESS", format!("0.0.0.0:{port}")).start_held();
    // This address of this machine stands for a pod's address.
    let probe = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.2", port)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.2:{port}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let (answer, _) = rest(&mut stream);
        String::from_utf8(answer).unwrap().lines().next().unwrap().to_owned()
    };
    for path in ["/healthz", "/readyz"] {
        assert_eq!(probe(path), "HTTP/1.1 200 OK", "{path}");
    }
    held.finish();
}

#[test]
fn plain_port_serves_an_app_started_elsewhere() {
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

    // A second launcher fails instead of using a port that the app does not know.
    let second = shell(&line, programs.path()).run();
    assert_eq!(second.code(), 78, "{}", second.stderr);

    drop(app);
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert!(!ended.status.success(), "{}", ended.stderr);
}

#[test]
fn sidecar_command_is_the_same_everywhere() {
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
    let pod_file = folder.path().join("pod.yaml");
    let pods = [snippet("kubernetes"), snippet("kubernetes-sidecar")];
    fs::write(&pod_file, pods.join("---\n")).unwrap();
    let parse =
        "import sys, yaml\nfor name in sys.argv[1:]: assert all(yaml.safe_load_all(open(name)))";
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", parse, "examples/docker/sidecar.yaml", "examples/docker/compose.yaml"]);
    Outcome::of(python.arg(pod_file).current_dir(ROOT)).ok();
    let dockerfile = page("examples/docker/Dockerfile");
    // `full` and `ca` need CA certificates, which a slim image lacks.
    assert!(dockerfile.contains(" ca-certificates "));
    // With runAsNonRoot, Kubernetes accepts only a number.
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
fn changed_server_key_is_handled_as_the_manual_says() {
    let folder = tempfile::tempdir().unwrap();
    let old = Certificate::self_signed(folder.path()).pin();
    let server = Server::start(Front::Redis);
    let url = server.url();

    // The app and the log get the messages on the page.
    let held = Launcher::holding(&url).env("STUNNEL_PIN", &old).start_held();
    let Reply::Line(said) = held.open().ask(&["PING"]) else { panic!("no error") };
    let trust = page("docs/trust.md");
    let words = ["-ERR start-stunnel: ", "the server's key differs from the pin"];
    assert!(trust.contains(&format!("`{}… {} …`", words[0], words[1])));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(held.finish().stderr.contains(" at=connection-refused "));

    // --check prints the new pin, which works alone and beside the old one.
    let checked = Launcher::new(["--check"]).redis(&url).env("STUNNEL_PIN", &old).run();
    let new = printed(&checked.stdout, "STUNNEL_PIN");
    let both = "'STUNNEL_PIN=sha256//OLD;sha256//NEW'";
    assert!(trust.contains(&format!("`heroku config:set {both}`")));
    let both = with_ours(both, &[("sha256//OLD", &old), ("sha256//NEW", &new)]);
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

/// A row of the table of clients in `docs/migrate.md`.
struct TableRow {
    /// The program that runs the code.
    program: &'static str,
    /// The code before the code in the table.
    before: &'static str,
    /// The first words of the code in the table.
    begins: &'static str,
    /// The code after the code in the table.
    behind: &'static str,
    /// For clients that fail with a TLS setting left in: the end of the code in the table, and its
    /// replacement with the setting.
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
            .unwrap_or_else(|| panic!("{} in the table", row.begins));
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
            assert_ne!(left_in.code(), 0, "{code} with {with}");
            assert!(!left_in.stdout.contains("PONG"));
            let says = ["which is mismatch", "unexpected keyword argument 'ssl_cert_reqs'"];
            let said = says.iter().find(|words| left_in.stderr.contains(*words));
            assert!(prose.contains(said.unwrap_or_else(|| panic!("{}", left_in.stderr))));
        }
    }
}
