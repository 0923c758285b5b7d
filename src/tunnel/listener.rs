//! The local port: bound before COMMAND starts, accepting until COMMAND has ended.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::failure::{self, Failure};
use super::relay::{End, Relay, Side};
use super::stream::{TlsUpstream, reset_on_close, send_at_once, unacknowledged};
use super::{Tunnel, resp, upstream};
use crate::logging::{debug, info, warning};

/// Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn (listen(2)).
const BACKLOG: i32 = 4096;
/// The pause after a failed `accept`, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long Redis sends nothing once it has answered everything.
const QUIET: Duration = Duration::from_millis(50);
/// How often the kernel is asked whether a broken connection's last bytes have been taken.
const FLUSH_CHECK: Duration = Duration::from_millis(5);

/// Binds `port` of 127.0.0.1, or one of the kernel's pick when it is 0 or taken.
///
/// # Errors
/// When not even the kernel finds a port, or `port` is not for us (EACCES, below 1024).
pub fn bind(port: u16) -> io::Result<TcpListener> {
    match listen(port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen(0),
        other => other,
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Connections of an earlier launcher that linger in TIME_WAIT keep no port from us (socket(7)).
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Lets connections know that COMMAND has ended, and the launcher when the last one is done.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Each connection and listener holds one; nothing is ever sent.
    alive: mpsc::Sender<()>,
    command_ended: watch::Receiver<bool>,
}

/// The launcher's end of [`Connections`].
#[derive(Debug)]
pub struct Drain {
    all_done: mpsc::Receiver<()>,
    command_ended: watch::Sender<bool>,
}

impl Connections {
    pub fn new() -> (Connections, Drain) {
        let (alive, all_done) = mpsc::channel(1);
        let (ended_sender, command_ended) = watch::channel(false);
        let drain = Drain {
            all_done,
            command_ended: ended_sender,
        };
        (
            Connections {
                alive,
                command_ended,
            },
            drain,
        )
    }
}

impl Drain {
    /// Says that COMMAND has ended, and waits until every connection is done: the caller gives up its
    /// own [`Connections`] first.
    pub async fn finish(mut self) {
        self.command_ended.send_replace(true);
        let _ = self.all_done.recv().await;
    }
}

/// Accepts the app's connections until COMMAND has ended, and serves each in a task of its own.
///
/// # Errors
/// When the listener cannot be handed to the runtime.
pub async fn serve(
    listener: TcpListener,
    tunnel: Arc<Tunnel>,
    connections: Connections,
) -> io::Result<()> {
    let Connections {
        alive,
        mut command_ended,
    } = connections;
    let accept = |(stream, peer): (TcpStream, SocketAddr)| {
        tokio::spawn(serve_connection(
            stream,
            peer,
            tunnel.clone(),
            alive.clone(),
        ));
    };
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accept(accepted),
                Err(error) => after_failed_accept(&tunnel, error).await,
            },
            () = wait_for_end(&mut command_ended) => break,
        }
    }
    // What the app wrote just before it ended may wait in connections not accepted yet; the runtime
    // may not have heard of them, the kernel has.
    let listener = listener.into_std()?;
    while let Ok((stream, peer)) = listener.accept() {
        stream.set_nonblocking(true)?;
        accept((TcpStream::from_std(stream)?, peer));
    }
    Ok(())
}

/// Waits for COMMAND's end; a launcher that is gone counts as that, too.
async fn wait_for_end(command_ended: &mut watch::Receiver<bool>) {
    let _ = command_ended.wait_for(|ended| *ended).await;
}

async fn after_failed_accept(tunnel: &Tunnel, error: io::Error) {
    // The app gave up before it was accepted: its affair (accept(2)).
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    let hint = match failure::is_out_of_descriptors(&error) {
        true => "raise the limit on open files (ulimit -Hn); new connections wait meanwhile",
        false => "new connections wait meanwhile",
    };
    warning!(at = "accept-failed", var = tunnel.variable(), error = %error, hint);
    sleep(ACCEPT_PAUSE).await;
}

/// One connection's life. `_alive` tells the launcher when it is over.
async fn serve_connection(
    mut app: TcpStream,
    peer: SocketAddr,
    tunnel: Arc<Tunnel>,
    _alive: mpsc::Sender<()>,
) {
    tunnel.totals.connections.fetch_add(1, Ordering::Relaxed);
    let started = Instant::now();
    debug!(at = "connection-accepted", var = tunnel.variable(), peer = %peer);
    if let Err(error) = send_at_once(&app) {
        debug!(at = "connection-gone", var = tunnel.variable(), peer = %peer, error = %error);
        return;
    }
    match upstream::connect(&tunnel).await {
        Ok(redis) => relay(app, redis, peer, started, &tunnel).await,
        Err(failure) => report(&failure, &mut app, &tunnel).await,
    }
}

