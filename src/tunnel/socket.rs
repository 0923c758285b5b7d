//! The knobs of the operating system's TCP.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

/// Silence before the first keepalive probe towards Redis: below the 350 s after which AWS's
/// balancers and NAT gateways forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered probes until the connection counts as broken.
const KEEPALIVE_PROBES: u32 = 4;

/// Silence before the first probe of an app that has closed its side. After an app has gone, its
/// kernel answers probes for a minute (tcp_fin_timeout in tcp(7)), then resets.
const APP_PROBE_IDLE: Duration = Duration::from_secs(15);

/// Notices a Redis that vanished without a word, unless something sent is unacknowledged: then the
/// kernel gives up by itself, after about a quarter of an hour (tcp_retries2 in tcp(7)), as it does
/// for an app without a tunnel. A TCP_USER_TIMEOUT would be sooner, but also break off a Redis that
/// lives and is too busy to read.
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

/// Whether the peer has closed a Unix socket for good, and not only its own side (poll(2)).
pub fn has_hung_up(stream: &UnixStream) -> bool {
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut watched, PollTimeout::ZERO);
    let events = watched[0].revents().unwrap_or(PollFlags::empty());
    polled.is_ok() && events.contains(PollFlags::POLLHUP)
}

/// Makes closing `stream` send a reset instead of a clean end (socket(7), SO_LINGER).
pub fn reset_on_close(stream: &TcpStream) {
    // It fails on a socket that is dead already only, which is closed for both sides.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
