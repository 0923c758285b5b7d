//! Sets socket options, and queries the state of sockets.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

/// The time without traffic after which the kernel sends the first keepalive probe to Redis. AWS's
/// load balancers and NAT gateways drop a connection after 350 s without traffic.
pub const REDIS_PROBE_IDLE: Duration = Duration::from_secs(60);
/// The time without traffic after which the kernel probes an app that has closed its side. If the
/// app is gone, the app's kernel accepts probes for a minute (tcp_fin_timeout in tcp(7)), and then
/// answers with a reset.
pub const APP_PROBE_IDLE: Duration = Duration::from_secs(15);
/// The time between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// The number of unanswered keepalive probes after which the connection counts as broken.
const KEEPALIVE_PROBES: u32 = 4;

/// Makes the kernel send keepalive probes after the time `idle` without traffic, so that the kernel
/// notices when the peer's host has vanished, or the app is gone. While sent bytes are
/// unacknowledged, the kernel sends no probes. In this case, the kernel breaks the connection after
/// about a quarter of an hour (tcp_retries2 in tcp(7)), as without a tunnel. TCP_USER_TIMEOUT would
/// be faster, but would also break connections to a Redis that is too busy to read.
pub fn keep_alive(stream: &TcpStream, idle: Duration) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// True if the peer of a Unix socket has closed both directions, and not only its sending direction
/// (POLLHUP in poll(2)).
pub fn has_hung_up(stream: &UnixStream) -> bool {
    has_event(stream, PollFlags::POLLHUP)
}

/// True if `event` has occurred on this socket (poll(2)).
pub fn has_event(socket: &impl AsFd, event: PollFlags) -> bool {
    let mut watched = [PollFd::new(socket.as_fd(), event)];
    let polled = poll(&mut watched, PollTimeout::ZERO);
    polled.is_ok() && watched[0].revents().is_some_and(|events| events.contains(event))
}

/// Sets SO_LINGER, so that closing `stream` sends a reset instead of a clean end (socket(7)).
pub fn reset_on_close(stream: &TcpStream) {
    // Setting the option fails only if the connection is already broken.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
