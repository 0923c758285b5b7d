//! The walk-throughs of README and manual, done as they say: what is run here is taken from the
//! pages themselves.

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::libc;
use support::launcher::{BINARY, Launcher, logged, with_hosts};
use support::pki::{Authority, Certificate, Request};
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server};
use support::{Process, eventually, two_free_ports};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file of this repository.
fn page(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

/// The page with the walk-throughs that are marked.
const MARKED: &str = "docs/deploy.md";

/// The indented block of that page behind the comment that marks it.
fn snippet(marker: &str) -> String {
    let comment = format!("<!-- walkthrough: {marker} -->\n");
    let page = page(MARKED);
    let (_, behind) = page.split_once(&comment).unwrap_or_else(|| panic!("no {comment}"));
    let block = behind.trim_start_matches('\n').lines();
    let block = block.map_while(|line| line.strip_prefix("    ").or(line.is_empty().then_some("")));
    let text = block.collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n";
    assert!(text.trim() != "", "{marker}: no block");
    text
}

/// `text` with what it shows as an example replaced by what there is here; each must be there.
fn with_ours(text: &str, ours: &[(&str, &str)]) -> String {
    ours.iter().fold(text.to_owned(), |text, (example, ours)| {
        assert!(text.contains(example), "{example} in\n{text}");
        text.replace(example, ours)
    })
}

/// The whole line that sets `name` in what `--check` prints.
fn printed(table: &str, name: &str) -> String {
    let setting = format!("{name}=");
    let mut values = table.lines().filter_map(|line| line.trim().strip_prefix(&setting));
    values.next().unwrap_or_else(|| panic!("{name} in\n{table}")).to_owned()
}

/// A Rails user's console, in one line.
const RUBY: &str = "require 'redis'; puts Redis.new(url: ENV.fetch('REDIS_URL')).ping";

#[test]
fn the_apps_own_lists_of_buildpacks_are_well_formed_and_name_this_version_first() {
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
    // The last one decides the process types.
    assert_eq!(group.last().unwrap()["id"].as_str(), Some("heroku/procfile"));
}

#[test]
fn from_certificate_verify_failed_to_running() {
    let server = Server::start(Front::Redis);
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/0", server.tls_port());
    let run = |enabled: &str| {
        Launcher::new(["ruby", "-e", RUBY]).redis(&url).env("STUNNEL_ENABLED", enabled).run()
    };
    // What they saw after the plan's upgrade, and what they see with the Procfile's line.
    let before = run("false");
    assert!(before.stderr.contains("certificate verify failed"), "{}", before.stderr);
    let after = run("true");
    assert_eq!(after.stdout, "PONG\n", "{}", after.stderr);
}

#[test]
fn elasticache_with_every_check() {
    // Its certificates are from a public CA, for the name in the URL: here our own CA stands for
    // that.
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
fn privatelink_endpoints_speak_tls_on_the_port_in_their_url() {
    let server = Server::start(Front::Redis);
    let url = format!("redis://default:{PASSWORD}@127.0.0.1:{}", server.tls_port());
    let script = "redis-cli --no-auth-warning -u \"$REDIS_ENDPOINT_BLUE_URL\" ping";
    let ended = Launcher::script(script).env("REDIS_ENDPOINT_BLUE_URL", &url).run();
    assert_eq!(ended.stdout, "PONG\n", "{}", ended.stderr);
}

/// A distribution's own configuration, as its package installed it, with the lines that begin with
/// these words replaced (or left out), since a test has no such user, folder or port. The old line
/// stays as a comment.
fn stock(file: &str, replaced: &[(&str, &str)]) -> String {
    let stock = fs::read_to_string(file)
        .unwrap_or_else(|error| panic!("{file}: {error} (bin/setup test installs it)"));
    let lines = stock.lines().map(|line| {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        match replaced.iter().find(|(beginning, _)| words.starts_with(beginning)) {
            Some((_, ours)) => format!("# {line}\n{ours}\n"),
            None => format!("{line}\n"),
        }
    });
    lines.collect()
}

/// A folder with what a front needs, and the front's configuration.
struct FrontSite {
    folder: tempfile::TempDir,
}

impl FrontSite {
    /// With the certificate that the page makes.
    fn new() -> FrontSite {
        let site = FrontSite { folder: tempfile::tempdir().unwrap() };
        let mut shell = Command::new("sh");
        shell.args(["-ec", &snippet("certificate")]).current_dir(site.folder.path());
        let made = shell.stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        site
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Debian's haproxy.cfg with `snippet` behind it. `timeout`, in milliseconds: in place of its
    /// 50 seconds, so that a snippet without timeouts of its own is found out sooner.
    fn haproxy(&self, snippet: &str, timeout: u32) -> Command {
        let timeouts = ["client", "server"].map(|side| format!("timeout {side} {timeout}"));
        let replaced = [
            ("chroot ", ""),
            ("user ", ""),
            ("group ", ""),
            ("stats socket ", ""),
            ("timeout client ", timeouts[0].as_str()),
            ("timeout server ", timeouts[1].as_str()),
        ];
        let text = stock("/etc/haproxy/haproxy.cfg", &replaced) + "\n" + snippet;
        let file = self.at("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        // -db: not in the background, whatever the file says.
        command.args(["-db", "-f"]).arg(file);
        command
    }

    /// Debian's nginx.conf with `snippet` behind it.
    fn nginx(&self, snippet: &str) -> Command {
        let folder = self.folder.path().display();
        let (pid, error_log) = (format!("pid {folder}/pid;"), format!("error_log {folder}/error;"));
        let access_log = format!("access_log {folder}/access;");
        let replaced = [
            ("pid ", pid.as_str()),
            ("error_log ", error_log.as_str()),
            ("access_log ", access_log.as_str()),
            // Its own site is on port 80.
            ("include /etc/nginx/sites-enabled/", ""),
        ];
        let text = stock("/etc/nginx/nginx.conf", &replaced) + "\n" + snippet;
        let file = self.at("nginx.conf");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        // One process, so that none is left when that is killed.
        let alone = "daemon off; master_process off;";
        command.arg("-e").arg(self.at("error")).args(["-g", alone, "-c"]).arg(file);
        command
    }

    /// Starts a front, and waits until it answers on these ports.
    fn start(&self, mut command: Command, ports: &[u16]) -> Process {
        let said = self.at("said");
        let output = fs::File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut process = Process(
            command.spawn().unwrap_or_else(|error| panic!("{program} (bin/setup test): {error}")),
        );
        for port in ports {
            eventually("the front answers", || {
                let ended = process.0.try_wait().unwrap().is_some();
                assert!(!ended, "{program} ended: {}", fs::read_to_string(&said).unwrap());
                TcpStream::connect(("127.0.0.1", *port)).ok()
            });
        }
        let said = fs::read_to_string(&said).unwrap();
        assert!(!said.contains("WARNING") && !said.contains("[warn]"), "{said}");
        process
    }
}

/// What the walk-through says: `--check` prints the pin, which is set; then the app has its Redis,
/// also when it has been silent for longer than a front would allow it that is not told otherwise.
fn pinned_through(front: u16) {
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{front}/0");
    let checked = Launcher::new(["--check"]).redis(&url).run();
    assert_eq!(checked.code(), 0, "{}", checked.stdout);
    let pin = printed(&checked.stdout, "STUNNEL_PIN");
    let held = Launcher::holding(&url).env("STUNNEL_PIN", &pin).start_held();
    let mut client = held.client();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    // Redis itself keeps both sides silent for a second.
    assert_eq!(client.ask(&["BLPOP", "nothing", "1"]), Reply::Nil);
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    drop(client);
    let log = held.finish().stderr;
    assert!(!log.contains("not-authenticated"), "{log}");
}

/// Shorter than the second of silence in [`pinned_through`], in milliseconds.
const STOCK_TIMEOUT: u32 = 300;

#[test]
fn a_front_of_ones_own_appended_to_debians_haproxy_configuration() {
    let site = FrontSite::new();
    let server = Server::start(Front::Redis);
    let port = two_free_ports();
    let text = with_ours(
        &snippet("haproxy"),
        &[
            ("bind :6380 ", &format!("bind 127.0.0.1:{port} ")),
            ("/etc/haproxy/redis.pem", site.at("redis.pem").to_str().unwrap()),
            ("127.0.0.1:6379", &format!("127.0.0.1:{}", server.port)),
        ],
    );
    let _haproxy = site.start(site.haproxy(&text, STOCK_TIMEOUT), &[port]);
    pinned_through(port);
}

#[test]
fn haproxy_in_front_of_a_redis_that_speaks_tls_itself() {
    let site = FrontSite::new();
    let server = Server::start(Front::Redis);
    let port = two_free_ports();
    let text = with_ours(
        &snippet("haproxy-tls"),
        &[
            ("bind :6380 ", &format!("bind 127.0.0.1:{port} ")),
            ("/etc/haproxy/redis.pem", site.at("redis.pem").to_str().unwrap()),
            ("redis.internal:6379", &format!("127.0.0.1:{}", server.tls_port())),
        ],
    );
    let _haproxy = site.start(site.haproxy(&text, STOCK_TIMEOUT), &[port]);
    pinned_through(port);
}

#[test]
fn a_front_of_ones_own_appended_to_debians_nginx_configuration() {
    let site = FrontSite::new();
    let server = Server::start(Front::Redis);
    let port = two_free_ports();
    let text = with_ours(
        &snippet("nginx"),
        &[
            ("listen 6380 ", &format!("listen 127.0.0.1:{port} ")),
            ("/etc/nginx/redis.pem", site.at("redis.pem").to_str().unwrap()),
            ("127.0.0.1:6379", &format!("127.0.0.1:{}", server.port)),
        ],
    );
    let _nginx = site.start(site.nginx(&text), &[port]);
    pinned_through(port);
    // TLS 1.3 as well: nginx before 1.23.4 has it only when it is named.
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{port}/0");
    let newest = Launcher::new(["--min-tls", "1.3", "--check"]).redis(&url).run();
    assert_eq!(newest.code(), 0, "{}", newest.stdout);
}

#[test]
fn the_fronts_timeouts_are_longer_than_the_launchers_own() {
    let idle: u32 = start_stunnel::configuration::options::IDLE_TIMEOUT
        .declaration
        .default
        .strip_suffix('h')
        .unwrap()
        .parse()
        .unwrap();
    for (marker, names) in [
        ("haproxy", &["timeout client ", "timeout server "][..]),
        ("haproxy-tls", &["timeout client ", "timeout server "]),
        ("nginx", &["proxy_timeout "]),
    ] {
        let text = snippet(marker);
        for name in names {
            let (_, value) = text.split_once(name).unwrap_or_else(|| panic!("{name}: {text}"));
            let hours = value.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            assert!(value[hours.len()..].starts_with('h'), "{name}: {value}");
            assert!(hours.parse::<u32>().unwrap() > idle, "{name}: {value}");
        }
    }
}

/// A folder with the launcher under its name, for PATH.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    symlink(BINARY, folder.path().join("start-stunnel")).unwrap();
    folder
}

/// A shell with these words of a page, the launcher on its PATH.
fn shell(words: &str, programs: &Path) -> Launcher {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
    Launcher::of("sh", ["-c", words]).env("PATH", path)
}

#[test]
fn a_plain_port_for_an_app_that_start_stunnel_does_not_start() {
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

    // A second one does not move to a port that nobody knows.
    let second = shell(&line, programs.path()).run();
    assert_eq!(second.code(), 78, "{}", second.stderr);

    drop(app);
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.signal(), libc::SIGTERM, "{}", ended.stderr);
}

#[test]
fn the_sidecar_is_the_same_in_the_manual_docker_kubernetes_and_systemd() {
    let line = snippet("sidecar");
    let (_, words) = line.trim_end().split_once("start-stunnel ").unwrap();
    let list: Vec<String> = words.split(' ').map(|word| format!("\"{word}\"")).collect();
    let list = format!("[{}]\n", list.join(", "));
    assert!(snippet("kubernetes").contains(&format!("args: {list}")));
    assert!(page("examples/docker/sidecar.yaml").contains(&format!("command: {list}")));
    let unit = page("examples/systemd/redis-tunnel.service");
    assert!(unit.contains(&format!("ExecStart=/usr/local/bin/start-stunnel {words}\n")), "{unit}");
}

#[test]
fn the_examples_for_docker_kubernetes_and_systemd_are_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let pod_file = folder.path().join("pod.yaml");
    fs::write(&pod_file, snippet("kubernetes")).unwrap();
    let parse = "import sys, yaml\nfor name in sys.argv[1:]: assert yaml.safe_load(open(name))";
    let parsed = Command::new("/usr/bin/python3")
        .args(["-c", parse, "examples/docker/sidecar.yaml", "examples/docker/compose.yaml"])
        .arg(pod_file)
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    // A slim image has no CA, without which `full` and `ca` cannot hold.
    assert!(page("examples/docker/Dockerfile").contains(" ca-certificates "));

    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    for name in ["worker.service", "redis-tunnel.service"] {
        let unit = page(&format!("examples/systemd/{name}"));
        let file = folder.path().join(name);
        fs::write(&file, with_ours(&unit, &[("/usr/local/bin/start-stunnel", BINARY)])).unwrap();
        let verified =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
        let verified = verified.unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        let about: Vec<_> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(verified.status.success() && about.is_empty(), "{said}");
    }
}

#[test]
fn the_hour_in_which_the_pin_does_not_hold_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let old = Certificate::self_signed(folder.path()).pin();
    let server = Server::start(Front::Redis);
    let url = server.url();

    // What the page says that the app and the log say.
    let held = Launcher::holding(&url).env("STUNNEL_PIN", &old).start_held();
    let Reply::Line(said) = held.open().ask(&["PING"]) else { panic!("no error") };
    let trust = page("docs/trust.md");
    let words = ["-ERR start-stunnel: ", "the server's key differs from the pin"];
    assert!(trust.contains(&format!("`{}… {} …`", words[0], words[1])));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(held.finish().stderr.contains(" at=connection-refused "));

    // --check prints the key that is there now; it holds, alone or beside the old one.
    let checked = Launcher::new(["--check"]).redis(&url).env("STUNNEL_PIN", &old).run();
    let new = printed(&checked.stdout, "STUNNEL_PIN");
    let both = "'STUNNEL_PIN=sha256//OLD;sha256//NEW'";
    assert!(trust.contains(&format!("`heroku config:set {both}`")));
    let both = with_ours(both, &[("sha256//OLD", &old), ("sha256//NEW", &new)]);
    let programs = installed();
    for setting in [format!("'STUNNEL_PIN={new}'"), both] {
        let line = format!("env {setting} start-stunnel redis-cli ping");
        let ended = shell(&line, programs.path()).redis(&url).run();
        assert_eq!((ended.code(), ended.stdout.trim()), (0, "PONG"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("not-authenticated"), "{}", ended.stderr);
    }
}

/// A client as README's table has it: what it is run with, what the program says before and behind
/// the code in the table, how the code begins, and what is to be taken out of the client's
/// settings, if it fails at once when it is left in.
struct TableRow {
    program: &'static str,
    before: &'static str,
    begins: &'static str,
    behind: &'static str,
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
fn what_stays_of_a_clients_settings_works_and_what_is_left_in_does_not() {
    let server = Server::start(Front::Redis);
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/0", server.tls_port());
    let readme = page("README.md");
    let prose = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    for row in TABLE {
        let (_, code) = readme
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
