//! The README's walk-throughs, done as it says.

mod support;

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use support::launcher::{HOLD, Launcher, logged, with_hosts};
use support::pki::{Authority, Certificate, Request};
use support::resp::Reply;
use support::servers::{Front, Options, PASSWORD, Server};
use support::{Process, eventually, two_free_ports};

/// A Rails user's console, in one line.
const RUBY: &str = "require 'redis'; puts Redis.new(url: ENV.fetch('REDIS_URL')).ping";

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
    // Its certificates are from a public CA, for the name in the URL: here our own CA stands for that.
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

/// Starts `program` as a TLS front on a port of its own, with a configuration made for it.
fn front(program: &str, arguments: &[&str], configuration: &str, port: u16) -> Process {
    let mut command = Command::new(program);
    command.args(arguments).arg(configuration);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process(
        command.spawn().unwrap_or_else(|error| panic!("{program} (bin/setup test): {error}")),
    );
    eventually("the front answers", || {
        assert!(process.0.try_wait().unwrap().is_none(), "{program} ended");
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    process
}

#[test]
fn a_front_of_ones_own_made_with_haproxy_or_nginx() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let both = folder.path().join("both.pem");
    let parts = [&certificate.certificate_file, &certificate.key_file];
    let pem: String = parts.map(|file| fs::read_to_string(file).unwrap()).concat();
    fs::write(&both, pem).unwrap();
    let server = Server::start(Front::Redis);
    let (haproxy_port, nginx_port) = (two_free_ports(), two_free_ports());

    let haproxy = folder.path().join("haproxy.cfg");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
         listen redis\n bind 127.0.0.1:{haproxy_port} ssl crt {}\n server redis 127.0.0.1:{}\n",
        both.display(),
        server.port
    );
    fs::write(&haproxy, text).unwrap();
    let nginx = folder.path().join("nginx.conf");
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\npid {0}/pid;\n\
         error_log {0}/error.log;\nevents {{}}\nstream {{ server {{ listen 127.0.0.1:{nginx_port} ssl;\n\
         ssl_certificate {1};\nssl_certificate_key {1};\nproxy_timeout 1h;\nproxy_pass 127.0.0.1:{2}; }} }}\n",
        folder.path().display(),
        both.display(),
        server.port
    );
    fs::write(&nginx, text).unwrap();
    let _haproxy = front("/usr/sbin/haproxy", &["-f"], haproxy.to_str().unwrap(), haproxy_port);
    let _nginx = front("/usr/sbin/nginx", &["-c"], nginx.to_str().unwrap(), nginx_port);

    for port in [haproxy_port, nginx_port] {
        let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{port}/0");
        // As the walk-through says: first --check prints the pin, then it is set.
        let checked = Launcher::new(["--check"]).redis(&url).run();
        let (_, pin) = checked.stdout.split_once("STUNNEL_PIN=").expect("a pin");
        let pin: String = pin.split_whitespace().take(1).collect();
        let held = Launcher::script(HOLD).redis(&url).env("STUNNEL_PIN", &pin).start_held();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        let log = held.finish().stderr;
        assert!(!log.contains("not-authenticated"), "{log}");
    }
}
