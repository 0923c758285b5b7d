//! Writes the texts about failures that users read: `error=` and `hint=` in the log, the error that
//! the app gets, and the advice of `--check`.

use std::io;
use std::net::IpAddr;

use super::failure::{
    Failure, Step, in_words, is_hang_up, is_out_of_descriptors, is_out_of_threads,
};
use super::{Tunnel, client_limit};
use crate::figures::{Event, FailureReason};
use crate::names;
use crate::tls::{Flaw, Misconfiguration};

/// The hint about an app that speaks TLS itself.
pub const APP_SPEAKS_TLS: &str = "remove TLS from the client's settings: ssl=True (redis-py), tls: \
                                  {} (ioredis), socket.tls (node-redis), ssl: true and ssl_params \
                                  (Ruby), --tls (redis-cli), or remove the code that changes the \
                                  URL back to rediss://";

/// The advice of `--check` if Redis does not answer a request.
pub const NO_ANSWER: &str = "Redis may be down, starting or at its client limit, while the TLS \
                             proxy in front of Redis is up, or the server may not be Redis";
/// The advice of `--check` if Redis refuses the URL's password.
pub const WRONG_PASSWORD: &str = "check that the URL contains the provider's user and password, \
                                  with special characters percent-encoded";

/// A failure's reason in the metrics, and the texts about the failure that users read.
#[derive(Debug)]
pub struct Described {
    /// The reason under which the metrics count the failure.
    pub reason: FailureReason,
    pub error: String,
    pub hint: String,
}

impl Described {
    fn new(reason: FailureReason, error: impl Into<String>, hint: impl Into<String>) -> Described {
        Described { reason, error: error.into(), hint: hint.into() }
    }
}

impl Failure {
    /// Returns the event under which the log reports the failure.
    pub fn event(&self) -> Event {
        match self {
            Failure::Outage(..) | Failure::Internal(_) => Event::Failed,
            Failure::Misconfigured(_) => Event::Refused,
            Failure::QueueTimeout(_) => Event::QueueTimeout,
        }
    }

    /// Returns the texts that users read about this failure of `tunnel`.
    pub fn describe(&self, tunnel: &Tunnel) -> Described {
        match self {
            Failure::QueueTimeout(limit) => Described::new(
                FailureReason::QueueTimeout,
                format!(
                    "all {limit} connections that the tunnel's limit allows were in use until the \
                     connect timeout"
                ),
                queue(tunnel),
            ),
            Failure::Internal(error) | Failure::Outage(Step::LookUp, error)
                if is_out_of_threads(error) =>
            {
                Described::new(
                    FailureReason::Threads,
                    format!("no thread is free: {error}", error = in_words(error)),
                    "raise the limit on processes and threads (ulimit -u, or the container's pids \
                     limit), or start fewer processes and threads",
                )
            }
            Failure::Internal(error) => Described::new(
                FailureReason::Internal,
                format!("OpenSSL failed: {error}"),
                "this machine may be short of memory. If the machine has enough memory, the error \
                 is a defect in start-stunnel or OpenSSL",
            ),
            Failure::Outage(step, error) => outage(*step, error, tunnel),
            Failure::Misconfigured(what) => misconfigured(what, tunnel),
        }
    }
}

fn outage(step: Step, error: &io::Error, tunnel: &Tunnel) -> Described {
    use io::ErrorKind::{ConnectionRefused, TimedOut};
    let variable = tunnel.variable();
    let failed = match step {
        Step::LookUp => "name lookup failed",
        Step::Tcp => "TCP connection failed",
        Step::Tls | Step::Unanswered => "TLS handshake failed",
    };
    let network = || format!("check the network and the host and port in {variable}");
    let if_never =
        || format!("If no connection ever works, {advice}", advice = another_port(tunnel));
    let no_tls = || format!("the server may be down or starting. {advice}", advice = if_never());
    let (reason, hint) = match (step, error.kind()) {
        _ if is_out_of_descriptors(error) => {
            let hint = "raise the limit on open files (ulimit -Hn)".to_owned();
            (FailureReason::Descriptors, hint)
        }
        (Step::LookUp, _) => {
            let hint = format!("check the host name in {variable} and the DNS resolver");
            (FailureReason::Dns, hint)
        }
        (Step::Tcp, ConnectionRefused) => {
            let upstream = &tunnel.route.upstream;
            let advice = another_port(tunnel);
            let hint = format!(
                "no program listens on {upstream}; if Redis is not just restarting, {advice}"
            );
            (FailureReason::TcpRefused, hint)
        }
        (Step::Tcp, TimedOut) => (FailureReason::TcpTimeout, network()),
        (Step::Tcp, _) => (FailureReason::TcpOther, network()),
        // At its client limit, Redis closes a connection before the TLS handshake, so Redis cannot
        // send the reason.
        (Step::Unanswered, _) => {
            let down = "the server may be down or starting";
            let cause = client_limit::suspicion(tunnel.open_to_server(), down);
            let hint = format!("{cause}. {}", if_never());
            (FailureReason::TlsEof, hint)
        }
        (Step::Tls, TimedOut) => (FailureReason::TlsTimeout, no_tls()),
        (Step::Tls, _) if is_hang_up(error) => (FailureReason::TlsEof, no_tls()),
        (Step::Tls, _) => (FailureReason::TlsOther, no_tls()),
    };
    Described::new(reason, format!("{failed}: {}", in_words(error)), hint)
}

