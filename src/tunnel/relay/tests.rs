//! Unit tests of the relay.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Join, ReadBuf, duplex, join};

use super::direction::CHUNK;
use super::*;
use crate::tunnel::tap::NoTap;

/// A reader that ends at once, either cleanly or with this error.
struct End(Option<io::ErrorKind>);

const RESET: End = End(Some(io::ErrorKind::ConnectionReset));

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.map_or(Ok(()), |kind| Err(kind.into())))
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> App for Join<R, W> {
    fn broken_off(&mut self) -> Option<io::Error> {
        None
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Upstream for Join<R, W> {
    fn note_end(&mut self) {}
}

impl App for DuplexStream {
    fn broken_off(&mut self) -> Option<io::Error> {
        None
    }
}

impl Upstream for DuplexStream {
    fn note_end(&mut self) {}
}

/// Returns a writer that fails, because its other end is dropped.
fn deaf() -> DuplexStream {
    duplex(1).0
}

/// True if reading from `far` finds neither bytes nor the end of the stream.
async fn is_open(far: &mut DuplexStream) -> bool {
    let mut byte = [0];
    poll_fn(|cx| {
        Poll::Ready(Pin::new(&mut *far).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending())
    })
    .await
}

async fn relay<A: App, R: Upstream>(
    app: &mut A,
    redis: &mut R,
    idle: Option<Duration>,
) -> RelayEnd {
    Relay::new(app, redis, &mut NoTap, idle).await
}

#[tokio::test]
async fn requests_of_an_app_that_stops_reading_are_delivered() {
    let mut app = join(&b"one two"[..], deaf());
    let mut redis = join(&b"reply"[..], Vec::new());
    assert!(matches!(relay(&mut app, &mut redis, None).await, RelayEnd::Closed));
    assert_eq!(redis.writer(), b"one two");
}

#[tokio::test]
async fn replies_of_a_redis_that_stops_reading_are_delivered() {
    let (writer, mut app_far) = duplex(1024);
    let mut app = join(&b"request"[..], writer);
    let mut redis = join(&b"last words"[..], deaf());
    let end = relay(&mut app, &mut redis, None).await;
    assert!(matches!(end, RelayEnd::Reset(Side::Redis, _)));
    let mut received = [0; 10];
    app_far.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"last words");
    assert!(is_open(&mut app_far).await, "a clean end would come before the reset");
}

#[tokio::test]
async fn a_reset_comes_after_everything_sent_before_it() {
    let mut app = join(b"request".chain(RESET), Vec::new());
    let (mut redis, mut far) = duplex(1024);
    let end = relay(&mut app, &mut redis, None).await;
    assert!(matches!(end, RelayEnd::Reset(Side::App, _)));
    drop(redis);
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"request");
}

/// Returns the streams of an app, and of a Redis that takes 1,000 bytes at a time. Each stream is
/// followed by its far end, with which the test plays the app or Redis.
fn narrow() -> (DuplexStream, DuplexStream, DuplexStream, DuplexStream) {
    let (app, app_far) = duplex(256 * 1024);
    let (redis, redis_far) = duplex(1000);
    (app, app_far, redis, redis_far)
}

#[tokio::test]
async fn a_slow_redis_gets_all_bytes_while_one_chunk_is_held() {
    let (mut app, mut app_far, mut redis, mut redis_far) = narrow();
    let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    app_far.write_all(&sent).await.unwrap();
    let mut tap = NoTap;
    let mut relay = Relay::new(&mut app, &mut redis, &mut tap, None);
    // One poll writes the 1,000 bytes that Redis takes, and keeps the rest of one chunk.
    assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut relay).poll(cx))).await.is_pending());
    assert_eq!(relay.up.stalled.len(), CHUNK - 1000);

    let mut received = vec![0; sent.len()];
    tokio::select! {
        end = &mut relay => panic!("{end:?}"),
        read = redis_far.read_exact(&mut received) => drop(read.unwrap()),
    }
    assert!(received == sent, "the bytes differ");
    assert_eq!(relay.up.stalled.capacity(), 0, "an idle connection holds no buffer");
    assert_eq!(relay.progress().sent, 200_000);
}

#[tokio::test]
async fn a_reset_waits_for_stalled_bytes_to_be_delivered() {
    let mut app = join(b"0123456789".chain(RESET), Vec::new());
    let (mut redis, mut far) = duplex(4);
    let mut tap = NoTap;
    let relay = Relay::new(&mut app, &mut redis, &mut tap, None);
    let mut received = [0; 10];
    let (end, read) = tokio::join!(relay, far.read_exact(&mut received));
    assert!(matches!(end, RelayEnd::Reset(Side::App, _)), "{end:?}");
    assert_eq!((read.unwrap(), &received), (10, b"0123456789"));
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_stops_reading_and_writing_is_reset() {
    let (silent, _far) = duplex(1);
    let mut redis = join(silent, deaf());
    let mut app = join(&b"request"[..], Vec::new());
    let timeout = Some(Duration::from_secs(3600));
    let end = relay(&mut app, &mut redis, timeout).await;
    assert!(matches!(end, RelayEnd::Reset(Side::Redis, _)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_resets_stalled_and_closes_silent_apps() {
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

/// A tap that keeps the connection to Redis after a reply, and stores all bytes that pass.
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
async fn a_tap_sees_all_bytes_and_may_keep_redis_connected() {
    for (last, is_clean) in [(End(None), true), (RESET, false)] {
        let (mut redis, mut far) = duplex(1024);
        let (writer, mut app_far) = duplex(1024);
        let mut app = join(b"request".chain(last), writer);
        far.write_all(b"reply").await.unwrap();
        let mut tap = Keeper { from_redis: b"reply".into(), ..Keeper::default() };
        let end = Relay::new(&mut app, &mut redis, &mut tap, None).await;
        assert!(matches!(end, RelayEnd::Kept(error) if error.is_none() == is_clean));
        assert_eq!((tap.from_app.as_slice(), tap.progress.sent), (&b"request"[..], 7));
        assert!(is_open(&mut app_far).await);
    }
}
