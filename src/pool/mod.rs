//! Connections to Redis that a second app connection may use.
//!
//! The tunnel knows nothing of this module: `serve` stands between a tunnel's listener and its
//! connections. A reused connection must behave exactly like a new one, whatever its last user did.
//! Four things ensure this:
//!
//! - the [`ledger`] follows a connection from its first byte. It lets the connection be kept only
//!   if every request is known to leave nothing behind that `RESET` does not clear, and every reply
//!   has come;
//! - `RESET` is sent when a user has left, and again in front of the next user's first request
//!   ([`handover`]);
//! - the [`trial`] has tried what `RESET` does on this server;
//! - a name lookup that began after the app connected must still lead to the connection's address.
//!
//! In the mode `auto` the pool is off until the app reconnects frequently ([`engagement`]).

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

use crate::tunnel::connection::Outcome;
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::{Slot, Tunnel};

/// An older connection is not kept. TLS sessions are used for as long; after that the server must
/// show its certificate again.
const OLDEST: Duration = Duration::from_secs(3600);

/// When a connection may have a second user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Never: a plain tunnel.
    Off,
    /// Always, where the server allows it.
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
    /// Connections made at this moment or before it are not kept: the server may be another now.
    retired: Option<Instant>,
    /// A task closes idle connections when their time is up.
    is_watched: bool,
    /// COMMAND has ended: nothing is kept any more.
    is_closed: bool,
}

/// What an app connection gets.
enum Granted {
    /// An idle connection.
    Kept(TlsUpstream),
    /// The permission to make one.
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

    /// Whether an app connection that begins now uses the pool.
    fn is_on(&self, now: Instant) -> bool {
        self.mode == PoolMode::On || self.state().engagement.is_on(now)
    }

    /// An app connection has ended.
    fn note(&self, outcome: &Outcome, now: Instant) {
        self.state().engagement.note(outcome, now);
    }

    /// An idle connection or a free slot, if there is one now; else a place in the queue for an
    /// idle connection.
    fn ask(&self, now: Instant) -> Result<Granted, oneshot::Receiver<TlsUpstream>> {
        let mut state = self.state();
        if !state.idle.somebody_waits() {
            if let Some(kept) = state.idle.take(|upstream| now - upstream.made < OLDEST) {
                return Ok(Granted::Kept(kept));
            }
            if let Some(slot) = self.tunnel.limit.try_slot() {
                return Ok(Granted::Slot(slot));
            }
        }
        Err(state.idle.wait())
    }

    /// Whether a connection made at `made` may be kept now.
    fn may_keep(&self, made: Instant, now: Instant) -> bool {
        let is_on = self.is_on(now);
        let state = self.state();
        is_on && !state.is_closed && state.trial.is_passed() && state.allows(made, now)
    }

    /// Keeps a connection that was reset, or gives it to an app that waits. Returns whether the
    /// caller must start closing idle connections whose time is up.
    fn keep(&self, upstream: TlsUpstream, now: Instant) -> bool {
        if !self.may_keep(upstream.made, now) {
            return false;
        }
        let mut state = self.state();
        if !state.idle.somebody_waits() && self.tunnel.limit.somebody_waits() {
            // An app connection that began without the pool waits for this one's slot.
            return false;
        }
        state.idle.add(upstream, now);
        !state.idle.is_empty() && !std::mem::replace(&mut state.is_watched, true)
    }

    /// Closes the idle connections whose time is up, or all of them once the pool is off. Says
    /// whether any are left, for which the caller must call this again.
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

    /// Closes the idle connections that lead elsewhere than the name does now. If there are any,
    /// the server may be another, and must be tried anew.
    fn keep_only(&self, addresses: &[SocketAddr], now: Instant) -> usize {
        let is_outdated = |kept: &TlsUpstream| !leads_to(kept, addresses);
        let mut state = self.state();
        let outdated = state.idle.remove(is_outdated);
        if outdated > 0 {
            state.forget_server(now);
        }
        outdated
    }

    /// Redis has ended a connection without being asked to: it may have restarted.
    fn server_ended(&self, now: Instant) {
        self.state().forget_server(now);
    }

    /// The server has become a replica, or has lost its data or its master: connections made at
    /// `made` or before must not be used again.
    fn retire(&self, made: Instant) {
        let mut state = self.state();
        state.retired = state.retired.max(Some(made));
        state.idle.remove(|kept| kept.made <= made);
    }

    /// Starts a trial if one is due; report its result to the returned value.
    fn begin_trial(&self, now: Instant) -> Option<RunningTrial<'_>> {
        let is_due = self.state().trial.begin(now);
        // Made only if it is due: dropping it ends the trial that runs.
        is_due.then(|| RunningTrial(self))
    }

    /// `RESET` was not answered as it should be: connections of this server are not used again.
    fn note_wrong_reset(&self, made: Instant, now: Instant) {
        let mut state = self.state();
        // The server may have become another meanwhile.
        if !state.allows(made, now) {
            return;
        }
        state.trial.end(Verdict::Failed, now);
        state.idle.remove(|_| true);
    }

    /// COMMAND has ended: nothing is kept any more.
    fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.idle.remove(|_| true);
    }
}

impl State {
    fn allows(&self, made: Instant, now: Instant) -> bool {
        self.retired.is_none_or(|retired| made > retired) && now - made < OLDEST
    }

    /// The server may be another from now on: nothing that leads to the old one is kept.
    fn forget_server(&mut self, now: Instant) {
        self.retired = self.retired.max(Some(now));
        self.trial.forget();
        self.idle.remove(|_| true);
    }
}

/// A trial that runs. If the app gives up meanwhile, another connection is tried.
struct RunningTrial<'a>(&'a Pool);

impl RunningTrial<'_> {
    /// The trial has ended, on a connection made at `made`.
    fn end(self, verdict: Verdict, made: Instant, now: Instant) {
        let mut state = self.0.state();
        // The server may have become another meanwhile.
        if state.allows(made, now) {
            state.trial.end(verdict, now);
        }
    }
}

impl Drop for RunningTrial<'_> {
    fn drop(&mut self) {
        self.0.state().trial.stop();
    }
}

/// Whether the connection leads to one of these addresses.
fn leads_to(upstream: &TlsUpstream, addresses: &[SocketAddr]) -> bool {
    addresses.iter().any(|known| known.ip() == upstream.address.ip())
}
