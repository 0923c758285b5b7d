//! Tests faults of name lookups and of the network.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use socket2::{Socket, TcpKeepalive};
use tempfile::NamedTempFile;

use crate::support::launcher::{Launcher, logged, with_hosts};
use crate::support::peer::Peer;
use crate::support::proc::sockets_of;
use crate::support::resp::Reply;
use crate::support::rest;
use crate::support::servers::{Front, Options, Server, info};
use crate::support::slow_link::SlowLink;
use crate::support::wait_until;
use crate::{Scene, fault};

/// Writes `content` to a file. Returns the file, and a launcher that sees the file as /etc/hosts.
/// Returns `None` if the test must be skipped.
fn with_names(content: &str) -> Option<(NamedTempFile, Launcher)> {
    let hosts = NamedTempFile::new().unwrap();
    let launcher = with_hosts(hosts.path(), content)?;
    Some((hosts, launcher))
}

#[test]
fn each_new_connection_looks_up_the_host_name() {
    fault!("Redis's host name does not resolve; later it does");
    fault!("a fail-over moves Redis's host name to another address");
    let Some((hosts, launcher)) = with_names("127.0.0.1 localhost\n") else { return };
    // The server sends the address at which the launcher reached it.
    let peer = Peer::tls_on(TcpListener::bind(("0.0.0.0", 0)).unwrap(), |mut tls| {
        let address = tls.get_ref().local_addr().unwrap().ip().to_string();
        tls.write_all(address.as_bytes()).unwrap();
    });
    let held = launcher.redis(&format!("rediss://redis.test:{}", peer.port)).start_held();
    for _ in 0..3 {
        assert_eq!(rest(&mut held.tcp()), (vec![], None));
    }
    for address in ["127.0.0.1", "127.0.0.2"] {
        fs::write(&hosts, format!("{address} redis.test\n")).unwrap();
        assert_eq!(rest(&mut held.tcp()).0, address.as_bytes());
    }
    let log = held.finish().stderr;
    let errors = logged(&log, "connection-failed", "error");
    assert!(errors.len() == 3 && errors[0].contains("name lookup failed"), "{errors:?}");
    assert!(
        logged(&log, "connection-failed", "hint")[0].contains("check the host name in REDIS_URL")
    );
}

#[test]
fn one_live_address_of_a_host_name_is_enough() {
    fault!("Redis's host name has a dead address and a live address");
    let Some(mut link) = SlowLink::make(&[]) else { return };
    link.order("cut");
    // The first address refuses connections, the second discards every packet, and the third works.
    let addresses =
        format!("127.0.0.3 redis.test\n{} redis.test\n127.0.0.2 redis.test\n", link.address);
    let Some((_hosts, launcher)) = with_names(&addresses) else { return };
    let live = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let port = live.local_addr().unwrap().port();
    let _live = Peer::tls_on(live, |mut tls| tls.write_all(b"alive").unwrap());
    let held = launcher.redis(&format!("rediss://redis.test:{port}")).start_held();
    for _ in 0..3 {
        assert_eq!(rest(&mut held.tcp()).0, b"alive");
    }
}

/// Calls pidfd_open(2) or pidfd_getfd(2). Returns the new descriptor, or `None` if the call fails.
fn pidfd_call(number: libc::c_long, first: i32, second: i32) -> Option<OwnedFd> {
    // SAFETY: both calls take numbers only, and the new descriptor has no other owner.
    unsafe {
        let descriptor = libc::syscall(number, first, second, 0);
        (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor as i32))
    }
}

/// Duplicates the descriptors of a process's TCP connections to this port.
fn connections_of(pid: i32, port: u16) -> Vec<Socket> {
    let process = pidfd_call(libc::SYS_pidfd_open, pid, 0).expect("a pidfd");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    descriptors
        .filter_map(|entry| {
            let number = entry.unwrap().file_name().to_str()?.parse().ok()?;
            let copy = pidfd_call(libc::SYS_pidfd_getfd, process.as_raw_fd(), number)?;
            let socket = Socket::from(copy);
            (socket.peer_addr().ok()?.as_socket()?.port() == port).then_some(socket)
        })
        .collect()
}

#[test]
fn redis_host_disappears() {
    fault!("Redis's host disappears");
    let Some(mut link) = SlowLink::make(&[]) else { return };
    let options = Options { link: Some(&link), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let mut scene = Scene::new(&server.url());
    let mut waiting = scene.held.client();
    waiting.send(&["BLPOP", "nothing", "0"]);
    let mut idle = scene.held.client();
    wait_until("Redis has the request", || {
        info(&mut idle, "clients", "blocked_clients") == Some(1)
    });
    // The kernel sends no keepalive probes while bytes are unacknowledged.
    let upstream = format!(":{:04X}", server.tls_port());
    wait_until("the other host has acknowledged all bytes", || {
        let sockets = sockets_of(scene.pid());
        let mut ours = sockets.iter().filter(|(_, columns)| columns[2].ends_with(&upstream));
        ours.all(|(_, columns)| columns[4].starts_with("00000000:"))
    });
    link.order("cut");
    // With the launcher's settings, the kernel needs two minutes to notice that the other host is
    // gone. Shorten this time for the test.
    let seconds = Duration::from_secs;
    let soon = TcpKeepalive::new().with_time(seconds(1)).with_interval(seconds(1));
    let connections = connections_of(scene.pid(), server.tls_port());
    assert_eq!(connections.len(), 2);
    for connection in connections {
        assert!(connection.keepalive().unwrap());
        assert_eq!(connection.tcp_keepalive_time().unwrap(), seconds(60));
        assert_eq!(connection.tcp_keepalive_interval().unwrap(), seconds(15));
        assert_eq!(connection.tcp_keepalive_retries().unwrap(), 4);
        connection.set_tcp_keepalive(&soon).unwrap();
    }
    for mut client in [waiting, idle] {
        assert_eq!(client.reply().expect_err("no reply").kind(), ErrorKind::ConnectionReset);
    }
    scene.others_go_on();
    link.order("mend");
    assert_eq!(scene.held.client().ask(&["PING"]), Reply::line("+PONG"));
    let log = scene.aftermath();
    let errors = logged(&log, "connection-closed", "error");
    assert_eq!(errors.iter().filter(|error| error.contains("timed out")).count(), 2, "{log}");
}

#[test]
fn network_is_slow_and_lossy() {
    fault!("the network loses 5 % of the packets, and delays packets by 100 ms");
    let options = ["--delay-ms", "100", "--loss", "5"];
    let Some(link) = SlowLink::make(&options) else { return };
    let options = Options { link: Some(&link), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let scene = Scene::new(&server.url());
    let value: String = (0..100_000).map(|n: u32| char::from(b'a' + (n % 23) as u8)).collect();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (mut client, value) = (scene.held.client(), &value);
            scope.spawn(move || {
                let key = format!("key {n}");
                assert_eq!(client.ask(&["SET", &key, value]), Reply::line("+OK"));
                assert_eq!(client.ask(&["GET", &key]), Reply::bulk(value));
                let numbers: Vec<String> = (0..50).map(|n| n.to_string()).collect();
                numbers.iter().for_each(|number| client.send(&["ECHO", number]));
                for number in &numbers {
                    assert_eq!(client.reply().unwrap(), Reply::bulk(number));
                }
            });
        }
    });
    assert!(!scene.aftermath().contains("connection-failed"));
}
