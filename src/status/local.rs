//! The socket where `--status` finds a launcher: an abstract Unix socket named after the launcher's
//! pid (unix(7)).
//!
//! Such a socket has no file that could be left behind. It has no permissions either, so each side
//! asks the kernel for the user of the other side.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;

use nix::unistd::geteuid;
use socket2::Socket;
use tokio::net::UnixStream;

use super::Status;
use super::host::HostCheck;
use super::server::accept_all;
use crate::logging::debug;

/// The beginning of each launcher's socket name, after the NUL byte that makes it abstract. The pid
/// follows, and then a random number: containers that share a network share these names, but each
/// container has its own pids.
const PREFIX: &str = "start-stunnel/";

/// Answers `--status` of the same user or root, for ever.
pub async fn serve(status: Arc<Status>) {
    match bind() {
        Ok(socket) => accept_all(socket, status, HostCheck::Off).await,
        Err(error) => debug!(at = "status-not-local", error = %error),
    }
}

fn bind() -> io::Result<Socket> {
    let name = format!("{PREFIX}{}.{}", std::process::id(), fastrand::u32(..));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// Finds launchers' sockets in the text of /proc/net/unix (proc_net(5)), in the order of pids.
/// Returns each launcher's pid and the name of its socket.
pub fn launchers(sockets: &str) -> Vec<(i32, String)> {
    const LISTENS: &str = "00010000";
    let of_launcher = |line: &str| {
        // Num, RefCount, Protocol, Flags, Type, St, Inode, Path.
        let mut fields = line.split_ascii_whitespace().skip(3);
        let (flags, path) = (fields.next()?, fields.nth(3)?);
        let name = path.strip_prefix('@').filter(|_| flags == LISTENS)?;
        let (pid, number) = name.strip_prefix(PREFIX)?.split_once('.')?;
        number.parse::<u32>().ok()?;
        let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
        Some((pid, name.to_owned()))
    };
    let mut launchers: Vec<_> = sockets.lines().filter_map(of_launcher).collect();
    launchers.sort();
    launchers.dedup();
    launchers
}

/// True if `stream` leads to a process of this user with this pid.
///
/// Any process can bind any name. Containers that share a network see each other's sockets. For
/// those, the kernel reports another user or another pid: 0, which is no launcher's pid, stands for
/// a process in another pid namespace.
pub fn belongs_to_launcher(stream: &UnixStream, pid: i32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw() && peer.pid() == Some(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_found_among_all_sockets() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1234 @start-stunnel/112.3\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1235 @start-stunnel/7.1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1235 @start-stunnel/7.1\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1236 @start-stunnel/9.4\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1237\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1238 /run/start-stunnel/8.5\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1239 @start-stunnel/x.1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1239 @start-stunnel/0.1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1240 @start-stunnel/10.1@\n";
        let [first, second] = ["start-stunnel/7.1", "start-stunnel/112.3"].map(str::to_owned);
        assert_eq!(launchers(sockets), [(7, first), (112, second)]);
    }
}
