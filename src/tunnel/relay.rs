//! Moves bytes both ways between the app and Redis, as a small state machine a direction.
//!
//! All relays of a thread share one buffer: bytes are read into it and written on at once. Only
//! what a stalled writer does not take is kept, in a buffer of the direction's own, until it does;
//! nothing more is read meanwhile. An idle connection holds no buffer.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::read_ahead::RECORDS;
use super::reuse::Reuse;
use super::{client_limit, headroom};
use crate::figures::{ReplyClock, TunnelFigures};

/// The most bytes moved at once: what the TLS records hold (RFC 8446 section 5.1) that
/// [`super::read_ahead`] reads at once.
const CHUNK: usize = RECORDS * 16 * 1024;

thread_local! {
    static SHARED_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// How often an app that is not read from, since Redis takes nothing, is checked for its end.
const APP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What a relay has to know of an app's stream beyond reading and writing.
pub trait App: AsyncRead + AsyncWrite + Unpin {
    /// Why the app is gone, if it broke off; found out without reading.
    fn broken_off(&self) -> Option<io::Error>;
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    App,
    Redis,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both sides closed.
    Closed,
    /// Nothing moved for the idle timeout, and nothing waits to be delivered.
    Idle,
    /// This side failed, or took nothing for the idle timeout; the other is to see a reset.
    Reset(Side, io::Error),
    /// The app has gone, in good order or by a reset, and the connection to Redis is fit for
    /// another user, as far as this one is concerned.
    Returned(Option<io::Error>),
    /// The connection to Redis, which was not a new one, was dead before it answered.
    Stale(io::Error),
}

/// A relay between two streams; resolves when it has ended. The streams stay with the caller, who
/// closes or resets them.
#[derive(Debug)]
pub struct Relay<'a, A, R> {
    app: &'a mut A,
    redis: &'a mut R,
    up: Direction,
    down: Direction,
    idle: Option<Idle>,
    /// The next check of the app, while Redis stalls.
    app_check: Option<Pin<Box<Sleep>>>,
    redis_ended_first: bool,
    is_turned_away: bool,
    reuse: Reuse,
    replies: ReplyClock<'a>,
    /// Bytes that were counted so far: to Redis, and to the app.
    counted: (u64, u64),
    figures: &'a TunnelFigures,
}

impl<'a, A, R> Relay<'a, A, R> {
    /// What is moved is counted in `figures`.
    pub fn new(
        app: &'a mut A,
        redis: &'a mut R,
        idle_timeout: Option<Duration>,
        reuse: Reuse,
        figures: &'a TunnelFigures,
    ) -> Self {
        Relay {
            app,
            redis,
            up: Direction::of(Side::App),
            down: Direction::of(Side::Redis),
            idle: idle_timeout.map(Idle::new),
            app_check: None,
            redis_ended_first: false,
            is_turned_away: false,
            reuse,
            replies: figures.reply_clock(),
            counted: (0, 0),
            figures,
        }
    }

    /// Begins with what the app has sent on another connection, which was dead.
    pub fn resending(mut self, mut bytes: Vec<u8>) -> Self {
        if !bytes.is_empty() {
            let preamble = self.reuse.preamble();
            self.up.preamble = preamble.len() as u64;
            self.reuse.sent(&bytes);
            bytes.splice(..0, preamble.iter().copied());
            self.up.stalled = bytes;
        }
        self
    }

    /// Whether nothing was asked, or all of it answered, as far as that is known.
    pub fn is_settled(&self) -> bool {
        self.reuse.is_settled()
    }

    /// Whether a connection that was not new was not reset as it should be.
    pub fn was_not_reset(&self) -> bool {
        self.reuse.was_refused()
    }

    /// After [`RelayEnd::Stale`]: what is to be sent on another connection; `None` if Redis may
    /// have got a request that must not be sent twice.
    pub fn take_copy(&mut self) -> Option<Vec<u8>> {
        let copy = self.reuse.take_copy(self.up.is_stalled(), self.up.is_held);
        if copy.is_some() {
            // It counts where it arrives.
            self.up.written = 0;
        }
        copy
    }

