//! Connections that are ready before they are asked for.
//!
//! A client that connects anew for each request (PHP, scripts, forking workers) pays TCP and TLS each time.
//! Redis never speaks first, so a connection can be made and its handshake done beforehand; the same trust
//! holds for it. Only demand makes spares: the first comes after a second connection, and silence ends them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::stream::TlsUpstream;
use super::{Tunnel, upstream};
use crate::logging::debug;
use crate::settings::MOST_SPARES;

/// Two connections within this time are demand.
const DEMAND: Duration = Duration::from_secs(10);
/// A spare is given up when it is so old, or when nobody has connected for so long: far less than the
/// 300 s after which Heroku closes idle connections
/// (<https://devcenter.heroku.com/articles/heroku-redis#timeout>).
const GIVEN_UP: Duration = Duration::from_secs(30);
/// How long the number stays up after a burst, for each spare.
const SHRINK: Duration = Duration::from_secs(1);

/// One tunnel's spares.
#[derive(Debug)]
pub struct Spares {
    /// `--spares`: as many under little demand; 0 turns spares off.
    least: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The oldest first.
    ready: VecDeque<Spare>,
    making: usize,
    /// A task waits for the end of demand.
    watched: bool,
    demand: Demand,
}

#[derive(Debug)]
struct Spare {
    stream: TlsUpstream,
    made: Instant,
}

impl Spares {
    pub fn new(least: usize) -> Spares {
        let state =
            State { ready: VecDeque::new(), making: 0, watched: false, demand: Demand::default() };
        Spares { least, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes in a spare whose making began at `started`.
    fn add(&mut self, stream: TlsUpstream, started: Instant, tunnel: &Arc<Tunnel>) {
        let made = Instant::now();
        self.demand.handshake = made - started;
        self.ready.push_back(Spare { stream, made });
        if !self.watched {
            self.watched = true;
            tokio::spawn(give_up(tunnel.clone()));
        }
    }
}

/// A spare for a connection that has just been accepted, if one is fit for use.
pub async fn take(tunnel: &Tunnel) -> Option<TlsUpstream> {
    let spares = &tunnel.spares;
    if spares.least == 0 {
        return None;
    }
    spares.state().demand.arrival(Instant::now(), spares.least);
    loop {
        let mut spare = spares.state().ready.pop_front()?;
        if spare.made.elapsed() < GIVEN_UP && spare.stream.is_untouched().await {
            return Some(spare.stream);
        }
        debug!(at = "spare-discarded", var = tunnel.variable());
    }
}

/// Has as many spares made as there is demand for, and lets go of those beyond.
pub fn refill(tunnel: &Arc<Tunnel>) {
    let mut state = tunnel.spares.state();
    let wanted = state.demand.wanted;
    while state.ready.len() > wanted {
        state.ready.pop_front();
    }
    for _ in state.ready.len() + state.making..wanted {
        state.making += 1;
        tokio::spawn(make(Making(tunnel.clone())));
    }
}

/// Counts a spare that is being made, until it is dropped.
struct Making(Arc<Tunnel>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.spares.state().making -= 1;
    }
}

async fn make(making: Making) {
    let tunnel = &making.0;
    let started = Instant::now();
    let deadline = started + tunnel.settings.connect_timeout;
    match upstream::attempt(tunnel, deadline).await {
        Ok(stream) => {
            debug!(at = "spare-ready", var = tunnel.variable());
            tunnel.spares.state().add(stream, started, tunnel);
        }
        // The next connection meets the same, and reports it.
        Err(failure) => debug!(at = "spare-failed", var = tunnel.variable(), error = %failure),
    }
}

/// Closes a tunnel's spares once nobody asks for any.
async fn give_up(tunnel: Arc<Tunnel>) {
    loop {
        let due = {
            let mut state = tunnel.spares.state();
            let due = state.demand.last().map_or_else(Instant::now, |last| last + GIVEN_UP);
            if due <= Instant::now() {
                state.ready.clear();
                state.watched = false;
                break;
            }
            due
        };
        sleep_until(due).await;
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

    /// Takes note of a connection. Under demand at least `least` spares are wanted, and as many as arrive
    /// while one is made; fewer again only bit by bit, so that a pause in a burst closes none.
    fn arrival(&mut self, now: Instant, least: usize) {
        let demanded = self.last().is_some_and(|last| now - last <= DEMAND);
        self.arrivals.push_back(now);
        while self.arrivals.len() > MOST_SPARES {
            self.arrivals.pop_front();
        }
        let arrived = self.arrivals.iter().filter(|then| now - **then <= self.handshake).count();
        let due = if demanded { arrived.clamp(least.min(MOST_SPARES), MOST_SPARES) } else { 0 };
        if due >= self.wanted {
            (self.wanted, self.changed) = (due, Some(now));
        } else if self.changed.is_none_or(|changed| now - changed > SHRINK) {
            (self.wanted, self.changed) = (self.wanted - 1, Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for (arrivals, wanted) in
            [(&[0][..], 0), (&[0, 10_001], 0), (&[0, 10_000], 1), (&[0, 20_000, 25_000], 1)]
        {
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
    }
}
