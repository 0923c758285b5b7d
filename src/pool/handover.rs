//! Gives a connection that had another user to its next one: `RESET` goes in front of the first
//! request, in the same TLS record, and its reply is taken out. Who is logged in is decided now.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use super::Pool;
use super::supply::{self, Unfit};
use super::tap::PoolTap;
use super::trial::{RESET, RESET_DONE};
use crate::figures::PoolResult;
use crate::tunnel::DrainGuard;
use crate::tunnel::app::{Ahead, AppStream};
use crate::tunnel::connection::{Connection, Course};
use crate::tunnel::ends::Ends;
use crate::tunnel::relay::{App as _, Begun, RelayEnd, Side};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::tap::Tap;
use crate::tunnel::waiting::{self, Departure};

/// How often to check whether the app is gone while Redis owes its reply to `RESET`.
const APP_CHECK: Duration = Duration::from_secs(1);
/// Bytes that are read at once while the reset's reply is awaited.
const READ: usize = 4096;

/// Why there is nothing to relay after a hand-over.
#[derive(Debug)]
pub enum NotHandedOver {
    /// The app connection has ended. `ends` still owns the connection to Redis.
    Ended(Course),
    /// No connection could be made. That is reported already.
    Failed,
}

impl From<RelayEnd> for NotHandedOver {
    fn from(end: RelayEnd) -> NotHandedOver {
        NotHandedOver::Ended(Course { end, redis_ended_first: false })
    }
}

/// Gives an idle connection to an app connection.
pub struct HandOver<'h, 'c, 'p> {
    pub connection: &'h mut Connection<'c>,
    pub guard: &'h mut DrainGuard,
    pub tap: &'h mut PoolTap<'p>,
    pub pool: &'p Pool,
}

type HandedOver = Result<(TlsUpstream, Begun), NotHandedOver>;

impl HandOver<'_, '_, '_> {
    /// Waits for the app's first bytes and sends them behind `RESET`. If the connection turns out
    /// to be dead, a new one takes its place, unless Redis may have executed what must not be sent
    /// twice.
    ///
    /// # Errors
    /// If the app connection has ended meanwhile.
    pub async fn begin(mut self, kept: TlsUpstream) -> HandedOver {
        let Ends { app, redis, .. } = &mut self.connection.ends;
        let kept = redis.insert(kept);
        let first = tokio::select! {
            biased;
            first = poll_fn(|cx| poll_first(app, kept, cx)) => first,
            () = idle_timeout(self.pool) => return Err(RelayEnd::Idle.into()),
        };
        match first {
            First::Bytes => self.reset().await,
            First::AppEnded(error) => Err(RelayEnd::Kept(error).into()),
            First::RedisEnded => self.replace(Vec::new()).await,
        }
    }

    /// Sends `RESET` and the first request, and waits for the confirmation.
    async fn reset(&mut self) -> HandedOver {
        let Ends { app, redis, .. } = &mut self.connection.ends;
        let redis = redis.as_mut().expect("a hand-over has one");
        self.tap.from_app(app.ahead());
        // An unknown command waits for the confirmation: SYNC fails while a reply is pending.
        let goes_at_once = !self.tap.ledger.gave_up();
        let request = if goes_at_once { app.take_ahead() } else { Vec::new() };
        let mut reset = Reset::in_front_of(&request);
        let asked = Instant::now();
        let confirmed = tokio::select! {
            biased;
            confirmed = poll_fn(|cx| reset.poll(redis, cx)) => confirmed.map_err(Unconfirmed::from),
            left = app_left(app, self.guard, goes_at_once) => Err(left),
            // A Redis that hangs would not have made a new connection either.
            () = sleep(self.pool.tunnel.settings.connect_timeout) => {
                Err(Unconfirmed::Broken(io::ErrorKind::TimedOut.into()))
            }
        };
        let (sent, made) = (reset.sent(), redis.made);
        self.connection.note_begun(sent);
        match confirmed {
            Ok(()) => {
                let to_redis = reset.unsent();
                let redis = self.connection.ends.redis.take().expect("it was there");
                self.pool.tunnel.figures.pooled(PoolResult::Reused);
                Ok((redis, Begun { to_redis, to_app: reset.behind, sent, asked: Some(asked) }))
            }
            Err(Unconfirmed::AppGone(error)) => Err(RelayEnd::Reset(Side::App, error).into()),
            Err(Unconfirmed::GaveUp(reset)) => {
                self.connection.abandoned(reset.as_ref());
                Err(NotHandedOver::Failed)
            }
            Err(Unconfirmed::Broken(error)) if reset.is_refused => {
                self.pool.note_wrong_reset(made, Instant::now());
                Err(RelayEnd::Reset(Side::Redis, error).into())
            }
            Err(Unconfirmed::Broken(error))
                if error.kind() != io::ErrorKind::TimedOut
                    && (!goes_at_once || reset.may_send_again(self.tap)) =>
            {
                self.replace(request).await
            }
            Err(Unconfirmed::Broken(error)) => {
                self.pool.server_ended(Instant::now());
                let end = match error.kind() {
                    io::ErrorKind::UnexpectedEof => RelayEnd::Closed,
                    _ => RelayEnd::Reset(Side::Redis, error),
                };
                Err(NotHandedOver::Ended(Course { end, redis_ended_first: true }))
            }
        }
    }

    /// Makes a new connection in place of the dead one, for this request.
    async fn replace(&mut self, request: Vec<u8>) -> HandedOver {
        supply::note_discarded(self.pool, Unfit::Dead);
        let now = Instant::now();
        self.pool.server_ended(now);
        let dead = self.connection.ends.redis.take().expect("a hand-over has one");
        let deadline = now + self.pool.tunnel.settings.connect_timeout;
        let made = supply::make(self.pool, dead.into_slot(), deadline);
        if !request.is_empty() {
            self.connection.note_request_read();
        }
        let Some(redis) = self.connection.connect(made, self.guard).await else {
            return Err(NotHandedOver::Failed);
        };
        self.connection.note_begun(0);
        *self.tap = PoolTap::new(self.pool, redis.made);
        self.tap.from_app(&request);
        Ok((redis, Begun { to_redis: request, ..Begun::default() }))
    }
}

