//! The TLS connection to Redis. Unlike a stream of tokio-native-tls, this stream can half-close.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::limit::Slot;
use super::read_ahead::{ReadAhead, endless};
use super::relay::Upstream;
use crate::figures::UpstreamState;
use crate::tls::{TlsStream, is_unannounced_close};

/// The number of times that [`TlsUpstream::is_untouched`] tries to read bytes that the kernel has
/// received, but that the runtime does not know of yet. Then the function returns false.
const READINESS_TRIES: usize = 4;

/// The TLS connection to Redis.
#[derive(Debug)]
pub struct TlsUpstream {
    tls: TlsStream<ReadAhead>,
    /// The slot of `--max-connections` that the connection holds. `None` after
    /// [`Upstream::note_end`].
    slot: Option<Slot>,
    pub address: SocketAddr,
    pub made: Instant,
    /// True if OpenSSL has no more bytes for the app. In this case, the launcher does not call
    /// OpenSSL before more bytes arrive, which saves 14 % of the CPU time of small requests.
    exhausted: bool,
    close_notify_sent: bool,
}

impl TlsUpstream {
    pub fn new(tls: TlsStream<ReadAhead>, slot: Slot, address: SocketAddr) -> TlsUpstream {
        let (slot, made) = (Some(slot), Instant::now());
        let (exhausted, close_notify_sent) = (false, false);
        let mut new = TlsUpstream { tls, slot, address, made, exhausted, close_notify_sent };
        new.set_state(UpstreamState::Relaying);
        new
    }

    /// Closes the connection, and returns its slot, which another connection can use.
    ///
    /// # Panics
    /// If Redis has ended the connection while a relay used it.
    pub fn into_slot(self) -> Slot {
        let slot = self.slot.expect("Redis has not ended the connection");
        slot.note_closed();
        slot
    }

    /// Notes that another app now uses the connection.
    pub fn note_new_user(&self) {
        if let Some(slot) = &self.slot {
            slot.note_new_user();
        }
    }

    /// Sets the state under which the metrics count the connection.
    pub fn set_state(&mut self, state: UpstreamState) {
        if let Some(held) = &mut self.tls.get_mut().held {
            held.set_state(state);
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.network().tcp
    }

    /// True if the server has neither closed the connection nor sent data, not even a part of a
    /// record. Messages of TLS itself, such as session tickets, are not data.
    pub async fn is_untouched(&mut self) -> bool {
        for _ in 0..READINESS_TRIES {
            let silent = poll_fn(|cx| {
                let mut byte = [0];
                let read = Pin::new(&mut *self).poll_read(cx, &mut ReadBuf::new(&mut byte));
                Poll::Ready(read.is_pending())
            });
            if !silent.await {
                return false;
            }
            // The kernel may have received bytes that the runtime does not know of yet.
            match SockRef::from(self.tcp()).peek(&mut [MaybeUninit::uninit()]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.network().is_between_records();
                }
                Ok(1..) => yield_now().await,
                _ => return false,
            }
        }
        false
    }

    fn network(&self) -> &ReadAhead {
        self.tls.get_ref()
    }
}

impl Upstream for TlsUpstream {
    /// Ends the connection's count and slot. The app may keep its side open for hours.
    fn note_end(&mut self) {
        self.tls.get_mut().held = None;
        self.slot = None;
    }
}

impl AsyncRead for TlsUpstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.exhausted {
            ready!(self.network().poll_readable(cx))?;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tls.stream).poll_read(cx, buf);
        // SSL_read(3) returns at most one record, and the whole record if the buffer is large
        // enough.
        let got_bytes = buf.filled().len() > before;
        self.exhausted = read.is_pending() || (buf.remaining() > 0 && got_bytes);
        if got_bytes {
            self.tls.get_mut().permit_silence();
        }
        match ready!(read) {
            Ok(()) if !got_bytes && self.tls.facts.has_too_many_tickets() => {
                Poll::Ready(Err(endless()))
            }
            Err(error) if is_unannounced_close(&error) => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

impl AsyncWrite for TlsUpstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.tls.get_mut().permit_writes();
        Pin::new(&mut self.tls.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls.stream).poll_flush(cx)
    }

    /// Half-closes the connection: sends close_notify, and then a FIN, which tokio-native-tls does
    /// not send. The launcher can still read from the connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_notify_sent {
            // Ignore errors, because OpenSSL cannot send close_notify after a fatal alert.
            let _ = ready!(Pin::new(&mut self.tls.stream).poll_shutdown(cx));
            self.close_notify_sent = true;
        }
        Pin::new(self.tls.get_mut()).poll_shutdown(cx)
    }
}
