//! One byte's way: accepted by the [`listener`] as an [`app`]'s, connected by the [`upstream`],
//! moved by the [`relay`]; [`connection`] is the life of all three together. [`supply`] hands over
//! connections of the pool, too, and [`reuse`] sees to it that each has one user at a time;
//! [`names`] knows whether they still lead to the right server. [`failure`] says in a user's words
//! why there is no connection, [`hints`] what to change, [`diagnosis`] asks the server for it,
//! [`refusal`] tells the app. [`drain`] is the end of it all, [`headroom`] keeps memory for those
//! who are there, and [`socket`] has the knobs of the operating system. [`server_load`] counts the
//! connections to each server, and [`warnings`] keeps an outage from filling the log.

mod app;
pub mod client_limit;
mod connection;
pub mod diagnosis;
mod drain;
pub mod failure;
pub mod headroom;
pub mod hints;
mod inquiry;
mod listener;
mod names;
mod read_ahead;
mod refusal;
pub mod relay;
pub mod reuse;
pub mod route;
mod server_load;
mod socket;
mod stream;
pub mod supply;
pub mod upstream;
mod warnings;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use diagnosis::Inquiries;
pub use drain::{Connections, Drain};
use failure::{Failure, Step};
pub use listener::{Listen, Listener, PortTaken, SocketFolder, serve};
use names::Names;
pub use route::{Route, SettingNames, Upstream};
pub use server_load::ServerLoad;
use stream::TlsUpstream;
use warnings::Warnings;

use crate::figures::TunnelFigures;
use crate::pool::{PoolMode, Stock, Terms};
use crate::tls::{Connector, Sessions};

/// How connections to Redis are made and given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// For name look-up, TCP and TLS together; more than zero.
    pub connect_timeout: Duration,
    /// Whether to keep trying until `connect_timeout`.
    pub connect_retry: bool,
    /// Connections made beforehand for each tunnel, at most [`crate::pool::MOST_SPARES`]; 0: none.
    pub spares: usize,
    pub pool: PoolMode,
    /// `None`: never.
    pub idle_timeout: Option<Duration>,
    /// After COMMAND's end; zero means not to wait.
    pub drain_timeout: Duration,
}

/// What every connection of a tunnel needs to know.
#[derive(Debug)]
pub struct Tunnel {
    pub route: Route,
    pub connector: Arc<Connector>,
    /// Skips verification; used only to fetch a certificate for an error message.
    pub unverified: Arc<Connector>,
    pub settings: ConnectionSettings,
    pub figures: Arc<TunnelFigures>,
    load: Arc<ServerLoad>,
    names: Names,
    stock: Arc<Stock<TlsUpstream>>,
    sessions: Arc<Sessions>,
    inquiries: Inquiries,
    warnings: Arc<Warnings>,
}

impl Tunnel {
    pub fn new(
        route: Route,
        connector: Arc<Connector>,
        settings: ConnectionSettings,
        figures: Arc<TunnelFigures>,
        load: Arc<ServerLoad>,
    ) -> Tunnel {
        let unverified = Connector::unverified(&route.trust);
        // Who logs in by certificate would be the default user after a reset.
        let mode = if route.trust.identity.is_some() { PoolMode::Off } else { settings.pool };
        let stock = Stock::new(Terms {
            mode,
            limit: route.max_connections.map(NonZeroUsize::get),
            spares: settings.spares,
            all_have_passwords: route.all_have_passwords,
            resumes: connector.resumes(),
        });
        let (names, sessions, inquiries) = Default::default();
        figures.set_limit(route.max_connections.map(NonZeroUsize::get));
        let warnings = Warnings::new(route.variables[0].clone(), route.upstream.to_string());
        Tunnel {
            route,
            connector,
            unverified,
            settings,
            figures,
            load,
            names,
            stock,
            sessions,
            inquiries,
            warnings,
        }
    }

    /// Lets others resume the TLS session that there may be now. `answered`: a server that has
    /// given none by its first answer gives none.
    fn note_session(&self, answered: bool) {
        self.stock.note_session(self.sessions.is_known(), answered, Instant::now());
    }

    /// Takes note of a failure that looks as if Redis had too many clients: it has cut a handshake
    /// while others of this launcher's live.
    fn note_failure(&self, failure: &Failure) {
        if matches!(failure, Failure::Outage(Step::Unanswered, _)) && self.load.connections() > 0 {
            self.figures.turned_away();
        }
    }

    /// The variable by which log lines and errors call the tunnel.
    pub fn variable(&self) -> &str {
        &self.route.variables[0]
    }
}
