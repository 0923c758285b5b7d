//! Real servers on loopback: Debian's `redis-server` and `stunnel4`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::pki::{Authority, Certificate, Request};
use super::resp::{Client, Reply};
use super::slow_link::SlowLink;
use super::{Process, eventually, two_free_ports};

/// The password of Redis in all tests.
pub const PASSWORD: &str = "s3cret-password";

/// The program that speaks TLS for Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// `redis-server` itself.
    Redis,
    /// `stunnel4` in front of a plaintext `redis-server`, as on Heroku in the past.
    Stunnel,
}

pub const FRONTS: [Front; 2] = [Front::Redis, Front::Stunnel];

/// The options of a server. By default, a server has a self-signed certificate, and accepts any
/// client.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    pub certificate: Option<&'a Certificate>,
    /// Clients need a certificate that this CA has issued.
    pub client_ca: Option<&'a Certificate>,
    /// More options of `redis-server`.
    pub words: &'a [&'a str],
    /// Runs the server on the host at the other end of this link.
    pub link: Option<&'a SlowLink>,
    /// The address on which the server listens (default: 127.0.0.1).
    pub address: Option<&'a str>,
}

/// The number of connections to Redis, not counting `direct`.
pub fn connections(direct: &mut Client) -> usize {
    clients(direct).lines().count() - 1
}

/// Redis's list of its clients, with one line per client.
pub fn clients(direct: &mut Client) -> String {
    text_of(direct.ask(&["CLIENT", "LIST"]))
}

/// The number of connections that Redis has accepted since its start, including `direct`.
pub fn accepted(direct: &mut Client) -> usize {
    info(direct, "stats", "total_connections_received").expect("a number")
}

/// The number of times that Redis has executed a command.
pub fn calls(direct: &mut Client, command: &str) -> usize {
    let stats = text_of(direct.ask(&["INFO", "commandstats"]));
    let line = stats.lines().find_map(|line| {
        line.strip_prefix(&format!("cmdstat_{command}:calls="))?.split(',').next()?.parse().ok()
    });
    line.unwrap_or(0)
}

/// The number in a field of Redis's reply to INFO.
pub fn info(direct: &mut Client, section: &str, field: &str) -> Option<usize> {
    let info = text_of(direct.ask(&["INFO", section]));
    info.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))?.parse().ok())
}

