//! Connections that are ready before they are asked for.
//!
//! A client that connects anew for each request (PHP, scripts, forking workers) pays TCP and TLS
//! each time. Redis never speaks first, so a connection can be made and its handshake done
//! beforehand; the same trust holds for it. Only demand makes spares: the first comes after a
//! second connection, and silence ends them.
//!
//! A spare is handed over only if it is as good as a new connection: nothing has arrived on it, and
//! it leads where the name leads now. Who is logged in must be decided by what the app sends: there
//! are no spares for an app that sends no password.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::MOST_SPARES;
use super::diagnosis::Unexplained;
use super::failure::{Failure, Step};
use super::stream::TlsUpstream;
use super::upstream::Source;
use super::{Tunnel, upstream};
use crate::logging::debug;

/// Two connections within this time are demand.
const DEMAND: Duration = Duration::from_secs(10);
/// A spare is given up when it is so old, or when nobody has connected for so long: far less than
/// the 300 s after which Heroku closes idle connections
/// (<https://devcenter.heroku.com/articles/heroku-redis#timeout>).
const GIVEN_UP: Duration = Duration::from_secs(30);
/// How long the number stays up after a burst, for each spare.
const SHRINK: Duration = Duration::from_secs(1);
/// How old a look-up of the name may be when a spare is handed over.
const LOOK_UP_AGE: Duration = Duration::from_secs(1);

/// One tunnel's spares.
#[derive(Debug)]
pub struct Spares {
    /// `--spares`: as many under little demand; 0 turns spares off.
    least: usize,
    pool: Mutex<Pool<TlsUpstream>>,
}

impl Spares {
    pub fn new(least: usize) -> Spares {
        Spares { least, pool: Mutex::default() }
    }

    fn pool(&self) -> MutexGuard<'_, Pool<TlsUpstream>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is ready and what is being made, and how much of it there should be. Knows nothing of the
/// network.
#[derive(Debug)]
struct Pool<S> {
    /// The oldest first.
    ready: VecDeque<Ready<S>>,
    making: usize,
    /// A task waits for the end of demand.
    watched: bool,
    demand: Demand,
}

#[derive(Debug)]
struct Ready<S> {
    spare: S,
    address: IpAddr,
    made: Instant,
}

impl<S> Default for Pool<S> {
    fn default() -> Self {
        Pool { ready: VecDeque::new(), making: 0, watched: false, demand: Demand::default() }
    }
}

impl<S> Pool<S> {
    /// The oldest spare that is not too old.
    fn take(&mut self, now: Instant) -> Option<S> {
        while let Some(Ready { spare, made, .. }) = self.ready.pop_front() {
            if now - made < GIVEN_UP {
                return Some(spare);
            }
        }
        None
    }

    /// Keeps only what leads to one of `addresses`, and says how many others there were.
    fn keep_only(&mut self, addresses: &[SocketAddr]) -> usize {
        let before = self.ready.len();
        self.ready.retain(|ready| addresses.iter().any(|known| known.ip() == ready.address));
        before - self.ready.len()
    }

    /// Lets go of what is beyond the demand, and says how many to make; they count as being made
    /// from now on.
    fn refill(&mut self) -> usize {
        let wanted = self.demand.wanted;
        while self.ready.len() > wanted {
            self.ready.pop_front();
        }
        let missing = wanted.saturating_sub(self.ready.len() + self.making);
        self.making += missing;
        missing
    }

    /// Takes in a spare whose making began at `started`, if it is still wanted. Says whether
    /// somebody has to watch for the end of demand from now on.
    fn add(&mut self, spare: S, address: IpAddr, started: Instant, now: Instant) -> bool {
        self.demand.handshake = now - started;
        if self.ready.len() >= self.demand.wanted {
            return false;
        }
        self.ready.push_back(Ready { spare, address, made: now });
        !std::mem::replace(&mut self.watched, true)
    }

    /// Gives up everything if demand has ended; says until when to wait if it has not.
    fn expire(&mut self, now: Instant) -> Option<Instant> {
        let due = self.demand.last().map_or(now, |last| last + GIVEN_UP);
        if due > now {
            return Some(due);
        }
        self.ready.clear();
        self.watched = false;
        self.demand = Demand::default();
        None
    }
}

/// Takes note of a connection that has just been accepted.
pub fn note_arrival(tunnel: &Tunnel) {
    let spares = &tunnel.spares;
    if spares.least > 0 {
        spares.pool().demand.arrival(Instant::now(), spares.least);
    }
}

/// A spare for a connection of the app's, if one is fit for use.
///
/// # Errors
/// When the name is not found: a new connection would fail for that as well.
pub async fn take(tunnel: &Tunnel) -> Result<Option<TlsUpstream>, Failure> {
    let spares = &tunnel.spares;
    if spares.pool().ready.is_empty() {
        return Ok(None);
    }
    let now = Instant::now();
    let since = now.checked_sub(LOOK_UP_AGE).unwrap_or(now);
    let addresses = upstream::look_up_since(tunnel, since).await?;
    loop {
        let (outdated, spare) = {
            let mut pool = spares.pool();
            (pool.keep_only(&addresses), pool.take(Instant::now()))
        };
        if outdated > 0 {
            debug!(at = "spares-outdated", var = tunnel.variable(), count = outdated);
        }
        let Some(mut spare) = spare else { return Ok(None) };
        if spare.is_untouched().await {
            return Ok(Some(spare));
        }
        debug!(at = "spare-discarded", var = tunnel.variable());
    }
}

/// Has as many spares made as there is demand for, and lets go of those beyond.
pub fn refill(tunnel: &Arc<Tunnel>) {
    for _ in 0..tunnel.spares.pool().refill() {
        tokio::spawn(make(Making(tunnel.clone())));
    }
}

/// Counts a spare that is being made, until it is dropped.
struct Making(Arc<Tunnel>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.spares.pool().making -= 1;
    }
}