    /// Bytes of the app's that were written to Redis so far.
    pub fn sent(&self) -> u64 {
        self.up.written.saturating_sub(self.up.preamble)
    }

    /// Bytes written to the app so far.
    pub fn received(&self) -> u64 {
        self.down.written
    }

    /// Counts what has moved. Bytes for a connection that turns out to be dead count where they are
    /// sent again.
    fn count(&mut self) {
        let (sent, received) = (self.sent(), self.received());
        self.figures
            .moved(sent.saturating_sub(self.counted.0), received.saturating_sub(self.counted.1));
        self.counted = (sent, received);
    }

    /// Tells the clock what has moved since `sent` bytes were written to Redis and `down` bytes
    /// were moved towards the app.
    fn time_replies(&mut self, sent: u64, down: u64, now: Instant) {
        if self.down.moved > down {
            self.replies.received(now);
        } else if self.up.written > sent {
            self.replies.sent(now);
        }
    }

    /// Whether Redis closed while the app was still open.
    pub fn redis_ended_first(&self) -> bool {
        self.redis_ended_first
    }

    /// Whether Redis's first reply was that it has too many clients.
    pub fn is_turned_away(&self) -> bool {
        self.is_turned_away
    }
}

impl<A, R> Drop for Relay<'_, A, R> {
    fn drop(&mut self) {
        self.count();
    }
}

impl<A, R> Relay<'_, A, R>
where
    A: App,
{
    /// Ready when Redis stalls, and the app has broken off meanwhile, which no read would tell.
    fn poll_broken_off(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.up.is_stalled() {
            self.app_check = None;
            return Poll::Pending;
        }
        let app_check = self.app_check.get_or_insert_with(|| Box::pin(sleep(APP_CHECK_INTERVAL)));
        loop {
            ready!(app_check.as_mut().poll(cx));
            if let Some(error) = self.app.broken_off() {
                return Poll::Ready(error);
            }
            app_check.as_mut().reset(Instant::now() + APP_CHECK_INTERVAL);
        }
    }
}

