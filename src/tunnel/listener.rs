//! A listener is the local port or Unix socket of a tunnel. The launcher binds the listener before
//! COMMAND starts, and accepts connections until COMMAND has ended.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::unistd::mkdtemp;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop::consume_budget;
use tokio::time::sleep;

use super::app::{self, AppStream};
use super::drain::DrainGuard;
use super::failure::is_out_of_descriptors;
use super::socket::has_event;
use super::{Tunnel, hints};
use crate::figures::Event;
use crate::logging::warning;
use crate::system::socket::watch;
use crate::system::stream;

/// The most connections that wait in the kernel until the launcher accepts them. The system setting
/// net.core.somaxconn may lower this number (listen(2)).
const BACKLOG: i32 = 4096;
/// The most bytes in the path of a Unix socket, including the final NUL (sockaddr_un in unix(7)).
const MOST_PATH: usize = 108;
/// The highest socket number for which the launcher checks the length of the socket's path. The
/// launcher chooses a folder in which this path is short enough.
const LAST_SOCKET: usize = 999;
/// The pause after a failed accept(2). Without the pause, a lack of file descriptors would cause a
/// busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The value of the setting `--listen`: the kind of socket on which the launcher listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// The launcher listens on TCP ports of 127.0.0.1.
    Tcp,
    /// The launcher listens on Unix sockets that only the current user can reach.
    Unix,
}

/// The value of the setting `--port-taken`: the launcher's reaction if a local port is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortTaken {
    /// The launcher listens on another port, and puts that port into COMMAND's URL.
    Move,
    /// The launcher reports an error, and does not start COMMAND.
    Fail,
}

/// A bound TCP or Unix socket from which the launcher does not accept connections yet.
#[derive(Debug)]
pub struct Listener(Socket);

impl Listener {
    /// Binds `port` of 127.0.0.1, and returns the bound port. The kernel picks a port if `port` is
    /// 0, or if `port` is taken and `taken` is `Move`.
    ///
    /// # Errors
    /// If the kernel has no free port, if `port` is taken (EADDRINUSE), or if `port` is below 1024
    /// and needs privileges (EACCES).
    pub fn bind(port: u16, taken: PortTaken) -> io::Result<(Listener, u16)> {
        let listener = match listen(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && taken == PortTaken::Move => {
                listen(0)
            }
            other => other,
        }?;
        let bound = listener.local_addr()?.as_socket().map_or(port, |address| address.port());
        Ok((Listener(listener), bound))
    }
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // An earlier launcher's connections in TIME_WAIT must not block the port (socket(7)).
    socket.set_reuse_address(true)?;
    // Switch off Nagle's algorithm, so that a small reply does not wait until earlier replies are
    // acknowledged. Accepted connections inherit TCP_NODELAY from the listener.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn socket_name(index: usize) -> String {
    format!("redis{index}.sock")
}

/// A folder for the launcher's Unix sockets, which only the current user can enter. Dropping this
/// value removes the folder.
#[derive(Debug)]
pub struct SocketFolder(PathBuf);

impl SocketFolder {
    /// Makes the folder inside XDG_RUNTIME_DIR, or inside the folder for temporary files if the
    /// first attempt fails.
    ///
    /// # Errors
    /// Returns the error of the last attempt (mkdtemp(3)).
    pub fn make() -> io::Result<SocketFolder> {
        let mut tried = io::Error::from(io::ErrorKind::NotFound);
        for parent in socket_places(env::var_os("XDG_RUNTIME_DIR"), env::var_os("TMPDIR")) {
            match mkdtemp(&parent.join("start-stunnel-XXXXXX")) {
                Ok(folder) => return Ok(SocketFolder(folder)),
                Err(error) => tried = error.into(),
            }
        }
        Err(tried)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Binds the socket of the tunnel with this number, and returns the socket's path.
    ///
    /// # Errors
    /// If bind(2) fails, for example because the path has more than 107 bytes (unix(7)).
    pub fn bind(&self, index: usize) -> io::Result<(Listener, PathBuf)> {
        let (socket, path) = self.bind_named(&socket_name(index))?;
        Ok((Listener(socket), path))
    }

    /// Binds a socket with this name in the folder, and returns the socket and its path.
    ///
    /// # Errors
    /// If bind(2) fails, for example because the path has more than 107 bytes (unix(7)).
    pub fn bind_named(&self, name: &str) -> io::Result<(Socket, PathBuf)> {
        let path = self.0.join(name);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        // For additional safety, set the socket's mode regardless of the umask, although no other
        // user can enter the folder.
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok((socket, path))
    }
}

/// Returns the folders in which the folder for sockets can be made, the best folder first. Ignores
/// a relative XDG_RUNTIME_DIR (<https://specifications.freedesktop.org/basedir-spec/latest/>).
/// Treats an empty TMPDIR as unset. Skips folders in which a socket's path would be too long.
fn socket_places(runtime: Option<OsString>, temporary: Option<OsString>) -> Vec<PathBuf> {
    let runtime = runtime.map(PathBuf::from).filter(|path| path.is_absolute());
    let temporary = temporary.filter(|path| !path.is_empty()).unwrap_or_else(|| "/tmp".into());
    // `absolute` fails only if this process has no current working directory.
    let temporary = std::path::absolute(temporary).ok();
    let fits = |path: &PathBuf| {
        path.join("start-stunnel-XXXXXX").join(socket_name(LAST_SOCKET)).as_os_str().len()
            < MOST_PATH
    };
    [runtime, temporary].into_iter().flatten().filter(fits).collect()
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            warning!(at = "sockets-left", folder = %self.0.display(), error = %error);
        }
    }
}

