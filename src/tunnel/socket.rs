//! Options of the operating system's sockets.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

/// Silence before the first keepalive probe to Redis. AWS's load balancers and NAT gateways forget
/// a connection after 350 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The time between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// The number of unanswered probes after which the connection counts as broken.
const KEEPALIVE_PROBES: u32 = 4;

/// Silence before the first probe of an app that has closed its side. When an app is gone, its
/// kernel answers probes for a minute (tcp_fin_timeout in tcp(7)), and then with a reset.
const APP_PROBE_IDLE: Duration = Duration::from_secs(15);

/// Has the kernel notice a Redis that has vanished. While sent bytes are unacknowledged, there are
/// no probes. In that case, the kernel gives up after about a quarter of an hour (tcp_retries2 in
/// tcp(7)), as without a tunnel. TCP_USER_TIMEOUT would be faster, but would also end connections
/// to a Redis that is too busy to read.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    set_keepalive(stream, KEEPALIVE_IDLE)
}

/// Has the kernel find out whether an app still exists.
pub fn probe(stream: &TcpStream) -> io::Result<()> {
    set_keepalive(stream, APP_PROBE_IDLE)
}

fn set_keepalive(stream: &TcpStream, idle: Duration) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// True if the peer of a Unix socket has closed both directions, and not only its sending direction
/// (poll(2)).
pub fn has_hung_up(stream: &UnixStream) -> bool {
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut watched, PollTimeout::ZERO);
    let events = watched[0].revents().unwrap_or(PollFlags::empty());
    polled.is_ok() && events.contains(PollFlags::POLLHUP)
}

/// Makes closing `stream` send a reset instead of a clean end (socket(7), SO_LINGER).
pub fn reset_on_close(stream: &TcpStream) {
    // This fails only on a dead socket, which needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