/// Why `RESET` was not confirmed.
enum Unconfirmed {
    /// The app is gone. Redis has its request.
    AppGone(io::Error),
    /// The app gave up, with this reset, before its request was sent.
    GaveUp(Option<io::Error>),
    /// The connection to Redis failed or hangs, or Redis gave another answer.
    Broken(io::Error),
}

impl From<io::Error> for Unconfirmed {
    fn from(error: io::Error) -> Unconfirmed {
        Unconfirmed::Broken(error)
    }
}

/// What happens first on a connection that is handed over.
#[derive(Debug)]
enum First {
    /// The app has sent its first bytes.
    Bytes,
    /// The app has left, without an error or with one.
    AppEnded(Option<io::Error>),
    /// Redis has closed the connection, or sent what nobody asked for.
    RedisEnded,
}

/// Redis first: a request must not be sent on a connection that is known to be dead.
fn poll_first(app: &mut AppStream, kept: &mut TlsUpstream, cx: &mut Context<'_>) -> Poll<First> {
    let mut byte = [0];
    if Pin::new(kept).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_ready() {
        return Poll::Ready(First::RedisEnded);
    }
    while !app.has_begun() {
        match ready!(app.poll_ahead(cx)) {
            Ahead::Bytes => {}
            Ahead::Full => break,
            Ahead::Tls | Ahead::Ended => return Poll::Ready(First::AppEnded(None)),
            Ahead::Failed(error) => return Poll::Ready(First::AppEnded(Some(error))),
        }
    }
    Poll::Ready(First::Bytes)
}

/// Resolves after the idle timeout; never if there is none.
fn idle_timeout(pool: &Pool) -> impl Future<Output = ()> + use<> {
    let timeout = pool.tunnel.settings.idle_timeout;
    async move {
        match timeout {
            Some(timeout) => sleep(timeout).await,
            None => pending().await,
        }
    }
}

/// Resolves when the app is gone, or has given up waiting for a request that was not sent.
async fn app_left(app: &mut AppStream, guard: &mut DrainGuard, was_sent: bool) -> Unconfirmed {
    if !was_sent {
        return match waiting::departure(app, guard).await {
            Departure::SpeaksTls => Unconfirmed::GaveUp(None),
            Departure::GaveUp(reset) => Unconfirmed::GaveUp(reset),
        };
    }
    loop {
        sleep(APP_CHECK).await;
        if let Some(error) = app.broken_off() {
            return Unconfirmed::AppGone(error);
        }
    }
}

/// A `RESET` that is sent in front of a request, until it is confirmed.
struct Reset {
    /// `RESET`, and the request behind it.
    bytes: Vec<u8>,
    written: usize,
    /// Bytes of the confirmation that have come.
    seen: usize,
    /// What came behind the confirmation.
    behind: Vec<u8>,
    /// `RESET` was answered with something else.
    is_refused: bool,
}

impl Reset {
    fn in_front_of(request: &[u8]) -> Reset {
        let bytes = [RESET, request].concat();
        Reset { bytes, written: 0, seen: 0, behind: Vec::new(), is_refused: false }
    }

    /// Writes what is left to write, and reads until the confirmation is complete.
    fn poll(&mut self, redis: &mut TlsUpstream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            match Pin::new(&mut *redis).poll_write(cx, &self.bytes[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(taken)) => self.written += taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        let mut bytes = [0; READ];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *redis).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Poll::Ready(Ok(())) => {
                    if self.confirm(buffer.filled())? {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Whether these bytes complete the confirmation.
    fn confirm(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let expected = &RESET_DONE[self.seen..];
        let count = expected.len().min(bytes.len());
        if bytes[..count] != expected[..count] {
            self.is_refused = true;
            let problem = "RESET was not answered as it should be";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        self.seen += count;
        self.behind.extend_from_slice(&bytes[count..]);
        Ok(self.seen == RESET_DONE.len())
    }

    /// Bytes of the request that Redis's side has taken.
    fn sent(&self) -> u64 {
        self.written.saturating_sub(RESET.len()) as u64
    }

    /// What is left of the request.
    fn unsent(&mut self) -> Vec<u8> {
        mem::take(&mut self.bytes).split_off(self.written.max(RESET.len()))
    }

    /// Whether the request may be sent on another connection, since Redis cannot have executed it,
    /// or may execute it twice.
    fn may_send_again(&self, tap: &PoolTap<'_>) -> bool {
        let is_incomplete = self.written < self.bytes.len() && tap.ledger.is_one_request();
        let was_not_sent = self.written <= RESET.len();
        self.seen == 0 && (was_not_sent || is_incomplete || tap.ledger.is_repeatable())
    }
}
