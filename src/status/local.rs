//! The abstract Unix socket (unix(7)) through which `--status` finds a launcher. The socket's name
//! contains the launcher's pid.
//!
//! An abstract socket has no file, so the socket disappears when the launcher ends. The socket has
//! no permissions either, so the launcher and `--status` each ask the kernel which user runs the
//! other process.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;

use nix::unistd::geteuid;
use tokio::net::UnixStream;

use super::{Status, StatusListener, server};
use crate::logging::debug;

/// The beginning of the name of each launcher's socket. The rest of the name is the launcher's pid
/// and a random number. Without the random number, names could collide: containers that share a
/// network also share the names of sockets, and launchers in different containers may have the same
/// pid.
const PREFIX: &str = "start-stunnel/";

/// Answers requests of `--status`, until the launcher ends. Only this launcher's user and root get
/// answers.
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
/// the name of the launcher's socket, sorted by pid.
pub fn launchers(sockets: &str) -> Vec<(i32, String)> {
    const LISTENS: &str = "00010000";
    let of_launcher = |line: &str| {
        // Each line has the fields Num, RefCount, Protocol, Flags, Type, St, Inode and Path.
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

/// True if this user runs the process at the other end of `stream`, and the process has the pid
/// `pid`.
///
/// This check is necessary because any process can bind a socket with a launcher's name. For a
/// process that is invisible in this pid namespace, such as a process in another container, the
/// kernel reports the pid 0, so the check fails.
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
