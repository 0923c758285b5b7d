//! Hints for the user if a connection fails: the texts after `hint=` in the log, in the app's error
//! and in the advice of `--check`.

use std::io;
use std::net::IpAddr;

use super::failure::{Failure, Step, is_out_of_descriptors, is_out_of_threads};
use super::{Tunnel, client_limit};
use crate::figures::FailureReason;
use crate::names;
use crate::tls::{Flaw, HandshakeError};

/// The hint if an app speaks TLS itself.
pub const APP_SPEAKS_TLS: &str = "the app speaks TLS to the local port, but the launcher does TLS \
                                  itself; remove TLS from the client's settings: ssl=True \
                                  (redis-py), tls: {} (ioredis), socket.tls (node-redis), ssl: \
                                  true and ssl_params (Ruby), or remove the code that changes the \
                                  URL back to rediss://";

/// The advice if Redis does not answer a request of `--check`.
pub const NO_ANSWER: &str = "Redis may be down, starting or at its client limit, behind a TLS \
                             proxy that is up";
/// The advice if Redis refuses the URL's password.
pub const WRONG_PASSWORD: &str = "compare the URL's user and password with those from the \
                                  provider; special characters must be percent-encoded";

impl Failure {
    /// The hint for this failure.
    pub fn hint(&self, tunnel: &Tunnel) -> String {
        let variable = tunnel.variable();
        match self {
            Failure::QueueTimeout(_) => queue(tunnel),
            Failure::Internal(error) | Failure::Outage(Step::LookUp, error)
                if is_out_of_threads(error) =>
            {
                "raise the limit on processes and threads (ulimit -u, or the container's pids \
                 limit), or start fewer processes and threads"
                    .to_owned()
            }
            Failure::Internal(_) => {
                "this machine may be short of memory. If it is not, this is a defect in \
                 start-stunnel or OpenSSL"
                    .to_owned()
            }
            Failure::Outage(_, error) if is_out_of_descriptors(error) => {
                "raise the limit on open files (ulimit -Hn)".to_owned()
            }
            Failure::Outage(Step::LookUp, _) => {
                format!("check the host name in {variable} and the DNS resolver")
            }
            Failure::Outage(Step::Tcp, error)
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                let end = if tunnel.route.port_offset == 0 { ';' } else { '.' };
                let port = another_port(tunnel);
                format!("nothing listens on {}{end} {port}", tunnel.route.upstream)
            }
            Failure::Outage(Step::Tcp, _) => {
                format!("check the network and the host and port in {variable}")
            }
            Failure::Outage(Step::Tls, _) => {
                format!(
                    "the server may be down or starting. If no connection ever works: {}",
                    another_port(tunnel)
                )
            }
            // At its client limit, Redis closes before the TLS handshake, and cannot send the
            // reason.
            Failure::Outage(Step::Unanswered, _) => {
                let port = another_port(tunnel);
                match tunnel.load.connections() {
                    0 => format!(
                        "the server may be down or starting, or {}. If no connection ever works: \
                         {port}",
                        limit_of_others()
                    ),
                    held => format!(
                        "{}. Or the server is down or starting. If no connection ever works: \
                         {port}",
                        client_limit::suspicion(held)
                    ),
                }
            }
            Failure::Misconfigured(error) => misconfigured(error, tunnel),
        }
    }
}

fn misconfigured(error: &HandshakeError, tunnel: &Tunnel) -> String {
    let name = |variable| tunnel.route.setting_names.of(variable);
    let [cert, key] = [names::CLIENT_CERT, names::CLIENT_KEY].map(name);
    let [pin, min_tls] = [names::PIN, names::MIN_TLS].map(name);
    match error {
        HandshakeError::NoTls if tunnel.route.port_offset == 0 => no_tls_here(tunnel),
        HandshakeError::NoTls
        | HandshakeError::Broken(_)
        | HandshakeError::Damaged(_)
        | HandshakeError::Internal(_) => another_port(tunnel),
        HandshakeError::Certificate(flaw, _) => certificate(*flaw, tunnel),
        HandshakeError::Pin(_) => {
            // Users of dynos set variables, which have an effect only without the option.
            let (pin, instead) = match pin {
                names::PIN_OPTION => (names::PIN, " in place of --pin"),
                _ => (pin, ""),
            };
            format!(
                "the connection may be intercepted. If the provider confirms a new key, set {pin} \
                 to the new pin{instead}, or append it after a ;"
            )
        }
        HandshakeError::UnknownName => unknown_name(tunnel),
        HandshakeError::ClientCertificateWanted => {
            format!("set {cert} and {key} to a client certificate and its key")
        }
        HandshakeError::ClientCertificateRefused(_) => {
            format!("set {cert} and {key} to a client certificate that the server accepts")
        }
        HandshakeError::NoCommonVersion => {
            format!(
                "set {min_tls} to a TLS version that the server supports (at least 1.2), or update \
                 the server"
            )
        }
        HandshakeError::Refused(_) if sent_name(tunnel).is_none() => format!(
            "set {cert} and {key} if the server requires a client certificate, or set {} if it \
             requires SNI; otherwise check {min_tls}",
            name(names::SERVER_NAME)
        ),
        HandshakeError::Refused(_) if tunnel.route.trust.identity.is_none() => format!(
            "set {cert} and {key} if the server requires a client certificate; otherwise check \
             {min_tls}"
        ),
        HandshakeError::Refused(_) => format!("check {cert}, {key} and {min_tls}"),
    }
}