fn text_of(reply: Reply) -> String {
    match reply {
        Reply::Bulk(text) => String::from_utf8(text).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A server whose certificate was issued by the intermediate CA of `authority`. `folder` contains
/// the files of the certificates.
pub struct Issued {
    pub authority: Authority,
    pub certificate: Certificate,
    pub server: Server,
    pub folder: TempDir,
}

impl Issued {
    pub fn new(request: &Request<'_>) -> Issued {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path());
        let certificate = authority.issue(folder.path(), "leaf", request);
        let server = Server::with_certificate(&certificate);
        Issued { authority, certificate, server, folder }
    }
}

/// A Redis server with plaintext on `port` and TLS on `port + 1`.
pub struct Server {
    /// The address on which the server listens.
    pub address: String,
    pub port: u16,
    front: Front,
    folder: TempDir,
    /// The commands that started the processes. The first command is `redis-server`.
    commands: Vec<Command>,
    processes: Vec<Process>,
}

impl Server {
    pub fn start(front: Front) -> Server {
        Server::start_with(front, Options::default())
    }

    /// Starts a server that has this certificate.
    pub fn with_certificate(certificate: &Certificate) -> Server {
        let options = Options { certificate: Some(certificate), ..Options::default() };
        Server::start_with(Front::Redis, options)
    }

    /// Starts a server with these further options of `redis-server`.
    pub fn with_words(words: &[&str]) -> Server {
        Server::start_with(Front::Redis, Options { words, ..Options::default() })
    }

    /// Starts a server that accepts only clients with a certificate from `ca`, and only the TLS
    /// versions `protocols`.
    pub fn for_clients_of(ca: &Certificate, protocols: &str) -> Server {
        let words = &["--tls-protocols", protocols];
        let options = Options { client_ca: Some(ca), words, ..Options::default() };
        Server::start_with(Front::Redis, options)
    }

    /// Like `for_clients_of`, for tests whose clients have no certificate of the right CA.
    pub fn requiring_certificates(protocols: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        Server::for_clients_of(&Certificate::self_signed(folder.path()), protocols)
    }

    pub fn start_with(front: Front, options: Options<'_>) -> Server {
        // If another program has taken the ports in the meantime, try other ports.
        eventually("a server starts", || Server::try_start(front, two_free_ports(), options))
    }

    /// Starts a server on `port` and `port + 1`. `None` if a port is taken.
    pub fn start_on(front: Front, port: u16) -> Option<Server> {
        Server::try_start(front, port, Options::default())
    }

    /// Like `start_on`, with options.
    pub fn try_start(front: Front, port: u16, options: Options<'_>) -> Option<Server> {
        let folder = tempfile::tempdir().unwrap();
        let address = options.link.map(|link| link.address.as_str()).or(options.address);
        let address = address.unwrap_or("127.0.0.1").to_owned();
        let mut server =
            Server { address, port, front, folder, commands: Vec::new(), processes: Vec::new() };
        let own =
            options.certificate.is_none().then(|| Certificate::self_signed(server.folder.path()));
        let certificate = options.certificate.or(own.as_ref()).expect("a certificate");
        server.start_redis(certificate, options);
        if front == Front::Stunnel {
            server.start_stunnel(certificate);
        }
        server.answers().then_some(server)
    }

    fn start_redis(&mut self, certificate: &Certificate, options: Options<'_>) {
        let mut redis = match options.link {
            Some(link) => link.command("redis-server"),
            None => Command::new("redis-server"),
        };
        redis
            .args(["--port", &self.port.to_string(), "--bind", &self.address, "--save", ""])
            .args(["--maxclients", "15000"])
            .args(["--requirepass", PASSWORD, "--proto-max-bulk-len", "512mb", "--dir"])
            .arg(self.folder.path())
            .args(["--logfile", "redis.log", "--loglevel", "warning"]);
        redis.args(options.words);
        if self.front == Front::Redis {
            let client_ca = options.client_ca.unwrap_or(certificate);
            let clients = if options.client_ca.is_some() { "yes" } else { "no" };
            redis
                .args(["--tls-port", &self.tls_port().to_string(), "--tls-auth-clients", clients])
                .arg("--tls-cert-file")
                .arg(&certificate.certificate_file)
                .arg("--tls-key-file")
                .arg(&certificate.key_file)
                .arg("--tls-ca-cert-file")
                .arg(&client_ca.certificate_file);
        }
        self.spawn(redis);
    }

    fn start_stunnel(&mut self, certificate: &Certificate) {
        let configuration = self.folder.path().join("stunnel.conf");
        std::fs::write(
            &configuration,
            format!(
                "foreground = yes\npid =\nsyslog = no\n[redis]\naccept = 127.0.0.1:{}\n\
                 connect = 127.0.0.1:{}\ncert = {}\nkey = {}\n",
                self.tls_port(),
                self.port,
                certificate.certificate_file.display(),
                certificate.key_file.display(),
            ),
        )
        .unwrap();
        let mut stunnel = Command::new("stunnel4");
        stunnel.arg(configuration);
        self.spawn(stunnel);
    }

    fn spawn(&mut self, mut command: Command) {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let name = command.get_program().to_string_lossy().into_owned();
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{name} (see bin/setup): {error}"));
        self.processes.push(Process(child));
        self.commands.push(command);
    }

    /// Waits until both ports answer. Returns `false` if a process has ended.
    pub fn answers(&mut self) -> bool {
        let (address, ports) = (self.address.clone(), [self.port, self.tls_port()]);
        eventually("the servers answer", || {
            if self.processes.iter_mut().any(|process| process.0.try_wait().unwrap().is_some()) {
                return Some(false);
            }
            // Wait for the first reply, because redis-server may still fail to start after it has
            // begun to listen.
            let mut redis = TcpStream::connect((address.as_str(), ports[0])).ok()?;
            redis.write_all(b"PING\r\n").ok()?;
            redis.read_exact(&mut [0; 1]).ok()?;
            TcpStream::connect((address.as_str(), ports[1])).is_ok().then_some(true)
        })
    }

    pub fn tls_port(&self) -> u16 {
        self.port + 1
    }

    /// The process id of `redis-server`.
    pub fn pid(&self) -> i32 {
        self.processes[0].pid()
    }

    /// Kills `redis-server`, and starts the server again after the time `away`. Does not wait
    /// until the server answers.
    pub fn restart(&mut self, away: Duration) {
        self.stop();
        std::thread::sleep(away); // This is the outage that the caller wants.
        self.processes[0] = Process(self.commands[0].spawn().unwrap());
    }

    /// Kills `redis-server`.
    pub fn stop(&mut self) {
        self.processes[0].0.kill().unwrap();
        self.processes[0].wait();
    }

    /// Starts `redis-server` again, and waits until the server answers.
    pub fn start_again(&mut self) {
        self.processes[0] = Process(self.commands[0].spawn().unwrap());
        assert!(self.answers(), "redis-server starts again");
    }

    /// The URL with the plaintext port, as a provider gives the URL to an app.
    pub fn url(&self) -> String {
        format!("redis://default:{PASSWORD}@{}:{}/0", self.address, self.port)
    }

    /// A client with a direct plaintext connection.
    pub fn direct(&self) -> Client {
        Client::connect_to(&self.address, self.port, PASSWORD)
    }
}
