//! What connections to Redis a tunnel has, how many it may have, and who gets the next one. Knows
//! nothing of the network: `C` is a connection.
//!
//! The app's arrivals wait in one queue, in order. Its head is given whatever comes first: a
//! connection that another user has left, or the permission to make one. That is scarce in two
//! ways. There may be a limit of connections; and few handshakes run at once, since they cost Redis
//! more than all that follows: one alone while there is no TLS session by which the others would be
//! cheaper, or while it is being found out whether connections may be reused at all.
//!
//! Idle connections are a stack: the latest that came back goes first. So one that was not needed
//! for half a minute is one that nobody has needed beside the others, and is closed.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::canary::{Trial, Verdict};
use super::demand::{Demand, Peak};
use super::{PoolMode, Terms};

/// A connection that nobody has used for so long is closed: far less than the 300 s after which
/// Heroku closes idle connections
/// (<https://devcenter.heroku.com/articles/heroku-redis#timeout>).
const IDLE: Duration = Duration::from_secs(30);
/// A connection so old is not kept any more: as long as a TLS session is used, after which the
/// server has to show its certificate again.
const OLDEST: Duration = Duration::from_secs(3600);
/// After a connection that could not be made there are no spares for so long.
const NO_SPARES: Duration = Duration::from_secs(10);
/// Handshakes at once, of those that keep Redis busy.
const HANDSHAKES: usize = 4;
/// A handshake that takes longer is one of these no more: it waits for the network, or for a server
/// that does something else.
const HANDSHAKE: Duration = Duration::from_millis(20);
/// The first handshake keeps the others waiting for so long at most, and so does a connection that
/// is being reset.
const PATIENCE: Duration = Duration::from_millis(250);

/// A connection between two users.
#[derive(Debug)]
pub struct Kept<C> {
    pub connection: C,
    pub address: IpAddr,
    pub made: Instant,
    pub origin: Origin,
}

/// Where a connection that is handed over comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Another user of it is gone.
    Reused,
    /// It was made beforehand.
    Spare,
}

/// How a connection is given to its next user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOver {
    /// `RESET` goes in front of the first request.
    ResetFirst,
    /// It is as good as new.
    AsItIs,
}

/// What an arrival is given.
#[derive(Debug)]
pub enum Granted<C> {
    Kept(Kept<C>),
    Make(Permit<C>),
}

/// Where an arrival waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Behind all others.
    Back,
    /// Before all others: it has waited, and what it was given is of no use.
    Front,
}

/// The connections of one tunnel; see the module's description.
pub struct Stock<C>(Mutex<State<C>>);

struct State<C> {
    terms: Terms,
    /// Connections that exist or are being made: permits that have not been dropped.
    open: usize,
    /// Handshakes under way, by their permits' numbers.
    making: Vec<Making>,
    /// When connections began to be reset for their next users.
    returning: Vec<Instant>,
    /// The latest that came back last.
    idle: Vec<Idle<C>>,
    /// A task closes what has been idle for too long.
    watched: bool,
    waiting: VecDeque<oneshot::Sender<Granted<C>>>,
    /// While one handshake alone may run: whose it is, and until when others wait for it.
    alone: Option<(u64, Instant)>,
    sessions: SessionsSeen,
    trial: Trial,
    demand: Demand,
    peak: Peak,
    /// When a connection in use was last gone for good.
    lost: Option<Instant>,
    /// When a connection last could not be made.
    failed: Option<Instant>,
    next_number: u64,
    /// Grows when the server may have become another: what is older is not kept.
    epoch: u64,
    closed: bool,
    /// What is to be dropped once the lock is released, since dropping a permit takes it again.
    discarded: Vec<Granted<C>>,
}

#[derive(Debug)]
struct Making {
    number: u64,
    began: Instant,
    for_spare: bool,
}

struct Idle<C> {
    kept: Kept<C>,
    since: Instant,
}

/// What is known of the server's TLS sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionsSeen {
    /// The next handshake may bring one.
    Awaited,
    /// There is one to resume.
    Known,
    /// None is to be had: the server gives none, or we resume none.
    Never,
}

impl<C> fmt::Debug for Stock<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.figures();
        f.debug_struct("Stock").field("figures", &figures).finish()
    }
}

/// A [`Stock`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections to Redis, those being made included.
    pub open: usize,
    pub making: usize,
    /// Between two users.
    pub idle: usize,
    /// Arrivals that wait.
    pub waiting: usize,
    /// The most connections that may be open.
    pub limit: Option<usize>,
}

impl<C> Stock<C> {
    pub fn new(terms: Terms) -> Arc<Stock<C>> {
        let sessions = match terms.resumes {
            true => SessionsSeen::Awaited,
            false => SessionsSeen::Never,
        };
        Arc::new(Stock(Mutex::new(State {
            terms,
            open: 0,
            making: Vec::new(),
            returning: Vec::new(),
            idle: Vec::new(),
            watched: false,
            waiting: VecDeque::new(),
            alone: None,
            sessions,
            trial: Trial::default(),
            demand: Demand::default(),
            peak: Peak::default(),
            lost: None,
            failed: None,
            next_number: 0,
            epoch: 0,
            closed: false,
            discarded: Vec::new(),
        })))
    }