/// The hint if the server's certificate is rejected.
pub fn certificate(flaw: Flaw, tunnel: &Tunnel) -> String {
    let names = &tunnel.route.setting_names;
    let [verify, ca, pin, name] =
        [names::VERIFY, names::CA_FILE, names::PIN, names::SERVER_NAME].map(|name| names.of(name));
    let cure = match flaw {
        Flaw::Name => format!("set {name} to a name in the certificate, or set {verify}=ca"),
        Flaw::Expired => format!(
            "renew the certificate. Until then, set {verify}=none and set {pin} to the server's pin"
        ),
        Flaw::NotYetValid => format!(
            "check this machine's clock. If the clock is right, set {verify}=none and set {pin} to \
             the server's pin until the certificate is valid"
        ),
        Flaw::Key => "give the server a common key: ECDSA, or RSA with 2048 to 4096 bits and the \
                      exponent 65537"
            .to_owned(),
        Flaw::Chain => chain(tunnel, [verify, ca, pin]),
    };
    match names.full_by_url {
        false => cure,
        true => format!("ssl_cert_reqs in {} demands full verification: {cure}", tunnel.variable()),
    }
}

/// The hint if no trusted CA has signed the chain. The array contains the names of the settings for
/// the verification level, the CA file and the pin.
fn chain(tunnel: &Tunnel, [verify, ca, pin]: [&str; 3]) -> String {
    let trust = &tunnel.route.trust;
    let add_ca = match trust.ca {
        None => format!("set {ca} to the server's CA"),
        Some(_) => {
            format!("none of the configured CAs signed this chain: set {ca} to the chain's issuer")
        }
    };
    match trust.pins.is_empty() {
        true => format!(
            "{add_ca}, or set {verify}=none and {pin} to the server's pin (see start-stunnel \
             --check)"
        ),
        false => format!(
            "a pin does not replace the chain that {verify} demands: {add_ca}, or set \
             {verify}=none to check only the pin"
        ),
    }
}

/// The hint if the server rejects the server name (SNI), or requires one that was not sent.
fn unknown_name(tunnel: &Tunnel) -> String {
    let setting = tunnel.route.setting_names.of(names::SERVER_NAME);
    match sent_name(tunnel) {
        Some(sent) => format!(
            "the server name (SNI) sent was {sent}; set {setting} to a server name that the server \
             accepts"
        ),
        None => format!(
            "no server name (SNI) was sent, because the upstream is an IP address; set {setting} \
             to a server name that the server accepts"
        ),
    }
}

/// The name in SNI; `None` for an IP address (RFC 6066 section 3).
fn sent_name(tunnel: &Tunnel) -> Option<String> {
    let host = tunnel.route.upstream.host_name();
    let name = tunnel.connector.server_name(&host);
    name.parse::<IpAddr>().is_err().then(|| name.to_owned())
}

/// The hint if the URL's own port does not speak TLS.
fn no_tls_here(tunnel: &Tunnel) -> String {
    let (variable, port) = (tunnel.variable(), tunnel.route.upstream.port);
    format!(
        "if TLS is on the next port, {next}, write redis:// in {variable}; if TLS is on another \
         port, put that port into {variable}; if this Redis has no TLS, write redis:// and set \
         {enabled}=false",
        next = u32::from(port) + 1,
        enabled = tunnel.route.setting_names.of(names::ENABLED),
    )
}

/// The hint if TLS may be on another port, or this Redis may have no TLS.
fn another_port(tunnel: &Tunnel) -> String {
    let variable = tunnel.variable();
    let (port, offset) = (tunnel.route.upstream.port, tunnel.route.port_offset);
    if offset == 0 {
        return format!("check the host and port in {variable}");
    }
    let sign = if offset < 0 { '-' } else { '+' };
    format!(
        "{port} is the URL's port {sign} {size}: if port {own} itself speaks TLS, write rediss://; \
         if TLS is on another port, set {variable}_{setting}; if this Redis has no TLS, set \
         {enabled}=false",
        size = offset.unsigned_abs(),
        own = i32::from(port) - offset,
        setting = names::PORT_OFFSET,
        enabled = tunnel.route.setting_names.of(names::ENABLED),
    )
}

/// The hint if apps wait for a connection, or have waited until the connect timeout.
pub fn queue(tunnel: &Tunnel) -> String {
    format!(
        "set {} to the number of connections that the app holds at once (Sidekiq: its concurrency \
         plus 5; Puma: its connection pools). If the plan does not allow that many connections, \
         make the app's connection pools smaller",
        tunnel.route.setting_names.of(names::MAX_CONNECTIONS)
    )
}

/// The hint if the queue is stuck because the app never closes a connection.
pub fn queue_stuck(tunnel: &Tunnel) -> String {
    format!("the queue cannot move while the app keeps its connections open: {}", queue(tunnel))
}

/// The hint if Redis may be at its client limit, although this launcher has no connection.
fn limit_of_others() -> String {
    format!("other processes may have used up Redis's client limit: {}", client_limit::remedy())
}

/// The hint if Redis answers that it is at its client limit.
pub fn full() -> String {
    format!("Redis is at its client limit: {}", client_limit::remedy())
}

/// The hint if Redis closed a connection instead of answering. That connection no longer counts as
/// open.
pub fn unanswered(tunnel: &Tunnel) -> String {
    match tunnel.load.connections() {
        0 => {
            format!("Redis may be down or starting behind its TLS proxy, or {}", limit_of_others())
        }
        held => format!(
            "{}. Or Redis may be down or starting behind its TLS proxy",
            client_limit::suspicion(held)
        ),
    }
}

/// The advice if the URL contains no password, but Redis requires a password.
pub fn no_password(tunnel: &Tunnel) -> String {
    format!(
        "put the user and password from the provider into {}: rediss://USER:PASSWORD@HOST; special \
         characters must be percent-encoded",
        tunnel.variable()
    )
}

/// The reason for a failed attempt to accept an app connection, and the remedy.
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
