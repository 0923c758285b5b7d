//! With one system call, the TCP stream below TLS reads all bytes that have arrived. The stream
//! holds these bytes until OpenSSL fetches them.
//!
//! OpenSSL itself would make two system calls per TLS record: one for the 5-byte header, and one
//! for the body. An idle connection holds no buffer.

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

use crate::figures::Held;

/// The number of full-size TLS records that one system call can read. Long replies consist of
/// full-size records.
pub const RECORDS: usize = 4;
/// The size of the buffer in bytes: [`RECORDS`] records with their headers (RFC 8446 section 5.2).
const AHEAD: usize = RECORDS * (16 * 1024 + 256 + 5);
/// The number of free buffers that a thread keeps for the next reads.
const KEPT: usize = 2;
/// The most TLS records that a server may send within [`PERIOD`] if none of them contains data for
/// the app. Records of the handshake do not count. After the handshake, servers usually send two to
/// four records without such data, which contain session tickets. OpenSSL answers
/// some of these records. The same limit applies to the answers, because a single record can hold
/// 4,000 requests for renegotiation.
const MOST_SILENT: u32 = 16;
/// The time after which the count of records without data for the app restarts at zero. Without the
/// restart, a server that sends no data for a long time could not request new keys now and then.
const PERIOD: Duration = Duration::from_secs(10);

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The TCP stream below TLS, with a buffer for bytes that OpenSSL has not fetched yet.
#[derive(Debug)]
pub struct ReadAhead {
    pub tcp: TcpStream,
    /// The bytes that were read from the network, but not yet fetched by OpenSSL.
    ahead: Option<Buffered>,
    /// The position within the TLS records that OpenSSL has fetched.
    records: Records,
    heard: Heard,
    /// The count of TLS records since the last data for the app. The value is `None` during the
    /// handshake, because OpenSSL itself limits the records of a handshake.
    silent: Option<Silent>,
    /// A guard that counts the connection in the figures until the guard is dropped.
    pub held: Option<Held>,
}

/// The numbers of TLS records without data for the app, and of OpenSSL's answers to such records.
#[derive(Debug, Default)]
struct Silent {
    records: u32,
    answers: u32,
    /// The time at which the first record was counted.
    since: Option<Instant>,
}

impl Silent {
    /// Counts a TLS record without data for the app.
    ///
    /// # Errors
    /// If more than [`MOST_SILENT`] such records arrive within [`PERIOD`].
    fn count_record(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now - *self.since.get_or_insert(now) >= PERIOD {
            *self = Silent { since: Some(now), ..Silent::default() };
        }
        count(&mut self.records)
    }
}

/// Adds one to the number of records or answers.
///
/// # Errors
/// If the number has already reached [`MOST_SILENT`].
fn count(number: &mut u32) -> io::Result<()> {
    if *number == MOST_SILENT {
        return Err(endless());
    }
    *number += 1;
    Ok(())
}

/// Returns the error for a server that causes work without sending data.
pub fn endless() -> io::Error {
    io::Error::other("the server keeps sending TLS messages without data")
}

/// A flag that tells whether a server has sent a byte. The flag still exists after a failed
/// handshake has dropped the connection.
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

/// Finds the ends of TLS records in a stream. A record consists of a header with type, version and
/// length, and of a body with that length (RFC 8446 section 5.1).
#[derive(Debug, Default)]
struct Records {
    header: [u8; 5],
    /// The number of header bytes that were read so far, or 0 if the header is complete.
    known: usize,
    /// The number of bytes that are still missing in the body of the current record.
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
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl ReadAhead {
    /// Wraps a new TCP stream. The stream sets `heard` when the server sends its first byte.
    pub fn new(tcp: TcpStream, held: Held, heard: Heard) -> ReadAhead {
        let (records, held) = (Records::default(), Some(held));
        ReadAhead { tcp, ahead: None, records, heard, silent: None, held }
    }

    /// Starts a new count of records without data for the app. The caller must call this function
    /// after the handshake, and whenever the app gets data.
    pub fn permit_silence(&mut self) {
        self.silent = Some(Silent::default());
    }

    /// Starts a new count of OpenSSL's answers. The caller must call this function before writing
    /// the app's data, which must not count as an answer.
    pub fn permit_writes(&mut self) {
        if let Some(silent) = &mut self.silent {
            silent.answers = 0;
        }
    }

    /// Returns `Ready` if OpenSSL can fetch bytes now, or if bytes may have arrived from the
    /// network.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.ahead {
            Some(_) => Poll::Ready(Ok(())),
            None => self.tcp.poll_read_ready(cx),
        }
    }

    /// True if all bytes that have arrived belong to complete records, and OpenSSL has fetched all
    /// these bytes.
    pub fn is_between_records(&self) -> bool {
        self.ahead.is_none() && self.records.is_complete()
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // When a thread ends, the thread drops its list of free buffers before its last
        // connections.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

impl Buffered {
    /// Takes a free buffer, or allocates a new one.
    ///
    /// # Errors
    /// If there is no memory for a buffer. This error ends only one connection, whereas a failed
    /// allocation would end the launcher.
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
                // Count this read against the task's budget, because the buffer may hold thousands
                // of tiny records, and other tasks must run in between.
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
            count(&mut silent.answers)?;
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
    use crate::figures::{TunnelFigures, UpstreamState};

    async fn connection() -> (ReadAhead, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let held = Arc::new(TunnelFigures::default()).hold(UpstreamState::Relaying);
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
            for _ in 0..MOST_SILENT {
                silent.count_record().unwrap();
            }
            tokio::time::advance(PERIOD).await;
        }
        for _ in 0..MOST_SILENT {
            silent.count_record().unwrap();
        }
        assert!(silent.count_record().is_err());
    }

    #[tokio::test]
    async fn a_stream_with_unfetched_bytes_is_not_between_records() {
        let (mut near, mut far) = connection().await;
        assert!(near.is_between_records());
        // These bytes are two TLS alerts.
        far.write_all(b"\x15\x03\x03\x00\x01a\x15\x03\x03\x00\x01b").await.unwrap();
        near.tcp.readable().await.unwrap();
        let mut record = [0; 6];
        near.read_exact(&mut record).await.unwrap();
        assert!(!near.is_between_records());
        near.read_exact(&mut record).await.unwrap();
        assert!(near.is_between_records());
    }

    #[tokio::test]
    async fn reading_single_bytes_does_not_block_other_tasks() {
        const BYTES: usize = 10_000;
        let (mut near, mut far) = connection().await;
        far.write_all(&[0; BYTES]).await.unwrap();
        let mut all = vec![0; BYTES];
        while near.tcp.peek(&mut all).await.unwrap() < BYTES {}
        let other = Arc::new(AtomicBool::new(false));
        let flag = other.clone();
        // This task shares the reader's thread, so it runs only when the reader yields.
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
        panic!("the other task did not run");
    }
}