async fn make(making: Making) {
    let tunnel = &making.0;
    let started = Instant::now();
    let deadline = started + tunnel.settings.connect_timeout;
    let made = upstream::attempt(tunnel, Source::New, deadline).await;
    let made = made.map_err(Unexplained::bare).and_then(|stream| {
        let address = stream.tcp().peer_addr();
        let address = address.map_err(|error| Failure::Outage(Step::Tcp, error))?;
        Ok((stream, address.ip()))
    });
    match made {
        Ok((stream, address)) => {
            debug!(at = "spare-ready", var = tunnel.variable());
            if tunnel.spares.pool().add(stream, address, started, Instant::now()) {
                tokio::spawn(give_up(tunnel.clone()));
            }
        }
        // The next connection meets the same, and reports it.
        Err(failure) => debug!(at = "spare-failed", var = tunnel.variable(), error = %failure),
    }
}

/// Closes a tunnel's spares once nobody asks for any.
async fn give_up(tunnel: Arc<Tunnel>) {
    loop {
        let due = tunnel.spares.pool().expire(Instant::now());
        match due {
            Some(due) => sleep_until(due).await,
            None => break,
        }
    }
    debug!(at = "spares-given-up", var = tunnel.variable());
}

/// How often connections come, and how many spares that is worth.
#[derive(Debug, Default)]
struct Demand {
    /// The latest arrivals, as many as could matter.
    arrivals: VecDeque<Instant>,
    /// How long the last spare took to make.
    handshake: Duration,
    wanted: usize,
    /// When `wanted` was last changed, or confirmed.
    changed: Option<Instant>,
}

impl Demand {
    fn last(&self) -> Option<Instant> {
        self.arrivals.back().copied()
    }

    /// Takes note of a connection. Under demand at least `least` spares are wanted, and as many as
    /// arrive while one is made; fewer again only bit by bit, so that a pause in a burst closes
    /// none. Without demand none is wanted, whatever was before.
    fn arrival(&mut self, now: Instant, least: usize) {
        let demanded = self.last().is_some_and(|last| now - last <= DEMAND);
        self.arrivals.push_back(now);
        while self.arrivals.len() > MOST_SPARES {
            self.arrivals.pop_front();
        }
        if !demanded {
            (self.wanted, self.changed) = (0, Some(now));
            return;
        }
        let arrived = self.arrivals.iter().filter(|then| now - **then <= self.handshake).count();
        let due = arrived.clamp(least.min(MOST_SPARES), MOST_SPARES);
        let since = self.changed.map_or(Duration::ZERO, |changed| now - changed);
        let fewer = (since.as_millis() / SHRINK.as_millis()) as usize;
        if due >= self.wanted || fewer > 0 {
            (self.wanted, self.changed) = (due.max(self.wanted.saturating_sub(fewer)), Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// What can happen to a pool, in any order.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Arrival,
        Refill,
        /// The oldest spare in the making is ready, or could not be made.
        Made(bool),
        Take,
        Wait(u64),
        Watch,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Arrival),
            Just(Event::Refill),
            any::<bool>().prop_map(Event::Made),
            Just(Event::Take),
            prop_oneof![0..20u64, 0..40_000u64].prop_map(Event::Wait),
            Just(Event::Watch),
        ]
    }

