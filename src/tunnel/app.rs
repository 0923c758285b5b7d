//! The app's end of a connection: a TCP stream, or a Unix one.

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
    pub fn peer(&self) -> Option<String> {
        match self {
            AppStream::Tcp(_, address) => Some(address.to_string()),
            AppStream::Unix(stream) => {
                stream.peer_cred().ok()?.pid().map(|pid| format!("pid:{pid}"))
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
