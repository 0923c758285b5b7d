//! The pool: connections to Redis that several app connections use, one after another.
//!
//! [`crate::tunnel`] does not know the pool: [`serve()`] takes app connections from a tunnel's
//! listener and relays them. A reused connection must behave exactly like a new one, whatever its
//! last user did. Four rules ensure this:
//!
//! - The [`ledger`] follows every byte of a connection. The pool keeps the connection only if all
//!   replies have arrived, and no request can have left anything that `RESET` does not clear.
//! - The launcher sends `RESET` when a user has left, and again in front of the next user's first
//!   request ([`handover`]).
//! - A [`trial`] has shown that `RESET` works on this server.
//! - The host name still resolves to the connection's address, by a lookup that began after the app
//!   connected.
//!
//! Under `--pool auto`, the pool is off until the app reconnects frequently ([`engagement`]).

pub mod commands;
mod engagement;
mod handover;
mod idle;
pub mod ledger;
mod serve;
mod supply;
mod tap;
mod trial;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use engagement::Engagement;
use idle::Idle;
pub use ledger::Ledger;
pub use serve::serve;
use trial::{Trial, Verdict};

use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::{Slot, Tunnel};

/// Connections older than this are not kept. TLS sessions have the same limit: after an hour, the
/// server must show its certificate again.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The setting `--pool`: when connections are reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Never: a plain tunnel.
    Off,
    /// Always, if the server passes the trial.
    On,
    /// While the app reconnects frequently.
    Auto,
}

/// The pool of one tunnel.
#[derive(Debug)]
struct Pool {
    tunnel: Arc<Tunnel>,
    mode: PoolMode,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    engagement: Engagement,
    idle: Idle<TlsUpstream>,
    trial: Trial,
    /// Connections made at or before this moment are not kept: the name may lead to another server
    /// now.
    retired: Option<Instant>,
    /// True if a task is running that closes expired idle connections.
    is_watched: bool,
    /// COMMAND has ended: the pool keeps no more connections.
    is_closed: bool,
}

/// The pool's answer to an app connection.
enum Granted {
    /// An idle connection.
    Kept(TlsUpstream),
    /// The permission to make a new connection.
    Slot(Slot),
}

impl Pool {
    fn new(tunnel: Arc<Tunnel>, mode: PoolMode) -> Pool {
        let may_stay = if tunnel.route.max_connections.is_some() { usize::MAX } else { idle::FEW };
        let state = Mutex::new(State {
            engagement: Engagement::default(),
            idle: Idle::new(may_stay),
            trial: Trial::default(),
            retired: None,
            is_watched: false,
            is_closed: false,
        });
        Pool { tunnel, mode, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if an app connection that begins now uses the pool.
    fn is_on(&self, now: Instant) -> bool {
        self.mode == PoolMode::On || self.state().engagement.is_on(now)
    }

    /// An idle connection or a free slot, if one is available now. Otherwise the receiver gets the
    /// next idle connection, in the order of the queue.
    fn ask(&self) -> Result<Granted, oneshot::Receiver<TlsUpstream>> {
        let mut state = self.state();
        if !state.idle.has_waiters() {
            if let Some(kept) = state.idle.take() {
                return Ok(Granted::Kept(kept));
            }
            if let Some(slot) = self.tunnel.limit.try_slot() {
                return Ok(Granted::Slot(slot));
            }
        }
        Err(state.idle.wait())
    }

    /// True if a connection made at `made` may be kept now.
    fn may_keep(&self, made: Instant, now: Instant) -> bool {
        let is_on = self.is_on(now);
        let state = self.state();
        is_on && !state.is_closed && state.trial.is_passed() && state.allows(made, now)
    }

    /// Keeps a connection that was reset, or gives it to a waiting app connection. Returns whether
    /// the caller must start a task that closes expired connections.
    fn keep(&self, upstream: TlsUpstream, now: Instant) -> bool {
        if !self.may_keep(upstream.made, now) {
            return false;
        }
        let mut state = self.state();
        if !state.idle.has_waiters() && self.tunnel.figures.waiting() > 0 {
            // An app connection that began while the pool was off waits for this connection's slot.
            return false;
        }
        state.idle.add(upstream, now);
        !state.idle.is_empty() && !std::mem::replace(&mut state.is_watched, true)
    }

    /// Closes expired idle connections, or all idle connections if the pool is off. Returns whether
    /// idle connections are left. If so, the caller must call this again.
    fn expire(&self, now: Instant) -> bool {
        let is_on = self.is_on(now);
        let mut state = self.state();
        if !is_on {
            state.idle.remove(|_| true);
        }
        state.idle.expire(now);
        state.is_watched = !state.idle.is_empty();
        state.is_watched
    }

    /// Closes idle connections to other addresses than `addresses`, the current addresses of the
    /// name, and returns the number of closed connections. If there are any, the server may be
    /// another server and needs a new trial.
    fn keep_only(&self, addresses: &[SocketAddr], now: Instant) -> usize {
        let is_outdated = |kept: &TlsUpstream| !leads_to(kept, addresses);
        let mut state = self.state();
        let outdated = state.idle.remove(is_outdated);
        if outdated > 0 {
            state.forget_server(now);
        }
        outdated
    }

    /// Redis has closed a connection by itself. Redis may have restarted.
    fn server_ended(&self, now: Instant) {
        self.state().forget_server(now);
    }

    /// The server has become a replica, or has lost its data or its master. Connections made at or
    /// before `made` must not be reused.
    fn retire(&self, made: Instant) {
        let mut state = self.state();
        state.retired = state.retired.max(Some(made));
        state.idle.remove(|kept| kept.made <= made);
    }

    /// Records the verdict of a trial on a connection made at `made`.
    fn end_trial(&self, verdict: Verdict, made: Instant, now: Instant) {
        let mut state = self.state();
        // Meanwhile the name may have come to lead to another server.
        if state.allows(made, now) {
            state.trial.end(verdict, now);
        }
    }

    /// `RESET` got a wrong reply. From now on, connections to this server are not reused.
    fn note_wrong_reset(&self, made: Instant, now: Instant) {
        let mut state = self.state();
        // Meanwhile the name may have come to lead to another server.
        if !state.allows(made, now) {
            return;
        }
        state.trial.end(Verdict::Failed, now);
        state.idle.remove(|_| true);
    }

    /// Closes all idle connections, since COMMAND has ended, and keeps no more.
    fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.idle.remove(|_| true);
    }
}

impl State {
    /// True if a connection made at `made` is young enough, and not retired.
    fn allows(&self, made: Instant, now: Instant) -> bool {
        self.retired.is_none_or(|retired| made > retired) && now - made < MAX_AGE
    }

    /// Closes all idle connections and forgets the trial: the name may lead to another server now.
    fn forget_server(&mut self, now: Instant) {
        self.retired = self.retired.max(Some(now));
        self.trial.forget();
        self.idle.remove(|_| true);
    }
}

/// True if the connection leads to one of these addresses.
fn leads_to(upstream: &TlsUpstream, addresses: &[SocketAddr]) -> bool {
    addresses.iter().any(|known| known.ip() == upstream.address.ip())
}