    /// Does something to the state, and then drops what that has discarded: a connection's permit
    /// comes back here.
    fn with<R>(&self, act: impl FnOnce(&mut State<C>) -> R) -> R {
        let (result, discarded) = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let result = act(&mut state);
            (result, std::mem::take(&mut state.discarded))
        };
        drop(discarded);
        result
    }

    pub fn figures(&self) -> Figures {
        self.with(|state| Figures {
            open: state.open,
            making: state.making.len(),
            idle: state.idle.len(),
            waiting: state.waiting.iter().filter(|waiting| !waiting.is_closed()).count(),
            limit: state.terms.limit,
        })
    }

    /// Takes note of a connection of the app's that has just been accepted.
    pub fn note_arrival(&self, now: Instant) {
        self.with(|state| {
            if state.terms.spares > 0 {
                state.demand.arrival(now, state.terms.spares);
            }
        });
    }

    /// Asks for a connection.
    pub fn ask(self: &Arc<Self>, place: Place, now: Instant) -> Asked<C> {
        self.with(|state| {
            if state.waiting.is_empty()
                && let Some(granted) = state.grant(self, now, 1)
            {
                return Asked::Granted(granted);
            }
            let (sender, receiver) = oneshot::channel();
            match place {
                Place::Back => state.waiting.push_back(sender),
                Place::Front => state.waiting.push_front(sender),
            }
            state.serve(self, now);
            Asked::Waiting(Waiting { stock: self.clone(), receiver })
        })
    }

    /// A permit for a connection of the launcher's own, if the limit leaves room for one.
    pub fn try_permit(self: &Arc<Self>) -> Option<Permit<C>> {
        self.with(|state| (!state.is_full()).then(|| state.permit(self)))
    }

    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        self.with(|state| state.is_full())
    }

    /// Serves whoever waits and can be served.
    fn serve(self: &Arc<Self>, now: Instant) {
        self.with(|state| state.serve(self, now));
    }

    /// Whether there is a TLS session to resume now. `answered`: a connection that has just been
    /// made has its first answer; a server that has given no session by then gives none.
    pub fn note_session(self: &Arc<Self>, known: bool, answered: bool, now: Instant) {
        self.with(|state| {
            let seen = match state.sessions {
                _ if !state.terms.resumes => SessionsSeen::Never,
                _ if known => SessionsSeen::Known,
                SessionsSeen::Awaited if answered => SessionsSeen::Never,
                SessionsSeen::Never => SessionsSeen::Never,
                // What there was is too old, or has failed.
                SessionsSeen::Awaited | SessionsSeen::Known => SessionsSeen::Awaited,
            };
            if std::mem::replace(&mut state.sessions, seen) == SessionsSeen::Awaited
                && seen != SessionsSeen::Awaited
            {
                state.alone = None;
                state.serve(self, now);
            }
        });
    }

    /// Lets who waits for a verdict go on.
    fn after_verdict(self: &Arc<Self>, state: &mut State<C>, now: Instant) {
        state.alone = None;
        if state.trial.is_failed(now) {
            state.discard_idle(|idle| idle.kept.origin == Origin::Reused);
        }
        state.serve(self, now);
    }

    /// How a connection that was granted is handed over now; `None`: not any more.
    pub fn hand_over(&self, kept: &Kept<C>, now: Instant) -> Option<HandOver> {
        self.with(|state| {
            let reset = state.trial.is_passed(now);
            let how = if reset { HandOver::ResetFirst } else { HandOver::AsItIs };
            state.may_hand_over(kept, now).then_some(how)
        })
    }

    /// Whether connections are kept, as far as one can tell now.
    pub fn keeps(&self, now: Instant) -> bool {
        self.with(|state| state.keeps(now))
    }

    /// A reset was answered as none is: connections are not to be used again here.
    pub fn note_failed(self: &Arc<Self>, now: Instant) {
        self.with(|state| {
            state.trial.fail(now);
            self.after_verdict(state, now);
        });
    }

    /// A connection could not be made: there are no spares for a while, which would only knock once
    /// more at a server that is down, or at its client limit.
    pub fn note_failure(&self, now: Instant) {
        self.with(|state| state.failed = Some(now));
    }

    /// A connection that was in use has gone for good: others will not come back either.
    pub fn note_loss(&self, now: Instant) {
        self.with(|state| state.lost = Some(now));
    }

    /// Announces that a connection whose user is gone is being reset; `None` if it is not to be
    /// kept.
    pub fn take_back(
        self: &Arc<Self>,
        permit: &Permit<C>,
        made: Instant,
        now: Instant,
    ) -> Option<Return<C>> {
        self.with(|state| {
            let outlived = permit.epoch != state.epoch;
            (state.keeps(now) && !outlived && now - made < OLDEST).then(|| {
                state.trial.note_return();
                state.returning.push(now);
                Return { stock: self.clone(), began: now, epoch: state.epoch }
            })
        })
    }

    /// How many spares to make now; each has its permit.
    pub fn refill(self: &Arc<Self>, now: Instant) -> Vec<Permit<C>> {
        self.with(|state| {
            let missing = state.missing_spares(now);
            (0..missing).map(|_| state.permit_to_make(self, now, true)).collect()
        })
    }

    /// Takes in a spare whose making began at `began`, if it is still wanted. Says whether it was,
    /// and whether somebody has to call [`Stock::expire`] from now on.
    pub fn add_spare(self: &Arc<Self>, spare: Kept<C>, began: Instant, now: Instant) -> Added {
        self.with(|state| {
            state.demand.handshake = now - began;
            let wanted = state.demand.wanted;
            let spares = state.usable_idle(now);
            if state.closed || spares >= wanted && !state.somebody_waits() {
                state.discarded.push(Granted::Kept(spare));
                return Added { kept: false, watch: false };
            }
            state.keep(self, spare, now)
        })
    }

    /// Keeps only what leads to one of `addresses`, as `granted` should, which is in hand. Says how
    /// many others there were: then the server may be another, of which nothing is known.
    pub fn keep_only(&self, addresses: &[SocketAddr], granted: &Kept<C>) -> usize {
        let is_outdated = |kept: &Kept<C>| addresses.iter().all(|known| known.ip() != kept.address);
        self.with(|state| {
            let gone = state.discard_idle(|idle| is_outdated(&idle.kept));
            let gone = gone + usize::from(is_outdated(granted));
            if gone > 0 {
                state.forget_server();
            }
            gone
        })
    }

    /// Closes what has been idle for too long, and says how many, and until when to wait for the
    /// next that will be; `None` when nothing is left to wait for.
    pub fn expire(&self, now: Instant) -> (usize, Option<Instant>) {
        self.with(|state| {
            let closed = state.discard_idle(|idle| now - idle.since >= IDLE);
            let next = state.idle.iter().map(|idle| idle.since + IDLE).min();
            state.watched = next.is_some();
            (closed, next)
        })
    }

    /// Nothing is kept any more: COMMAND has ended.
    pub fn close(&self) {
        self.with(|state| {
            state.closed = true;
            state.discard_idle(|_| true);
        });
    }
}

