//! Moves bytes between the app and Redis, with one small state machine for each direction.
//!
//! All relays of a thread share one buffer. A relay reads bytes into this buffer, and writes the
//! bytes to the other side at once. If the other side does not take all bytes, the relay keeps the
//! rest in a separate buffer for this direction, and reads no more bytes until the other side has
//! taken the rest. An idle connection holds no buffer.

mod direction;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::tap::{Progress, Tap};
use direction::{Direction, State, take};

/// The interval at which the relay checks whether the app is gone, while the relay does not read
/// from the app.
const APP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time without traffic after which the relay ends if the app has closed its side and takes no
/// more replies. By then, Redis has processed the app's last requests.
const GONE: Duration = Duration::from_secs(60);

/// A stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// An app's stream, which can tell whether the app is gone.
pub trait App: Stream {
    /// Returns an error if the app is gone. This check does not read from the stream. The first
    /// call may switch on TCP keepalive, which detects that an app is gone.
    fn broken_off(&mut self) -> Option<io::Error>;
}

/// The stream of a connection to Redis.
pub trait Upstream: Stream {
    /// Notes that Redis has closed its side, and that the app has all bytes from Redis. Redis no
    /// longer counts the connection. A proxy may have closed only this direction, so the relay may
    /// still write.
    fn note_end(&mut self);
}

/// One of the two sides between which a relay moves bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    App,
    Redis,
}

/// The reason why a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both sides have closed the connection cleanly.
    Closed,
    /// No byte moved during the idle timeout, and all bytes are delivered.
    Idle,
    /// This side failed, or took no bytes during the idle timeout. The other side must see a reset.
    Reset(Side, io::Error),
    /// The app has closed its side, or the app's connection has failed with this error. The
    /// connection to Redis stays open, because [`Tap::keeps_upstream`] returned true.
    Kept(Option<io::Error>),
}

/// A relay between two streams. A relay is a future that resolves when the relay has ended. The
/// caller must then close or reset the streams.
pub struct Relay<'a, A, R, T> {
    app: &'a mut A,
    redis: &'a mut R,
    tap: &'a mut T,
    up: Direction,
    down: Direction,
    idle: Option<Idle>,
    /// The timer for the next check whether the app is gone. There is no timer while the relay
    /// reads from the app.
    app_check: Option<Pin<Box<Sleep>>>,
    /// True if Redis closed its side before the app closed the app's side.
    pub redis_ended_first: bool,
    last_moved: Instant,
}

impl<'a, A, R, T: Tap> Relay<'a, A, R, T> {
    /// Makes a relay that has not moved any bytes yet. If `idle_timeout` is `None`, a lack of
    /// traffic never ends the relay.
    pub fn new(
        app: &'a mut A,
        redis: &'a mut R,
        tap: &'a mut T,
        idle_timeout: Option<Duration>,
    ) -> Self {
        Relay {
            app,
            redis,
            tap,
            up: Direction::default(),
            down: Direction::default(),
            idle: idle_timeout.map(Idle::new),
            app_check: None,
            redis_ended_first: false,
            last_moved: Instant::now(),
        }
    }

    /// Returns the numbers of bytes that the relay has delivered so far.
    pub fn progress(&self) -> Progress {
        Progress { sent: self.up.written, received: self.down.written }
    }
}

impl<A: App, R: Upstream, T: Tap> Future for Relay<'_, A, R, T> {
    type Output = RelayEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        let relay = &mut *self;
        let before = relay.up.moved + relay.down.moved;
        let mut end = relay.poll_up(cx);
        if end.is_none() {
            end = relay.poll_down(cx);
        }
        let moved = (relay.up.moved + relay.down.moved != before).then(Instant::now);
        if let Some(now) = moved {
            relay.last_moved = now;
            relay.tap.moved(relay.progress(), now);
        }
        match end.or_else(|| relay.both_ended()) {
            Some(end) => Poll::Ready(end),
            None => relay.poll_timers(cx),
        }
    }
}

