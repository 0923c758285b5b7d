//! Moves the bytes of one direction of a relay.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::read_ahead::RECORDS;

/// The most bytes that a relay moves at once. With one system call, [`crate::tunnel::read_ahead`]
/// reads [`RECORDS`] full-size TLS records, which contain this many bytes (RFC 8446 section 5.1).
pub const CHUNK: usize = RECORDS * 16 * 1024;

thread_local! {
    static SHARED_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

pub fn take(error: &mut io::Error) -> io::Error {
    std::mem::replace(error, io::ErrorKind::Other.into())
}

/// The state of one direction of a relay.
#[derive(Default)]
pub enum State {
    /// The relay reads bytes from the reader, and writes them to the writer.
    #[default]
    Open,
    /// The reader has ended, and the relay is shutting down the writer's side.
    Closing,
    /// The writer's side is shut down, or must not be shut down because a reset will follow.
    Closed,
    /// The writer has failed. The relay still reads the reader's bytes and discards them, because
    /// some peers do not close a connection until they have sent all their bytes.
    WriterFailed(io::Error),
}

impl State {
    pub fn writer_error(&mut self) -> Option<&mut io::Error> {
        match self {
            State::WriterFailed(error) => Some(error),
            _ => None,
        }
    }
}

/// One of the two directions in which a relay moves bytes.
#[derive(Default)]
pub struct Direction {
    pub state: State,
    /// The bytes that the writer did not take at once. The writer has since taken the bytes before
    /// the index `stalled_from`. The buffer is empty unless the writer stalls.
    pub stalled: Vec<u8>,
    stalled_from: usize,
    /// The result with which the reader ended. `None` while the reader has not ended, and after
    /// [`Direction::poll`] has returned the result.
    reader_ended: Option<io::Result<()>>,
    /// The number of bytes that the writer has taken.
    pub written: u64,
    /// The number of bytes that were read plus the number of bytes that were written.
    pub moved: u64,
}

impl Direction {
    pub fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// True if this direction moves no more bytes.
    pub fn is_over(&self) -> bool {
        match self.state {
            State::Open | State::Closing => false,
            State::Closed => true,
            State::WriterFailed(_) => self.reader_ended.is_some(),
        }
    }

    /// Moves the available bytes, and shows them to `see`. When the reader has ended and the writer
    /// has taken all bytes, returns how the reader ended. The caller must then set `state` before
    /// the next call.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        see: &mut impl FnMut(&[u8]),
    ) -> Option<io::Result<()>> {
        loop {
            let step = match self.state {
                State::Open if self.is_stalled() => self.write_stalled(cx, writer),
                State::Open if self.reader_ended.is_some() => return self.reader_ended.take(),
                State::Open => self.move_chunk(cx, reader, writer, see),
                State::WriterFailed(_) if self.reader_ended.is_none() => {
                    self.move_chunk(cx, reader, writer, see)
                }
                State::Closing => self.shut_down(cx, writer),
                State::Closed | State::WriterFailed(_) => Poll::Pending,
            };
            if step.is_pending() {
                return None;
            }
        }
    }

    /// Reads one chunk and writes it. Keeps the bytes that the writer does not take, or discards
    /// these bytes if the writer has failed.
    fn move_chunk(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        see: &mut impl FnMut(&[u8]),
    ) -> Poll<()> {
        SHARED_BUFFER.with_borrow_mut(|buffer| {
            let (read, filled) = self.fill(cx, reader, buffer);
            if read > 0 {
                self.moved += read as u64;
                see(&buffer[..read]);
            }
            if matches!(self.state, State::Open) {
                let taken = self.write(cx, writer, &buffer[..read]);
                if taken < read && matches!(self.state, State::Open) {
                    return self.keep_stalled(&buffer[taken..read]);
                }
            }
            filled
        })
    }

    /// Reads until the buffer is full, the reader ends, or no more bytes are available. Returns the
    /// number of bytes that were read, and `Pending` if the reader wakes this task later. The last
    /// poll costs no system call, because a short read has cleared the stream's readiness.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        buffer: &mut [u8],
    ) -> (usize, Poll<()>) {
        let mut buffer = ReadBuf::new(buffer);
        while buffer.remaining() > 0 && self.reader_ended.is_none() {
            let before = buffer.filled().len();
            match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                Poll::Ready(end) => self.reader_ended = Some(end),
                Poll::Pending => return (buffer.filled().len(), Poll::Pending),
            }
        }
        (buffer.filled().len(), Poll::Ready(()))
    }

    /// Keeps the bytes that the writer has not taken. The writer wakes this task when the writer
    /// can take more bytes.
    fn keep_stalled(&mut self, bytes: &[u8]) -> Poll<()> {
        // A lack of memory must end only this connection, and not the launcher.
        if let Err(error) = self.stalled.try_reserve_exact(bytes.len()) {
            self.reader_ended = Some(Err(error.into()));
            return Poll::Ready(());
        }
        self.stalled.extend_from_slice(bytes);
        Poll::Pending
    }

    /// Writes the bytes that the writer did not take earlier. Returns `Ready` when all these bytes
    /// are written, or the writer has failed.
    fn write_stalled(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<()> {
        let stalled = std::mem::take(&mut self.stalled);
        self.stalled_from += self.write(cx, writer, &stalled[self.stalled_from..]);
        if self.stalled_from < stalled.len() && matches!(self.state, State::Open) {
            self.stalled = stalled;
            return Poll::Pending;
        }
        self.stalled_from = 0;
        Poll::Ready(())
    }

    /// Writes as many bytes as the writer takes now, and returns their number. If bytes are left,
    /// the writer wakes this task later, or the writer has failed and `state` holds the error.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
    ) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            match Pin::new(&mut *writer).poll_write(cx, &bytes[taken..]) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::WriterFailed(io::ErrorKind::WriteZero.into());
                    break;
                }
                Poll::Ready(Ok(more)) => taken += more,
                Poll::Ready(Err(error)) => {
                    self.state = State::WriterFailed(error);
                    break;
                }
                Poll::Pending => break,
            }
        }
        self.written += taken as u64;
        self.moved += taken as u64;
        taken
    }

    fn shut_down(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<()> {
        // Ignore a failed shutdown, because a broken connection needs no shutdown.
        let _ = ready!(Pin::new(writer).poll_shutdown(cx));
        self.state = State::Closed;
        Poll::Ready(())
    }
}
