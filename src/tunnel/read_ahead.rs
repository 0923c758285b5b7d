//! A TCP stream that reads ahead of TLS.
//!
//! OpenSSL reads a record's 5-byte header first, and then its body: two system calls. With this
//! stream, the first call takes all bytes that have arrived. The connection holds the buffer only
//! until OpenSSL has fetched them.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

use crate::figures::{Held, UpstreamState};

/// The number of full-size TLS records that are read at once. Bulk replies consist of such records.
pub const RECORDS: usize = 4;
/// Their size on the network (RFC 8446 section 5.2).
const AHEAD: usize = RECORDS * (16 * 1024 + 256 + 5);
/// The number of free buffers that a thread keeps. If more connections hold bytes at the same time,
/// further buffers are allocated and freed.
const KEPT: usize = 2;
/// The most records that a server may send after its handshake without data for the app, within
/// [`PERIOD`]. Servers usually send two to four, with session tickets.
const MOST_SILENT_RECORDS: u32 = 16;
/// A quiet server may request new keys now and then.
const PERIOD: Duration = Duration::from_secs(10);
/// The most answers that OpenSSL may write meanwhile, for example to requests for renegotiation. A
/// record holds 4,000 such requests.
const MOST_ANSWERS: u32 = 16;

type Buffer = Vec<u8>;