impl<A, R> Future for Relay<'_, A, R>
where
    A: App,
    R: AsyncRead + AsyncWrite + Unpin,
{
    type Output = RelayEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        let relay = &mut *self;
        let before = relay.up.moved + relay.down.moved;
        let (sent, towards_app) = (relay.up.written, relay.down.moved);
        let up = relay.up.poll(cx, &mut *relay.app, &mut *relay.redis, &mut relay.reuse);
        // A Redis that cannot be written has broken off, even if reading finds nothing but an end:
        // a socket tells its error once.
        relay.down.ends_in_reset =
            matches!(relay.up.state, State::Discarding(_) | State::Failed(_));
        let mut down = relay.down.poll(cx, &mut *relay.redis, &mut *relay.app, &mut relay.reuse);
        // The one look at the clock, for all who want to know.
        let moved = relay.up.moved + relay.down.moved != before;
        let moved = moved.then(Instant::now);
        if let Some(now) = moved {
            relay.time_replies(sent, towards_app, now);
        }
        if !relay.reuse.is_unconfirmed() {
            relay.count();
        }
        if std::mem::take(&mut relay.down.turned_away) {
            relay.is_turned_away = true;
            relay.figures.turned_away();
        }
        if relay.reuse.is_unconfirmed()
            && !relay.reuse.was_refused()
            && let Some(error) = relay.take_death(&mut down)
        {
            return Poll::Ready(RelayEnd::Stale(error));
        }
        relay.redis_ended_first |= matches!(relay.up.state, State::Open)
            && matches!(relay.down.state, State::Closing | State::Closed);

        if relay.up.is_held && !relay.reuse.is_unconfirmed() {
            // Now it may be written.
            cx.waker().wake_by_ref();
        }
        if let State::Returning(error) = &mut relay.up.state {
            let down = &relay.down;
            if !relay.reuse.is_settled()
                || !matches!(down.state, State::Open | State::Discarding(_))
            {
                // Redis has spoken, or gone, meanwhile: it is as if nothing were to be kept.
                match error.take() {
                    Some(error) => return Poll::Ready(RelayEnd::Reset(Side::App, error)),
                    None => relay.up.state = State::Closing,
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // What the app has been sent is still to be delivered, unless it broke off.
            if error.is_some() || !down.is_stalled() {
                return Poll::Ready(RelayEnd::Returned(error.take()));
            }
        }
        // A side that cannot be read has failed, and all that it had sent before has been passed
        // on.
        if let Poll::Ready(Err(error)) = up {
            return Poll::Ready(RelayEnd::Reset(Side::App, error));
        }
        if let Poll::Ready(Err(error)) = down {
            return Poll::Ready(RelayEnd::Reset(Side::Redis, error));
        }
        // A side that cannot be written may still have sent something, which is passed on to its
        // end.
        match (&mut relay.up.state, &mut relay.down.state) {
            (
                State::Discarding(error) | State::Failed(error),
                State::Closed | State::Discarding(_) | State::Failed(_),
            ) => return Poll::Ready(RelayEnd::Reset(Side::Redis, take(error))),
            // An app that closed in good order, but before it had read every reply.
            (State::Closed, State::Closed | State::Failed(_)) => {
                return Poll::Ready(RelayEnd::Closed);
            }
            _ => {}
        }
        if let Poll::Ready(error) = relay.poll_broken_off(cx) {
            return Poll::Ready(RelayEnd::Reset(Side::App, error));
        }
        match &mut relay.idle {
            Some(idle) => {
                ready!(idle.poll(cx, moved));
                if let State::Discarding(error) | State::Failed(error) = &mut relay.up.state {
                    return Poll::Ready(RelayEnd::Reset(Side::Redis, take(error)));
                }
                Poll::Ready(match (relay.up.is_stalled(), relay.down.is_stalled()) {
                    (false, false) => RelayEnd::Idle,
                    (true, _) => RelayEnd::Reset(Side::Redis, io::ErrorKind::TimedOut.into()),
                    (_, true) => RelayEnd::Reset(Side::App, io::ErrorKind::TimedOut.into()),
                })
            }
            None => Poll::Pending,
        }
    }
}

impl<A, R> Relay<'_, A, R> {
    /// Why Redis is dead, if it is, as far as one can tell so far.
    fn take_death(&mut self, down: &mut Poll<io::Result<()>>) -> Option<io::Error> {
        match (&mut self.up.state, &self.down.state, down) {
            (State::Discarding(error) | State::Failed(error), ..) => Some(take(error)),
            (_, _, Poll::Ready(Err(error))) => Some(take(error)),
            (_, State::Closing | State::Closed, _) => Some(io::ErrorKind::UnexpectedEof.into()),
            _ => None,
        }
    }
}

fn take(error: &mut io::Error) -> io::Error {
    std::mem::replace(error, io::ErrorKind::Other.into())
}

/// One direction's state.
#[derive(Debug, Default)]
enum State {
    /// Reading and writing.
    #[default]
    Open,
    /// The reader has ended; the writer is being told.
    Closing,
    /// The writer has been told.
    Closed,
    /// The app has ended, by an error or not, and Redis is not told: it may get another user.
    Returning(Option<io::Error>),
    /// The writer failed; what is still read is thrown away, since nobody can be given it, but a
    /// reader that is not read from might never end.
    Discarding(io::Error),
    /// The writer failed, and the reader has ended, too.
    Failed(io::Error),
}

/// How a buffer came to be filled no further.
enum Filled {
    /// There may be more.
    Full,
    /// The reader has no more now, and will wake us.
    Waiting,
    /// The reader ended, or failed.
    Ended(io::Result<()>),
}