/// Says in the log why a connection failed, and to the app if it is not an outage.
async fn report(failure: &Failure, app: &mut TcpStream, tunnel: &Tunnel) {
    tunnel.totals.failed.fetch_add(1, Ordering::Relaxed);
    let hint = failure.hint(tunnel);
    let upstream = &tunnel.plan.upstream;
    let var = tunnel.variable();
    warning!(at = failure.event(), var, upstream = %upstream, error = %failure, hint);
    if !failure.is_outage() {
        let answer = format!("{upstream}: {failure}; {hint}");
        if let Err(error) = resp::refuse(app, &answer).await {
            debug!(at = "connection-gone", var, error = %error);
        }
    }
}

async fn relay(
    mut app: TcpStream,
    mut redis: TlsUpstream,
    peer: SocketAddr,
    started: Instant,
    tunnel: &Tunnel,
) {
    let address = redis
        .tcp()
        .peer_addr()
        .map_or_else(|_| String::new(), |address| address.to_string());
    let mut guard = ResetOnDrop {
        app: &mut app,
        redis: &mut redis,
        finished: false,
    };
    let mut relay = Relay::new(
        &mut *guard.app,
        &mut *guard.redis,
        tunnel.settings.idle_timeout,
    );
    let end = (&mut relay).await;
    let (sent, received) = (relay.sent(), relay.received());
    tunnel.totals.sent.fetch_add(sent, Ordering::Relaxed);
    tunnel
        .totals
        .received
        .fetch_add(received, Ordering::Relaxed);

    if let End::Reset(Side::Redis, error) = &end
        && received == 0
        && let Some(refusal) = upstream::late_refusal(tunnel, error).await
    {
        report(&Failure::Misconfigured(refusal), guard.app, tunnel).await;
        guard.finished = true;
        return;
    }
    let (reason, error) = match &end {
        End::Closed => ("closed", String::new()),
        End::Idle => ("idle", String::new()),
        End::Reset(Side::App, error) => ("reset-by-app", error.to_string()),
        End::Reset(Side::Redis, error) => ("reset-by-redis", error.to_string()),
    };
    match end {
        End::Closed => guard.finished = true,
        End::Idle => {
            // Nothing waits in the socket, so close_notify finds room there at once.
            let _ = timeout(Duration::ZERO, guard.redis.shutdown()).await;
            guard.finished = true;
        }
        // What was sent before the failure is delivered before the reset.
        End::Reset(Side::App, _) => {
            let last_words = deliver_to_redis(guard.redis);
            let _ = timeout(tunnel.settings.drain_timeout, last_words).await;
        }
        End::Reset(Side::Redis, _) => {
            let _ = timeout(tunnel.settings.drain_timeout, acknowledged(guard.app)).await;
        }
    }
    drop(guard);
    let duration_ms = started.elapsed().as_millis() as u64;
    info!(
        at = "connection-closed",
        var = tunnel.variable(),
        peer = %peer,
        upstream = %tunnel.plan.upstream,
        address,
        sent,
        received,
        duration_ms,
        reason,
        error = (!error.is_empty()).then_some(error),
    );
}

/// Waits until the peer's kernel has all that was written.
async fn acknowledged(stream: &TcpStream) {
    while unacknowledged(stream) > 0 {
        sleep(FLUSH_CHECK).await;
    }
}

/// Waits until Redis has worked off what the app had sent before it broke off: until it has all, and
/// sends no more replies. A reset that came earlier would make Redis fail to reply, and drop requests
/// that it has not read yet.
async fn deliver_to_redis(redis: &mut TlsUpstream) {
    acknowledged(redis.tcp()).await;
    let mut ignored = [0; 4096];
    while let Ok(Ok(1..)) = timeout(QUIET, redis.read(&mut ignored)).await {}
}

/// Resets both ends unless the relay came to a good end: a failure, a panic or a drain that took too
/// long must not look like a clean end of stream.
struct ResetOnDrop<'a> {
    app: &'a mut TcpStream,
    redis: &'a mut TlsUpstream,
    finished: bool,
}

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if !self.finished {
            reset_on_close(self.app);
            reset_on_close(self.redis.tcp());
        }
    }
}
