//! Tests HAProxy and nginx as TLS proxies in front of Redis. The proxies are set up as in
//! `docs/servers.md`, with Debian's configuration.

mod support;

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::launcher::Launcher;
use support::resp::Reply;
use support::servers::{Front, PASSWORD, Server};
use support::snippets::{printed, snippet, with_ours};
use support::{Process, eventually, two_free_ports};

/// A configuration file of a Debian package. Lines that begin with the given words are replaced,
/// because a test needs other users, folders and ports. The old line remains as a comment.
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

/// A proxy's folder, with its certificate, configuration and log.
struct Proxy {
    folder: tempfile::TempDir,
}

impl Proxy {
    /// Creates the certificate with the manual's command.
    fn new() -> Proxy {
        let proxy = Proxy { folder: tempfile::tempdir().unwrap() };
        let mut shell = Command::new("sh");
        shell.args(["-ec", &snippet("certificate")]).current_dir(proxy.folder.path());
        let made = shell.stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        proxy
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// HAProxy with Debian's configuration and `snippet`. The test shortens Debian's timeouts from
    /// 50 seconds to 300 ms, so that a snippet without its own timeouts fails in
    /// [`pinned_through`].
    fn haproxy(&self, snippet: &str) -> Command {
        let replaced = [
            ("chroot ", ""),
            ("user ", ""),
            ("group ", ""),
            ("stats socket ", ""),
            ("timeout client ", "timeout client 300"),
            ("timeout server ", "timeout server 300"),
        ];
        let text = stock("/etc/haproxy/haproxy.cfg", &replaced) + "\n" + snippet;
        let file = self.at("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        // -db keeps HAProxy in the foreground.
        command.args(["-db", "-f"]).arg(file);
        command
    }

    /// nginx with Debian's configuration and `snippet`.
    fn nginx(&self, snippet: &str) -> Command {
        let folder = self.folder.path().display();
        let (pid, error_log) = (format!("pid {folder}/pid;"), format!("error_log {folder}/error;"));
        let access_log = format!("access_log {folder}/access;");
        let replaced = [
            ("pid ", pid.as_str()),
            ("error_log ", error_log.as_str()),
            ("access_log ", access_log.as_str()),
            // Debian's site needs port 80.
            ("include /etc/nginx/sites-enabled/", ""),
        ];
        let text = stock("/etc/nginx/nginx.conf", &replaced) + "\n" + snippet;
        let file = self.at("nginx.conf");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        // Run nginx as a single process, so that the test can kill nginx.
        let alone = "daemon off; master_process off;";
        command.arg("-e").arg(self.at("error")).args(["-g", alone, "-c"]).arg(file);
        command
    }

    /// Starts the proxy, and waits until the proxy accepts connections on this port.
    fn start(&self, mut command: Command, port: u16) -> Process {
        let said = self.at("said");
        let output = fs::File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut process = Process(command.spawn().expect("the proxy (bin/setup test)"));
        eventually("the proxy accepts connections", || {
            let ended = process.0.try_wait().unwrap().is_some();
            assert!(!ended, "the proxy ended: {}", fs::read_to_string(&said).unwrap());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let said = fs::read_to_string(&said).unwrap();
        assert!(!said.contains("WARNING") && !said.contains("[warn]"), "{said}");
        process
    }
}

/// Sets the pin that `--check` prints, as the manual says. Then checks that an app reaches Redis,
/// even after a second of silence. Without the manual's timeouts, the proxy would close the
/// connection during the silence.
fn pinned_through(port: u16) {
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{port}/0");
    let checked = Launcher::new(["--check"]).redis(&url).run();
    assert_eq!(checked.code(), 0, "{}", checked.stdout);
    let pin = printed(&checked.stdout, "STUNNEL_PIN");
    let held = Launcher::holding(&url).env("STUNNEL_PIN", pin).start_held();
    let mut client = held.client();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    // Redis waits for a second, so both sides are silent.
    assert_eq!(client.ask(&["BLPOP", "nothing", "1"]), Reply::Nil);
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    drop(client);
    let log = held.finish().stderr;
    assert!(!log.contains("not-authenticated"), "{log}");
}

/// Tests HAProxy with the snippet `name` of the manual. The test replaces the server's address in
/// the snippet, `manual`, by the local port `backend`.
fn haproxy_works(name: &str, manual: &str, backend: u16) {
    let proxy = Proxy::new();
    let port = two_free_ports();
    let text = with_ours(
        &snippet(name),
        &[
            ("bind :6380 ", &format!("bind 127.0.0.1:{port} ")),
            ("/etc/haproxy/redis.pem", proxy.at("redis.pem").to_str().unwrap()),
            (manual, &format!("127.0.0.1:{backend}")),
        ],
    );
    let _haproxy = proxy.start(proxy.haproxy(&text), port);
    pinned_through(port);
}

#[test]
fn haproxy_works_as_in_the_manual() {
    let server = Server::start(Front::Redis);
    haproxy_works("haproxy", "127.0.0.1:6379", server.port);
}

#[test]
fn haproxy_works_in_front_of_a_tls_redis() {
    let server = Server::start(Front::Redis);
    haproxy_works("haproxy-tls", "redis.internal:6379", server.tls_port());
}

#[test]
fn nginx_works_as_in_the_manual() {
    let proxy = Proxy::new();
    let server = Server::start(Front::Redis);
    let port = two_free_ports();
    let text = with_ours(
        &snippet("nginx"),
        &[
            ("listen 6380 ", &format!("listen 127.0.0.1:{port} ")),
            ("/etc/nginx/redis.pem", proxy.at("redis.pem").to_str().unwrap()),
            ("127.0.0.1:6379", &format!("127.0.0.1:{}", server.port)),
        ],
    );
    let _nginx = proxy.start(proxy.nginx(&text), port);
    pinned_through(port);
    // nginx before 1.23.4 speaks TLS 1.3 only if the configuration names TLS 1.3.
    let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{port}/0");
    let newest = Launcher::new(["--min-tls", "1.3", "--check"]).redis(&url).run();
    assert_eq!(newest.code(), 0, "{}", newest.stdout);
}

#[test]
fn proxies_wait_longer_than_the_launchers_idle_timeout() {
    let idle = start_stunnel::configuration::options::IDLE_TIMEOUT.declaration.default;
    let hours = |text: &str| text.strip_suffix('h')?.parse::<u32>().ok();
    for marker in ["haproxy", "haproxy-tls", "nginx"] {
        let text = snippet(marker);
        let timeouts: Vec<_> = text.split([' ', ';', '\n']).filter_map(hours).collect();
        let are_longer = timeouts.iter().all(|timeout| Some(*timeout) > hours(idle));
        assert!(!timeouts.is_empty() && are_longer, "{marker}: {timeouts:?}");
    }
}