fn misconfigured(what: &Misconfiguration, tunnel: &Tunnel) -> Described {
    let name = |variable| tunnel.route.setting_names.of(variable);
    let [cert, key] = [names::CLIENT_CERT, names::CLIENT_KEY].map(name);
    let has_identity = tunnel.route.trust.identity.is_some();
    let [min_tls, server_name] = [names::MIN_TLS, names::SERVER_NAME].map(name);
    match what {
        Misconfiguration::NoTls => Described::new(
            FailureReason::NoTls,
            "the server does not speak TLS",
            match tunnel.route.port_offset {
                None | Some(0) => no_tls_here(tunnel),
                Some(_) => another_port(tunnel),
            },
        ),
        Misconfiguration::Certificate(rejected) => Described::new(
            FailureReason::Certificate,
            format!("certificate check failed: {}", rejected.reason),
            certificate(rejected.flaw, tunnel),
        ),
        Misconfiguration::Pin(pin) => Described::new(
            FailureReason::Pin,
            format!("the server's key differs from the pin; the key's pin is {pin}"),
            another_pin(tunnel),
        ),
        Misconfiguration::ClientCertificateRefused(reason) if has_identity => Described::new(
            FailureReason::ClientCertificate,
            format!("the server refuses the client certificate: {reason}"),
            format!("set {cert} and {key} to a client certificate that the server accepts"),
        ),
        // Without a client certificate, Go's TLS 1.2 servers send the alert bad_certificate.
        Misconfiguration::ClientCertificateWanted
        | Misconfiguration::ClientCertificateRefused(_) => Described::new(
            FailureReason::ClientCertificate,
            "the server requires a client certificate",
            format!("set {cert} and {key} to a client certificate and its key"),
        ),
        Misconfiguration::UnknownName => Described::new(
            FailureReason::TlsOther,
            "the server does not accept the server name (SNI)",
            unknown_name(tunnel),
        ),
        Misconfiguration::NoCommonVersion => Described::new(
            FailureReason::TlsVersion,
            "the server supports none of the allowed TLS versions",
            format!(
                "set {min_tls} to a TLS version that the server supports (at least 1.2), or update \
                 the server"
            ),
        ),
        Misconfiguration::Other(reason) => Described::new(
            FailureReason::TlsOther,
            format!("TLS handshake refused: {reason}"),
            format!(
                "if the server requires a client certificate, set {cert} and {key}; if the server \
                 requires SNI, set {server_name}; otherwise check {min_tls}"
            ),
        ),
    }
}

/// Returns the hint about a server whose key matches no pin.
fn another_pin(tunnel: &Tunnel) -> String {
    // On Heroku, users can set an environment variable more easily than a command-line option. But
    // the variable has no effect while the option is set.
    let (pin, instead) = match tunnel.route.setting_names.of(names::PIN) {
        names::PIN_OPTION => (names::PIN, "remove --pin and "),
        pin => (pin, ""),
    };
    format!(
        "someone may be intercepting the connection. If the provider confirms a new key, \
         {instead}set {pin} to the new pin, or to both pins (OLD;NEW)"
    )
}

/// Returns what to do about a flaw that no setting for a CA or a server name can solve. Returns
/// `None` for other flaws.
pub fn cure(flaw: Flaw) -> Option<&'static str> {
    match flaw {
        Flaw::Expired => {
            Some("replace the expired certificate (the server's, or one in your CA file)")
        }
        Flaw::NotYetValid => {
            Some("check this machine's clock, or wait until the certificate is valid")
        }
        Flaw::Unsuitable => Some("replace the server's certificate chain"),
        Flaw::Name | Flaw::Key | Flaw::Chain => None,
    }
}

/// Returns the hint about a server certificate that the launcher has rejected.
pub fn certificate(flaw: Flaw, tunnel: &Tunnel) -> String {
    let names = &tunnel.route.setting_names;
    let [verify, ca, pin, name] =
        [names::VERIFY, names::CA_FILE, names::PIN, names::SERVER_NAME].map(|name| names.of(name));
    let cure = match cure(flaw) {
        Some(cure) => {
            format!("{cure}. Until then, set {verify}=none and {pin} to the server's pin")
        }
        None if flaw == Flaw::Name => {
            format!("set {name} to a name in the certificate, or set {verify}=ca")
        }
        None if flaw == Flaw::Key => {
            "give the server a key of a usual type: ECDSA, or RSA with 2048 to 4096 bits and the \
             exponent 65537"
                .to_owned()
        }
        None => chain(tunnel, [verify, ca, pin]),
    };
    match names.full_by_url {
        false => cure,
        true => format!(
            "ssl_cert_reqs in {variable} requires full verification: {cure}",
            variable = tunnel.variable()
        ),
    }
}