/// What became of a connection that was offered to the stock.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// It is kept, or has been given to who waited.
    pub kept: bool,
    /// Somebody has to call [`Stock::expire`] from now on.
    pub watch: bool,
}

impl<C> State<C> {
    fn is_full(&self) -> bool {
        self.terms.limit.is_some_and(|limit| self.open >= limit)
    }

    fn keeps(&self, now: Instant) -> bool {
        self.terms.mode != PoolMode::Off && !self.closed && !self.trial.is_failed(now)
    }

    /// Whether spares are as good as new connections without a reset: each client logs in.
    fn spares_as_they_are(&self) -> bool {
        self.terms.all_have_passwords
    }

    fn somebody_waits(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_closed())
    }

    fn may_hand_over(&self, kept: &Kept<C>, now: Instant) -> bool {
        let reset = self.trial.is_passed(now);
        reset || kept.origin == Origin::Spare && self.spares_as_they_are()
    }

    fn usable_idle(&self, now: Instant) -> usize {
        self.idle.iter().filter(|idle| self.may_hand_over(&idle.kept, now)).count()
    }

    fn making_spares(&self) -> usize {
        self.making.iter().filter(|making| making.for_spare).count()
    }

    fn in_use(&self) -> usize {
        self.open.saturating_sub(self.idle.len() + self.making_spares() + self.returning.len())
    }

    /// Gives those who wait what there is for them, in order.
    fn serve(&mut self, stock: &Arc<Stock<C>>, now: Instant) {
        loop {
            while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                self.waiting.pop_front();
            }
            let waiting = self.waiting.len();
            let Some(granted) = (waiting > 0).then(|| self.grant(stock, now, waiting)).flatten()
            else {
                return;
            };
            let Some(first) = self.waiting.pop_front() else { return };
            if let Err(granted) = first.send(granted) {
                self.discarded.push(granted);
            }
        }
    }

    /// What the first of so many who wait gets now.
    fn grant(&mut self, stock: &Arc<Stock<C>>, now: Instant, waiting: usize) -> Option<Granted<C>> {
        self.discard_idle(|idle| now - idle.since >= IDLE || now - idle.kept.made >= OLDEST);
        let may_make = self.may_make(now);
        // One canary in passing: the others are served meanwhile.
        let prove_first = may_make && self.trial.is_due(now) && !self.is_full();
        let usable = self.idle.iter().rposition(|idle| self.may_hand_over(&idle.kept, now));
        if let Some(index) = usable.filter(|_| !prove_first) {
            let kept = self.idle.remove(index).kept;
            self.peak.note(now, self.in_use());
            return Some(Granted::Kept(kept));
        }
        if !may_make || !prove_first && self.comes_back_soon(now) >= waiting {
            return None;
        }
        if self.is_full() {
            // What cannot be handed over makes room, which serves whoever waits.
            if !self.idle.is_empty() && self.discarded.is_empty() {
                let oldest = self.idle.remove(0).kept;
                self.discarded.push(Granted::Kept(oldest));
            }
            return None;
        }
        let permit = self.permit_to_make(stock, now, false);
        self.peak.note(now, self.in_use());
        Some(Granted::Make(permit))
    }

    /// How many connections are about to be ready for another user, sooner than a handshake.
    fn comes_back_soon(&self, now: Instant) -> usize {
        if !self.trial.is_passed(now) {
            return 0;
        }
        self.returning.iter().filter(|began| now - **began < PATIENCE).count()
    }

    /// Whether another handshake may begin.
    fn may_make(&self, now: Instant) -> bool {
        let worth_waiting = !self.idle.is_empty() || !self.returning.is_empty();
        let decides = self.trial.is_open(now) && worth_waiting;
        if self.sessions == SessionsSeen::Awaited || decides {
            return self.alone.is_none_or(|(_, until)| now >= until);
        }
        let fresh = self.making.iter().filter(|making| now - making.began < HANDSHAKE);
        fresh.count() < HANDSHAKES
    }

    fn permit(&mut self, stock: &Arc<Stock<C>>) -> Permit<C> {
        self.open += 1;
        self.next_number += 1;
        let (number, epoch) = (self.next_number, self.epoch);
        Permit { stock: stock.clone(), number, epoch, is_canary: false }
    }

    fn permit_to_make(
        &mut self,
        stock: &Arc<Stock<C>>,
        now: Instant,
        for_spare: bool,
    ) -> Permit<C> {
        let mut permit = self.permit(stock);
        let number = permit.number;
        self.making.push(Making { number, began: now, for_spare });
        self.alone = Some((number, now + PATIENCE));
        permit.is_canary = self.terms.mode != PoolMode::Off && self.trial.begin(number, now);
        permit
    }

    /// How many spares there are too few.
    fn missing_spares(&mut self, now: Instant) -> usize {
        let passed = self.trial.is_passed(now);
        if self.failed.is_some_and(|failed| now - failed < NO_SPARES) {
            return 0;
        }
        if self.closed || self.somebody_waits() || !(passed || self.spares_as_they_are()) {
            return 0;
        }
        let wanted = self.demand.wanted;
        let mut surplus = self.usable_idle(now).saturating_sub(wanted);
        self.discard_idle(|idle| {
            let beyond = surplus > 0 && idle.kept.origin == Origin::Spare;
            surplus -= usize::from(beyond);
            beyond
        });
        let mut missing = wanted.saturating_sub(self.usable_idle(now) + self.making_spares());
        let lost_lately = self.lost.is_some_and(|lost| now - lost < IDLE);
        if self.terms.mode != PoolMode::Off && !self.trial.is_failed(now) && !lost_lately {
            // Connections come back: more than were in use at once lately are of no use.
            let peak = self.peak.most(now).max(self.in_use());
            missing = missing.min(peak.saturating_sub(self.open));
        }
        if let Some(limit) = self.terms.limit {
            missing = missing.min(limit.saturating_sub(self.open));
        }
        let room = match self.may_make(now) {
            true if self.sessions == SessionsSeen::Awaited => 1,
            true => HANDSHAKES.saturating_sub(self.making.len()),
            false => 0,
        };
        missing.min(room)
    }

    /// Takes in a connection, or gives it to who waits.
    fn keep(&mut self, stock: &Arc<Stock<C>>, kept: Kept<C>, now: Instant) -> Added {
        self.idle.push(Idle { kept, since: now });
        self.serve(stock, now);
        let watch = !self.idle.is_empty() && !std::mem::replace(&mut self.watched, true);
        Added { kept: true, watch }
    }

    /// Discards those idle connections that are of no use; says how many.
    fn discard_idle(&mut self, mut is_useless: impl FnMut(&Idle<C>) -> bool) -> usize {
        let before = self.idle.len();
        for index in (0..before).rev() {
            if is_useless(&self.idle[index]) {
                let kept = self.idle.remove(index).kept;
                self.discarded.push(Granted::Kept(kept));
            }
        }
        before - self.idle.len()
    }

    /// Nobody waits any more for this handshake to be alone.
    fn end_alone(&mut self, number: u64) {
        self.alone.take_if(|(alone, _)| *alone == number);
    }

    /// The server may be another from now on: nothing is known of it, and nothing that leads to the
    /// old one is kept.
    fn forget_server(&mut self) {
        self.epoch += 1;
        self.trial.forget();
        self.discard_idle(|_| true);
    }

    /// A handshake is over, or was given up.
    fn no_longer_making(&mut self, number: u64) {
        if let Some(index) = self.making.iter().position(|making| making.number == number) {
            self.making.swap_remove(index);
        }
    }
}

