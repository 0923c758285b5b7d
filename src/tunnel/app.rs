//! Wraps the TCP or Unix stream between the app and the launcher. The launcher can read the app's
//! first bytes before it has connected to Redis.
//!
//! The app's first bytes show whether the app itself speaks TLS. The launcher does not pass an
//! app's ClientHello on to Redis, because Redis would take the ClientHello for the beginning of a
//! request and never answer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::relay::{App, Stream};
use super::socket::{APP_PROBE_IDLE, has_hung_up, keep_alive};
use crate::system::socket::unread;

/// The first two bytes of a TLS ClientHello: the type of the TLS record, and the first byte of the
/// record's version (RFC 8446 section 5.1). No request to Redis begins with these bytes.
const CLIENT_HELLO: [u8; 2] = [0x16, 0x03];
/// The size of the buffer for bytes that the launcher reads and discards.
const IGNORED: usize = 4096;
/// The time after which an app that has closed its Unix socket counts as gone. In this time, Redis
/// can process the app's last requests. On TCP, the kernel waits just as long before it resets the
/// connection of an app that has closed its socket (tcp_fin_timeout in tcp(7)).
const HUNG_UP: Duration = Duration::from_secs(60);
/// The most bytes that the launcher reads from the app in total while the app waits for Redis.
const MOST_AHEAD: usize = 16 * 1024;
/// The most bytes that the launcher reads with one call while the app waits for Redis.
const AHEAD_READ: usize = 4096;

/// The app's stream, together with the bytes that the launcher read ahead, that is, before there
/// was a connection to Redis.
pub struct AppStream {
    socket: Socket,
    /// True if the app speaks TLS, and `None` until enough bytes have arrived to tell. If the app
    /// does not speak TLS, only Redis checks whether the bytes are valid requests.
    speaks_tls: Option<bool>,
    /// The bytes that the launcher read ahead, and that the next reader of the stream will get.
    held: Vec<u8>,
    /// The time of the app's last byte, as far as the launcher has noticed this byte while the app
    /// waits for Redis.
    pub last_ahead: Option<Instant>,
    /// The number of bytes that [`AppStream::closes_within`] last found unread.
    unread: i32,
    /// True if the app had closed its side when the launcher last read ahead.
    ended: bool,
    /// True if TCP keepalive probes are switched on. The probes find out whether an app that has
    /// closed its side still exists.
    is_probed: bool,
    /// The time at which the launcher noticed that the app has closed both directions of its Unix
    /// socket.
    hung_up: Option<Instant>,
    /// A file descriptor that is reserved for the connection to Redis.
    pub spare: Option<OwnedFd>,
}

/// The result of reading bytes from an app that waits for Redis.
#[derive(Debug)]
pub enum Ahead {
    /// The launcher has read more bytes.
    Bytes,
    /// The launcher read nothing, because it has already read [`MOST_AHEAD`] bytes ahead.
    Full,
    /// The app has closed its side.
    Ended,
    /// Reading failed, because the app's connection is broken.
    Failed(io::Error),
}

