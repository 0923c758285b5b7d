//! Tests real client libraries. The tests run each app in `examples/` through the launcher, as the
//! app's Procfile says. docs/clients.md contains the results.

mod support;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::libc;
use support::launcher::{BINARY, Launcher, Outcome};
use support::resp::{Client, Reply};
use support::servers::{FRONTS, Front, Options, PASSWORD, Server};
use support::{eventually, http_get, two_free_ports, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const USER: (&str, &str) = ("app", "app-password");
/// Server options that add the Redis user `app`.
fn options() -> Options<'static> {
    let words = &["--user", "app", "on", ">app-password", "~*", "&*", "+@all"];
    Options { words, ..Options::default() }
}
/// The checks that each example app makes, in this order.
const CHECKS: [&str; 8] =
    ["boot", "user", "database", "pipeline", "transaction", "pubsub", "blocking", "10 MiB"];

/// An app in the folder `examples/`.
#[derive(Clone, Copy)]
struct Example {
    name: &'static str,
    query: &'static str,
}

impl Example {
    fn new(name: &'static str) -> Example {
        Example { name, query: "" }
    }

    fn with_query(self, query: &'static str) -> Example {
        Example { query, ..self }
    }

    /// Runs the shell command `line`, which finds the client libraries that bin/setup has
    /// installed.
    fn shell(line: &str) -> Launcher {
        let installed = format!("{ROOT}/target/clients");
        let path = std::env::var("PATH").unwrap();
        Launcher::of("bash", ["-c", line])
            .env("PATH", format!("{installed}/python/bin:{installed}/bin:{path}"))
            .env("NODE_PATH", format!("{installed}/node_modules"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
    }

    /// Runs the Procfile's line for `process`, as Heroku does, with `mode` as a further argument.
    fn process(&self, process: &str, mode: &str, server: &Server) -> Launcher {
        self.process_with(process, mode, &self.url(server.port))
    }

    fn process_with(&self, process: &str, mode: &str, url: &str) -> Launcher {
        let folder = Path::new(ROOT).join("examples").join(self.name);
        let procfile = fs::read_to_string(folder.join("Procfile")).unwrap();
        let line = procfile.lines().find_map(|line| line.strip_prefix(&format!("{process}: ")));
        let line = line.unwrap_or_else(|| panic!("{}: no {process}", self.name));
        assert!(line.starts_with("bin/start-stunnel "), "{line}");
        let line = line.replacen("bin/start-stunnel", BINARY, 1);
        let mut launcher = Example::shell(&format!("exec {line} {mode}")).redis(url);
        launcher.command.current_dir(folder);
        launcher
    }

    fn web(&self, mode: &str, server: &Server) -> Launcher {
        self.process("web", mode, server)
    }

    fn url(&self, port: u16) -> String {
        format!("redis://{}:{}@127.0.0.1:{port}/3{}", USER.0, USER.1, self.query)
    }

    /// Runs `command`, which prints the version of a client library. Returns the version.
    fn version(&self, command: &str) -> String {
        let printed = Example::shell(command).run();
        let version = printed.stdout.trim().to_owned();
        assert!(!version.is_empty(), "{}: {} (bin/setup clients)", self.name, printed.stderr);
        version
    }

    /// Checks that a client library works through the launcher, and records the results.
    fn works(&self, version: &str, note: &str) {
        for front in FRONTS {
            let ended = self.web("checks", &start(front)).run();
            let expected: String = CHECKS.map(|check| format!("check {check}: ok\n")).concat();
            assert_eq!(ended.stdout, expected, "{} {front:?}: {}", self.name, ended.stderr);
            assert_eq!(ended.code(), 0, "{}", ended.stderr);
            no_secret(&ended);
        }
        let server = start(Front::Redis);
        let refused = self.refused(&server);
        let (down, dead) = self.down();
        let server = self.outlives_a_restart(server);
        self.ends_in_good_order(&server);
        let name = format!("{}{}", self.name, self.query.replace('?', ", "));
        record(&name, &[&self.version(version), "all", &refused, &down, &dead, note]);
    }

    /// The kind of error that the app sees if the certificate check fails.
    fn refused(&self, server: &Server) -> String {
        let said = self.web("once", server).env("STUNNEL_VERIFY", "full").run().stdout;
        let told = said.contains("start-stunnel: ") && said.contains("certificate check failed");
        assert!(told, "{}: {said}", self.name);
        class_of(&said)
    }

    /// The kinds of error that the app sees if Redis is down, first with the tunnel and then
    /// without.
    fn down(&self) -> (String, String) {
        let url = self.url(two_free_ports());
        let once = |enabled| {
            let launcher = self.process_with("web", "once", &url).env("STUNNEL_ENABLED", enabled);
            let said = launcher.run().stdout;
            assert!(said.starts_with("error"), "{}: {said}", self.name);
            assert!(
                !said.contains("start-stunnel: "),
                "an outage must not look like a refused certificate: {said}"
            );
            class_of(&said)
        };
        (once("true"), once("false"))
    }

    /// Checks that the app reconnects by itself after a restart of Redis.
    fn outlives_a_restart(&self, server: Server) -> Server {
        let port = server.port;
        let mut running = self.web("outlive", &server).start();
        assert_eq!(running.line(), "ready", "{}", self.name);
        drop(server);
        let server =
            eventually("the server is back", || Server::try_start(Front::Redis, port, options()));
        running.say("go on\n");
        let said = running.line();
        let ended = running.finish();
        assert!(said.starts_with("back after "), "{}: {said} {}", self.name, ended.stderr);
        assert!(!said.starts_with("back after 400 "), "{}: {said}", self.name);
        server
    }

    /// Checks that the app can still use Redis after SIGTERM.
    fn ends_in_good_order(&self, server: &Server) {
        let mut running = self.web("serve", server).start();
        assert_eq!(running.line(), "ready", "{}", self.name);
        running.signal(libc::SIGTERM);
        let ended = running.finish();
        assert_eq!((ended.stdout.as_str(), ended.code()), ("bye\n", 0), "{}", ended.stderr);
        assert_eq!(stored(server, "farewell"), Reply::bulk("bye"), "{}", self.name);
    }

    /// Checks that a worker finishes its running job after SIGTERM.
    fn finishes_its_job(&self, version: &str, note: &str) {
        for front in FRONTS {
            let server = start(front);
            let enqueued = self.process("enqueue", "", &server).run();
            assert!(enqueued.stdout.starts_with("enqueued "), "{}: {enqueued:?}", self.name);
            let worker = self.process("worker", "", &server).start();
            wait_until("the job has begun", || stored(&server, "started") == Reply::bulk("7"));
            assert_eq!(stored(&server, "finished"), Reply::Nil);
            worker.signal(libc::SIGTERM);
            let ended = worker.finish();
            assert_eq!(ended.code(), 0, "{} {front:?}: {}", self.name, ended.stderr);
            assert_eq!(stored(&server, "finished"), Reply::bulk("7"), "{}", ended.stderr);
            no_secret(&ended);
        }
        let worked = "finishes a running job after SIGTERM";
        record(self.name, &[&self.version(version), worked, "", "", "", note]);
    }
}

fn start(front: Front) -> Server {
    Server::start_with(front, options())
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

/// The word `KIND` in the app's output `error KIND: message`. If the output has no such word,
/// returns the error message.
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

/// Compares a row with the table in docs/clients.md. If `WRITE_CLIENTS` is set, writes the row into
/// the table instead.
fn record(name: &str, cells: &[&str]) {
    static PAGE: Mutex<()> = Mutex::new(());
    let _alone = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = Path::new(ROOT).join("docs/clients.md");
    let page = fs::read_to_string(&file).unwrap();
    let found = page.lines().find(|line| line.starts_with(&format!("| {name} | ")));
    let committed = found.unwrap_or_else(|| panic!("docs/clients.md has no row for {name}"));
    let row = format!("| {name} | {} |", cells.join(" | "));
    if std::env::var_os("WRITE_CLIENTS").is_some() {
        return fs::write(&file, page.replacen(committed, &row, 1)).unwrap();
    }
    // The other columns depend on the client's version, which differs between machines.
    let worked = |row: &str| row.split(" | ").nth(2).unwrap().to_owned();
    assert_eq!(worked(committed), worked(&row), "{name}: run bin/test --clients");
}

#[test]
fn redis_rb_works_through_the_tunnel() {
    Example::new("redis-rb").works("ruby -r redis -e 'puts Redis::VERSION'", "");
}

#[test]
fn sidekiq_finishes_its_job_after_sigterm() {
    let version = "ruby -r sidekiq -e 'puts Sidekiq::VERSION'";
    Example::new("sidekiq").finishes_its_job(version, "");
}

#[test]
fn rails_cache_works_through_the_tunnel() {
    let example = Example::new("rails-cache");
    for front in FRONTS {
        let ended = example.web("", &start(front)).run();
        let expected = "read hello\nfetched 42 42\ncounted 1 2\nseveral 2\nerrors \n";
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    }
    let server = start(Front::Redis);
    let refused = example.web("", &server).env("STUNNEL_VERIFY", "full").run().stdout;
    assert!(refused.contains("certificate check failed"), "{refused}");
    let version = example.version("ruby -r active_support -e 'puts ActiveSupport.version'");
    let worked = "read, write, fetch, increment, read_multi";
    let note = "an unreachable cache is a cache miss; only `error_handler` sees errors";
    record("rails-cache", &[&version, worked, "", "", "", note]);
}

/// A command that prints the version of redis-py.
const REDIS_PY: &str = "python3 -c 'import redis; print(redis.__version__)'";

#[test]
fn redis_py_works_with_resp2() {
    Example::new("redis-py").with_query("?protocol=2").works(REDIS_PY, "");
}

#[test]
fn redis_py_works_with_resp3() {
    Example::new("redis-py").with_query("?protocol=3").works(REDIS_PY, "");
}

#[test]
fn redis_py_works_with_asyncio() {
    Example::new("redis-py-asyncio").works(REDIS_PY, "");
}

#[test]
fn celery_finishes_its_job_after_sigterm() {
    let version = "python3 -c 'import celery; print(celery.__version__)'";
    let example = Example::new("celery").with_query("?ssl_cert_reqs=none");
    example.finishes_its_job(version, "the launcher removes `ssl_cert_reqs` from the URL");
}

#[test]
fn rq_finishes_its_job_after_sigterm() {
    let version = "python3 -c 'import rq; print(rq.VERSION)'";
    Example::new("rq").finishes_its_job(version, "");
}

#[test]
fn ioredis_works_through_the_tunnel() {
    let version = "node -p 'require(\"ioredis/package.json\").version'";
    Example::new("ioredis").works(version, "the `error` event holds the reason");
}

#[test]
fn node_redis_works_through_the_tunnel() {
    let version = "node -p 'require(\"redis/package.json\").version'";
    Example::new("node-redis").works(version, "");
}

#[test]
fn bullmq_finishes_its_job_after_sigterm() {
    let version = "node -p 'require(\"bullmq/package.json\").version'";
    Example::new("bullmq").finishes_its_job(version, "");
}

#[test]
fn redigo_works_through_the_tunnel() {
    let version = "dpkg-query -W -f '${Version}' golang-github-gomodule-redigo-dev";
    Example::new("redigo").works(version, "");
}

#[test]
fn phpredis_works_through_the_tunnel() {
    let version = "php -r 'echo phpversion(\"redis\");'";
    Example::new("phpredis").works(
        version,
        "accepts no URL; if the launcher refuses the server, `auth()` returns `false`, and \
         `getLastError()` has the text",
    );
}

#[test]
fn predis_works_through_the_tunnel() {
    let version = "php -r 'require \"Predis/autoload.php\"; echo Predis\\Client::VERSION;'";
    Example::new("predis").works(version, "ignores the URL's user name: the app sends AUTH");
}

#[test]
fn php_sessions_make_a_connection_for_each_request() {
    for front in FRONTS {
        let server = start(front);
        let port = two_free_ports();
        let example = Example::new("php-session");
        let running = example.web("", &server).env("PORT", port.to_string()).start();
        let get = || http_get(port, "/");
        assert_eq!(eventually("PHP serves", get), "visit 1\n");
        for visit in 2..=20 {
            assert_eq!(get().unwrap(), format!("visit {visit}\n"));
        }
        running.signal(libc::SIGINT);
        let ended = running.finish();
        assert!(ended.stderr.contains("connections=20 "), "{}", ended.stderr);
    }
    let version = Example::new("php-session").version("php -r 'echo phpversion(\"redis\");'");
    let worked = "sessions, one connection for each request";
    record("php-session", &[&version, worked, "", "", "", ""]);
}

#[test]
fn hiredis_works_through_the_tunnel() {
    let version = "dpkg-query -W -f '${Version}' libhiredis-dev";
    Example::new("hiredis").works(version, "accepts no URL: the app must parse the URL itself");
}

#[test]
fn redis_cli_works_through_the_tunnel() {
    let version = "redis-cli --version | cut -d' ' -f2";
    Example::new("redis-cli").works(version, "");
}