/// The answer to [`Stock::ask`].
#[derive(Debug)]
pub enum Asked<C> {
    Granted(Granted<C>),
    Waiting(Waiting<C>),
}

/// A place in the queue.
pub struct Waiting<C> {
    stock: Arc<Stock<C>>,
    receiver: oneshot::Receiver<Granted<C>>,
}

impl<C> fmt::Debug for Waiting<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

impl<C> Asked<C> {
    /// Waits until it is granted: for ever, if need be.
    pub async fn granted(self) -> Granted<C> {
        let Waiting { stock, mut receiver } = match self {
            Asked::Granted(granted) => return granted,
            Asked::Waiting(waiting) => waiting,
        };
        loop {
            tokio::select! {
                biased;
                Ok(granted) = &mut receiver => return granted,
                // Somebody else's handshake may have become too slow to wait for.
                () = sleep(HANDSHAKE) => stock.serve(Instant::now()),
            }
        }
    }
}

/// The permission to have one connection; whoever has it counts until it is dropped.
pub struct Permit<C> {
    stock: Arc<Stock<C>>,
    number: u64,
    epoch: u64,
    is_canary: bool,
}

impl<C> fmt::Debug for Permit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({})", self.number)
    }
}

impl<C> Permit<C> {
    /// Whether this connection is to find out whether connections may be reused. Then
    /// [`Permit::tried`] is to be called.
    pub fn is_canary(&self) -> bool {
        self.is_canary
    }

    /// It has been found out whether connections may be reused.
    pub fn tried(&mut self, verdict: Verdict, now: Instant) {
        self.is_canary = false;
        self.stock.with(|state| {
            state.trial.end(self.number, verdict, now);
            self.stock.after_verdict(state, now);
        });
    }

    /// It is for another connection from now on.
    pub fn renew(&mut self) {
        self.epoch = self.stock.with(|state| state.epoch);
    }

    /// The server has ended the connection without having been asked to: it may have restarted, or
    /// have become another.
    pub fn server_ended(&self) {
        self.stock.with(|state| {
            if state.epoch == self.epoch {
                state.forget_server();
            }
        });
    }

    /// The handshake is over.
    pub fn made(&mut self, now: Instant) {
        self.stock.with(|state| {
            state.no_longer_making(self.number);
            // With a first session still to come, the others wait for that.
            if state.sessions != SessionsSeen::Awaited {
                state.end_alone(self.number);
            }
            state.serve(&self.stock, now);
        });
    }
}

impl<C> Drop for Permit<C> {
    fn drop(&mut self) {
        self.stock.with(|state| {
            state.open -= 1;
            state.no_longer_making(self.number);
            if state.trial.give_up(self.number) {
                // No trial, no use: what waits for it may be what keeps Redis from taking it.
                let now = Instant::now();
                let useless: Vec<bool> =
                    state.idle.iter().map(|idle| !state.may_hand_over(&idle.kept, now)).collect();
                let mut useless = useless.into_iter().rev();
                state.discard_idle(|_| useless.next().unwrap_or(false));
            }
            state.end_alone(self.number);
            state.serve(&self.stock, Instant::now());
        });
    }
}

/// A connection that is being reset; it counts as coming back until this is dropped.
#[derive(Debug)]
pub struct Return<C> {
    stock: Arc<Stock<C>>,
    began: Instant,
    epoch: u64,
}

impl<C> Return<C> {
    /// It is as good as new.
    pub fn keep(self, kept: Kept<C>, now: Instant) -> Added {
        let (stock, epoch) = (self.stock.clone(), self.epoch);
        drop(self);
        stock.with(|state| {
            if !state.keeps(now) || epoch != state.epoch {
                state.discarded.push(Granted::Kept(kept));
                return Added { kept: false, watch: false };
            }
            state.keep(&stock, kept, now)
        })
    }
}

