//! Unit tests of the relay.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, join};

use tokio::io::ReadBuf;

use super::direction::CHUNK;
use super::*;
use crate::tunnel::tap::NoTap;

/// A stream that reads what a script says, and fails to write after so many bytes.
struct Scripted {
    reads: VecDeque<io::Result<&'static [u8]>>,
    writable: usize,
    written: Vec<u8>,
    shut_down: bool,
}

impl Scripted {
    fn new(reads: Vec<io::Result<&'static [u8]>>, writable: usize) -> Scripted {
        Scripted { reads: reads.into(), writable, written: Vec::new(), shut_down: false }
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.reads.pop_front() {
            Some(Ok(bytes)) => buf.put_slice(bytes),
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.writable == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = buf.len().min(self.writable);
        self.writable -= taken;
        self.written.extend(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down = true;
        Poll::Ready(Ok(()))
    }
}

impl App for Scripted {
    fn broken_off(&mut self) -> Option<io::Error> {
        None
    }
}

impl App for DuplexStream {
    fn broken_off(&mut self) -> Option<io::Error> {
        None
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// Relays to the end between two streams of which Redis's is as new and not kept.
async fn relay<A, R>(app: &mut A, redis: &mut R, idle_timeout: Option<Duration>) -> RelayEnd
where
    A: App,
    R: AsyncRead + AsyncWrite + Unpin,
{
    Relay::new(app, redis, &mut NoTap, idle_timeout).await
}

async fn run(app: &mut Scripted, redis: &mut Scripted) -> RelayEnd {
    relay(app, redis, None).await
}

#[tokio::test]
async fn an_app_that_reads_no_more_gets_its_requests_delivered() {
    let mut app = Scripted::new(vec![Ok(b"one "), Ok(b"two")], 0);
    let mut redis = Scripted::new(vec![Ok(b"reply"), Ok(b"another")], usize::MAX);
    assert!(matches!(run(&mut app, &mut redis).await, RelayEnd::Closed));
    assert_eq!(redis.written, b"one two");
}

#[tokio::test]
async fn a_redis_that_reads_no_more_gets_its_replies_delivered() {
    let mut app = Scripted::new(vec![Ok(b"request"), Ok(b"more")], usize::MAX);
    let mut redis = Scripted::new(vec![Ok(b"last "), Ok(b"words")], 3);
    assert!(matches!(run(&mut app, &mut redis).await, RelayEnd::Reset(Side::Redis, _)));
    assert_eq!(app.written, b"last words");
    assert_eq!(redis.written, b"req");
    assert!(!app.shut_down, "a clean end would come before the reset");
}

#[tokio::test]
async fn a_reset_comes_behind_everything_sent_before_it() {
    let mut app = Scripted::new(vec![Ok(b"request"), Err(reset())], usize::MAX);
    let (mut redis, mut far) = duplex(1024);
    let end = relay(&mut app, &mut redis, None).await;
    assert!(matches!(end, RelayEnd::Reset(Side::App, _)));
    drop(redis);
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"request");
}

/// A relay whose Redis takes 1,000 bytes at a time, with the far ends of both sides.
fn narrow() -> (DuplexStream, DuplexStream, DuplexStream, DuplexStream) {
    let (app, app_far) = duplex(256 * 1024);
    let (redis, redis_far) = duplex(1000);
    (app, app_far, redis, redis_far)
}

#[tokio::test]
async fn a_stalled_writer_gets_everything_and_holds_one_chunk() {
    let (mut app, mut app_far, mut redis, mut redis_far) = narrow();
    let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    app_far.write_all(&sent).await.unwrap();
    let mut tap = NoTap;
    let mut relay = Relay::new(&mut app, &mut redis, &mut tap, None);
    // Polled once: it fills what Redis takes, and keeps the rest of one chunk.
    assert!(
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut relay).poll(cx))).await.is_pending()
    );
    assert_eq!(relay.up.stalled(), CHUNK - 1000);

    let mut received = vec![0; sent.len()];
    tokio::select! {
        end = &mut relay => panic!("{end:?}"),
        read = redis_far.read_exact(&mut received) => drop(read.unwrap()),
    }
    assert!(received == sent, "the bytes differ");
    assert!(!relay.up.holds_memory(), "nothing is held while idle");
    assert_eq!(relay.progress().sent, 200_000);
}

