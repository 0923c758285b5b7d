//! Gives a connection that had another user to its next one: `RESET` goes in front of the first
//! request, in the same TLS record, and its reply is taken out. Who is logged in is decided now.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use super::Pool;
use super::supply::{self, Unfit};
use super::tap::PoolTap;
use super::trial::{RESET, RESET_DONE};
use crate::tunnel::Connections;
use crate::tunnel::app::{Ahead, AppStream};
use crate::tunnel::connection::{Connection, Course};
use crate::tunnel::relay::{Begun, RelayEnd, Side};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::tap::Tap;

/// How often an app is checked for a reset while its reset is awaited.
const APP_CHECK: Duration = Duration::from_secs(1);
/// Bytes that are read at once while the reset's reply is awaited.
const READ: usize = 4096;

/// How a hand-over ended without a connection to relay on.
#[derive(Debug)]
pub enum NotHandedOver {
    /// The app connection has ended so. The connection to Redis is among its ends.
    Ended(Course),
    /// There is no connection to Redis, as the app and the log know.
    Failed,
}

impl From<RelayEnd> for NotHandedOver {
    fn from(end: RelayEnd) -> NotHandedOver {
        NotHandedOver::Ended(Course { end, redis_ended_first: false })
    }
}

/// Waits for the app's first bytes and sends them behind `RESET`. If the connection turns out to be
/// dead, a new one takes its place, unless Redis may have executed what cannot be sent twice.
///
/// # Errors
/// When the app connection has ended meanwhile.
pub async fn hand_over<'p>(
    connection: &mut Connection<'_>,
    connections: &mut Connections,
    tap: &mut PoolTap<'p>,
    pool: &'p Pool,
    kept: TlsUpstream,
) -> Result<(TlsUpstream, Begun), NotHandedOver> {
    let kept = connection.ends.redis.insert(kept);
    let idle = idle_timeout(pool);
    let app = &mut connection.ends.app;
    let first = tokio::select! {
        biased;
        first = poll_fn(|cx| poll_first(app, kept, cx)) => first,
        () = idle => return Err(RelayEnd::Idle.into()),
    };
    match first {
        First::Bytes => {}
        First::AppEnded(error) => return Err(RelayEnd::Kept(error).into()),
        First::RedisEnded => {
            supply::note_discarded(pool, Unfit::Dead);
            return replace(connection, connections, tap, pool, Vec::new()).await;
        }
    }
    let request = app.take_ahead();
    tap.from_app(&request);
    // A command that nobody knows may be one that bears no reply before its own, as SYNC (Redis:
    // "invalid with pending output").
    let goes_at_once = !tap.ledger.gave_up();
    let mut reset = Reset::in_front_of(if goes_at_once { &request } else { &[] });
    let asked = Instant::now();
    let confirmed = tokio::select! {
        biased;
        confirmed = poll_fn(|cx| reset.poll(kept, cx)) => confirmed,
        error = app_reset(app) => return Err(RelayEnd::Reset(Side::App, error).into()),
        () = idle_timeout(pool) => return Err(RelayEnd::Idle.into()),
    };
    match confirmed {
        Ok(()) => {
            let redis = connection.ends.redis.take().expect("it was put there");
            let to_redis = if goes_at_once { reset.unsent() } else { request };
            let sent = reset.sent();
            Ok((redis, Begun { to_redis, to_app: reset.behind, sent, asked: Some(asked) }))
        }
        Err(error) if reset.is_refused => {
            pool.note_wrong_reset(asked);
            Err(RelayEnd::Reset(Side::Redis, error).into())
        }
        Err(error) => {
            supply::note_discarded(pool, Unfit::Dead);
            if !goes_at_once || reset.may_send_again(tap) {
                return replace(connection, connections, tap, pool, request).await;
            }
            pool.server_ended(Instant::now());
            let end = match error.kind() {
                io::ErrorKind::UnexpectedEof => RelayEnd::Closed,
                _ => RelayEnd::Reset(Side::Redis, error),
            };
            Err(NotHandedOver::Ended(Course { end, redis_ended_first: true }))
        }
    }
}

/// A new connection in place of one that was dead, and the request to send on it.
async fn replace<'p>(
    connection: &mut Connection<'_>,
    connections: &mut Connections,
    tap: &mut PoolTap<'p>,
    pool: &'p Pool,
    request: Vec<u8>,
) -> Result<(TlsUpstream, Begun), NotHandedOver> {
    let now = Instant::now();
    pool.server_ended(now);
    let dead = connection.ends.redis.take().expect("it was put there");
    let deadline = now + pool.tunnel.settings.connect_timeout;
    let made = supply::make(pool, dead.into_slot(), now, deadline);
    let Some(redis) = connection.connect(made, connections).await else {
        return Err(NotHandedOver::Failed);
    };
    *tap = PoolTap::new(pool, redis.made);
    tap.from_app(&request);
    Ok((redis, Begun { to_redis: request, ..Begun::default() }))
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

fn poll_first(app: &mut AppStream, kept: &mut TlsUpstream, cx: &mut Context<'_>) -> Poll<First> {
    if app.has_ahead() {
        return Poll::Ready(First::Bytes);
    }
    if let Poll::Ready(ahead) = app.poll_ahead(cx) {
        return Poll::Ready(match ahead {
            Ahead::Bytes | Ahead::Full => First::Bytes,
            Ahead::Tls | Ahead::Ended => First::AppEnded(None),
            Ahead::Failed(error) => First::AppEnded(Some(error)),
        });
    }
    let mut byte = [0];
    match Pin::new(kept).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
        Poll::Ready(_) => Poll::Ready(First::RedisEnded),
        Poll::Pending => Poll::Pending,
    }
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

/// Resolves when the app has reset its connection.
async fn app_reset(app: &AppStream) -> io::Error {
    loop {
        sleep(APP_CHECK).await;
        if let Some(error) = app.reset_error() {
            return error;
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