impl<C> Drop for Return<C> {
    fn drop(&mut self) {
        self.stock.with(|state| {
            if let Some(index) = state.returning.iter().position(|began| *began == self.began) {
                state.returning.swap_remove(index);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::runtime::{Builder, Runtime};
    use tokio::time::advance;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// A connection.
    #[derive(Debug)]
    struct Line {
        name: usize,
        permit: Permit<Line>,
    }

    fn terms(limit: Option<usize>) -> Terms {
        let (mode, spares) = (PoolMode::Auto, 1);
        Terms { mode, limit, spares, all_have_passwords: true, resumes: true }
    }

    /// One that has passed the canary, with a session.
    fn proven(limit: Option<usize>, now: Instant) -> Arc<Stock<Line>> {
        let stock = Stock::new(terms(limit));
        stock.note_session(true, false, now);
        stock.with(|state| judge(state, Verdict::Passed, now));
        stock
    }

    fn judge(state: &mut State<Line>, verdict: Verdict, now: Instant) {
        const NUMBER: u64 = u64::MAX;
        state.trial.forget();
        state.trial.note_return();
        assert!(state.trial.begin(NUMBER, now));
        state.trial.end(NUMBER, verdict, now);
    }

    fn kept(name: usize, permit: Permit<Line>, now: Instant) -> Kept<Line> {
        let connection = Line { name, permit };
        Kept { connection, address: ADDRESS, made: now, origin: Origin::Reused }
    }

    fn make(stock: &Arc<Stock<Line>>, now: Instant) -> Permit<Line> {
        match stock.ask(Place::Back, now) {
            Asked::Granted(Granted::Make(permit)) => permit,
            other => panic!("{other:?}"),
        }
    }

    fn waiting(stock: &Arc<Stock<Line>>, now: Instant) -> Waiting<Line> {
        match stock.ask(Place::Back, now) {
            Asked::Waiting(waiting) => waiting,
            granted => panic!("{granted:?}"),
        }
    }

    impl Waiting<Line> {
        fn take(&mut self) -> Option<Granted<Line>> {
            self.receiver.try_recv().ok()
        }
    }

    fn give_back(stock: &Arc<Stock<Line>>, kept: Kept<Line>, now: Instant) -> Added {
        let back = stock.take_back(&kept.connection.permit, kept.made, now);
        back.expect("it is taken").keep(kept, now)
    }

    fn name(granted: Option<Granted<Line>>) -> Option<usize> {
        match granted? {
            Granted::Kept(kept) => Some(kept.connection.name),
            Granted::Make(_) => None,
        }
    }

    #[tokio::test]
    async fn whoever_waits_longest_gets_the_connection_that_comes_back_first() {
        let now = Instant::now();
        let stock = proven(Some(2), now);
        let (mut a, mut b) = (make(&stock, now), make(&stock, now));
        a.made(now);
        b.made(now);
        let (mut first, mut second) = (waiting(&stock, now), waiting(&stock, now));
        assert!(first.take().is_none() && second.take().is_none());
        let _ = give_back(&stock, kept(1, a, now), now);
        assert!(second.take().is_none());
        assert_eq!(name(first.take()), Some(1));
        drop(b);
        assert!(matches!(second.take(), Some(Granted::Make(_))));
        assert_eq!(stock.figures().open, 0, "both are dropped");
    }

    #[tokio::test]
    async fn what_cannot_be_handed_over_gives_way_to_who_waits_at_the_limit() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(terms(Some(1)));
        stock.note_session(true, false, now);
        let mut first = make(&stock, now);
        first.made(now);
        // Nothing is known of the server: it is withheld.
        let _ = give_back(&stock, kept(1, first, now), now);
        assert_eq!(stock.figures().idle, 1);
        let mut next = waiting(&stock, now);
        let Some(Granted::Make(permit)) = next.take() else { panic!("no permit") };
        assert!(permit.is_canary());
        assert_eq!((stock.figures().idle, stock.figures().open), (0, 1));
    }

    #[tokio::test]
    async fn while_a_server_is_tried_the_others_wait_and_then_get_what_was_kept() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(terms(None));
        stock.note_session(true, false, now);
        let mut permits = [make(&stock, now), make(&stock, now), make(&stock, now)];
        permits.iter_mut().for_each(|permit| permit.made(now));
        assert!(permits.iter().all(|permit| !permit.is_canary()), "nobody would gain by it");
        for (name, permit) in permits.into_iter().enumerate() {
            let _ = give_back(&stock, kept(name, permit, now), now);
        }
        let mut canary = make(&stock, now);
        assert!(canary.is_canary());
        let mut others = [waiting(&stock, now), waiting(&stock, now)];
        canary.tried(Verdict::Passed, now);
        let got = others.each_mut().map(|waiting| name(waiting.take()));
        assert_eq!(got, [Some(2), Some(1)], "the latest first");
        // On a server that fails, what was kept is closed.
        stock.note_failed(now);
        assert_eq!(stock.figures().idle, 0);
        let permit = make(&stock, now);
        assert!(stock.take_back(&permit, now, now).is_none());
    }

    #[tokio::test]
    async fn one_handshake_is_made_while_there_is_no_session_and_then_a_few_at_once() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(terms(None));
        let mut first = make(&stock, now);
        let mut others: Vec<_> = (0..HANDSHAKES + 1).map(|_| waiting(&stock, now)).collect();
        // A server may take its time to give a session, and may give none.
        first.made(now);
        assert!(others.iter_mut().all(|other| other.take().is_none()));
        stock.note_session(true, false, now);
        let granted: Vec<_> = others.iter_mut().filter_map(Waiting::take).collect();
        assert_eq!(granted.len(), HANDSHAKES);
        // Who takes long keeps nobody waiting.
        stock.serve(now + HANDSHAKE - MS);
        assert!(others[HANDSHAKES].take().is_none());
        stock.serve(now + HANDSHAKE);
        assert!(others[HANDSHAKES].take().is_some());
    }

    #[tokio::test]
    async fn a_first_handshake_that_fails_or_hangs_keeps_nobody_waiting_for_long() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(terms(None));
        let first = make(&stock, now);
        let (mut second, mut third) = (waiting(&stock, now), waiting(&stock, now));
        drop(first);
        let second = second.take().expect("the next one's turn");
        stock.serve(now + PATIENCE - MS);
        assert!(third.take().is_none());
        // By the time of the drop, which is the clock's.
        stock.serve(Instant::now() + PATIENCE);
        assert!(third.take().is_some());
        drop(second);
    }

