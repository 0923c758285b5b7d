//! Notices when an app that waits for Redis closes or resets its connection. Redis must not execute
//! the requests of such an app.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::app::{Ahead, AppStream};
use super::drain::DrainGuard;

/// If an app closes its connection within this time after its last byte, the launcher assumes that
/// the app has half-closed the connection. Such an app may still wait for its reply, as
/// `printf 'PING\r\n' | nc` does.
const HALF_CLOSE: Duration = Duration::from_millis(500);
/// After an app has closed its connection, the launcher waits for this time. If COMMAND is then
/// still running, the app has given up. If COMMAND has ended, its end closed the connection, and
/// the launcher must still send the app's last requests to Redis.
const COMMAND_END: Duration = Duration::from_millis(100);
/// The interval at which the launcher checks for a reset, and for the arrival of bytes, after it
/// has stopped reading from the app.
const CHECK: Duration = Duration::from_millis(20);

/// Reads bytes from an app that waits for Redis. Returns if the app must not get a connection to
/// Redis: the app speaks TLS itself, has given up, or has reset its connection. After a reset,
/// returns the error.
pub async fn departure(app: &mut AppStream, guard: &mut DrainGuard) -> Option<io::Error> {
    loop {
        match poll_fn(|cx| app.poll_ahead(cx)).await {
            Ahead::Bytes if app.speaks_tls() => return None,
            Ahead::Bytes => {}
            Ahead::Failed(error) => return Some(error),
            Ahead::Full if !app.closes_within(CHECK).await => {}
            Ahead::Full | Ahead::Ended => break,
        }
    }
    let is_half_close = app.last_ahead.is_some_and(|at| at.elapsed() < HALF_CLOSE);
    loop {
        if let Some(error) = app.reset_error() {
            return Some(error);
        }
        if !is_half_close && command_goes_on(guard).await {
            return None;
        }
        sleep(CHECK).await;
    }
}

/// True if COMMAND is still running after [`COMMAND_END`].
async fn command_goes_on(guard: &mut DrainGuard) -> bool {
    tokio::select! {
        biased;
        () = guard.command_ended() => false,
        () = sleep(COMMAND_END) => true,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;
    use crate::tunnel::app::Socket;

    const LONG: Duration = Duration::from_secs(60);
    const MOMENT: Duration = Duration::from_millis(1);

    fn app() -> (AppStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (AppStream::new(Socket::Unix(near), None), far)
    }

    /// Returns the result of [`departure`] for an app that sends `bytes`, pauses, and closes its
    /// side. Returns `None` if the app may still expect a reply.
    async fn after(bytes: &[u8], pause: Duration) -> Option<Option<io::Error>> {
        let (mut app, mut far) = app();
        let (mut guard, _drain) = DrainGuard::new();
        let acts = async {
            far.write_all(bytes).await.unwrap();
            sleep(pause).await;
            far.shutdown().await.unwrap();
            sleep(LONG * 2).await;
        };
        tokio::select! {
            departed = timeout(LONG, departure(&mut app, &mut guard)) => departed.ok(),
            () = acts => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_soon_after_the_request_is_a_half_close() {
        // The launcher does not read all of the long request.
        for bytes in [&b"PING\r\n"[..], &[b'x'; 40_000]] {
            assert!(after(bytes, HALF_CLOSE - MOMENT).await.is_none());
            assert!(matches!(after(bytes, HALF_CLOSE + MOMENT).await, Some(None)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_before_the_first_byte_ends_the_wait() {
        assert!(matches!(after(b"", MOMENT).await, Some(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_sent_if_the_app_closes_at_commands_end() {
        let (mut app, far) = app();
        let (mut guard, drain) = DrainGuard::new();
        drop(far);
        let drain = async {
            sleep(COMMAND_END - MOMENT).await;
            drain.finish().await;
        };
        tokio::select! {
            departed = timeout(LONG, departure(&mut app, &mut guard)) => {
                assert!(departed.is_err());
            }
            () = drain => panic!("the connection still waits"),
        }
    }

    #[tokio::test]
    async fn bytes_read_ahead_are_kept_for_the_next_reader() {
        let (mut app, mut far) = app();
        let (mut guard, _drain) = DrainGuard::new();
        far.write_all(b"GET a\r\n").await.unwrap();
        far.shutdown().await.unwrap();
        let waited = timeout(MOMENT * 20, departure(&mut app, &mut guard)).await;
        assert!(waited.is_err());
        let mut read = Vec::new();
        app.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"GET a\r\n");
    }

    #[tokio::test]
    async fn an_app_that_speaks_tls_is_noticed() {
        let (mut app, mut far) = app();
        let (mut guard, _drain) = DrainGuard::new();
        far.write_all(b"\x16\x03\x01").await.unwrap();
        assert!(departure(&mut app, &mut guard).await.is_none() && app.speaks_tls());
    }
}