pub enum Socket {
    /// A TCP stream and the app's address.
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl AppStream {
    /// Wraps the socket of an app that has just connected. `spare` is a file descriptor that is
    /// reserved for the connection to Redis.
    pub fn new(socket: Socket, spare: Option<OwnedFd>) -> AppStream {
        AppStream {
            socket,
            speaks_tls: None,
            held: Vec::new(),
            last_ahead: None,
            unread: 0,
            ended: false,
            is_probed: false,
            hung_up: None,
            spare,
        }
    }

    /// Returns the app's address for the log, or the app's process ID if the connection is a Unix
    /// socket.
    pub fn peer(&self) -> String {
        match &self.socket {
            Socket::Tcp(_, address) => address.to_string(),
            Socket::Unix(stream) => {
                let process = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
                process.map_or_else(|| "unknown".to_owned(), |pid| format!("pid:{pid}"))
            }
        }
    }

    /// Returns the stream if it is TCP, and `None` if it is a Unix socket, which cannot be reset
    /// (unix(7)).
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Tcp(stream, _) => Some(stream),
            Socket::Unix(_) => None,
        }
    }

    /// Returns the error if the app has reset its TCP connection.
    pub fn reset_error(&self) -> Option<io::Error> {
        self.tcp()?.take_error().ok()?
    }

    /// True if the app speaks TLS. In this case, reading from the stream fails.
    pub fn speaks_tls(&self) -> bool {
        self.speaks_tls == Some(true)
    }

    /// Reads bytes ahead, that is, before there is a connection to Redis.
    pub fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Ahead> {
        if self.ended {
            return Poll::Ready(Ahead::Ended);
        }
        if self.held.len() >= MOST_AHEAD {
            return Poll::Ready(Ahead::Full);
        }
        let mut bytes = [0; AHEAD_READ];
        let mut buffer = ReadBuf::new(&mut bytes);
        if let Err(error) = ready!(self.socket.stream().poll_read(cx, &mut buffer)) {
            return Poll::Ready(Ahead::Failed(error));
        }
        let fresh = buffer.filled();
        if fresh.is_empty() {
            self.ended = true;
            return Poll::Ready(Ahead::Ended);
        }
        self.last_ahead = Some(Instant::now());
        self.held.extend(fresh);
        if self.speaks_tls.is_none() && !CLIENT_HELLO[..1].starts_with(&self.held) {
            self.speaks_tls = Some(self.held.starts_with(&CLIENT_HELLO));
        }
        Poll::Ready(Ahead::Bytes)
    }

    /// Waits for at most the time `limit`. Returns true if the app closes or resets its side in
    /// this time, even if the launcher has not read all of the app's bytes (see [`Ahead::Full`]).
    /// Also notices whether bytes have arrived.
    pub async fn closes_within(&mut self, limit: Duration) -> bool {
        self.notice_arrivals();
        // Tokio also reports a close as readiness for PRIORITY, but not the arrival of bytes.
        let closed = match &self.socket {
            Socket::Tcp(stream, _) => {
                timeout(limit, stream.ready(Interest::PRIORITY)).await.is_ok()
            }
            Socket::Unix(stream) => timeout(limit, stream.ready(Interest::PRIORITY)).await.is_ok(),
        };
        self.notice_arrivals();
        closed
    }

    fn notice_arrivals(&mut self) {
        let unread = match &self.socket {
            Socket::Tcp(stream, _) => unread(stream),
            Socket::Unix(stream) => unread(stream),
        };
        if unread != self.unread {
            (self.unread, self.last_ahead) = (unread, Some(Instant::now()));
        }
    }

    /// Closes the connection of an app that speaks TLS. Reads the app's bytes first, because
    /// closing a socket with unread bytes resets the connection (RFC 1122 section 4.2.2.13). After
    /// a clean end, most clients report that TLS was not established. After a reset, their error
    /// would not mention TLS.
    ///
    /// # Errors
    /// If the app is gone.
    pub async fn hang_up(&mut self) -> io::Result<()> {
        let mut ignored = [0; IGNORED];
        let arrived =
            async { while let Ok(1..) = self.socket.stream().read(&mut ignored).await {} };
        // Read only bytes that have already arrived, and only as many as tokio's budget for a task
        // allows. If more bytes arrive later, the app gets a reset.
        let _ = timeout(Duration::ZERO, arrived).await;
        self.shutdown().await
    }
}

impl Socket {
    fn stream(&mut self) -> Pin<&mut (dyn Stream + Send)> {
        match self {
            Socket::Tcp(stream, _) => Pin::new(stream),
            Socket::Unix(stream) => Pin::new(stream),
        }
    }
}

impl App for AppStream {
    fn broken_off(&mut self) -> Option<io::Error> {
        match &self.socket {
            Socket::Tcp(stream, _) => {
                if !std::mem::replace(&mut self.is_probed, true) {
                    // If the probes cannot be switched on, the idle timeout ends the connection.
                    let _ = keep_alive(stream, APP_PROBE_IDLE);
                }
                self.reset_error()
            }
            Socket::Unix(stream) => {
                let now = Instant::now();
                let since = match has_hung_up(stream) {
                    true => *self.hung_up.get_or_insert(now),
                    false => return None,
                };
                (now - since >= HUNG_UP).then(|| io::ErrorKind::ConnectionReset.into())
            }
        }
    }
}

