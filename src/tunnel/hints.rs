//! What the user may change when there is no connection: the text behind `hint=` in the log, in the
//! app's error and in the advice of `--check`.

use std::io;

use super::Tunnel;
use super::failure::{Failure, Step, is_out_of_descriptors};
use crate::names;
use crate::tls::{Flaw, HandshakeError};

/// What to change when an app speaks TLS itself.
pub const APP_SPEAKS_TLS: &str = "the app speaks TLS to the local port, which speaks none: the \
                              launcher does TLS; take it out of the client's settings: ssl=True \
                              (redis-py), tls: {} (ioredis), socket.tls (node-redis), ssl: true \
                              and ssl_params (Ruby), or code that changes the URL back to \
                              rediss://";

impl Failure {
    /// What the user may change.
    pub fn hint(&self, tunnel: &Tunnel) -> String {
        let variable = tunnel.variable();
        let [enabled, offset, verify] = [names::ENABLED, names::PORT_OFFSET, names::VERIFY];
        let [ca, pin, name] = [names::CA_FILE, names::PIN, names::SERVER_NAME];
        let [cert, key, min_tls] = [names::CLIENT_CERT, names::CLIENT_KEY, names::MIN_TLS];
        let without_tls = if tunnel.route.port_moved {
            format!(
                "this Redis may have no TLS, or TLS on another port: set {variable}_{offset}, or \
                 {enabled}=false to go without a tunnel"
            )
        } else {
            format!("check the host and port in {variable}")
        };
        match self {
            Failure::QueueTimeout(_) => format!(
                "set {variable}_{limit} (or {limit}) higher if the plan allows more, or give the \
                 app fewer threads or a smaller pool",
                limit = names::MAX_CONNECTIONS
            ),
            Failure::Internal(_) => {
                "memory may be short; if not, this is a defect of start-stunnel or of OpenSSL"
                    .to_owned()
            }
            Failure::NoRoom(_) => {
                "raise the limit on memory (ulimit -v, vm.overcommit_memory), or open fewer \
                 connections; those that are open go on"
                    .to_owned()
            }
            Failure::Outage(_, error) if is_out_of_descriptors(error) => {
                "raise the limit on open files (ulimit -Hn)".to_owned()
            }
            Failure::Outage(Step::LookUp, _) => {
                format!("check the host in {variable} and the resolver")
            }
            Failure::Outage(Step::Tcp, error)
                if error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                format!("nothing listens on {}; {without_tls}", tunnel.route.upstream)
            }
            Failure::Outage(Step::Tcp, _) => {
                format!("check the network and the host and port in {variable}")
            }
            Failure::Outage(Step::Turn | Step::Tls, _) => {
                format!("the server may be down or starting; {without_tls}")
            }
            // Redis at its maxclients closes a TLS connection before the handshake, and so cannot
            // say why.
            Failure::Outage(Step::Unanswered, _) => {
                format!(
                    "{}, or the server may be down or starting; {without_tls}",
                    connection_limit(tunnel)
                )
            }
            Failure::Misconfigured(error) => match error {
                HandshakeError::NoTls
                | HandshakeError::Broken(_)
                | HandshakeError::Damaged(_)
                | HandshakeError::Internal(_) => without_tls,
                HandshakeError::Certificate(Flaw::Name, _) => {
                    format!("set {name} to a name on the certificate, or {verify}=ca")
                }
                HandshakeError::Certificate(Flaw::Date, _) => {
                    format!("renew it; until then set {verify}=none and {pin} to its key")
                }
                HandshakeError::Certificate(Flaw::Chain, _) => format!(
                    "set {ca} to its CA or {pin} to its key (start-stunnel --check shows them), or \
                     lower {verify}"
                ),
                HandshakeError::Pin(_) => {
                    format!(
                        "somebody may be in between; if the provider confirms a new key, set {pin} \
                         to it, or add it behind a ;"
                    )
                }
                HandshakeError::ClientCertificateWanted => format!("set {cert} and {key}"),
                HandshakeError::ClientCertificateRefused(_) => {
                    format!("set {cert} and {key} to what the server accepts")
                }
                HandshakeError::NoCommonVersion => {
                    format!(
                        "set {min_tls} to what the server speaks (1.2 is the oldest), or update \
                         the server"
                    )
                }
                HandshakeError::Refused(_) => format!("see {cert}, {key} and {min_tls}"),
            },
        }
    }
}

/// That a server may take no more connections, with how many this launcher has when it does not.
fn connection_limit(tunnel: &Tunnel) -> String {
    let held = match tunnel.open_connections() {
        0 => "no other connection".to_owned(),
        1 => "1 other connection".to_owned(),
        many => format!("{many} other connections"),
    };
    format!(
        "the plan's connection limit may be reached (this launcher holds {held} to it; other \
         processes count, too): {limit} keeps to a share of it",
        limit = names::MAX_CONNECTIONS
    )
}

/// When Redis closed a connection instead of answering.
pub fn unanswered(tunnel: &Tunnel) -> String {
    let limit = connection_limit(tunnel);
    format!("{limit}, or Redis may be down or starting behind what speaks TLS for it")
}

/// When the system gives no new connection.
pub fn accept_failed(error: &io::Error) -> &'static str {
    match is_out_of_descriptors(error) {
        true => "raise the limit on open files (ulimit -Hn); new connections wait meanwhile",
        false => "new connections wait meanwhile",
    }
}
