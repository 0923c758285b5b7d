//! The abstract Unix socket (unix(7)) through which `--status` finds a launcher. The socket's name
//! contains the launcher's pid.
//!
//! An abstract socket disappears together with the launcher, because the socket has no file. It has
//! no permissions either, so each side asks the kernel for the other side's user.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;

use nix::unistd::geteuid;
use tokio::net::UnixStream;

use super::{Status, StatusListener, server};
use crate::logging::debug;

/// The beginning of the socket's name. The launcher's pid follows, and then a random number:
/// containers that share a network also share the names of sockets, but launchers in different
/// containers may have the same pid.
const PREFIX: &str = "start-stunnel/";

/// Answers requests of `--status` from this launcher's user and from root, for ever.
pub async fn serve(status: Arc<Status>) {
    match bind() {
        Ok(listener) => server::serve(listener, status).await,
        Err(error) => debug!(at = "status-not-local", error = %error),
    }
}

fn bind() -> io::Result<StatusListener> {
    let name = format!("{PREFIX}{}.{}", std::process::id(), fastrand::u32(..));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    Ok(StatusListener::unix(listener.into(), Path::new(&name)))
}

/// Finds the launchers in the text of /proc/net/unix (proc_net(5)). Returns each launcher's pid and
/// the name of its socket, in the order of the pids.
pub fn launchers(sockets: &str) -> Vec<(i32, String)> {
    const LISTENS: &str = "00010000";
    let of_launcher = |line: &str| {
        // The fields are: Num, RefCount, Protocol, Flags, Type, St, Inode, Path.
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

/// True if the process at the other end of `stream` belongs to this user and has this pid.
///
/// This check is necessary because any process can bind a socket with a launcher's name. For a
/// process in another pid namespace, such as a container's, the kernel reports the pid 0.
pub fn belongs_to_launcher(stream: &UnixStream, pid: i32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw() && peer.pid() == Some(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_named_after_a_pid_are_launchers() {
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