impl AsyncRead for AppStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let app = self.get_mut();
        while app.speaks_tls.is_none() && !app.ended {
            if let Ahead::Failed(error) = ready!(app.poll_ahead(cx)) {
                return Poll::Ready(Err(error));
            }
        }
        if app.speaks_tls() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the app speaks TLS",
            )));
        }
        if !app.held.is_empty() {
            let count = app.held.len().min(buf.remaining());
            buf.put_slice(&app.held[..count]);
            app.held.drain(..count);
            if app.held.is_empty() {
                app.held = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        if app.ended { Poll::Ready(Ok(())) } else { app.socket.stream().poll_read(cx, buf) }
    }
}

impl AsyncWrite for AppStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().socket.stream().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::advance;

    use super::*;

    fn pair() -> (AppStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (AppStream::new(Socket::Unix(near), None), far)
    }

    /// Reads ahead until the app has closed its side.
    async fn look_ahead(app: &mut AppStream) {
        while matches!(poll_fn(|cx| app.poll_ahead(cx)).await, Ahead::Bytes) {}
    }

    /// Reads everything from an app that sends `parts` one after the other. Each read takes at most
    /// `at_once` bytes. Returns the bytes, and whether reading ended with an error.
    async fn read_of(parts: &[&[u8]], at_once: usize, look_first: bool) -> (Vec<u8>, bool) {
        let (mut app, mut far) = pair();
        let (mut read, mut buffer) = (Vec::new(), vec![0; at_once]);
        if look_first {
            far.write_all(parts.concat().as_slice()).await.unwrap();
            drop(far);
            look_ahead(&mut app).await;
        } else {
            for part in parts {
                far.write_all(part).await.unwrap();
                let reading = app.read(&mut buffer);
                match tokio::time::timeout(Duration::from_millis(10), reading).await {
                    Ok(Ok(count)) => read.extend(&buffer[..count]),
                    Ok(Err(_)) => return (read, true),
                    Err(_) => {} // The app's first byte may begin a ClientHello.
                }
            }
            drop(far);
        }
        loop {
            match app.read(&mut buffer).await {
                Ok(0) => return (read, false),
                Ok(count) => read.extend(&buffer[..count]),
                Err(_) => {
                    assert!(app.speaks_tls());
                    return (read, true);
                }
            }
        }
    }

    #[tokio::test]
    async fn plain_bytes_pass_but_a_client_hello_does_not() {
        let plain: [&[&[u8]]; 8] = [
            &[],
            &[b"P"],
            &[b"PING\r\n", b"PING\r\n"],
            &[b"\x16"],
            &[b"\x16", b"\x16", b"\x03"],
            &[b"\x16\x02\x03", b"x"],
            &[b"*\x16\x03", b"\x16\x03"],
            &[b"\x03\x16\x03"],
        ];
        let tls: [&[&[u8]]; 3] =
            [&[b"\x16\x03\x01\x02\x00\x01"], &[b"\x16\x03"], &[b"\x16", b"\x03", b"\x01"]];
        for at_once in [1, 2, 100] {
            for look_first in [false, true] {
                for parts in plain {
                    let expected = (parts.concat(), false);
                    assert_eq!(read_of(parts, at_once, look_first).await, expected, "{parts:?}");
                }
                for parts in tls {
                    let expected = (vec![], true);
                    assert_eq!(read_of(parts, at_once, look_first).await, expected, "{parts:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn an_app_on_a_unix_socket_is_named_by_its_process() {
        let (app, _far) = pair();
        assert_eq!(app.peer(), format!("pid:{}", std::process::id()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_unix_app_counts_as_gone_a_minute_after_its_close() {
        let (mut app, mut far) = pair();
        far.shutdown().await.unwrap();
        assert!(app.broken_off().is_none());
        advance(HUNG_UP * 100).await;
        assert!(app.broken_off().is_none(), "a half-closed app may wait");
        drop(far);
        assert!(app.broken_off().is_none(), "Redis may still process its requests");
        advance(HUNG_UP - Duration::from_millis(1)).await;
        assert!(app.broken_off().is_none());
        advance(Duration::from_millis(1)).await;
        let error = app.broken_off().expect("it is gone");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
