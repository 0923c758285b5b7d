//! The app's end of a connection: a TCP stream, or a Unix one.
//!
//! An app that speaks TLS itself is told apart here, by the first bytes that are read of it. It
//! waits for an answer that no Redis gives, since Redis waits for the rest of a request.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::relay::App;

/// How a ClientHello begins, and no request to Redis: the record's type and the first byte of its
/// version (RFC 8446 section 5.1).
const CLIENT_HELLO: [u8; 2] = [0x16, 0x03];
/// Bytes that are read at once to be thrown away.
const IGNORED: usize = 4096;

/// See the module's description.
#[derive(Debug)]
pub struct AppStream {
    socket: Socket,
    opening: Opening,
    /// What was read to look at it, and has not been handed over: bytes, and the error behind them,
    /// which a socket tells once.
    held: Vec<u8>,
    failed: Option<io::Error>,
}

#[derive(Debug)]
enum Socket {
    /// With the app's address.
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// What the app's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Too few have come.
    Open,
    /// Anything but TLS; whether it is RESP is for Redis to say.
    Plain,
    Tls,
}

impl Opening {
    fn of(bytes: &[u8]) -> Opening {
        if bytes.len() >= CLIENT_HELLO.len() {
            if bytes.starts_with(&CLIENT_HELLO) { Opening::Tls } else { Opening::Plain }
        } else if CLIENT_HELLO.starts_with(bytes) {
            Opening::Open
        } else {
            Opening::Plain
        }
    }
}

impl AppStream {
    pub fn from_tcp(stream: TcpStream, address: SocketAddr) -> AppStream {
        AppStream::new(Socket::Tcp(stream, address))
    }

    pub fn from_unix(stream: UnixStream) -> AppStream {
        AppStream::new(Socket::Unix(stream))
    }

    fn new(socket: Socket) -> AppStream {
        AppStream { socket, opening: Opening::Open, held: Vec::new(), failed: None }
    }

    /// Who is there, for the log: an address, or a process.
    pub fn peer(&self) -> Peer {
        match &self.socket {
            Socket::Tcp(_, address) => Peer::Address(*address),
            Socket::Unix(stream) => {
                Peer::Process(stream.peer_cred().ok().and_then(|credentials| credentials.pid()))
            }
        }
    }

    /// The stream, if it is TCP: Unix sockets know no reset (unix(7)).
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Tcp(stream, _) => Some(stream),
            Socket::Unix(_) => None,
        }
    }

    /// Whether what has been read of the app is TLS. Then reading fails, and none of it is handed
    /// over.
    pub fn speaks_tls(&self) -> bool {
        self.opening == Opening::Tls
    }

    /// Reads until it is known how the app begins, and keeps what it reads for who reads next, an
    /// error included. Ready with whether it is TLS.
    pub fn poll_speaks_tls(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.opening == Opening::Open {
            let mut bytes = [0; CLIENT_HELLO.len()];
            let mut buffer = ReadBuf::new(&mut bytes[self.held.len()..]);
            let read = ready!(self.socket.poll_read(cx, &mut buffer));
            let fresh = buffer.filled();
            self.held.extend(fresh);
            self.opening = match read {
                Ok(()) if !fresh.is_empty() => Opening::of(&self.held),
                // Whoever reads next finds the end, too.
                Ok(()) => Opening::Plain,
                Err(error) => {
                    self.failed = Some(error);
                    Opening::Plain
                }
            };
        }
        Poll::Ready(self.speaks_tls())
    }

    /// Closes a connection whose app speaks TLS. What has come is read first, since closing with
    /// unread bytes is a reset (RFC 1122 section 4.2.2.13): both end a client's handshake at once,
    /// but after an end most clients say that TLS was not established.
    ///
    /// # Errors
    /// When the app is gone.
    pub async fn hang_up(&mut self) -> io::Result<()> {
        let mut ignored = [0; IGNORED];
        // No more than has come, and no more than the task's budget: then a reset has to do.
        poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut ignored);
            while let Poll::Ready(Ok(())) = self.socket.poll_read(cx, &mut buffer)
                && !buffer.filled().is_empty()
            {
                buffer.clear();
            }
            Poll::Ready(())
        })
        .await;
        self.shutdown().await
    }
}

impl Socket {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(stream, _) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

/// Who is at the other end of an [`AppStream`]; spelled only when it is logged.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Address(SocketAddr),
    /// `None` where the system does not tell.
    Process(Option<i32>),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Address(address) => address.fmt(f),
            Peer::Process(Some(pid)) => write!(f, "pid:{pid}"),
            Peer::Process(None) => f.write_str("unknown"),
        }
    }
}

impl App for AppStream {
    fn broken_off(&self) -> Option<io::Error> {
        // A Unix socket has no error of its own to tell: that the app has gone is its end of
        // stream.
        self.tcp()?.take_error().ok()?
    }
}

impl AsyncRead for AppStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let app = self.get_mut();
        if app.opening == Opening::Open && app.held.is_empty() {
            // Nearly always this decides: the first bytes are looked at where they are read anyway.
            let before = buf.filled().len();
            ready!(app.socket.poll_read(cx, buf))?;
            let fresh = &buf.filled()[before..];
            app.opening = Opening::of(fresh);
            if app.opening == Opening::Plain || fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            app.held.extend(fresh);
            buf.set_filled(before);
        }
        if ready!(app.poll_speaks_tls(cx)) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks TLS")));
        }
        if !app.held.is_empty() {
            let count = app.held.len().min(buf.remaining());
            buf.put_slice(&app.held[..count]);
            app.held.drain(..count);
            return Poll::Ready(Ok(()));
        }
        match app.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => app.socket.poll_read(cx, buf),
        }
    }
}

/// Hands a call to whichever stream it is.
macro_rules! with {
    ($app:expr, $stream:ident => $call:expr) => {
        match &mut $app.get_mut().socket {
            Socket::Tcp($stream, _) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

impl AsyncWrite for AppStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn pair() -> (AppStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (AppStream::from_unix(near), far)
    }

    /// Everything that is read of an app that sends `parts` one after the other, `at_once` bytes at
    /// most with each read, and whether that ended with an error.
    async fn read_of(parts: &[&[u8]], at_once: usize, look_first: bool) -> (Vec<u8>, bool) {
        let (mut app, mut far) = pair();
        let (mut read, mut buffer) = (Vec::new(), vec![0; at_once]);
        if look_first {
            far.write_all(parts.concat().as_slice()).await.unwrap();
            drop(far);
            let tls = poll_fn(|cx| app.poll_speaks_tls(cx)).await;
            assert_eq!(tls, app.speaks_tls());
        } else {
            for part in parts {
                far.write_all(part).await.unwrap();
                let reading = app.read(&mut buffer);
                match tokio::time::timeout(std::time::Duration::from_millis(10), reading).await {
                    Ok(Ok(count)) => read.extend(&buffer[..count]),
                    Ok(Err(_)) => return (read, true),
                    Err(_) => {} // It is held back.
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
    async fn bytes_come_through_however_they_are_cut_and_none_of_a_client_hello_does() {
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
    async fn an_error_met_before_reading_is_told_to_who_reads_next() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, address) = listener.accept().await.unwrap();
        let mut app = AppStream::from_tcp(near, address);
        super::super::socket::reset_on_close(&far);
        drop(far);
        assert!(!poll_fn(|cx| app.poll_speaks_tls(cx)).await);
        let error = app.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
