//! Hands an idle connection over to its next user.
//!
//! `RESET` goes in front of the user's first request, in the same TLS record, and the reply to
//! `RESET` is removed. So Redis decides now, as on a new connection, whether the user is logged in.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// While the reply to `RESET` is outstanding, the app is checked at this interval: it may be gone.
const APP_CHECK: Duration = Duration::from_secs(1);
/// Bytes read at once while the reply to `RESET` is outstanding.
const READ: usize = 4096;

/// Why no relay begins after an attempt to reuse a connection.
#[derive(Debug)]
pub enum NotHandedOver {
    /// The app connection has ended, as described here. `ends` still owns the connection to Redis.
    Ended(Course),
    /// The app gave up, or no new connection could be made. The cause is already reported.
    Failed,
}

impl From<RelayEnd> for NotHandedOver {
    fn from(end: RelayEnd) -> NotHandedOver {
        NotHandedOver::Ended(Course { end, redis_ended_first: false })
    }
}

/// The hand-over of an idle connection to an app connection.
pub struct HandOver<'h, 'c, 'p> {
    pub connection: &'h mut Connection<'c>,
    pub guard: &'h mut DrainGuard,
    pub tap: &'h mut PoolTap<'p>,
    pub pool: &'p Pool,
}

type HandedOver = Result<(TlsUpstream, Begun), NotHandedOver>;

impl HandOver<'_, '_, '_> {
    /// Waits for the app's first bytes and sends them behind `RESET`. If the idle connection turns
    /// out to be dead, makes a new connection, unless Redis may have executed a request that must
    /// not be sent twice.
    ///
    /// # Errors
    /// If the app connection has ended.
    pub async fn begin(mut self, kept: TlsUpstream) -> HandedOver {
        let Ends { app, redis, .. } = &mut self.connection.ends;
        let kept = redis.insert(kept);
        let idle_timeout = self.pool.tunnel.settings.idle_timeout.unwrap_or(Duration::MAX);
        tokio::select! {
            biased;
            // This branch comes first, so that no request goes to a connection known to be dead.
            _ = kept.read_u8() => self.replace(Vec::new()).await,
            begun = request_begins(app) => match begun {
                Ok(()) => self.reset().await,
                Err(error) => Err(RelayEnd::Kept(error).into()),
            },
            () = sleep(idle_timeout) => Err(RelayEnd::Idle.into()),
        }
    }

    /// Sends `RESET` and the first request, and waits for the confirmation.
    async fn reset(&mut self) -> HandedOver {
        let Ends { app, redis, .. } = &mut self.connection.ends;
        let redis = redis.as_mut().expect("a hand-over has a connection");
        self.tap.from_app(app.ahead());
        // Hold unknown commands back until the confirmation: SYNC fails while a reply is pending.
        let goes_at_once = !self.tap.ledger.gave_up();
        let request = if goes_at_once { app.take_ahead() } else { Vec::new() };
        let mut reset = Reset::in_front_of(&request);
        let asked = Instant::now();
        let confirmed = tokio::select! {
            biased;
            confirmed = reset.confirm(redis) => confirmed,
            left = app_left(app, self.guard, goes_at_once) => Err(left),
            // A Redis that hangs would not have accepted a new connection either.
            () = sleep(self.pool.tunnel.settings.connect_timeout) => {
                Err(Unconfirmed::Broken(io::ErrorKind::TimedOut.into()))
            }
        };
        let (sent, made) = (reset.sent(), redis.made);
        self.connection.note_begun(sent);
        match confirmed {
            Ok(()) => {
                let redis =
                    self.connection.ends.redis.take().expect("a hand-over has a connection");
                self.pool.tunnel.figures.pooled(PoolResult::Reused);
                let to_app = reset.reply.split_off(RESET_DONE.len());
                Ok((redis, Begun { to_app, sent, asked: Some(asked), ..Begun::default() }))
            }
            Err(Unconfirmed::AppGone(error)) => Err(RelayEnd::Reset(Side::App, error).into()),
            Err(Unconfirmed::GaveUp(reset)) => {
                self.connection.abandoned(reset.as_ref());
                Err(NotHandedOver::Failed)
            }
            Err(Unconfirmed::Refused) => {
                self.pool.note_wrong_reset(made, Instant::now());
                let problem = "Redis sent a wrong reply to RESET";
                let error = io::Error::new(io::ErrorKind::InvalidData, problem);
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

    /// Makes a new connection in place of the dead one, and relays `request` on it.
    async fn replace(&mut self, request: Vec<u8>) -> HandedOver {
        supply::note_discarded(self.pool, Unfit::Dead);
        let now = Instant::now();
        self.pool.server_ended(now);
        let dead = self.connection.ends.redis.take().expect("a hand-over has a connection");
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

/// The reason why `RESET` was not confirmed.
enum Unconfirmed {
    /// The app is gone; its request was sent.
    AppGone(io::Error),
    /// The app gave up before its request was sent; with the error of the app's reset, if the app
    /// reset its connection.
    GaveUp(Option<io::Error>),
    /// Redis sent another reply.
    Refused,
    /// The connection to Redis failed, or Redis hangs.
    Broken(io::Error),
}

impl From<io::Error> for Unconfirmed {
    fn from(error: io::Error) -> Unconfirmed {
        Unconfirmed::Broken(error)
    }
}

/// Reads ahead until the app's first request begins.
///
/// # Errors
/// If the app has left; with its error, if there was one.
async fn request_begins(app: &mut AppStream) -> Result<(), Option<io::Error>> {
    while !app.has_begun() {
        match poll_fn(|cx| app.poll_ahead(cx)).await {
            Ahead::Bytes => {}
            Ahead::Full => break,
            Ahead::Tls | Ahead::Ended => return Err(None),
            Ahead::Failed(error) => return Err(Some(error)),
        }
    }
    Ok(())
}

/// Resolves when the app is gone, or gives up before its request `was_sent`.
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

/// A `RESET` in front of a request.
struct Reset {
    /// `RESET` and the request.
    bytes: Vec<u8>,
    /// The number of these bytes that were written.
    written: usize,
    /// The bytes received: the confirmation, and maybe more.
    reply: Vec<u8>,
}

impl Reset {
    fn in_front_of(request: &[u8]) -> Reset {
        let bytes = [RESET, request].concat();
        Reset { bytes, written: 0, reply: Vec::with_capacity(READ) }
    }

    /// Writes all bytes, and reads until the confirmation is complete.
    async fn confirm(&mut self, redis: &mut TlsUpstream) -> Result<(), Unconfirmed> {
        while self.written < self.bytes.len() {
            match redis.write(&self.bytes[self.written..]).await? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                taken => self.written += taken,
            }
        }
        while self.reply.len() < RESET_DONE.len() {
            if redis.read_buf(&mut self.reply).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let seen = self.reply.len().min(RESET_DONE.len());
            if self.reply[..seen] != RESET_DONE[..seen] {
                return Err(Unconfirmed::Refused);
            }
        }
        Ok(())
    }

    /// Bytes of the request that were written.
    fn sent(&self) -> u64 {
        self.written.saturating_sub(RESET.len()) as u64
    }

    /// True if the request may be sent again on another connection: Redis cannot have executed it,
    /// or executing it twice does no harm.
    fn may_send_again(&self, tap: &PoolTap<'_>) -> bool {
        let is_incomplete = self.written < self.bytes.len() && tap.ledger.is_one_request();
        let was_not_sent = self.written <= RESET.len();
        self.reply.is_empty() && (was_not_sent || is_incomplete || tap.ledger.is_repeatable())
    }
}
