//! One byte's way: accepted by the [`listener`] as an [`app`]'s, connected by the [`upstream`],
//! moved by the [`relay`]; [`connection`] is the life of all three together. [`supply`] hands over
//! connections of the pool, too, and [`reuse`] sees to it that each has one user at a time;
//! [`names`] knows whether they still lead to the right server. [`failure`] says in a user's words
//! why there is no connection, [`hints`] what to change, [`diagnosis`] asks the server for it,
//! [`refusal`] tells the app. [`drain`] is the end of it all, [`headroom`] keeps memory for those
//! who are there, and [`socket`] has the knobs of the operating system.

mod app;
mod connection;
pub mod diagnosis;
mod drain;
pub mod failure;
mod headroom;
pub mod hints;
mod inquiry;
mod listener;
mod names;
mod read_ahead;
mod refusal;
pub mod relay;
pub mod reuse;
pub mod route;
mod socket;
mod stream;
pub mod supply;
pub mod upstream;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use app::Pace;
use diagnosis::Inquiries;
pub use drain::{Connections, Drain};
pub use listener::{Listen, Listener, PortTaken, SocketFolder, serve};
use names::Names;
pub use route::{Route, SettingNames, Upstream};
use stream::TlsUpstream;

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
    pub totals: Arc<Totals>,
    names: Names,
    stock: Arc<Stock<TlsUpstream>>,
    sessions: Arc<Sessions>,
    inquiries: Inquiries,
    /// Of apps that speak TLS.
    tls_warning: Pace,
    /// Of connections that end without an answer.
    unanswered_warning: Pace,
    /// Of apps that wait at the limit.
    queue_warning: Pace,
    /// Connections of this launcher's to the upstream, spares included.
    open: Arc<AtomicUsize>,
}

impl Tunnel {
    pub fn new(
        route: Route,
        connector: Arc<Connector>,
        settings: ConnectionSettings,
        totals: Arc<Totals>,
    ) -> Tunnel {
        let unverified = Connector::unverified(&route.trust);
        let stock = Stock::new(Terms {
            mode: settings.pool,
            limit: route.max_connections.map(NonZeroUsize::get),
            spares: settings.spares,
            all_have_passwords: route.all_have_passwords,
            resumes: connector.resumes(),
        });
        let (names, sessions, inquiries) = Default::default();
        let open = totals.open(&route.upstream);
        Tunnel {
            route,
            connector,
            unverified,
            settings,
            totals,
            names,
            stock,
            sessions,
            inquiries,
            tls_warning: Pace::default(),
            unanswered_warning: Pace::default(),
            queue_warning: Pace::default(),
            open,
        }
    }

    /// Counts a connection to the upstream for as long as what is returned lives.
    fn count_connection(&self) -> Counted {
        Counted::in_number(&self.open)
    }

    /// Lets others resume the TLS session that there may be now. `answered`: a server that has
    /// given none by its first answer gives none.
    fn note_session(&self, answered: bool) {
        self.stock.note_session(self.sessions.is_known(), answered, Instant::now());
    }

    /// How many connections this launcher has to the upstream now, spares included.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The variable by which log lines and errors call the tunnel.
    pub fn variable(&self) -> &str {
        &self.route.variables[0]
    }
}

/// What all tunnels of a launcher have done, and what they hold.
#[derive(Debug, Default)]
pub struct Totals {
    open: Mutex<HashMap<Upstream, Arc<AtomicUsize>>>,
    connections: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// [`Totals`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Accepted from the app.
    pub connections: u64,
    /// Of these, those for which Redis could not be reached or was refused.
    pub failed: u64,
    /// Bytes from the app to Redis, before TLS.
    pub sent: u64,
    /// Bytes from Redis to the app, before TLS.
    pub received: u64,
}

/// One open connection to Redis, which counts until this is dropped.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn in_number(number: &Arc<AtomicUsize>) -> Counted {
        number.fetch_add(1, Ordering::Relaxed);
        Counted(number.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Totals {
    /// Where the open connections to a server are counted. Tunnels of different settings may lead
    /// to the same.
    fn open(&self, upstream: &Upstream) -> Arc<AtomicUsize> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(upstream.clone()).or_default().clone()
    }

    fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn bytes(&self, sent: u64, received: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}