    proptest! {
        #[test]
        fn in_any_order_of_events_no_spare_is_handed_out_twice_or_old_or_kept_beyond_the_limit(
            events in prop::collection::vec(event(), 0..200),
            least in 1..=MOST_SPARES,
        ) {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().build().unwrap();
            let _inside = runtime.enter();
            let mut now = Instant::now();
            let mut pool: Pool<usize> = Pool::default();
            let (mut started, mut watchers) = (VecDeque::new(), 0);
            let (mut made, mut taken) = (Vec::new(), HashSet::new());
            let mut last_arrival = None;
            for event in events {
                match event {
                    Event::Arrival => {
                        let lone = last_arrival.is_none_or(|last| now - last > DEMAND);
                        last_arrival = Some(now);
                        pool.demand.arrival(now, least);
                        prop_assert_eq!(pool.demand.wanted == 0, lone, "no demand, no spare");
                        let wanted = pool.demand.wanted;
                        prop_assert!(lone || (least..=MOST_SPARES).contains(&wanted));
                    }
                    Event::Refill => {
                        let missing = pool.refill();
                        started.extend(std::iter::repeat_n(now, missing));
                        prop_assert!(pool.ready.len() + missing <= pool.demand.wanted);
                    }
                    Event::Made(works) => {
                        if let Some(since) = started.pop_front() {
                            if works {
                                made.push(now);
                                let number = made.len() - 1;
                                watchers += usize::from(pool.add(number, ADDRESS, since, now));
                            }
                            pool.making -= 1;
                        }
                    }
                    Event::Take => {
                        if let Some(spare) = pool.take(now) {
                            prop_assert!(taken.insert(spare), "handed out twice");
                            prop_assert!(now - made[spare] < GIVEN_UP, "too old");
                        }
                    }
                    Event::Wait(ms) => now += Duration::from_millis(ms),
                    Event::Watch => {
                        if watchers > 0 && pool.expire(now).is_none() {
                            watchers -= 1;
                            prop_assert!(pool.ready.is_empty());
                            prop_assert_eq!(pool.demand.wanted, 0);
                            last_arrival = None;
                        }
                    }
                }
                prop_assert_eq!(pool.making, started.len());
                prop_assert!(pool.ready.len() + pool.making <= MOST_SPARES, "{:?}", pool);
                prop_assert!(watchers == usize::from(pool.watched), "one task watches at most");
                prop_assert!(pool.ready.is_empty() || pool.watched, "spares that nobody would give \
                                                                     up");
            }
        }
    }

    #[tokio::test]
    async fn spares_stay_while_the_name_has_their_address_among_others() {
        let now = Instant::now();
        let mut pool: Pool<u8> = Pool::default();
        pool.demand.wanted = 4;
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([127, 0, 0, n]));
        for (spare, address) in [(1, a), (2, b), (3, a), (4, c)] {
            pool.add(spare, address, now, now);
        }
        let addresses = [c, b].map(|address| SocketAddr::new(address, 6379));
        assert_eq!(pool.keep_only(&addresses), 2);
        assert_eq!(pool.keep_only(&addresses), 0);
        assert_eq!([pool.take(now), pool.take(now), pool.take(now)], [Some(2), Some(4), None]);
    }

    #[tokio::test]
    async fn a_spare_that_is_ready_after_the_end_of_demand_is_not_kept() {
        let now = Instant::now();
        let mut pool: Pool<u8> = Pool::default();
        pool.demand.wanted = 1;
        assert_eq!(pool.refill(), 1);
        pool.demand.arrival(now, 1);
        assert!(!pool.add(1, ADDRESS, now, now));
        assert!(pool.ready.is_empty());
    }

    fn wanted_after(
        demand: &mut Demand,
        start: Instant,
        arrivals_ms: &[u64],
        least: usize,
    ) -> usize {
        for arrival in arrivals_ms {
            demand.arrival(start + Duration::from_millis(*arrival), least);
        }
        demand.wanted
    }

    #[tokio::test]
    async fn one_connection_is_no_demand_and_two_within_ten_seconds_are() {
        let start = Instant::now();
        for (arrivals, wanted) in [
            (&[0][..], 0),
            (&[0, 10_001], 0),
            (&[0, 10_000], 1),
            (&[0, 20_000, 25_000], 1),
            (&[0, 1, 2, 10_003], 0),
        ] {
            assert_eq!(wanted_after(&mut Demand::default(), start, arrivals, 1), wanted);
        }
        assert_eq!(wanted_after(&mut Demand::default(), start, &[0, 1], 3), 3);
    }

    #[tokio::test]
    async fn the_number_grows_to_what_arrives_in_one_handshakes_time_and_shrinks_slowly() {
        let start = Instant::now();
        let mut demand = Demand { handshake: Duration::from_millis(5), ..Demand::default() };
        assert_eq!(wanted_after(&mut demand, start, &[0, 1, 2, 3], 1), 4);
        assert_eq!(wanted_after(&mut demand, start, &[4; 50], 1), MOST_SPARES);
        assert_eq!(wanted_after(&mut demand, start, &[500], 1), MOST_SPARES);
        assert_eq!(wanted_after(&mut demand, start, &[1_100, 1_200], 1), MOST_SPARES - 1);
        let every_second: Vec<u64> = (2..20).map(|second| second * 1_101).collect();
        assert_eq!(wanted_after(&mut demand, start, &every_second, 1), 1);
        // By the time that has passed, however few connections come.
        assert_eq!(wanted_after(&mut demand, start, &[30_000; 50], 1), MOST_SPARES);
        assert_eq!(wanted_after(&mut demand, start, &[36_500], 1), MOST_SPARES - 6);
    }
}