thread_local! {
    static FREE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// The TCP stream below TLS.
#[derive(Debug)]
pub struct ReadAhead {
    tcp: TcpStream,
    /// Bytes that were read and not fetched yet.
    ahead: Option<Buffered>,
    /// The records in the bytes that were fetched.
    records: Records,
    heard: Heard,
    /// Counts the records since the last data for the app. `None` in the handshake, which OpenSSL
    /// bounds.
    silent: Option<Silent>,
    /// Counts the connection as open.
    held: Held,
}

/// Counts records without data for the app, and OpenSSL's answers to them.
#[derive(Debug, Default)]
struct Silent {
    records: u32,
    answers: u32,
    /// When the first of the records was counted.
    since: Option<Instant>,
}

impl Silent {
    /// Counts another record.
    ///
    /// # Errors
    /// If there are too many in a short time.
    fn count_record(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now - *self.since.get_or_insert(now) >= PERIOD {
            *self = Silent { since: Some(now), ..Silent::default() };
        }
        if self.records == MOST_SILENT_RECORDS {
            return Err(endless());
        }
        self.records += 1;
        Ok(())
    }

    /// Counts another answer.
    ///
    /// # Errors
    /// If there are too many.
    fn count_answer(&mut self) -> io::Result<()> {
        if self.answers == MOST_ANSWERS {
            return Err(endless());
        }
        self.answers += 1;
        Ok(())
    }
}

/// The error for a server that causes work without sending data.
pub fn endless() -> io::Error {
    io::Error::other("the server keeps sending TLS messages without data")
}

/// True once a server has sent a byte. This flag outlives the connection, which a failed handshake
/// drops.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<AtomicBool>);

impl Heard {
    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn anything(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Finds the ends of TLS records in a stream. Each record has a type, a version, a length, and as
/// many bytes as the length says (RFC 8446 section 5.1).
#[derive(Debug, Default)]
struct Records {
    header: [u8; 5],
    /// The number of known bytes of the header; 0 once the header is complete.
    known: usize,
    /// The number of missing bytes of the body.
    missing: usize,
}

impl Records {
    fn follow(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.missing > 0 {
                let passed = self.missing.min(bytes.len());
                self.missing -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.header[self.known] = byte;
            self.known = (self.known + 1) % self.header.len();
            if self.known == 0 {
                let [_, _, _, high, low] = self.header;
                self.missing = usize::from(u16::from_be_bytes([high, low]));
            }
            bytes = rest;
        }
    }

    /// True if the latest record is complete.
    fn is_complete(&self) -> bool {
        self.known == 0 && self.missing == 0
    }
}

#[derive(Debug)]
struct Buffered {
    buffer: Buffer,
    from: usize,
    to: usize,
}

impl ReadAhead {
    /// `heard` is set when the server sends its first byte.
    pub fn new(tcp: TcpStream, held: Held, heard: Heard) -> ReadAhead {
        ReadAhead { tcp, ahead: None, records: Records::default(), heard, silent: None, held }
    }

    /// Starts a new count of records without data for the app. To be called after the handshake,
    /// and whenever the app gets data.
    pub fn permit_silence(&mut self) {
        self.silent = Some(Silent::default());
    }

    /// Starts a new count of OpenSSL's answers. To be called before the app's data is written,
    /// which is no answer.
    pub fn permit_writes(&mut self) {
        if let Some(silent) = &mut self.silent {
            silent.answers = 0;
        }
    }

    /// Sets what the connection does now, for the figures.
    pub fn set_state(&mut self, state: UpstreamState) {
        self.held.set_state(state);
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ready when there are bytes to fetch, or may be bytes to read from the network.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.ahead {
            Some(_) => Poll::Ready(Ok(())),
            None => self.tcp.poll_read_ready(cx),
        }
    }

    /// True if only complete records have arrived, and all of them were fetched.
    pub fn is_between_records(&self) -> bool {
        self.ahead.is_none() && self.records.is_complete()
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that is ending has dropped its list already.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

impl Buffered {
    /// # Errors
    /// If there is no memory for a buffer. The lack of memory must end one connection, not all.
    fn new() -> io::Result<Buffered> {
        let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        buffer.try_reserve_exact(AHEAD - buffer.len())?;
        buffer.resize(AHEAD, 0);
        Ok(Buffered { buffer, from: 0, to: 0 })
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        wanted: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ReadAhead { tcp, ahead, records, heard, silent, .. } = &mut *self;
        let held = match ahead {
            Some(held) => {
                // Records may be tiny, and a task that never yields would keep all others waiting.
                ready!(poll_proceed(cx)).made_progress();
                held
            }
            None => {
                let mut fresh = Buffered::new()?;
                let mut buffer = ReadBuf::new(&mut fresh.buffer);
                ready!(Pin::new(tcp).poll_read(cx, &mut buffer))?;
                fresh.to = buffer.filled().len();
                if fresh.to > 0 {
                    heard.note();
                }
                ahead.insert(fresh)
            }
        };
        if held.to > 0
            && records.is_complete()
            && let Some(silent) = silent
        {
            silent.count_record()?;
        }
        let fetched = wanted.remaining().min(held.to - held.from);
        let bytes = &held.buffer[held.from..held.from + fetched];
        records.follow(bytes);
        wanted.put_slice(bytes);
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
        if let Some(silent) = &mut self.silent {
            silent.count_answer()?;
        }
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::figures::TunnelFigures;

    /// Both ends of a connection.
    async fn connection() -> (ReadAhead, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let held = TunnelFigures::unread().hold(UpstreamState::Relaying);
        (ReadAhead::new(near, held, Heard::default()), listener.accept().await.unwrap().0)
    }

    #[test]
    fn records_are_complete_only_at_their_last_byte() {
        let sizes = [0, 1, 0, 300, 16_384];
        let (mut stream, mut ends) = (Vec::new(), vec![0]);
        for size in sizes {
            stream.extend([0x17, 3, 3]);
            stream.extend(u16::to_be_bytes(size));
            stream.extend(vec![0xff; usize::from(size)]);
            ends.push(stream.len());
        }
        let mut by_byte = Records::default();
        for cut in 0..stream.len() {
            let mut at_once = Records::default();
            at_once.follow(&stream[..cut]);
            assert_eq!(at_once.is_complete(), ends.contains(&cut), "{cut}");
            assert_eq!(by_byte.is_complete(), ends.contains(&cut), "{cut}");
            by_byte.follow(&stream[cut..=cut]);
        }
        assert!(by_byte.is_complete());
    }

    #[tokio::test(start_paused = true)]
    async fn only_many_silent_records_in_a_short_time_are_refused() {
        let mut silent = Silent::default();
        for _ in 0..100 {
            for _ in 0..MOST_SILENT_RECORDS {
                silent.count_record().unwrap();
            }
            tokio::time::advance(PERIOD).await;
        }
        for _ in 0..MOST_SILENT_RECORDS {
            silent.count_record().unwrap();
        }
        assert!(silent.count_record().is_err());
    }

    #[tokio::test]
    async fn a_stream_with_unfetched_bytes_is_not_between_records() {
        let (mut near, mut far) = connection().await;
        assert!(near.is_between_records());
        // Two alerts.
        far.write_all(b"\x15\x03\x03\x00\x01a\x15\x03\x03\x00\x01b").await.unwrap();
        near.tcp().readable().await.unwrap();
        let mut record = [0; 6];
        near.read_exact(&mut record).await.unwrap();
        assert!(!near.is_between_records());
        near.read_exact(&mut record).await.unwrap();
        assert!(near.is_between_records());
    }

    #[tokio::test]
    async fn a_task_that_fetches_single_bytes_lets_others_run() {
        const BYTES: usize = 10_000;
        let (mut near, mut far) = connection().await;
        far.write_all(&[0; BYTES]).await.unwrap();
        let mut all = vec![0; BYTES];
        while near.tcp().peek(&mut all).await.unwrap() < BYTES {}
        let other = Arc::new(AtomicBool::new(false));
        let flag = other.clone();
        // It shares this thread, so it runs only when the reader yields.
        tokio::spawn(async move { flag.store(true, Ordering::SeqCst) });
        for byte in 0..BYTES {
            let mut buffer = [0];
            poll_fn(|cx| Pin::new(&mut near).poll_read(cx, &mut ReadBuf::new(&mut buffer)))
                .await
                .unwrap();
            if other.load(Ordering::SeqCst) {
                assert!(byte > 0 && byte < BYTES - 1);
                return;
            }
        }
        panic!("nobody else ran");
    }
}
