//! A tunnel carries bytes from the app to Redis and back. The modules below contain the steps of
//! this path, its limits, and the texts about its failures.
//!
//! The [`listener`] accepts connections from the [`app`]. The code in [`connection`] gets an
//! [`upstream`] for an app connection, moves bytes with the [`relay`], and closes both [`ends`].
//! While an app waits for its upstream ([`waiting`]), [`queue`] and [`limit`] enforce
//! `--max-connections`, and [`attempts`] enforces the connect timeout. A [`tap`] sees the bytes
//! that pass; [`meter`] counts them.
//!
//! If connecting fails, [`failure`] describes the cause, [`diagnosis`] and [`late_refusal`] ask the
//! server for the cause, and [`hints`] tells the user what to change. [`refusal`] answers the app's
//! requests with the error. [`warnings`] keeps an outage from filling the log. After COMMAND's end,
//! [`drain`] waits until the last connections have ended.

pub mod app;
pub mod attempts;
pub mod client_limit;
pub mod connection;
pub mod diagnosis;
mod drain;
pub mod ends;
pub mod failure;
mod first_handshake;
pub mod hints;
mod inquiry;
pub mod late_refusal;
mod limit;
mod listener;
mod meter;
pub mod queue;
mod read_ahead;
mod refusal;
pub mod relay;
pub mod route;
mod socket;
pub mod stream;
pub mod tap;
pub mod upstream;
pub mod waiting;
mod warnings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use drain::{Drain, DrainGuard};
use first_handshake::FirstHandshake;
use inquiry::Inquiry;
pub use limit::{Limit, Slot};
pub use listener::{Listen, Listener, PortTaken, SocketFolder, serve};
pub use route::{Route, SettingNames, Upstream};
use tokio::sync::Semaphore;
use warnings::{Warning, Warnings};

use crate::figures::{Event, TunnelFigures};
use crate::threads::MOST_LOOKUPS;
use crate::tls::{Connector, Misconfiguration, Sessions};

/// The time limits that apply to each app connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// The time limit for getting a connection to Redis: waiting for a free slot, name lookup, TCP
    /// and TLS together. The limit is more than zero.
    pub connect_timeout: Duration,
    /// True if the launcher repeats a failed attempt to connect until `connect_timeout` has passed.
    pub connect_retry: bool,
    /// The time without traffic after which the launcher closes a connection, or `None` if the
    /// launcher never closes such a connection.
    pub idle_timeout: Option<Duration>,
    /// The time limit for sending COMMAND's last bytes after COMMAND has ended. If the limit is
    /// zero, the launcher does not wait.
    pub drain_timeout: Duration,
}

/// The data that all connections of one tunnel share.
#[derive(Debug)]
pub struct Tunnel {
    pub route: Route,
    pub connector: Arc<Connector>,
    pub settings: ConnectionSettings,
    pub figures: Arc<TunnelFigures>,
    pub limit: Arc<Limit>,
    /// The figures of all tunnels that lead to this tunnel's server.
    same_server: Vec<Arc<TunnelFigures>>,
    /// The name lookups that the tunnel may still start now.
    free_lookups: Arc<Semaphore>,
    sessions: Arc<Sessions>,
    first_handshake: FirstHandshake,
    /// Asks the server why the server resets connections before sending a byte.
    late_refusal: Inquiry<Option<Misconfiguration>>,
    /// Asks a server that is silent during the handshake whether this server speaks plaintext. The
    /// answer is the address of a server that speaks plaintext.
    plaintext: Inquiry<Option<SocketAddr>>,
    warnings: Arc<Warnings>,
}

impl Tunnel {
    pub fn new(
        route: Route,
        connector: Arc<Connector>,
        settings: ConnectionSettings,
        figures: Arc<TunnelFigures>,
        same_server: Vec<Arc<TunnelFigures>>,
    ) -> Tunnel {
        let warnings = Warnings::new(route.variables[0].clone(), route.upstream.to_string());
        let sessions = Arc::<Sessions>::default();
        let first_handshake = FirstHandshake::new(sessions.clone());
        if !connector.resumes() {
            first_handshake.finish();
        }
        Tunnel {
            limit: Limit::new(route.max_connections),
            free_lookups: Arc::new(Semaphore::new(MOST_LOOKUPS)),
            sessions,
            first_handshake,
            late_refusal: Inquiry::default(),
            plaintext: Inquiry::default(),
            route,
            connector,
            settings,
            figures,
            same_server,
            warnings,
        }
    }

    /// Returns the number of open connections from this launcher to the server, counting all
    /// tunnels that lead to this server.
    pub fn open_to_server(&self) -> u64 {
        self.same_server.iter().map(|figures| figures.count(|counts| counts.established())).sum()
    }

    /// Logs a warning, either now or as part of a later summary. [`Warning`] explains `reason`.
    fn warn(&self, event: Event, reason: Option<&'static str>, error: &str, hint: &str) {
        let (error, hint) = (error.to_owned(), hint.to_owned());
        self.warnings.warn(Warning { event, reason, error, hint });
    }

    /// Returns the name of the variable that identifies the tunnel in the log and in errors.
    pub fn variable(&self) -> &str {
        &self.route.variables[0]
    }
}
