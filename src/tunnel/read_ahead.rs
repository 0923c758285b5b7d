//! A TCP stream that reads ahead of TLS.
//!
//! OpenSSL asks for a record's 5-byte header first, and then for its body: two system calls. Here the first
//! takes everything that has arrived, into a buffer that the connection holds only until OpenSSL has fetched it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// TLS records of the largest size that are moved at once, as a bulk reply has them.
pub const RECORDS: usize = 4;
/// What they take on the network (RFC 8446 section 5.2).
const AHEAD: usize = RECORDS * (16 * 1024 + 256 + 5);
/// Buffers that a thread keeps for whoever reads next. Connections that wait in the middle of a record, if they are
/// more, have theirs made and freed.
const KEPT: usize = 2;

type Buffer = Box<[u8]>;

thread_local! {
    static FREE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// See the module's description.
#[derive(Debug)]
pub struct ReadAhead {
    tcp: TcpStream,
    /// What was read and not fetched yet.
    ahead: Option<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    buffer: Buffer,
    from: usize,
    to: usize,
}

impl ReadAhead {
    pub fn new(tcp: TcpStream) -> ReadAhead {
        ReadAhead { tcp, ahead: None }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ready when there is something to fetch, or may be on the network.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.ahead {
            Some(_) => Poll::Ready(Ok(())),
            None => self.tcp.poll_read_ready(cx),
        }
    }

    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that ends has no list any more, and needs none.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

impl Ahead {
    fn new() -> Ahead {
        let buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; AHEAD].into());
        Ahead { buffer, from: 0, to: 0 }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        wanted: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ReadAhead { tcp, ahead } = &mut *self;
        let held = match ahead {
            Some(held) => held,
            None => {
                let mut fresh = Ahead::new();
                let mut buffer = ReadBuf::new(&mut fresh.buffer);
                ready!(Pin::new(tcp).poll_read(cx, &mut buffer))?;
                fresh.to = buffer.filled().len();
                ahead.insert(fresh)
            }
        };
        let fetched = wanted.remaining().min(held.to - held.from);
        wanted.put_slice(&held.buffer[held.from..held.from + fetched]);
        held.from += fetched;
        if held.from == held.to {
            *ahead = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
