//! The pool keeps connections to Redis open, so that several app connections can use the same
//! connection one after another.
//!
//! The code in [`crate::tunnel`] does not use the pool. Instead, the pool's function [`serve()`]
//! takes app connections from a tunnel's listener and relays them. A reused connection must behave
//! exactly like a new connection. Four rules ensure this:
//!
//! - The [`ledger`] follows every byte of a connection. After the app has left, the pool keeps the
//!   connection to Redis only if all replies have arrived, and if `RESET` clears the effects of all
//!   requests.
//! - When the next app connects, the pool sends `RESET` on the idle connection, and the reply must
//!   be `+RESET` ([`supply`]).
//! - A [`trial`] has shown that `RESET` works on this server.
//! - A lookup that began after the app connected has shown that the host name still resolves to the
//!   connection's address.
//!
//! Under `--pool auto`, the pool is off until the app reconnects frequently ([`engagement`]).

pub mod commands;
mod engagement;
mod idle;
pub mod ledger;
mod serve;
mod supply;
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

/// The age at which the pool stops keeping a connection, so that the server must show its
/// certificate again after an hour. TLS sessions have the same limit.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The value of the setting `--pool`, which tells when the pool reuses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// The pool never reuses connections.
    Off,
    /// The pool reuses connections if the server passes the trial.
    On,
    /// The pool reuses connections while the app reconnects frequently, if the server passes the
    /// trial.
    Auto,
}

struct Pool {
    tunnel: Arc<Tunnel>,
    mode: PoolMode,
    state: Mutex<State>,
}

struct State {
    engagement: Engagement,
    idle: Idle<TlsUpstream>,
    trial: Trial,
    /// The pool keeps no connection that was made at or before this time, because the server has
    /// changed since then.
    retired: Option<Instant>,
    /// True if a task is running that closes expired idle connections.
    is_watched: bool,
}

/// The pool's answer to an app that needs a connection to Redis.
enum Granted {
    /// The app gets an idle connection.
    Kept(TlsUpstream),
    /// The app gets the permission to make a new connection.
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
        });
        Pool { tunnel, mode, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the pool is on, so that an app connection that begins now may reuse a connection to
    /// Redis.
    fn is_on(&self, now: Instant) -> bool {
        match self.mode {
            PoolMode::Off => false,
            PoolMode::On => true,
            PoolMode::Auto => self.state().engagement.is_on(now),
        }
    }

    /// Returns an idle connection or a free slot. If neither is available, the app joins the queue,
    /// and the receiver gets an idle connection when it is the app's turn.
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

    /// True if the pool may now keep a connection that was made at the time `made`.
    fn may_keep(&self, made: Instant, now: Instant) -> bool {
        let is_on = self.is_on(now);
        let state = self.state();
        is_on && state.trial.is_passed() && state.allows(made, now)
    }

    /// Takes over a connection to Redis that an app no longer needs. Gives the connection to the
    /// app that has waited longest, keeps the connection if no app waits, or closes the connection
    /// if the pool must not keep it. Returns whether the caller must start a task that closes
    /// expired connections.
    fn keep(&self, upstream: TlsUpstream, now: Instant) -> bool {
        if !self.may_keep(upstream.made, now) {
            return false;
        }
        let mut state = self.state();
        if !state.idle.has_waiters() && self.tunnel.figures.count(|counts| counts.waiting) > 0 {
            // Close the connection, so that its slot becomes free. An app that connected while the
            // pool was off waits for a slot, and cannot use an idle connection.
            return false;
        }
        state.idle.add(upstream, now);
        !state.idle.is_empty() && !std::mem::replace(&mut state.is_watched, true)
    }

    /// Closes expired idle connections, or all idle connections if the pool is off. Returns whether
    /// idle connections are left. If so, the caller must call this function again later.
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

    /// Closes each idle connection whose address is not among `addresses`, the current addresses of
    /// the host name. Returns the number of closed connections. If this number is not zero, the
    /// host name may lead to another server now, which needs a new trial.
    fn keep_only(&self, addresses: &[SocketAddr], now: Instant) -> usize {
        let is_outdated = |kept: &TlsUpstream| !leads_to(kept, addresses);
        let mut state = self.state();
        let outdated = state.idle.remove(is_outdated);
        if outdated > 0 {
            state.forget_server(now);
        }
        outdated
    }

    /// Ends the reuse of connections that were made at or before the time `made`, because the
    /// server has become a replica, or has lost its data or its master.
    fn retire(&self, made: Instant) {
        let mut state = self.state();
        state.retired = state.retired.max(Some(made));
        state.idle.remove(|kept| kept.made <= made);
    }

    /// Records the verdict on a server that has answered a trial or a `RESET`. The answer came on a
    /// connection that was made at the time `made`.
    fn judge(&self, verdict: Verdict, made: Instant, now: Instant) {
        let mut state = self.state();
        // Ignore the verdict on an outdated connection, because the host name may lead to another
        // server by now.
        if !state.allows(made, now) {
            return;
        }
        state.trial.end(verdict, now);
        if verdict == Verdict::Failed {
            state.idle.remove(|_| true);
        }
    }
}

impl State {
    /// True if a connection that was made at the time `made` is younger than [`MAX_AGE`], and was
    /// made after the time `retired`.
    fn allows(&self, made: Instant, now: Instant) -> bool {
        self.retired.is_none_or(|retired| made > retired) && now - made < MAX_AGE
    }

    /// Closes all idle connections and forgets the trial, because Redis may have restarted, or the
    /// host name may lead to another server now.
    fn forget_server(&mut self, now: Instant) {
        self.retired = self.retired.max(Some(now));
        self.trial.forget();
        self.idle.remove(|_| true);
    }
}

fn leads_to(upstream: &TlsUpstream, addresses: &[SocketAddr]) -> bool {
    addresses.iter().any(|known| known.ip() == upstream.address.ip())
}
