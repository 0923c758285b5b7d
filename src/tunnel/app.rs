//! The app's end of a connection: a TCP stream, or a Unix one.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::relay::App;

/// See the module's description.
#[derive(Debug)]
pub enum AppStream {
    /// With the app's address.
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl AppStream {
    /// Who is there, for the log: an address, or a process.
    pub fn peer(&self) -> Peer {
        match self {
            AppStream::Tcp(_, address) => Peer::Address(*address),
            AppStream::Unix(stream) => {
                Peer::Process(stream.peer_cred().ok().and_then(|credentials| credentials.pid()))
            }
        }
    }

    /// The stream, if it is TCP: Unix sockets know no reset (unix(7)).
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            AppStream::Tcp(stream, _) => Some(stream),
            AppStream::Unix(_) => None,
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
        // A Unix socket has no error of its own to tell: that the app has gone is its end of stream.
        self.tcp()?.take_error().ok()?
    }
}

/// Hands a call to whichever stream it is.
macro_rules! with {
    ($app:expr, $stream:ident => $call:expr) => {
        match $app.get_mut() {
            AppStream::Tcp($stream, _) => $call,
            AppStream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for AppStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
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