/// Returns the hint about a certificate chain that no trusted CA has signed. `verify`, `ca` and
/// `pin` are the names of the options or variables that the hint tells the user to set.
fn chain(tunnel: &Tunnel, [verify, ca, pin]: [&str; 3]) -> String {
    let trust = &tunnel.route.trust;
    let add_ca = match trust.ca {
        None => format!("set {ca} to the server's CA"),
        Some(_) => {
            format!(
                "no configured CA signed the server's certificate chain: set {ca} to the chain's CA"
            )
        }
    };
    match trust.pins.is_empty() {
        true => format!(
            "{add_ca}, or set {verify}=none and {pin} to the server's pin (see start-stunnel \
             --check)"
        ),
        false => format!(
            "{verify} requires a valid certificate chain, even if a pin is set: {add_ca}, or set \
             {verify}=none to check only the pin"
        ),
    }
}

/// Returns the hint about a server that rejects the server name in SNI, or requires SNI. The
/// launcher sends no name if the URL contains an IP address instead of a host name (RFC 6066
/// section 3).
fn unknown_name(tunnel: &Tunnel) -> String {
    let host = tunnel.route.upstream.host_name();
    let name = tunnel.connector.server_name(&host);
    let sent = match name.parse::<IpAddr>() {
        Ok(_) => "no server name (SNI) was sent, because the upstream is an IP address".to_owned(),
        Err(_) => format!("the server name (SNI) sent was {name}"),
    };
    let setting = tunnel.route.setting_names.of(names::SERVER_NAME);
    format!("{sent}; set {setting} to a server name that the server accepts")
}

/// Returns the hint about a server that does not speak TLS on the URL's port.
fn no_tls_here(tunnel: &Tunnel) -> String {
    let (variable, port) = (tunnel.variable(), tunnel.route.upstream.port);
    let enabled = tunnel.route.setting_names.of(names::ENABLED);
    match tunnel.route.port_offset {
        None => format!(
            "if TLS is on the next port, {next}, change rediss:// to redis:// in {variable}, which \
             stands for TLS on the next port; if TLS is on another port, put that port into \
             {variable}; if this Redis has no TLS, write redis:// and set {enabled}=false",
            next = u32::from(port) + 1,
        ),
        Some(_) => format!(
            "if another port speaks TLS, set {variable}_{setting}; if this Redis has no TLS, set \
             {enabled}=false",
            setting = names::PORT_OFFSET,
        ),
    }
}

/// Returns the hint about a server that may speak TLS on another port, or not at all.
fn another_port(tunnel: &Tunnel) -> String {
    let variable = tunnel.variable();
    let port = tunnel.route.upstream.port;
    let Some(offset) = tunnel.route.port_offset.filter(|offset| *offset != 0) else {
        return format!("check the host and port in {variable}");
    };
    let sign = if offset < 0 { '-' } else { '+' };
    format!(
        "check the TLS port, {port} (the URL's port {url_port} {sign} {offset}): if port \
         {url_port} speaks TLS, write rediss://; if TLS is on another port, set \
         {variable}_{setting}; if this Redis has no TLS, set {enabled}=false",
        offset = offset.unsigned_abs(),
        url_port = i32::from(port) - offset,
        setting = names::PORT_OFFSET,
        enabled = tunnel.route.setting_names.of(names::ENABLED),
    )
}

/// Returns the hint about apps that wait for a connection to Redis, or have waited until the
/// connect timeout.
pub fn queue(tunnel: &Tunnel) -> String {
    format!(
        "set {max_connections} to the number of connections that the app holds at once (for \
         Sidekiq, the concurrency plus 5; for Puma, the size of all connection pools together). If \
         the Redis plan does not allow that many connections, make the app's connection pools \
         smaller",
        max_connections = tunnel.route.setting_names.of(names::MAX_CONNECTIONS)
    )
}

/// Returns the hint about a Redis that answers that it is at its client limit.
pub fn full() -> String {
    format!("Redis is at its client limit: {remedy}", remedy = client_limit::remedy())
}

/// Returns the hint about a connection that Redis closed instead of answering. The caller must have
/// closed its side of this connection, because the hint shows the number of open connections.
pub fn unanswered(tunnel: &Tunnel) -> String {
    let down = "Redis may be down or starting behind its TLS proxy";
    client_limit::suspicion(tunnel.open_to_server(), down)
}

/// Returns the advice about a URL that contains no password, although Redis requires a password.
pub fn no_password(tunnel: &Tunnel) -> String {
    format!(
        "put the provider's user and password into {variable}: rediss://USER:PASSWORD@HOST:PORT; \
         percent-encode special characters",
        variable = tunnel.variable()
    )
}

/// Returns the reason and the hint about an app connection that the launcher could not accept.
pub fn accept_failed(error: &io::Error) -> (&'static str, &'static str) {
    match is_out_of_descriptors(error) {
        true => (
            FailureReason::Descriptors.word(),
            "raise the limit on open files (ulimit -Hn); new connections wait until a file \
             descriptor is free",
        ),
        false => ("other", "new connections wait until the system can accept them"),
    }
}