/// One of the two directions.
struct Direction {
    /// Who is read.
    reads: Side,
    state: State,
    /// What the writer has not taken yet, and from where on. Empty unless it stalls.
    stalled: Vec<u8>,
    stalled_from: usize,
    /// What is stalled is not to be written before the reset is confirmed.
    is_held: bool,
    /// How the reader ended, which it says only once, while its last bytes are stalled.
    reader_ended: Option<io::Result<()>>,
    /// The reader's end is not to be passed on as such: a reset will follow.
    ends_in_reset: bool,
    /// Bytes that the writer took, of which so many are not the reader's.
    written: u64,
    preamble: u64,
    /// Bytes that were read or written: grows when anything moves.
    moved: u64,
    /// The first reply says that Redis has too many clients.
    turned_away: bool,
}

/// What is stalled may hold a password.
impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stalled = self.stalled.len() - self.stalled_from;
        f.debug_struct("Direction")
            .field("reads", &self.reads)
            .field("state", &self.state)
            .field("stalled", &stalled)
            .finish_non_exhaustive()
    }
}

impl Direction {
    fn of(reads: Side) -> Direction {
        Direction {
            reads,
            state: State::default(),
            stalled: Vec::new(),
            stalled_from: 0,
            is_held: false,
            reader_ended: None,
            ends_in_reset: false,
            written: 0,
            preamble: 0,
            moved: 0,
            turned_away: false,
        }
    }

    fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Moves what can be moved. Ready when this direction is done; an error is the reader's.
    fn poll<Reader, Writer>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Reader,
        writer: &mut Writer,
        reuse: &mut Reuse,
    ) -> Poll<io::Result<()>>
    where
        Reader: AsyncRead + Unpin,
        Writer: AsyncWrite + Unpin,
    {
        loop {
            match &mut self.state {
                State::Open => {
                    if self.is_stalled() {
                        if self.is_held && reuse.is_unconfirmed() {
                            return Poll::Pending;
                        }
                        self.is_held = false;
                        ready!(self.write_stalled(cx, writer));
                        continue;
                    }
                    ready!(self.move_chunk(cx, reader, writer, reuse))?;
                }
                State::Closing => {
                    // A Redis that was dead is replaced, and the app is not to know.
                    let is_replaced = self.reads == Side::Redis && reuse.is_unconfirmed();
                    if !self.ends_in_reset && !is_replaced {
                        // A writer that cannot be told has gone, and has nothing to be told.
                        let _ = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                    }
                    self.state = State::Closed;
                }
                // What the app goes on to send is for another connection.
                State::Discarding(_) if reuse.is_unconfirmed() => return Poll::Ready(Ok(())),
                State::Discarding(error) => {
                    let error = take(error);
                    if self.reader_ended.take().is_some() {
                        self.state = State::Failed(error);
                        continue;
                    }
                    // The reader's own failure is no news any more.
                    match self.discard_chunk(cx, reader, reuse) {
                        Poll::Ready(Ok(read)) if read > 0 => self.state = State::Discarding(error),
                        Poll::Ready(_) => self.state = State::Failed(error),
                        Poll::Pending => {
                            self.state = State::Discarding(error);
                            return Poll::Pending;
                        }
                    }
                }
                State::Closed | State::Returning(_) | State::Failed(_) => {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Reads what there is and writes it, keeping what the writer does not take.
    fn move_chunk<Reader, Writer>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Reader,
        writer: &mut Writer,
        reuse: &mut Reuse,
    ) -> Poll<io::Result<()>>
    where
        Reader: AsyncRead + Unpin,
        Writer: AsyncWrite + Unpin,
    {
        SHARED_BUFFER.with_borrow_mut(|buffer| {
            let preamble = if self.reads == Side::App { reuse.preamble() } else { &[] };
            let (read, filled) = self.fill(cx, reader, &mut buffer[preamble.len()..]);
            self.moved += read as u64;
            let bytes = if read == 0 {
                0..0
            } else if self.reads == Side::App {
                buffer[..preamble.len()].copy_from_slice(preamble);
                self.preamble += preamble.len() as u64;
                let end = preamble.len() + read;
                reuse.sent(&buffer[preamble.len()..end]);
                0..end
            } else {
                if self.moved == read as u64 {
                    self.turned_away = client_limit::is_said_in(&buffer[..read]);
                }
                reuse.received(&buffer[..read])?..read
            };
            let bytes = &buffer[bytes];
            let at_once = match reuse.must_be_confirmed_first() && self.reads == Side::App {
                true => &bytes[..preamble.len()],
                false => bytes,
            };
            self.is_held = at_once.len() < bytes.len();
            let taken = self.write(cx, writer, at_once);
            if taken < bytes.len() && matches!(self.state, State::Open) {
                self.stalled = headroom::copy_of(&bytes[taken..])?;
                self.stalled_from = 0;
                if let Filled::Ended(end) = filled {
                    self.reader_ended = Some(end);
                }
                return Poll::Pending;
            }
            match (filled, &mut self.state) {
                (Filled::Waiting, State::Open) => return Poll::Pending,
                // The reader's own failure is no news any more.
                (Filled::Ended(_), State::Discarding(error)) => {
                    self.state = State::Failed(take(error));
                }
                (Filled::Ended(end), _) if self.reads == Side::App && reuse.is_settled() => {
                    self.state = State::Returning(end.err());
                }
                (Filled::Ended(end), _) => {
                    end?;
                    self.state = State::Closing;
                }
                (Filled::Full | Filled::Waiting, _) => {}
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Reads until the buffer is full, or nothing more is there now. A short read clears readiness,
    /// so detecting the end costs no system call.
    fn fill<Reader>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Reader,
        buffer: &mut [u8],
    ) -> (usize, Filled)
    where
        Reader: AsyncRead + Unpin,
    {
        let mut read = 0;
        if let Some(end) = self.reader_ended.take() {
            return (read, Filled::Ended(end));
        }
        while read < buffer.len() {
            match poll_read(cx, reader, &mut buffer[read..]) {
                Poll::Ready(Ok(0)) => return (read, Filled::Ended(Ok(()))),
                Poll::Ready(Ok(more)) => read += more,
                Poll::Ready(Err(error)) => return (read, Filled::Ended(Err(error))),
                Poll::Pending => return (read, Filled::Waiting),
            }
        }
        (read, Filled::Full)
    }

    /// Writes what was kept. Ready when nothing is left of it: all written, or the writer failed.
    fn write_stalled<Writer>(&mut self, cx: &mut Context<'_>, writer: &mut Writer) -> Poll<()>
    where
        Writer: AsyncWrite + Unpin,
    {
        let stalled = std::mem::take(&mut self.stalled);
        self.stalled_from += self.write(cx, writer, &stalled[self.stalled_from..]);
        if self.stalled_from < stalled.len() && matches!(self.state, State::Open) {
            self.stalled = stalled;
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Writes as much as the writer takes now, and says how much that is. It is less than all when
    /// the writer stalls, and will wake us, or when it fails, which the state tells then.
    fn write<Writer>(&mut self, cx: &mut Context<'_>, writer: &mut Writer, bytes: &[u8]) -> usize
    where
        Writer: AsyncWrite + Unpin,
    {
        let mut taken = 0;
        while taken < bytes.len() {
            match Pin::new(&mut *writer).poll_write(cx, &bytes[taken..]) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::Discarding(io::ErrorKind::WriteZero.into());
                    break;
                }
                Poll::Ready(Ok(more)) => taken += more,
                Poll::Ready(Err(error)) => {
                    self.state = State::Discarding(error);
                    break;
                }
                Poll::Pending => break,
            }
        }
        self.written += taken as u64;
        self.moved += taken as u64;
        taken
    }

    fn discard_chunk<Reader>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Reader,
        reuse: &mut Reuse,
    ) -> Poll<io::Result<usize>>
    where
        Reader: AsyncRead + Unpin,
    {
        SHARED_BUFFER.with_borrow_mut(|buffer| {
            let read = ready!(poll_read(cx, reader, buffer))?;
            self.moved += read as u64;
            if self.reads == Side::Redis {
                reuse.received(&buffer[..read])?;
            }
            Poll::Ready(Ok(read))
        })
    }
}

fn poll_read<Reader>(
    cx: &mut Context<'_>,
    reader: &mut Reader,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>>
where
    Reader: AsyncRead + Unpin,
{
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(reader).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

/// Watches for the idle timeout. The timer is moved only when it fires, not with every byte.
#[derive(Debug)]
struct Idle {
    timeout: Duration,
    last_moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(timeout: Duration) -> Idle {
        let last_moved = Instant::now();
        Idle { timeout, last_moved, timer: Box::pin(sleep_until(later(last_moved, timeout))) }
    }

    /// Ready when nothing has moved for the timeout; `moved`: when something has, now.
    fn poll(&mut self, cx: &mut Context<'_>, moved: Option<Instant>) -> Poll<()> {
        if let Some(moved) = moved {
            self.last_moved = moved;
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = later(self.last_moved, self.timeout);
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

/// A moment `timeout` after `moment`, or so late that it does not matter.
fn later(moment: Instant, timeout: Duration) -> Instant {
    const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    moment + timeout.min(A_CENTURY)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, join};

    use super::*;

    /// A stream that reads what a script says, and fails to write after so many bytes.
    struct Scripted {
        reads: VecDeque<io::Result<&'static [u8]>>,
        writable: usize,
        written: Vec<u8>,
        shut_down: bool,
    }

    impl Scripted {
        fn new(reads: Vec<io::Result<&'static [u8]>>, writable: usize) -> Scripted {
            Scripted { reads: reads.into(), writable, written: Vec::new(), shut_down: false }
        }
    }

    impl AsyncRead for Scripted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.reads.pop_front() {
                Some(Ok(bytes)) => buf.put_slice(bytes),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Scripted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.writable == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = buf.len().min(self.writable);
            self.writable -= taken;
            self.written.extend(&buf[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut_down = true;
            Poll::Ready(Ok(()))
        }
    }

    impl App for Scripted {
        fn broken_off(&self) -> Option<io::Error> {
            None
        }
    }

    impl App for DuplexStream {
        fn broken_off(&self) -> Option<io::Error> {
            None
        }
    }

    fn reset() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
    }

    /// Relays to the end between two streams of which Redis's is as new and not kept.
    async fn relay<A, R>(app: &mut A, redis: &mut R, idle_timeout: Option<Duration>) -> RelayEnd
    where
        A: App,
        R: AsyncRead + AsyncWrite + Unpin,
    {
        let reuse = Reuse::new(false, false);
        Relay::new(app, redis, idle_timeout, reuse, &TunnelFigures::unread()).await
    }

    async fn run(app: &mut Scripted, redis: &mut Scripted) -> RelayEnd {
        relay(app, redis, None).await
    }

    #[tokio::test]
    async fn an_app_that_reads_no_more_has_its_last_requests_delivered() {
        let mut app = Scripted::new(vec![Ok(b"one "), Ok(b"two")], 0);
        let mut redis = Scripted::new(vec![Ok(b"reply"), Ok(b"another")], usize::MAX);
        assert!(matches!(run(&mut app, &mut redis).await, RelayEnd::Closed));
        assert_eq!(redis.written, b"one two");
    }

    #[tokio::test]
    async fn a_redis_that_reads_no_more_has_its_last_replies_delivered() {
        let mut app = Scripted::new(vec![Ok(b"request"), Ok(b"more")], usize::MAX);
        let mut redis = Scripted::new(vec![Ok(b"last "), Ok(b"words")], 3);
        assert!(matches!(run(&mut app, &mut redis).await, RelayEnd::Reset(Side::Redis, _)));
        assert_eq!(app.written, b"last words");
        assert_eq!(redis.written, b"req");
        assert!(!app.shut_down, "a clean end would come before the reset");
    }

    #[tokio::test]
    async fn a_reset_comes_behind_all_that_was_sent_before_it() {
        let mut app = Scripted::new(vec![Ok(b"request"), Err(reset())], usize::MAX);
        let (mut redis, mut far) = duplex(1024);
        let end = relay(&mut app, &mut redis, None).await;
        assert!(matches!(end, RelayEnd::Reset(Side::App, _)));
        drop(redis);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"request");
    }

    /// A relay whose Redis takes 1,000 bytes at a time, with the far ends of both sides.
    fn narrow() -> (DuplexStream, DuplexStream, DuplexStream, DuplexStream) {
        let (app, app_far) = duplex(256 * 1024);
        let (redis, redis_far) = duplex(1000);
        (app, app_far, redis, redis_far)
    }

    #[tokio::test]
    async fn a_stalled_writer_gets_everything_in_order_and_holds_one_chunk_at_most() {
        let (mut app, mut app_far, mut redis, mut redis_far) = narrow();
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        app_far.write_all(&sent).await.unwrap();
        let figures = TunnelFigures::unread();
        let mut relay = Relay::new(&mut app, &mut redis, None, Reuse::new(false, false), &figures);
        // Polled once: it fills what Redis takes, and keeps the rest of one chunk.
        assert!(
            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut relay).poll(cx)))
                .await
                .is_pending()
        );
        assert_eq!(relay.up.stalled.len(), CHUNK - 1000);

        let mut received = vec![0; sent.len()];
        tokio::select! {
            end = &mut relay => panic!("{end:?}"),
            read = redis_far.read_exact(&mut received) => drop(read.unwrap()),
        }
        assert!(received == sent, "the bytes differ");
        assert_eq!(relay.up.stalled.capacity(), 0, "nothing is held while idle");
        drop(relay);
        assert_eq!(figures.totals().sent, 200_000);
    }

    #[tokio::test]
    async fn a_reset_behind_bytes_that_stalled_is_told_once_they_are_delivered() {
        let mut app = Scripted::new(vec![Ok(b"0123456789"), Err(reset())], usize::MAX);
        let (mut redis, mut far) = duplex(4);
        let figures = TunnelFigures::unread();
        let relay = Relay::new(&mut app, &mut redis, None, Reuse::new(false, false), &figures);
        let mut received = [0; 10];
        let (end, read) = tokio::join!(relay, far.read_exact(&mut received));
        assert!(matches!(end, RelayEnd::Reset(Side::App, _)), "{end:?}");
        assert_eq!((read.unwrap(), &received), (10, b"0123456789"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_redis_that_takes_nothing_any_more_and_says_nothing_ends_in_a_reset() {
        let (silent, _far) = duplex(1);
        let mut deaf = join(silent, Scripted::new(vec![], 0));
        let mut app = Scripted::new(vec![Ok(b"request")], usize::MAX);
        let timeout = Some(Duration::from_secs(3600));
        let end = relay(&mut app, &mut deaf, timeout).await;
        assert!(matches!(end, RelayEnd::Reset(Side::Redis, _)), "{end:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_the_idle_timeout_ends_in_a_reset_and_silence_in_a_close() {
        let (mut app, mut app_far, mut redis, _redis_far) = narrow();
        let timeout = Some(Duration::from_secs(3600));
        let end = relay(&mut app, &mut redis, timeout).await;
        assert!(matches!(end, RelayEnd::Idle));
        app_far.write_all(&[0; 5000]).await.unwrap();
        let end = relay(&mut app, &mut redis, timeout).await;
        assert!(matches!(end, RelayEnd::Reset(Side::Redis, _)));
    }
}