#[tokio::test]
async fn a_reset_waits_for_stalled_bytes_to_be_delivered() {
    let mut app = Scripted::new(vec![Ok(b"0123456789"), Err(reset())], usize::MAX);
    let (mut redis, mut far) = duplex(4);
    let mut tap = NoTap;
    let relay = Relay::new(&mut app, &mut redis, &mut tap, None);
    let mut received = [0; 10];
    let (end, read) = tokio::join!(relay, far.read_exact(&mut received));
    assert!(matches!(end, RelayEnd::Reset(Side::App, _)), "{end:?}");
    assert_eq!((read.unwrap(), &received), (10, b"0123456789"));
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_takes_and_says_nothing_is_reset() {
    let (silent, _far) = duplex(1);
    let mut deaf = join(silent, Scripted::new(vec![], 0));
    let mut app = Scripted::new(vec![Ok(b"request")], usize::MAX);
    let timeout = Some(Duration::from_secs(3600));
    let end = relay(&mut app, &mut deaf, timeout).await;
    assert!(matches!(end, RelayEnd::Reset(Side::Redis, _)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stall_ends_in_a_reset_and_silence_in_a_close() {
    let (mut app, mut app_far, mut redis, _redis_far) = narrow();
    let timeout = Some(Duration::from_secs(3600));
    let end = relay(&mut app, &mut redis, timeout).await;
    assert!(matches!(end, RelayEnd::Idle));
    app_far.write_all(&[0; 5000]).await.unwrap();
    let end = relay(&mut app, &mut redis, timeout).await;
    assert!(matches!(end, RelayEnd::Reset(Side::Redis, _)));
}

#[tokio::test(start_paused = true)]
async fn traffic_postpones_the_idle_timeout() {
    let (mut app, mut app_far, mut redis, _redis_far) = narrow();
    let timeout = Duration::from_secs(3600);
    let started = Instant::now();
    let traffic = async {
        for _ in 0..3 {
            sleep(timeout * 2 / 3).await;
            app_far.write_all(b"x").await.unwrap();
        }
    };
    let (end, ()) = tokio::join!(relay(&mut app, &mut redis, Some(timeout)), traffic);
    assert!(matches!(end, RelayEnd::Idle));
    assert_eq!(started.elapsed(), timeout * 3);
}

/// A tap that keeps the connection to Redis, and notes what it sees.
#[derive(Default)]
struct Keeper {
    from_app: Vec<u8>,
    from_redis: Vec<u8>,
    progress: Progress,
}

impl Tap for Keeper {
    fn from_app(&mut self, bytes: &[u8]) {
        self.from_app.extend(bytes);
    }

    fn from_redis(&mut self, bytes: &[u8]) {
        self.from_redis.extend(bytes);
    }

    fn moved(&mut self, progress: Progress, _: Instant) {
        self.progress = progress;
    }

    fn keeps_upstream(&self) -> bool {
        self.from_redis.ends_with(b"reply")
    }
}

#[tokio::test]
async fn a_tap_sees_all_and_may_keep_the_upstream() {
    for (last, clean) in [(Ok(&b""[..]), true), (Err(reset()), false)] {
        let (mut redis, mut far) = duplex(1024);
        let mut app = Scripted::new(vec![Ok(b"request"), last], usize::MAX);
        far.write_all(b"reply").await.unwrap();
        let mut tap = Keeper { from_redis: b"reply".into(), ..Keeper::default() };
        let end = Relay::new(&mut app, &mut redis, &mut tap, None).await;
        assert!(matches!(end, RelayEnd::Kept(error) if error.is_none() == clean));
        assert_eq!((tap.from_app.as_slice(), tap.progress.sent), (&b"request"[..], 7));
        assert!(!app.shut_down);
    }
}

#[tokio::test]
async fn a_begun_connection_is_continued() {
    let mut app = Scripted::new(vec![], usize::MAX);
    let mut redis = Scripted::new(vec![], usize::MAX);
    let mut tap = Keeper::default();
    let begun = Begun { to_redis: b"end".into(), to_app: b"re".into(), sent: 4, asked: None };
    let mut relay = Relay::new(&mut app, &mut redis, &mut tap, None).continuing(begun);
    let end = (&mut relay).await;
    assert!(matches!(end, RelayEnd::Closed));
    assert_eq!(relay.progress(), Progress { sent: 7, received: 2 });
    drop(relay);
    assert_eq!((redis.written.as_slice(), app.written.as_slice()), (&b"end"[..], &b"re"[..]));
    assert_eq!((tap.from_app.as_slice(), tap.from_redis.as_slice()), (&b""[..], &b"re"[..]));
}
