//! The socket where `--status` finds a launcher: an abstract Unix socket named after the launcher's
//! pid (unix(7)).
//!
//! Such a socket has no file that could be left behind. It has no permissions either, so each side
//! asks the kernel for the user of the other side.

use std::io;
use std::sync::Arc;

use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use super::Status;
use super::host::HostCheck;
use super::server::{Listener, accept_all};
use crate::logging::debug;

/// The beginning of each launcher's socket name, after the NUL byte that makes it abstract.
const PREFIX: &str = "start-stunnel/";
/// The number of launchers that may have the same pid. Containers that share a network share these
/// names, but each container has its own pids.
const NAMESAKES: u32 = 16;
const BACKLOG: i32 = 128;

/// Answers `--status` of the same user or root, for ever.
pub async fn serve(status: Arc<Status>) {
    match bind(std::process::id()) {
        Ok(listener) => accept_all(Listener::Unix(listener), status, HostCheck::Off).await,
        Err(error) => debug!(at = "status-not-local", error = %error),
    }
}

fn bind(pid: u32) -> io::Result<UnixListener> {
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for namesake in 0..NAMESAKES {
        let name = match namesake {
            0 => format!("{PREFIX}{pid}"),
            more => format!("{PREFIX}{pid}.{more}"),
        };
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match socket.bind(&address(&name)?) {
            Ok(()) => {
                socket.listen(BACKLOG)?;
                socket.set_nonblocking(true)?;
                return UnixListener::from_std(socket.into());
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

fn address(name: &str) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{name}"))
}

/// Connects to the socket with this name.
///
/// # Errors
/// Those of connect(2): EAGAIN if the launcher's queue is full.
pub fn connect(name: &str) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&address(name)?)?;
    UnixStream::from_std(socket.into())
}

/// Finds the names of launchers' sockets in the text of /proc/net/unix (proc_net(5)), in the order
/// of pids.
pub fn names(sockets: &str) -> Vec<String> {
    const LISTENS: &str = "00010000";
    let of_launcher = |line: &str| {
        // Num, RefCount, Protocol, Flags, Type, St, Inode, Path.
        let mut fields = line.split_ascii_whitespace().skip(3);
        let (flags, path) = (fields.next()?, fields.nth(3)?);
        let name = path.strip_prefix('@').filter(|_| flags == LISTENS)?;
        let number = name.strip_prefix(PREFIX)?;
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        is_number.then(|| name.to_owned())
    };
    let mut names: Vec<String> = sockets.lines().filter_map(of_launcher).collect();
    names.sort_by_key(|name| (number_of(name), name.clone()));
    names.dedup();
    names
}

/// The pid in the name of a launcher's socket, with the number after it if there is one.
pub fn pid_of(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn number_of(name: &str) -> Option<u32> {
    pid_of(name).split('.').next()?.parse().ok()
}

/// True if the listener belongs to this user, and is the process that the socket is named after.
///
/// Any process can bind any name. Containers that share a network see each other's sockets. For
/// those, the kernel reports another user or pid (0 for a process in another pid namespace).
pub fn belongs_to_launcher(stream: &UnixStream, name: &str) -> bool {
    stream.peer_cred().is_ok_and(|peer| {
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        peer.uid() == geteuid().as_raw() && pid.is_some() && pid == number_of(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_found_among_all_sockets() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1234 @start-stunnel/112\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1235 @start-stunnel/7\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1235 @start-stunnel/7.1\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1236 @start-stunnel/9\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1237\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1238 /run/start-stunnel/8\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1239 @start-stunnel/x\n";
        assert_eq!(names(sockets), ["start-stunnel/7", "start-stunnel/7.1", "start-stunnel/112"]);
        assert_eq!(pid_of("start-stunnel/7.1"), "7.1");
        assert_eq!(number_of("start-stunnel/7.1"), Some(7));
    }
}
