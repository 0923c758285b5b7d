//! The two ends of a relay as streams: what tokio's types lack for half-close and reset.

#![allow(unsafe_code)]

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio_native_tls::TlsStream;

use super::read_ahead::ReadAhead;
use crate::tls::is_unannounced_close;

/// Silence before the first keepalive probe towards Redis: below the 350 s after which AWS's
/// balancers and NAT gateways forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered probes until the connection counts as broken.
const KEEPALIVE_PROBES: u32 = 4;

/// How often a stream is checked until the runtime has heard of all that the kernel has.
const READINESS_TRIES: usize = 4;

/// Small requests must not wait for one another (Nagle's algorithm).
pub fn send_at_once(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

/// Notices a Redis that vanished without a word, unless something sent is unacknowledged: then the
/// kernel gives up by itself, after about a quarter of an hour (tcp_retries2 in tcp(7)), as it does
/// for an app without a tunnel. A TCP_USER_TIMEOUT would be sooner, but also break off a Redis that
/// lives and is too busy to read.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Bytes that were written but that the peer's kernel has not acknowledged yet; 0 when nobody
/// knows.
pub fn unacknowledged(stream: &TcpStream) -> i32 {
    let mut bytes: nix::libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for a socket (tcp(7)), fills one int.
    let done = unsafe { nix::libc::ioctl(stream.as_raw_fd(), nix::libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}

/// Makes closing `stream` send a reset instead of a clean end (socket(7), SO_LINGER).
pub fn reset_on_close(stream: &TcpStream) {
    // It fails on a socket that is dead already only, which is closed for both sides.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The TLS connection to Redis.
#[derive(Debug)]
pub struct TlsUpstream {
    tls: TlsStream<ReadAhead>,
    /// OpenSSL has given all that it had: it is not asked again before something arrives.
    exhausted: bool,
    close_notify_sent: bool,
}

impl TlsUpstream {
    pub fn new(tls: TlsStream<ReadAhead>) -> TlsUpstream {
        TlsUpstream { tls, exhausted: false, close_notify_sent: false }
    }

    pub fn tcp(&self) -> &TcpStream {
        self.network().tcp()
    }

    /// Whether the server has neither closed nor said anything, not even half a record. TLS may
    /// have said its own things, as session tickets.
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
            // The kernel may have what the runtime has not heard of yet.
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
        self.tls.get_ref().get_ref().get_ref()
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
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        // A record that fits is given as a whole, and a read never goes beyond one record
        // (SSL_read(3)).
        self.exhausted = read.is_pending() || (buf.remaining() > 0 && buf.filled().len() > before);
        match ready!(read) {
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
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    /// Half-closes: close_notify, then the FIN that tokio-native-tls does not send. Reading goes
    /// on.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_notify_sent {
            // After a fatal alert or an unannounced close there is nobody to notify.
            let _ = ready!(Pin::new(&mut self.tls).poll_shutdown(cx));
            self.close_notify_sent = true;
        }
        let tcp = self.tls.get_mut().get_mut().get_mut().tcp_mut();
        Pin::new(tcp).poll_shutdown(cx)
    }
}