impl<A: App, R: Upstream, T: Tap> Relay<'_, A, R, T> {
    /// Moves bytes from the app to Redis. Returns the reason if the relay has ended.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Option<RelayEnd> {
        loop {
            let Relay { app, redis, tap, up, .. } = self;
            let end = up.poll(cx, &mut **app, &mut **redis, &mut |bytes| tap.from_app(bytes))?;
            if self.keeps_upstream(&end) {
                return Some(RelayEnd::Kept(end.err()));
            }
            if let Err(error) = end {
                return Some(RelayEnd::Reset(Side::App, error));
            }
            self.up.state = State::Closing;
        }
    }

    /// Moves bytes from Redis to the app. Returns the reason if the relay has ended.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Option<RelayEnd> {
        loop {
            let Relay { app, redis, tap, down, .. } = self;
            let end =
                down.poll(cx, &mut **redis, &mut **app, &mut |bytes| tap.from_redis(bytes))?;
            if let Err(error) = end {
                return Some(RelayEnd::Reset(Side::Redis, error));
            }
            self.redis.note_end();
            self.redis_ended_first |= matches!(self.up.state, State::Open);
            // If writing to Redis has failed, the app must see a reset. Reading from Redis may
            // nevertheless find a clean end, because a socket reports its error only once.
            self.down.state = match self.up.state.writer_error() {
                Some(_) => State::Closed,
                None => State::Closing,
            };
        }
    }

    /// True if the connection to Redis stays open after the app's stream has ended. An app that has
    /// only half-closed its connection must first get all bytes that Redis has sent.
    fn keeps_upstream(&self, app_end: &io::Result<()>) -> bool {
        let delivered = app_end.is_err() || !self.down.is_stalled();
        let redis_is_open = !matches!(self.down.state, State::Closing) && !self.down.is_over();
        delivered && redis_is_open && self.tap.keeps_upstream()
    }

    /// Returns the reason why the relay ended if neither direction moves bytes any more.
    fn both_ended(&mut self) -> Option<RelayEnd> {
        match (&mut self.up.state, &self.down.state) {
            // Writing to Redis failed earlier, and the app now has all bytes that Redis sent.
            (State::WriterFailed(error), State::Closed | State::WriterFailed(_)) => {
                Some(RelayEnd::Reset(Side::Redis, take(error)))
            }
            // The end is clean even if writing to the app has failed, because the app may close its
            // connection before it has read every reply.
            (State::Closed, _) if self.down.is_over() => Some(RelayEnd::Closed),
            _ => None,
        }
    }

    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        if let Poll::Ready(error) = self.poll_broken_off(cx) {
            return Poll::Ready(RelayEnd::Reset(Side::App, error));
        }
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        ready!(idle.poll(cx, self.last_moved));
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        if let Some(error) = self.up.state.writer_error() {
            return Poll::Ready(RelayEnd::Reset(Side::Redis, take(error)));
        }
        Poll::Ready(match (self.up.is_stalled(), self.down.is_stalled()) {
            (false, false) => RelayEnd::Idle,
            (true, _) => RelayEnd::Reset(Side::Redis, timed_out()),
            (_, true) => RelayEnd::Reset(Side::App, timed_out()),
        })
    }

    /// Returns `Ready` when the app is gone. This function checks the app only while the relay does
    /// not read from the app. The relay does not read while Redis takes no bytes, and after the app
    /// has closed its side.
    fn poll_broken_off(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if matches!(self.up.state, State::Open) && !self.up.is_stalled() {
            self.app_check = None;
            return Poll::Pending;
        }
        let check = self.app_check.get_or_insert_with(|| Box::pin(sleep(APP_CHECK_INTERVAL)));
        loop {
            ready!(check.as_mut().poll(cx));
            let app_ended = matches!(self.up.state, State::Closed);
            if let State::WriterFailed(error) = &mut self.down.state
                && app_ended
                && self.last_moved.elapsed() >= GONE
            {
                return Poll::Ready(take(error));
            }
            if let Some(error) = self.app.broken_off() {
                return Poll::Ready(error);
            }
            check.as_mut().reset(Instant::now() + APP_CHECK_INTERVAL);
        }
    }
}

/// The idle timeout and its timer. The relay does not postpone the timer for every byte, because
/// this would be slow. Instead, the relay postpones the timer when the timer fires too early.
struct Idle {
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(timeout: Duration) -> Idle {
        Idle { timeout, timer: Box::pin(sleep_until(Instant::now() + timeout)) }
    }

    /// Returns `Ready` when no byte has moved during the timeout.
    fn poll(&mut self, cx: &mut Context<'_>, last_moved: Instant) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = last_moved + self.timeout;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests;
