//! Real client libraries: each app in `examples/` runs with its own Procfile through the launcher.
//! The results are the table in docs/clients.md.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;

use nix::libc;
use support::launcher::{BINARY, Launcher, Outcome};
use support::resp::{Client, Reply};
use support::servers::{FRONTS, Front, Options, PASSWORD, Server};
use support::{eventually, two_free_ports};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const USER: (&str, &str) = ("app", "app-password");
/// A server with a user for the app.
fn options() -> Options<'static> {
    Options { user: Some(USER), ..Options::default() }
}
/// The checks of every app that tests a client library, in this order.
const CHECKS: [&str; 8] =
    ["boot", "user", "database", "pipeline", "transaction", "pubsub", "blocking", "10 MiB"];
/// Rows of the table. The test that completes the table compares or writes it.
const ROWS: usize = 17;
static MATRIX: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// An app of `examples/`.
struct Example(&'static str);

impl Example {
    /// A shell that finds the clients that bin/setup has installed.
    fn shell(line: &str) -> Launcher {
        let installed = format!("{ROOT}/target/clients");
        let path = std::env::var("PATH").unwrap();
        Launcher::of("bash", ["-c", line])
            .env("PATH", format!("{installed}/python/bin:{installed}/bin:{path}"))
            .env("NODE_PATH", format!("{installed}/node_modules"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
    }

    /// A line of its Procfile, as Heroku runs it, followed by `mode`.
    fn process(&self, process: &str, mode: &str, url: &str) -> Launcher {
        let folder = Path::new(ROOT).join("examples").join(self.0);
        let procfile = fs::read_to_string(folder.join("Procfile")).unwrap();
        let line = procfile.lines().find_map(|line| line.strip_prefix(&format!("{process}: ")));
        let line = line.unwrap_or_else(|| panic!("{}: no {process}", self.0));
        assert!(line.starts_with("bin/start-stunnel "), "{line}");
        let line = line.replacen("bin/start-stunnel", BINARY, 1);
        let mut launcher = Example::shell(&format!("exec {line} {mode}")).redis(url);
        launcher.command.current_dir(folder);
        launcher
    }

    fn web(&self, mode: &str, url: &str) -> Launcher {
        self.process("web", mode, url)
    }

    /// The version of its client library, which `command` prints.
    fn version(&self, command: &str) -> String {
        let printed = Example::shell(command).run();
        let version = printed.stdout.trim().to_owned();
        assert!(!version.is_empty(), "{}: {} (bin/setup clients)", self.0, printed.stderr);
        version
    }

    /// Checks everything that a client library has to do.
    fn works(&self, version: &str, note: &str) {
        self.works_with(version, note, "");
    }

    /// Like `works`, with a query in the URL.
    fn works_with(&self, version: &str, note: &str, query: &str) {
        for front in FRONTS {
            let server = start(front);
            let ended = self.web("checks", &(url(&server) + query)).run();
            let expected: String = CHECKS.map(|check| format!("check {check}: ok\n")).concat();
            assert_eq!(ended.stdout, expected, "{} {front:?}: {}", self.0, ended.stderr);
            assert_eq!(ended.code(), 0, "{}", ended.stderr);
            no_secret(&ended);
        }
        let server = start(Front::Redis);
        let refused = self.refused(&server, query);
        let (down, dead) = self.down(query);
        let server = self.outlives_a_restart(server, query);
        self.ends_in_good_order(&server, query);
        let all = "all, directly and behind stunnel";
        let name = format!("{}{}", self.0, query.replace('?', ", "));
        record(&name, &[&self.version(version), all, &refused, &down, &dead, note]);
    }

    /// The kind of error that the app sees if the certificate check fails.
    fn refused(&self, server: &Server, query: &str) -> String {
        let launcher = self.web("once", &(url(server) + query)).env("STUNNEL_VERIFY", "full");
        let said = launcher.run().stdout;
        let told = said.contains("start-stunnel: ") && said.contains("certificate check failed");
        assert!(told, "{}: {said}", self.0);
        class_of(&said)
    }

    /// The kinds of error that the app sees if Redis is down: with the tunnel, and without it.
    fn down(&self, query: &str) -> (String, String) {
        let free = two_free_ports();
        let url = format!("redis://{}:{}@127.0.0.1:{free}/3{query}", USER.0, USER.1);
        let through = self.web("once", &url).run().stdout;
        let without = self.web("once", &url).env("STUNNEL_ENABLED", "false").run().stdout;
        for said in [&through, &without] {
            assert!(said.starts_with("error"), "{}: {said}", self.0);
        }
        assert!(
            !through.contains("start-stunnel: "),
            "an outage is reported as a refusal: {through}"
        );
        (class_of(&through), class_of(&without))
    }

    /// Checks that the app reconnects by itself after a restart of Redis.
    fn outlives_a_restart(&self, server: Server, query: &str) -> Server {
        let port = server.port;
        let mut running = self.web("outlive", &(url(&server) + query)).start();
        assert_eq!(running.line(), "ready", "{}", self.0);
        drop(server);
        let server =
            eventually("the server is back", || Server::try_start(Front::Redis, port, options()));
        running.say("go on\n");
        let said = running.line();
        let ended = running.finish();
        assert!(said.starts_with("back after "), "{}: {said} {}", self.0, ended.stderr);
        assert!(!said.starts_with("back after 400 "), "{}: {said}", self.0);
        server
    }

    /// Checks that the app can still use Redis after SIGTERM.
    fn ends_in_good_order(&self, server: &Server, query: &str) {
        let mut running = self.web("serve", &(url(server) + query)).start();
        assert_eq!(running.line(), "ready", "{}", self.0);
        running.signal(libc::SIGTERM);
        let ended = running.finish();
        assert_eq!((ended.stdout.as_str(), ended.code()), ("bye\n", 0), "{}", ended.stderr);
        assert_eq!(stored(server, "farewell"), Reply::bulk("bye"), "{}", self.0);
    }

    /// Checks that a worker finishes its running job after SIGTERM.
    fn finishes_its_job(&self, version: &str, query: &str, note: &str) {
        for front in FRONTS {
            let server = start(front);
            let url = url(&server) + query;
            let enqueued = self.process("enqueue", "", &url).run();
            assert!(enqueued.stdout.starts_with("enqueued "), "{}: {enqueued:?}", self.0);
            let worker = self.process("worker", "", &url).start();
            eventually("the job has begun", || {
                (stored(&server, "started") == Reply::bulk("7")).then_some(())
            });
            assert_eq!(stored(&server, "finished"), Reply::Nil);
            worker.signal(libc::SIGTERM);
            let ended = worker.finish();
            assert_eq!(ended.code(), 0, "{} {front:?}: {}", self.0, ended.stderr);
            assert_eq!(stored(&server, "finished"), Reply::bulk("7"), "{}", ended.stderr);
            no_secret(&ended);
        }
        let worked = "finishes a running job after SIGTERM";
        record(self.0, &[&self.version(version), worked, "", "", "", note]);
    }
}

fn start(front: Front) -> Server {
    Server::start_with(front, options())
}

fn url(server: &Server) -> String {
    format!("redis://{}:{}@127.0.0.1:{}/3", USER.0, USER.1, server.port)
}

/// The value of a key in database 3.
fn stored(server: &Server, key: &str) -> Reply {
    let mut direct = Client::connect(server.port, PASSWORD);
    direct.ask(&["SELECT", "3"]);
    direct.ask(&["GET", key])
}

/// Checks that the launcher's log contains no password.
fn no_secret(ended: &Outcome) {
    let launchers = ended.stderr.lines().filter(|line| line.starts_with("ts="));
    assert!(launchers.into_iter().all(|line| !line.contains(USER.1)), "{}", ended.stderr);
}

/// The kind of error in "error KIND: message"; or the message, if the language has no kinds.
fn class_of(said: &str) -> String {
    let said = said.trim().strip_prefix("error").unwrap_or(said).trim_start_matches([':', ' ']);
    match said.split_once(": ") {
        Some((class, _)) if !class.contains(' ') && class != "ERR" => format!("`{class}`"),
        _ => {
            let message = said.split(" start-stunnel").next().unwrap_or(said);
            let message = message.split(" 127.0.0.1").next().unwrap_or(message);
            format!("`{}`", message.trim_end_matches([':', ' ']))
        }
    }
}

/// These comments surround the table in docs/clients.md.
const TABLE_BEGINS: &str = "<!-- clients: written by bin/test --clients -->";
const TABLE_ENDS: &str = "<!-- end of clients -->";

/// Records a row. Once the table is complete, compares it with docs/clients.md, or writes it there.
fn record(name: &str, cells: &[&str]) {
    let mut matrix = MATRIX.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    matrix.insert(name.to_owned(), format!("| {name} | {} |", cells.join(" | ")));
    if matrix.len() < ROWS {
        return;
    }
    let head = "| client | version | what worked | error when the certificate is refused \
        | when Redis is down | the same without a tunnel | notes |\n\
        | --- | --- | --- | --- | --- | --- | --- |\n";
    let rows: Vec<&str> = matrix.values().map(String::as_str).collect();
    let table = format!("\n\n{head}{}\n\n", rows.join("\n"));
    let file = Path::new(ROOT).join("docs/clients.md");
    let page = fs::read_to_string(&file).unwrap();
    let (before, rest) = page.split_once(TABLE_BEGINS).expect("the table's begin");
    let (committed, behind) = rest.split_once(TABLE_ENDS).expect("the table's end");
    if std::env::var_os("WRITE_CLIENTS").is_some() {
        let page = format!("{before}{TABLE_BEGINS}{table}{TABLE_ENDS}{behind}");
        fs::write(&file, page).unwrap();
        return;
    }
    // Versions differ between machines.
    let without_versions = |table: &str| -> Vec<String> {
        let rows = table.lines().filter(|line| line.starts_with("| "));
        rows.map(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            [&cells[..1], &cells[2..3]].concat().join(" | ")
        })
        .collect()
    };
    assert_eq!(
        without_versions(committed),
        without_versions(&table),
        "docs/clients.md differs from the results: run bin/test --clients"
    );
}

#[test]
fn ruby_redis() {
    Example("redis-rb").works("ruby -r redis -e 'puts Redis::VERSION'", "");
}

#[test]
fn ruby_sidekiq() {
    let version = "ruby -r sidekiq -e 'puts Sidekiq::VERSION'";
    Example("sidekiq").finishes_its_job(version, "", "");
}

#[test]
fn ruby_rails_cache_store() {
    let example = Example("rails-cache");
    for front in FRONTS {
        let ended = example.web("", &url(&start(front))).run();
        let expected = "read hello\nfetched 42 42\ncounted 1 2\nseveral 2\nerrors \n";
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    }
    let server = start(Front::Redis);
    let refused = example.web("", &url(&server)).env("STUNNEL_VERIFY", "full").run().stdout;
    assert!(refused.contains("certificate check failed"), "{refused}");
    let version = "ruby -r active_support -e 'puts ActiveSupport.version'";
    let note = "an unreachable cache is a cache miss; only `error_handler` sees errors";
    let version = example.version(version);
    record(
        "rails-cache",
        &[&version, "read, write, fetch, increment, several at once", "", "", "", note],
    );
}

/// Prints the version of redis-py.
const REDIS_PY: &str = "python3 -c 'import redis; print(redis.__version__)'";

#[test]
fn python_redis_py_with_resp2() {
    Example("redis-py").works_with(REDIS_PY, "", "?protocol=2");
}

#[test]
fn python_redis_py_with_resp3() {
    Example("redis-py").works_with(REDIS_PY, "", "?protocol=3");
}

#[test]
fn python_redis_py_with_asyncio() {
    Example("redis-py-asyncio").works(REDIS_PY, "");
}

#[test]
fn python_celery() {
    let version = "python3 -c 'import celery; print(celery.__version__)'";
    let example = Example("celery");
    example.finishes_its_job(
        version,
        "?ssl_cert_reqs=none",
        "the launcher removes `ssl_cert_reqs` from the URL",
    );
}

#[test]
fn celery_works_with_ssl_cert_reqs_none_in_its_url() {
    let server = start(Front::Redis);
    let url = format!(
        "rediss://{}:{}@127.0.0.1:{}/3?ssl_cert_reqs=none",
        USER.0,
        USER.1,
        server.tls_port()
    );
    let enqueued = Example("celery").process("enqueue", "", &url).run();
    assert!(enqueued.stdout.starts_with("enqueued "), "{enqueued:?}");
}

#[test]
fn python_rq() {
    let version = "python3 -c 'import rq; print(rq.VERSION)'";
    Example("rq").finishes_its_job(version, "", "");
}

#[test]
fn node_ioredis() {
    let version = "node -p 'require(\"ioredis/package.json\").version'";
    Example("ioredis").works(version, "the `error` event holds the reason");
}

#[test]
fn node_redis() {
    let version = "node -p 'require(\"redis/package.json\").version'";
    Example("node-redis").works(version, "");
}

#[test]
fn node_bullmq() {
    let version = "node -p 'require(\"bullmq/package.json\").version'";
    Example("bullmq").finishes_its_job(version, "", "");
}

#[test]
fn go_redigo() {
    let version = "dpkg-query -W -f '${Version}' golang-github-gomodule-redigo-dev";
    Example("redigo").works(version, "");
}

#[test]
fn php_phpredis() {
    let version = "php -r 'echo phpversion(\"redis\");'";
    Example("phpredis").works(
        version,
        "accepts no URL; returns `false` if refused; `getLastError()` has the text",
    );
}

#[test]
fn php_predis() {
    let version = "php -r 'require \"Predis/autoload.php\"; echo Predis\\Client::VERSION;'";
    Example("predis").works(version, "1.1 ignores user names in URLs: the app sends AUTH");
}

#[test]
fn php_sessions_make_a_connection_for_each_request() {
    for front in FRONTS {
        let server = start(front);
        let port = two_free_ports();
        let example = Example("php-session");
        let running = example.web("", &url(&server)).env("PORT", port.to_string()).start();
        let get = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
            let mut page = String::new();
            stream.read_to_string(&mut page).ok()?;
            page.rsplit("\r\n\r\n").next().map(str::to_owned)
        };
        assert_eq!(eventually("PHP serves", get), "visit 1\n");
        for visit in 2..=20 {
            assert_eq!(get().unwrap(), format!("visit {visit}\n"));
        }
        running.signal(libc::SIGINT);
        let ended = running.finish();
        assert!(ended.stderr.contains("connections=20 "), "{}", ended.stderr);
    }
    let version = Example("php-session").version("php -r 'echo phpversion(\"redis\");'");
    let worked = "sessions, one connection for each request";
    record("php-session", &[&version, worked, "", "", "", ""]);
}

#[test]
fn c_hiredis() {
    let version = "dpkg-query -W -f '${Version}' libhiredis-dev";
    Example("hiredis").works(version, "accepts no URL: the app parses it");
}

#[test]
fn redis_cli() {
    let version = "redis-cli --version | cut -d' ' -f2";
    Example("redis-cli").works(version, "");
}
