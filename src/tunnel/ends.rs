//! Closes or resets the two ends of a connection: the connection from the app, and the connection
//! to Redis.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::app::AppStream;
use super::relay::{RelayEnd, Side};
use super::socket::reset_on_close;
use super::stream::TlsUpstream;
use crate::system::socket::unacknowledged;

/// The time without bytes from Redis after which the launcher assumes that Redis has answered all
/// requests.
const QUIET: Duration = Duration::from_millis(50);
/// The time limit for Redis to answer the last requests of an app whose connection broke. Without
/// this limit, the launcher would wait forever for the end of the replies to a subscription.
const LONGEST_UNREST: Duration = Duration::from_secs(1);
/// The time limit for delivering the bytes that were sent before a failure.
const DELIVERY: Duration = Duration::from_secs(5);
/// The interval at which the launcher checks whether the peer has acknowledged the last bytes.
const FLUSH_CHECK: Duration = Duration::from_millis(5);
/// The size of the buffer for bytes that the launcher reads and discards.
const IGNORED: usize = 4096;

/// The connection from the app and the connection to Redis. If [`Ends::finish`] was called,
/// dropping this value closes both connections. Otherwise, dropping this value resets them, so that
/// a failure, a panic or the drain timeout does not look like a clean end of stream. A Unix socket
/// is only closed, because it cannot be reset.
pub struct Ends {
    pub app: AppStream,
    /// The connection to Redis, or `None` before this connection is made, and after this connection
    /// was closed or taken for another app.
    pub redis: Option<TlsUpstream>,
    is_finished: bool,
}

impl Ends {
    pub fn new(app: AppStream) -> Ends {
        Ends { app, redis: None, is_finished: false }
    }

    /// Notes that the connection has ended cleanly. After this call, dropping this value closes
    /// both connections instead of resetting them.
    pub fn finish(&mut self) {
        self.is_finished = true;
    }

    /// Closes the connection to Redis, or resets it if the connection has not ended cleanly.
    pub fn let_go_of_redis(&mut self) {
        if let Some(redis) = self.redis.take()
            && !self.is_finished
        {
            reset_on_close(redis.tcp());
        }
    }

    /// Closes the connection to Redis cleanly. The caller must make sure that no bytes wait to be
    /// sent.
    pub async fn close_unused_redis(&mut self) {
        if let Some(mut redis) = self.redis.take() {
            // The socket's send buffer is empty, so close_notify fits into the buffer at once.
            let _ = timeout(Duration::ZERO, redis.shutdown()).await;
        }
    }

    /// Prepares both ends for being dropped after the relay has ended with `end`. After a failure,
    /// waits at most [`DELIVERY`] until the bytes that were sent before the failure have arrived.
    pub async fn close(&mut self, end: &RelayEnd) {
        // Ignore timeouts, because both connections are reset either way.
        match end {
            RelayEnd::Closed | RelayEnd::Kept(_) => self.finish(),
            RelayEnd::Idle => {
                self.close_unused_redis().await;
                self.finish();
            }
            RelayEnd::Reset(Side::App, _) => {
                if let Some(redis) = &mut self.redis {
                    let _ = timeout(DELIVERY, all_executed(redis)).await;
                }
            }
            RelayEnd::Reset(Side::Redis, _) => {
                // With a Unix socket, the app gets all bytes even after the launcher has closed the
                // socket.
                if let Some(tcp) = self.app.tcp() {
                    let _ = timeout(DELIVERY, acknowledged(tcp)).await;
                }
            }
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.let_go_of_redis();
        if let Some(tcp) = self.app.tcp()
            && !self.is_finished
        {
            reset_on_close(tcp);
        }
    }
}

/// Waits until the peer's kernel has acknowledged all bytes.
async fn acknowledged(stream: &TcpStream) {
    while unacknowledged(stream) > 0 {
        sleep(FLUSH_CHECK).await;
    }
}

/// Waits until Redis has received all of the app's requests, and sends no more replies. If the
/// launcher reset the connection earlier, Redis would discard unread requests.
async fn all_executed(redis: &mut TlsUpstream) {
    acknowledged(redis.tcp()).await;
    let mut ignored = [0; IGNORED];
    let quiet = async { while let Ok(Ok(1..)) = timeout(QUIET, redis.read(&mut ignored)).await {} };
    let _ = timeout(LONGEST_UNREST, quiet).await;
}