/// Accepts app connections until COMMAND has ended. Runs `handle` for each connection, in a new
/// task. `handle` must drop its [`DrainGuard`] when the app has received everything.
///
/// # Errors
/// If the runtime cannot watch the listener.
pub async fn serve<H, F>(
    Listener(listener): Listener,
    tunnel: &Tunnel,
    mut guard: DrainGuard,
    handle: H,
) -> io::Result<()>
where
    H: Fn(AppStream, DrainGuard) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = watch(listener)?;
    let mut has_ended = false;
    loop {
        let accepted = if has_ended {
            // Accept the connections that COMMAND made just before it ended. Ask the kernel for
            // these connections, because the runtime may not know of them yet.
            accept(listener.get_ref())
        } else {
            tokio::select! {
                accepted = listener.async_io(Interest::READABLE, accept) => accepted,
                () = guard.command_ended() => {
                    has_ended = true;
                    continue;
                }
            }
        };
        match accepted {
            Ok(app) => drop(tokio::spawn(handle(app, guard.clone()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Try again later, because a file descriptor may become free when another connection
            // ends.
            Err(error) => after_failed_accept(tunnel, error).await,
        }
        // Let other tasks run, because a flood of connections must not stop the drain timer.
        consume_budget().await;
    }
}

/// Accepts a connection if two file descriptors are free; otherwise, the connection waits in the
/// kernel. The second descriptor is reserved for the connection to Redis, because a burst of app
/// connections could use up all descriptors.
fn accept(listener: &Socket) -> io::Result<AppStream> {
    let accepted = stream::reserve().and_then(|spare| {
        let (socket, address) = listener.accept()?;
        socket.set_nonblocking(true)?;
        let app = match address.as_socket() {
            Some(address) => app::Socket::Tcp(TcpStream::from_std(socket.into())?, address),
            None => app::Socket::Unix(UnixStream::from_std(socket.into())?),
        };
        Ok(AppStream::new(app, Some(spare)))
    });
    match accepted {
        // accept(2) and dup(2) report a lack of file descriptors even if no app connection waits.
        Err(error) if is_out_of_descriptors(&error) && !has_event(listener, PollFlags::POLLIN) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        accepted => accepted,
    }
}

/// Logs and counts a failed attempt to accept an app connection, and pauses before the next
/// attempt.
async fn after_failed_accept(tunnel: &Tunnel, error: io::Error) {
    // The app has closed its connection while the connection waited in the kernel (accept(2)).
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    let (reason, hint) = hints::accept_failed(&error);
    tunnel.figures.accept_failed(reason, error.to_string(), hint.to_owned());
    tunnel.warn(Event::AcceptFailed, Some(reason), &error.to_string(), hint);
    sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_sent_to_the_app_at_once() {
        let (Listener(listener), port) = Listener::bind(0, PortTaken::Fail).unwrap();
        let _app = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap());
    }

    #[test]
    fn places_for_sockets_have_absolute_and_short_paths() {
        let long = format!("/{}", "x".repeat(80));
        let cases: [(Option<&str>, Option<&str>, &[&str]); 7] = [
            (None, None, &["/tmp"]),
            (Some("/run/user/1"), None, &["/run/user/1", "/tmp"]),
            (Some("run"), Some("/t"), &["/t"]),
            (Some(""), Some(""), &["/tmp"]),
            (Some(&long), Some("/t"), &["/t"]),
            (Some("/r"), Some(&long), &["/r"]),
            (Some(&long), Some(&long), &[]),
        ];
        for (runtime, temporary, expected) in cases {
            let places = socket_places(runtime.map(OsString::from), temporary.map(OsString::from));
            assert_eq!(places, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
        }
        let relative = socket_places(None, Some("t".into()));
        assert_eq!(relative, [env::current_dir().unwrap().join("t")]);
    }
}
