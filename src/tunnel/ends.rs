//! Both ends of a connection, and how each learns that the connection is over.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::app::AppStream;
use super::relay::{RelayEnd, Side};
use super::socket::reset_on_close;
use super::stream::TlsUpstream;
use crate::system::socket::unacknowledged;

/// A Redis that sends nothing for this long has answered everything.
const QUIET: Duration = Duration::from_millis(50);
/// How long Redis may go on sending after an app has broken off. It has worked off its requests by
/// then; a subscription never ends.
const LONGEST_UNREST: Duration = Duration::from_secs(1);
/// How often the kernel is asked whether the peer has taken the last bytes.
const FLUSH_CHECK: Duration = Duration::from_millis(5);
/// Bytes that are read at once to be thrown away.
const IGNORED: usize = 4096;

/// Both ends of a connection. Unless the connection came to a good end, both are reset: a failure,
/// a panic or a drain that took too long must not look like a clean end of stream.
#[derive(Debug)]
pub struct Ends {
    pub app: AppStream,
    /// `None` before there is one, and after it was closed or given away.
    pub redis: Option<TlsUpstream>,
    is_finished: bool,
}

impl Ends {
    pub fn new(app: AppStream) -> Ends {
        Ends { app, redis: None, is_finished: false }
    }

    /// The connection has come to a good end: what is left is closed, not reset.
    pub fn finish(&mut self) {
        self.is_finished = true;
    }

    /// Closes the connection to Redis, or resets it if the connection has come to no good end.
    pub fn let_go_of_redis(&mut self) {
        if let Some(redis) = self.redis.take()
            && !self.is_finished
        {
            reset_on_close(redis.tcp());
        }
    }

    /// Closes the connection to Redis in good order. Redis was not sent a byte.
    pub async fn close_unused_redis(&mut self) {
        if let Some(mut redis) = self.redis.take() {
            // Nothing waits in the socket, so close_notify finds room there at once.
            let _ = timeout(Duration::ZERO, redis.shutdown()).await;
        }
    }

    /// Delivers what was sent before a failure, within `limit`, and closes in good order what ended
    /// in good order.
    pub async fn close(&mut self, end: &RelayEnd, limit: Duration) {
        // When the time is up, the reset follows either way.
        match end {
            RelayEnd::Closed => self.finish(),
            RelayEnd::Idle => {
                self.close_unused_redis().await;
                self.finish();
            }
            RelayEnd::Reset(Side::App, _) => {
                if let Some(redis) = &mut self.redis {
                    let _ = timeout(limit, all_executed(redis)).await;
                }
            }
            RelayEnd::Reset(Side::Redis, _) => {
                // Whoever reads a Unix socket finds what was written even when the writer has gone.
                if let Some(tcp) = self.app.tcp() {
                    let _ = timeout(limit, acknowledged(tcp)).await;
                }
            }
            RelayEnd::Kept(_) => {}
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

/// Waits until the peer's kernel has all that was written.
async fn acknowledged(stream: &TcpStream) {
    while unacknowledged(stream) > 0 {
        sleep(FLUSH_CHECK).await;
    }
}

/// Waits until Redis has worked off what the app had sent before it broke off: until Redis has all
/// of it, and sends no more replies. An earlier reset would make Redis fail to reply, and drop
/// requests that it has not read yet.
async fn all_executed(redis: &mut TlsUpstream) {
    acknowledged(redis.tcp()).await;
    let mut ignored = [0; IGNORED];
    let quiet = async { while let Ok(Ok(1..)) = timeout(QUIET, redis.read(&mut ignored)).await {} };
    let _ = timeout(LONGEST_UNREST, quiet).await;
}