    #[tokio::test]
    async fn a_server_that_gives_no_session_is_not_waited_for() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(terms(None));
        let mut first = make(&stock, now);
        first.made(now);
        let mut second = waiting(&stock, now);
        stock.note_session(false, false, now);
        assert!(second.take().is_none());
        stock.note_session(false, true, now);
        assert!(second.take().is_some());
    }

    #[tokio::test]
    async fn a_connection_that_is_being_reset_is_waited_for_instead_of_a_handshake() {
        let now = Instant::now();
        let stock = proven(None, now);
        let mut permit = make(&stock, now);
        permit.made(now);
        let back = stock.take_back(&permit, now, now).unwrap();
        let (mut first, mut second) = (waiting(&stock, now), waiting(&stock, now));
        // One comes back and two wait: in order.
        assert!(matches!(first.take(), Some(Granted::Make(_))));
        assert!(second.take().is_none());
        let _ = back.keep(kept(7, permit, now), now);
        assert_eq!(name(second.take()), Some(7));
    }

    #[tokio::test]
    async fn as_many_are_kept_as_were_in_use_lately_and_each_goes_after_half_a_minute() {
        let start = Instant::now();
        let stock = proven(None, start);
        let permits: Vec<_> = (0..3).map(|_| make(&stock, start)).collect();
        for (name, mut permit) in permits.into_iter().enumerate() {
            permit.made(start);
            let added = give_back(&stock, kept(name, permit, start), start);
            assert_eq!(added, Added { kept: true, watch: name == 0 });
        }
        // One user at a time: the same connection each time.
        let mut now = start;
        for _ in 0..29 {
            now += SECOND;
            let Asked::Granted(Granted::Kept(kept)) = stock.ask(Place::Back, now) else {
                panic!("nothing is kept")
            };
            assert_eq!(kept.connection.name, 2);
            let _ = give_back(&stock, kept, now);
        }
        assert_eq!(stock.expire(now), (0, Some(start + IDLE)));
        assert_eq!(stock.figures().idle, 3);
        assert_eq!(stock.expire(start + IDLE), (2, Some(now + IDLE)));
        assert_eq!(stock.figures().idle, 1);
        assert_eq!(stock.expire(now + IDLE), (1, None));
        assert_eq!(stock.figures().open, 0);
    }

    #[tokio::test]
    async fn what_waits_for_a_trial_that_cannot_be_made_is_closed() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(terms(None));
        stock.note_session(true, false, now);
        let mut permits = [make(&stock, now), make(&stock, now)];
        permits.iter_mut().for_each(|permit| permit.made(now));
        for (name, permit) in permits.into_iter().enumerate() {
            let _ = give_back(&stock, kept(name, permit, now), now);
        }
        let canary = make(&stock, now);
        assert!(canary.is_canary());
        assert_eq!(stock.figures().idle, 2);
        drop(canary);
        assert_eq!((stock.figures().idle, stock.figures().open), (0, 0));
    }

    #[tokio::test]
    async fn no_spare_is_made_right_after_a_connection_that_failed() {
        let now = Instant::now();
        let stock: Arc<Stock<Line>> = Stock::new(Terms { mode: PoolMode::Off, ..terms(None) });
        stock.note_session(true, false, now);
        stock.with(|state| state.demand.wanted = 1);
        stock.note_failure(now);
        assert!(stock.refill(now + NO_SPARES - MS).is_empty());
        assert_eq!(stock.refill(now + NO_SPARES).len(), 1);
    }

    #[tokio::test]
    async fn what_is_older_than_a_servers_end_is_not_kept_and_the_next_one_is_tried() {
        let now = Instant::now();
        let stock = proven(None, now);
        let mut permits = [make(&stock, now), make(&stock, now), make(&stock, now)];
        permits.iter_mut().for_each(|permit| permit.made(now));
        let [ended, late, idle] = permits;
        let returning = stock.take_back(&late, now, now).unwrap();
        let _ = give_back(&stock, kept(1, idle, now), now);
        ended.server_ended();
        assert_eq!(stock.figures().idle, 0);
        assert!(!returning.keep(kept(2, late, now), now).kept);
        let canary = make(&stock, now);
        assert!(canary.is_canary());
        // Of an older one it is no news.
        ended.server_ended();
        assert!(stock.take_back(&canary, now, now).is_some());
    }

    #[tokio::test]
    async fn an_old_connection_is_not_kept_and_none_is_once_command_has_ended() {
        let made = Instant::now();
        let stock = proven(None, made);
        let mut permit = make(&stock, made);
        permit.made(made);
        assert!(stock.take_back(&permit, made, made + OLDEST - SECOND).is_some());
        assert!(stock.take_back(&permit, made, made + OLDEST).is_none());
        let other = make(&stock, made);
        let back = stock.take_back(&permit, made, made).unwrap();
        stock.close();
        assert!(!back.keep(kept(1, permit, made), made).kept);
        assert!(stock.take_back(&other, made, made).is_none());
        drop(other);
        assert_eq!(stock.figures().open, 0);
    }

    #[tokio::test]
    async fn spares_are_made_where_nothing_comes_back_and_never_beyond_the_limit() {
        let now = Instant::now();
        let wanted = |mode, limit, verdict: Option<Verdict>, in_use: usize| {
            let terms = Terms { mode, spares: 3, ..terms(limit) };
            let stock: Arc<Stock<Line>> = Stock::new(terms);
            stock.note_session(true, false, now);
            stock.with(|state| {
                (state.demand.wanted, state.open) = (3, in_use);
                if let Some(verdict) = verdict {
                    judge(state, verdict, now);
                }
            });
            let permits = stock.refill(now);
            let count = permits.len();
            drop(permits);
            count
        };
        let passed = Some(Verdict::Passed);
        assert_eq!(wanted(PoolMode::Off, None, None, 1), 3);
        assert_eq!(wanted(PoolMode::Off, Some(2), None, 1), 1);
        assert_eq!(wanted(PoolMode::Auto, None, Some(Verdict::Failed), 1), 3);
        assert_eq!(wanted(PoolMode::Auto, None, passed, 1), 0);
        let stock = proven(None, now);
        let mut permits: Vec<_> = (0..3).map(|_| make(&stock, now)).collect();
        permits.iter_mut().for_each(|permit| permit.made(now));
        stock.with(|state| state.demand.wanted = 2);
        assert!(stock.refill(now).is_empty());
        // One went for good, with a subscription, say.
        permits.pop();
        assert_eq!(stock.refill(now).len(), 1);
    }

    #[tokio::test]
    async fn spares_are_not_made_while_anybody_waits() {
        let now = Instant::now();
        let stock = proven(Some(2), now);
        stock.with(|state| state.demand.wanted = 2);
        let permits = [make(&stock, now), make(&stock, now)];
        let _waiting = waiting(&stock, now);
        assert!(stock.refill(now).is_empty());
        drop(permits);
    }

    #[tokio::test]
    async fn a_spare_is_handed_over_without_a_reset_only_where_each_user_logs_in() {
        let now = Instant::now();
        for all_have_passwords in [false, true] {
            let terms = Terms { all_have_passwords, ..terms(None) };
            let stock: Arc<Stock<Line>> = Stock::new(terms);
            stock.note_session(true, false, now);
            let mut permit = make(&stock, now);
            permit.made(now);
            let spare = Kept { origin: Origin::Spare, ..kept(1, permit, now) };
            stock.with(|state| {
                state.demand.wanted = 1;
                state.idle.push(Idle { kept: spare, since: now });
            });
            let asked = stock.ask(Place::Back, now);
            let handed_over = matches!(asked, Asked::Granted(Granted::Kept(_)));
            assert_eq!(handed_over, all_have_passwords);
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask,
        AskFirst,
        /// The n-th of those that wait gives up.
        GiveUp(usize),
        /// The n-th of those being made is ready, or fails.
        Made(usize, bool),
        /// The n-th in use is given back, or closed.
        Back(usize, bool),
        /// The n-th of those being reset is reset, or fails.
        Reset(usize, bool),
        Session(bool),
        Verdict(u8),
        Wait(u64),
        Refill,
        Expire,
        Moved,
        /// The server ends the n-th in use.
        Ended(usize),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            6 => Just(Event::Ask),
            1 => Just(Event::AskFirst),
            1 => (0..9_usize).prop_map(Event::GiveUp),
            6 => (0..9_usize, prop::bool::weighted(0.8)).prop_map(|(n, ok)| Event::Made(n, ok)),
            4 => (0..9_usize, prop::bool::weighted(0.8)).prop_map(|(n, ok)| Event::Back(n, ok)),
            4 => (0..9_usize, prop::bool::weighted(0.8)).prop_map(|(n, ok)| Event::Reset(n, ok)),
            1 => any::<bool>().prop_map(Event::Session),
            1 => (0..3_u8).prop_map(Event::Verdict),
            2 => prop_oneof![0..400_u64, 0..40_000_u64].prop_map(Event::Wait),
            2 => Just(Event::Refill),
            1 => Just(Event::Expire),
            1 => Just(Event::Moved),
            1 => (0..9_usize).prop_map(Event::Ended),
        ];
        prop::collection::vec(event, 0..120)
    }

    /// Takes the n-th of `list`, counted round.
    fn nth<T>(list: &mut Vec<T>, n: usize) -> Option<T> {
        (!list.is_empty()).then(|| list.remove(n % list.len()))
    }

    /// All that is outside the stock.
    struct World {
        stock: Arc<Stock<Line>>,
        limit: Option<usize>,
        waiting: VecDeque<Waiting<Line>>,
        making: Vec<(Permit<Line>, bool)>,
        in_use: Vec<Kept<Line>>,
        resetting: Vec<(Return<Line>, Kept<Line>)>,
        names: usize,
        passed: bool,
    }

    /// Lets the clock run, which stands still otherwise.
    fn pass(runtime: &Runtime, time: Duration) {
        runtime.block_on(advance(time));
    }

    impl World {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn accept(&mut self, granted: Granted<Line>) {
            match granted {
                Granted::Make(permit) => self.making.push((permit, false)),
                Granted::Kept(kept) => {
                    assert!(self.now() - kept.made < OLDEST + IDLE);
                    assert!(self.passed || kept.origin == Origin::Spare, "it was not proven");
                    self.in_use.push(kept);
                }
            }
        }

        /// Who waits longest is served first.
        fn collect(&mut self) {
            let mut waiting = std::mem::take(&mut self.waiting);
            let mut somebody_waits = false;
            let mut still = VecDeque::new();
            for mut one in waiting.drain(..) {
                match one.take() {
                    Some(granted) => {
                        assert!(!somebody_waits, "out of order");
                        self.accept(granted);
                    }
                    None => {
                        somebody_waits = true;
                        still.push_back(one);
                    }
                }
            }
            self.waiting = still;
        }

        fn act(&mut self, event: Event, runtime: &Runtime) {
            let (stock, now) = (self.stock.clone(), self.now());
            match event {
                Event::Ask | Event::AskFirst => {
                    stock.note_arrival(now);
                    let first = matches!(event, Event::AskFirst);
                    let place = if first { Place::Front } else { Place::Back };
                    match stock.ask(place, now) {
                        Asked::Granted(granted) => self.accept(granted),
                        Asked::Waiting(waiting) if first => self.waiting.push_front(waiting),
                        Asked::Waiting(waiting) => self.waiting.push_back(waiting),
                    }
                }
                Event::GiveUp(n) => {
                    if !self.waiting.is_empty() {
                        self.waiting.remove(n % self.waiting.len());
                    }
                }
                Event::Made(n, ok) => {
                    let Some((mut permit, for_spare)) = nth(&mut self.making, n) else { return };
                    if !ok {
                        return;
                    }
                    if permit.is_canary() {
                        permit.tried(Verdict::Passed, now);
                        self.passed = stock.with(|state| state.trial.is_passed(now));
                    }
                    permit.made(now);
                    self.names += 1;
                    let kept = kept(self.names, permit, now);
                    if for_spare {
                        let spare = Kept { origin: Origin::Spare, ..kept };
                        let _ = stock.add_spare(spare, now, now);
                    } else {
                        self.in_use.push(kept);
                    }
                }
                Event::Back(n, ok) => {
                    let Some(kept) = nth(&mut self.in_use, n) else { return };
                    let permit = &kept.connection.permit;
                    if let Some(back) = stock.take_back(permit, kept.made, now).filter(|_| ok) {
                        let kept = Kept { origin: Origin::Reused, ..kept };
                        self.resetting.push((back, kept));
                    }
                }
                Event::Reset(n, ok) => {
                    let Some((back, kept)) = nth(&mut self.resetting, n) else { return };
                    if ok {
                        let _ = back.keep(kept, now);
                    }
                }
                Event::Session(known) => stock.note_session(known, true, now),
                Event::Verdict(n) => {
                    let verdict = [Verdict::Passed, Verdict::Failed, Verdict::Unclear];
                    let verdict = verdict[usize::from(n)];
                    self.passed = verdict == Verdict::Passed;
                    stock.with(|state| {
                        judge(state, verdict, now);
                        stock.after_verdict(state, now);
                    });
                }
                Event::Wait(ms) => {
                    pass(runtime, MS * ms as u32);
                    self.passed &= stock.with(|state| state.trial.is_passed(self.now()));
                }
                Event::Refill => {
                    let permits = stock.refill(now);
                    assert!(permits.is_empty() || self.waiting.is_empty());
                    self.making.extend(permits.into_iter().map(|permit| (permit, true)));
                }
                Event::Expire => {
                    stock.expire(now);
                }
                Event::Ended(n) => {
                    let Some(kept) = nth(&mut self.in_use, n) else { return };
                    kept.connection.permit.server_ended();
                    self.passed = stock.with(|state| state.trial.is_passed(now));
                }
                Event::Moved => {
                    let Some(granted) = self.in_use.pop() else { return };
                    assert!(stock.keep_only(&[], &granted) > 0);
                    self.passed = false;
                }
            }
        }

        fn check(&self) {
            let figures = self.stock.figures();
            assert!(self.limit.is_none_or(|limit| figures.open <= limit), "{figures:?}");
            let outside = self.making.len() + self.in_use.len() + self.resetting.len();
            assert_eq!(figures.open, outside + figures.idle);
            assert_eq!(figures.making, self.making.len());
            assert_eq!(figures.waiting, self.waiting.len());
            self.stock.with(|state| {
                assert_eq!(state.returning.len(), self.resetting.len());
                let spares = self.making.iter().filter(|(_, for_spare)| *for_spare).count();
                assert_eq!(state.making_spares(), spares);
            });
        }
    }

    proptest! {
        #[test]
        fn in_any_order_of_events_no_limit_is_passed_and_nobody_is_forgotten(
            limit in prop_oneof![Just(None), (1..5_usize).prop_map(Some)],
            all_have_passwords: bool,
            resumes: bool,
            events in events(),
        ) {
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().unwrap();
            let _inside = runtime.enter();
            // What is dropped looks at the clock itself.
            runtime.block_on(async {});
            let terms = Terms { all_have_passwords, resumes, spares: 3, ..terms(limit) };
            let stock = Stock::new(terms);
            let (making, in_use, resetting) = Default::default();
            let (waiting, names, passed) = (VecDeque::new(), 0, false);
            let mut world =
                World { stock, limit, waiting, making, in_use, resetting, names, passed };
            for event in events {
                world.act(event, &runtime);
                world.collect();
                world.check();
            }
            // When all is said and done, whoever still waits is served.
            for _ in 0..1000 {
                if world.waiting.is_empty() {
                    break;
                }
                world.act(Event::Made(0, true), &runtime);
                world.collect();
                world.act(Event::Back(0, true), &runtime);
                world.act(Event::Reset(0, true), &runtime);
                world.collect();
                pass(&runtime, PATIENCE);
                let now = world.now();
                world.passed &= world.stock.with(|state| state.trial.is_passed(now));
                world.stock.serve(now);
                world.collect();
                world.check();
            }
            prop_assert!(world.waiting.is_empty(), "{:?}", world.stock);
            let World { stock, making, in_use, resetting, .. } = world;
            drop((making, in_use, resetting));
            stock.close();
            prop_assert_eq!(stock.figures(), Figures { limit, ..Figures::default() });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_looks_again_when_others_take_too_long() {
        let stock: Arc<Stock<Line>> = Stock::new(terms(None));
        let _slow = make(&stock, Instant::now());
        let asked = stock.ask(Place::Back, Instant::now());
        let mut granted = pin!(asked.granted());
        let first: Pin<&mut _> = granted.as_mut();
        assert!(matches!(first.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        let began = Instant::now();
        assert!(matches!(granted.await, Granted::Make(_)));
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < 2 * PATIENCE);
    }
}
