//! A connection (docs/operation.md), against real servers and servers that misbehave.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use openssl::sha::Sha256;
use openssl::ssl::{ShutdownState, SslStream};
use support::launcher::{Held, Launcher, logged, port_of, with_hosts};
use support::peer::{Gate, Peer};
use support::proc::sockets_of;
use support::resp::{Client, Reply, request};
use support::servers::{FRONTS, Front, PASSWORD, Server};
use support::{Process, eventually, reset, rest, two_free_ports};

const MIB: usize = 1024 * 1024;

#[test]
fn commands_of_every_kind_work_through_the_tunnel() {
    for front in FRONTS {
        let server = Server::start(front);
        let held = Launcher::hold(&server.url());
        let mut client = held.client();
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"), "{front:?}");
        assert_eq!(client.ask(&["SET", "k", "v"]), Reply::line("+OK"));
        assert_eq!(client.ask(&["GET", "k"]), Reply::bulk("v"));
        assert_eq!(
            server.direct().ask(&["GET", "k"]),
            Reply::bulk("v"),
            "the data is really there"
        );

        let pipeline: Vec<u8> = (0..10_000).flat_map(|_| request(&[b"INCR", b"n"])).collect();
        client.stream.get_mut().write_all(&pipeline).unwrap();
        for n in 1..=10_000 {
            assert_eq!(client.reply().unwrap(), Reply::line(&format!(":{n}")));
        }

        let mut subscriber = held.client();
        subscriber.ask(&["SUBSCRIBE", "news"]);
        assert_eq!(client.ask(&["PUBLISH", "news", "hello"]), Reply::line(":1"));
        let message = vec![Reply::bulk("message"), Reply::bulk("news"), Reply::bulk("hello")];
        assert_eq!(subscriber.reply().unwrap(), Reply::Array(message));

        let mut worker = held.client();
        worker.send(&["BLPOP", "jobs", "0"]);
        eventually("the worker blocks", || {
            let Reply::Bulk(info) = client.ask(&["INFO", "clients"]) else { panic!("no INFO") };
            String::from_utf8_lossy(&info).contains("blocked_clients:1").then_some(())
        });
        client.ask(&["RPUSH", "jobs", "job"]);
        let job = vec![Reply::bulk("jobs"), Reply::bulk("job")];
        assert_eq!(worker.reply().unwrap(), Reply::Array(job));
        drop((client, subscriber, worker));
        assert_eq!(held.finish().code(), 0);
    }
}

#[test]
fn rediss_urls_are_tunnelled_to_their_own_port() {
    let server = Server::start(Front::Redis);
    let url =
        format!("rediss://default:{PASSWORD}@localhost:{}/2?ssl_cert_reqs=none", server.tls_port());
    let held = Launcher::hold(&url);
    assert_eq!(held.url, format!("redis://default:{PASSWORD}@127.0.0.1:{}/2", held.port));
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn a_value_of_64_mib_comes_back_whole() {
    for front in FRONTS {
        let server = Server::start(front);
        let held = Launcher::hold(&server.url());
        let value: Vec<u8> = (0..64 * MIB).map(|n| (n * 31 % 251) as u8).collect();
        let mut client = held.client();
        client.stream.get_mut().write_all(&request(&[b"SET", b"big", &value])).unwrap();
        assert_eq!(client.reply().unwrap(), Reply::line("+OK"), "{front:?}");
        assert!(client.ask(&["GET", "big"]) == Reply::Bulk(value), "{front:?}: the value differs");
    }
}

#[test]
fn sixty_four_mib_go_both_ways_at_once_unchanged() {
    const TOTAL: usize = 64 * MIB;
    fn pattern(seed: usize, at: usize) -> Vec<u8> {
        (at..at + MIB).map(|n| (n.wrapping_mul(seed) >> 3) as u8).collect()
    }
    fn hash_of_pattern(seed: usize) -> [u8; 32] {
        let mut hash = Sha256::new();
        (0..TOTAL).step_by(MIB).for_each(|at| hash.update(&pattern(seed, at)));
        hash.finish()
    }
    fn hash_of(mut reader: impl Read) -> [u8; 32] {
        let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; 64 * 1024], TOTAL);
        while left > 0 {
            let read = reader.read(&mut buffer).unwrap();
            assert!(read > 0, "{left} bytes are missing");
            hash.update(&buffer[..read]);
            left -= read;
        }
        hash.finish()
    }
    // One TLS stream cannot be split over two threads: the peer writes what it can between reads.
    fn exchange(mut tls: SslStream<TcpStream>) -> [u8; 32] {
        tls.get_ref().set_nonblocking(true).unwrap();
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 * 1024]);
        let (mut received, mut sent) = (0, 0);
        let mut chunk = pattern(7, 0);
        while received < TOTAL || sent < TOTAL {
            let mut idle = true;
            match tls.read(&mut buffer) {
                Ok(0) => panic!("ended after {received} bytes"),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    received += read;
                    idle = false;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if sent < TOTAL {
                match tls.write(&chunk[sent % MIB..]) {
                    Ok(written) => {
                        sent += written;
                        idle = false;
                        if sent % MIB == 0 && sent < TOTAL {
                            chunk = pattern(7, sent);
                        }
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            if idle {
                thread::yield_now();
            }
        }
        hash.finish()
    }
    let peer = Peer::tls(exchange);
    let held = Launcher::hold(&peer.url());
    let app = held.tcp();
    let mut writer = app.try_clone().unwrap();
    let writing = thread::spawn(move || {
        (0..TOTAL).step_by(MIB).for_each(|at| writer.write_all(&pattern(3, at)).unwrap());
    });
    assert_eq!(hash_of(&app), hash_of_pattern(7), "from Redis to the app");
    writing.join().unwrap();
    assert_eq!(peer.result(), hash_of_pattern(3), "from the app to Redis");
}

#[test]
fn a_half_close_is_passed_on_and_the_answer_still_comes() {
    let peer = Peer::tls(|mut tls| {
        let (request, error) = rest(&mut tls);
        assert_eq!(error, None);
        assert!(tls.get_shutdown().contains(ShutdownState::RECEIVED), "close_notify came");
        tls.write_all(b"answer to ").unwrap();
        tls.write_all(&request).unwrap();
        tls.shutdown().unwrap();
    });
    let held = Launcher::hold(&peer.url());
    let mut app = held.tcp();
    app.write_all(b"question").unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut app), (b"answer to question".to_vec(), None));
    peer.result();
}

#[test]
fn after_redis_half_closes_the_app_can_still_write() {
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"goodbye").unwrap();
        tls.shutdown().unwrap();
        tls.get_ref().shutdown(Shutdown::Write).unwrap();
        rest(&mut tls)
    });
    let held = Launcher::hold(&peer.url());
    let mut app = held.tcp();
    assert_eq!(rest(&mut app), (b"goodbye".to_vec(), None));
    app.write_all(b"last words").unwrap();
    drop(app);
    assert_eq!(peer.result(), (b"last words".to_vec(), None));
}

#[test]
fn a_server_that_closes_without_close_notify_is_an_ordinary_end() {
    let peer = Peer::tls(|mut tls| tls.write_all(b"reply").unwrap());
    let held = Launcher::hold(&peer.url());
    let mut app = held.tcp();
    assert_eq!(rest(&mut app), (b"reply".to_vec(), None));
}

#[test]
fn a_server_reset_reaches_the_app_after_the_last_reply() {
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"reply").unwrap();
        let mut request = [0; 7];
        tls.read_exact(&mut request).unwrap();
        reset(tls.get_ref());
    });
    let held = Launcher::hold(&peer.url());
    let mut app = held.tcp();
    let mut reply = [0; 5];
    app.read_exact(&mut reply).unwrap();
    app.write_all(b"request").unwrap();
    assert_eq!(rest(&mut app), (vec![], Some(ErrorKind::ConnectionReset)));
}

#[test]
fn an_app_reset_reaches_redis_after_the_last_request() {
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"hello").unwrap();
        rest(&mut tls)
    });
    let held = Launcher::hold(&peer.url());
    let mut app = held.tcp();
    app.read_exact(&mut [0; 5]).unwrap();
    app.write_all(b"request").unwrap();
    reset(&app);
    drop(app);
    assert_eq!(peer.result(), (b"request".to_vec(), Some(ErrorKind::ConnectionReset)));
}

#[test]
fn a_damaged_record_reaches_the_app_as_a_reset() {
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"good").unwrap();
        let mut request = [0; 3];
        tls.read_exact(&mut request).unwrap();
        // An application data record whose authentication fails.
        tls.get_mut().write_all(b"\x17\x03\x03\x00\x20").unwrap();
        tls.get_mut().write_all(&[0x55; 32]).unwrap();
        rest(tls.get_mut());
    });
    let held = Launcher::hold(&peer.url());
    let mut app = held.tcp();
    app.read_exact(&mut [0; 4]).unwrap();
    app.write_all(b"ask").unwrap();
    assert_eq!(rest(&mut app), (vec![], Some(ErrorKind::ConnectionReset)));
}

#[test]
fn a_silent_connection_closes_after_the_idle_timeout() {
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"hi").unwrap();
        rest(&mut tls)
    });
    let idle = Launcher::holding(&peer.url()).env("STUNNEL_IDLE_TIMEOUT", "2s");
    let held = idle.start_held();
    let mut app = held.tcp();
    assert_eq!(rest(&mut app), (b"hi".to_vec(), None));
    assert_eq!(peer.result(), (vec![], None), "Redis sees a clean end, too");
}

#[test]
fn traffic_keeps_a_connection_open_beyond_the_idle_timeout() {
    let server = Server::start(Front::Redis);
    let timeout = Duration::from_secs(4);
    let idle = Launcher::holding(&server.url()).env("STUNNEL_IDLE_TIMEOUT", "4s");
    let held = idle.start_held();
    let mut client = held.client();
    let started = Instant::now();
    while started.elapsed() < timeout * 3 / 2 {
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
        thread::sleep(timeout / 40); // Load, not a wait: a ping now and then.
    }
}

#[test]
fn connections_close_while_redis_is_down_and_work_afterwards() {
    let server = Server::start(Front::Redis);
    let (url, port) = (server.url(), server.port);
    drop(server);
    let held = Launcher::hold(&url);
    for _ in 0..3 {
        let mut client = held.open();
        // The connection may be gone before the request is.
        let _ = client.stream.get_mut().write_all(&request(&[b"PING"]));
        let error = client.reply().expect_err("no reply");
        assert!(
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
            "{error}"
        );
    }
    let _server = eventually("the server is back", || Server::start_on(Front::Redis, port));
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));

    let log = held.finish().stderr;
    let errors = logged(&log, "connection-failed", "error");
    assert_eq!(errors, ["TCP connection failed: connection refused"; 3]);
    let hint = &logged(&log, "connection-failed", "hint")[0];
    for word in ["nothing listens", "has no TLS", "STUNNEL_ENABLED=false", "STUNNEL_PORT_OFFSET"] {
        assert!(hint.contains(word), "{hint}");
    }
}

#[test]
fn with_connect_retry_a_connection_waits_for_the_server() {
    let port = two_free_ports();
    let url = format!("redis://default:{PASSWORD}@127.0.0.1:{port}");
    let held = Launcher::holding(&url).env("STUNNEL_CONNECTION_RETRY", "yes").start_held();
    let mut client = held.open();
    client.send(&["AUTH", PASSWORD]);
    let _server = Server::start_on(Front::Redis, port).expect("the ports are still free");
    assert_eq!(client.reply().unwrap(), Reply::line("+OK"));
}

#[test]
fn a_name_with_a_dead_and_a_live_address_works() {
    // localhost is ::1 and 127.0.0.1 on most machines; the server listens on the latter alone.
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url().replace("127.0.0.1", "localhost"));
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn five_hundred_connections_at_once_each_get_their_own_replies() {
    for front in FRONTS {
        let server = Server::start(front);
        let held = Launcher::hold(&server.url());
        let mut clients: Vec<Client> = (0..500).map(|_| held.open()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(&["AUTH", PASSWORD]);
            client.send(&["ECHO", &format!("client {n}")]);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply().unwrap(), Reply::line("+OK"), "{front:?} {n}");
            assert_eq!(client.reply().unwrap(), Reply::bulk(&format!("client {n}")));
        }
        drop(clients);
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "connections"), ["500"]);
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"]);
    }
}

#[test]
fn what_the_app_wrote_right_before_it_ended_arrives() {
    for front in FRONTS {
        let server = Server::start(front);
        // Without replies: an app that ends with unread ones has its own kernel reset the
        // connection.
        let script = format!(
            "port=${{REDIS_URL##*:}}; port=${{port%%/*}}; exec 3<>/dev/tcp/127.0.0.1/$port; \
             printf 'AUTH {PASSWORD}\\r\\n' >&3; read -r ok <&3; \
             printf 'CLIENT REPLY OFF\\r\\n' >&3; \
             printf 'INCR n\\r\\n%.0s' $(seq 20000) >&3; exit 9"
        );
        let ended = Launcher::new(["bash", "-c", &script]).redis(&server.url()).run();
        assert_eq!(ended.code(), 9, "{front:?}");
        assert!(!ended.stderr.contains("drain-timeout"), "{front:?}: {}", ended.stderr);
        assert_eq!(server.direct().ask(&["GET", "n"]), Reply::bulk("20000"), "{front:?}");
    }
}

#[test]
fn a_drain_lasts_until_a_slow_server_has_taken_everything() {
    const WRITTEN: usize = 4 * MIB;
    let peer = Peer::tls(|mut tls| {
        thread::sleep(Duration::from_millis(300)); // A slow server, whose buffers fill meanwhile.
        rest(&mut tls)
    });
    let script = format!(
        "port=${{REDIS_URL##*:}}; exec 3<>/dev/tcp/127.0.0.1/$port; head -c {WRITTEN} /dev/zero >&3"
    );
    let ended = Launcher::new(["bash", "-c", &script]).redis(&peer.url()).run();
    assert_eq!(ended.code(), 0);
    let (received, error) = peer.result();
    assert_eq!((received.len(), error), (WRITTEN, None));
}

#[test]
fn a_drain_that_takes_too_long_ends_with_a_reset_and_a_warning() {
    let peer = Peer::tls(|tls| {
        // Takes nothing until the connection is gone.
        eventually("the connection is reset", || {
            match tls.get_ref().take_error() {
                Ok(None) => {
                    let mut poll = [nix::libc::pollfd {
                        fd: std::os::fd::AsRawFd::as_raw_fd(tls.get_ref()),
                        events: 0,
                        revents: 0,
                    }];
                    // SAFETY: one pollfd, and its count.
                    unsafe { nix::libc::poll(poll.as_mut_ptr(), 1, 0) };
                    (poll[0].revents & nix::libc::POLLERR != 0).then_some(())
                }
                _ => Some(()),
            }
        });
    });
    // As much as the kernel takes of the app, and does not take for a server that reads nothing.
    let script = "port=${REDIS_URL##*:}; exec 3<>/dev/tcp/127.0.0.1/$port; \
                  head -c 1048576 /dev/zero >&3; exit 4";
    let ended = Launcher::new(["bash", "-c", script])
        .redis(&peer.url())
        // Enough for the handshake, which may begin only now.
        .env("STUNNEL_DRAIN_TIMEOUT", "3s")
        .run();
    assert_eq!(ended.code(), 4);
    assert!(ended.stderr.contains("at=drain-timeout"), "{}", ended.stderr);
    peer.result();
}

#[test]
fn a_certificate_that_does_not_hold_is_told_to_the_app_in_resp() {
    let server = Server::start(Front::Redis);
    for level in ["ca", "full"] {
        let held = Launcher::holding(&server.url()).env("STUNNEL_VERIFY", level).start_held();
        for _ in 0..2 {
            let mut client = held.open();
            client.send(&["PING"]);
            let Reply::Line(line) = client.reply().unwrap() else { panic!("not a line") };
            assert!(line.starts_with("-ERR start-stunnel: "), "{line}");
            for word in [
                "self-signed certificate",
                "STUNNEL_VERIFY",
                &format!("127.0.0.1:{}", server.tls_port()),
            ] {
                assert!(line.contains(word), "{line}");
            }
            assert!(line.len() <= 300, "{line}");
            assert_eq!(client.reply().unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
        let log = held.finish().stderr;
        assert_eq!(
            logged(&log, "connection-refused", "error"),
            ["certificate check failed: self-signed certificate"; 2]
        );
    }
}

#[test]
fn a_server_without_tls_is_told_to_the_app_in_resp() {
    let redis = Server::start(Front::Redis);
    let greeter = Peer::tcp(|mut stream| {
        stream.write_all(b"220 smtp.example ESMTP ready, not TLS at all\r\n").unwrap();
        rest(&mut stream);
    });
    let plaintext_redis = format!("rediss://127.0.0.1:{}", redis.port);
    for url in [plaintext_redis, greeter.url()] {
        let held = Launcher::hold(&url);
        let mut client = held.open();
        client.send(&["PING"]);
        let Reply::Line(line) = client.reply().unwrap() else { panic!("not a line") };
        assert!(line.starts_with("-ERR start-stunnel: "), "{line}");
        assert!(line.contains("the server speaks no TLS"), "{line}");
    }
}

#[test]
fn an_outage_is_a_closed_connection_without_a_word() {
    let silent = Peer::tcp(|mut stream| rest(&mut stream).0.len());
    let resetting = Peer::tcp(|stream| reset(&stream));
    let closing = Peer::tcp(|mut stream| drop(stream.read(&mut [0; 16 * 1024])));
    let nobody = format!("rediss://127.0.0.1:{}", two_free_ports());
    let cases = [
        (silent.url(), "TLS handshake broke off: timed out"),
        (resetting.url(), "connection reset by the server"),
        (closing.url(), "TLS handshake broke off: the server closed the connection"),
        (nobody, "TCP connection failed: connection refused"),
        ("rediss://no-such-host.invalid".to_owned(), "name look-up failed: "),
    ];
    for (url, error) in cases {
        // Longer than the silence after which a plaintext Redis would be recognized.
        let held = Launcher::holding(&url).env("STUNNEL_CONNECT_TIMEOUT", "5s").start_held();
        let mut app = held.tcp();
        let (said, _) = rest(&mut app);
        assert_eq!(said, b"", "{error}");
        let log = held.finish().stderr;
        let logged = logged(&log, "connection-failed", "error");
        assert!(logged.len() == 1 && logged[0].contains(error), "{logged:?}");
    }
}

#[test]
fn a_failing_connection_harms_no_other() {
    let server = Server::start(Front::Redis);
    let broken = Peer::tls(|tls| reset(tls.get_ref()));
    let launcher = Launcher::script("echo $REDIS_URL; echo $OTHER_URL; exec cat >/dev/null")
        .redis(&server.url())
        .env("OTHER_URL", broken.url())
        .env("REDIS_STUNNEL_URLS", "REDIS_URL OTHER_URL");
    let mut held = launcher.start_held();
    let mut client = held.client();
    let other = port_of(&held.running.line());
    for n in 0..20 {
        rest(Client::open(other).stream.get_mut());
        assert_eq!(client.ask(&["INCR", "n"]), Reply::line(&format!(":{}", n + 1)));
    }
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

/// Asked to, sends a flood of TLS records of one byte each, all at once. Bulk comes first, so that
/// the kernel's buffers grow.
fn flood(mut stream: SslStream<Gate>) {
    stream.read_exact(&mut [0; 1]).unwrap();
    stream.write_all(&vec![0; BULK]).unwrap();
    stream.get_mut().close();
    for _ in 0..TINY_RECORDS {
        stream.write_all(b"x").unwrap();
    }
    let records = stream.get_mut().open();
    stream.get_mut().tcp.write_all(&records).unwrap();
    rest(&mut stream);
}

const BULK: usize = 64 * MIB;
const TINY_RECORDS: usize = 400_000;

#[test]
fn other_connections_go_on_beside_a_server_of_tiny_tls_records() {
    let server = Server::start(Front::Redis);
    let peer = Peer::gated(flood);
    let launcher = Launcher::script("echo $REDIS_URL; echo $OTHER_URL; exec cat >/dev/null")
        .redis(&server.url())
        .env("OTHER_URL", peer.url())
        .env("REDIS_STUNNEL_URLS", "REDIS_URL OTHER_URL");
    let mut held = launcher.start_held();
    let mut client = held.client();
    let other = port_of(&held.running.line());
    let mut flooded = Client::open(other).stream.into_inner();
    flooded.write_all(b"!").unwrap();
    let received = Arc::new(AtomicUsize::new(0));
    let counter = received.clone();
    let reading = thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while counter.load(Ordering::SeqCst) < BULK + TINY_RECORDS {
            let read = flooded.read(&mut buffer).unwrap();
            assert!(read > 0, "it ended early");
            counter.fetch_add(read, Ordering::SeqCst);
        }
    });
    let received = || received.load(Ordering::SeqCst);
    eventually("the flood", || (received() > BULK).then_some(()));
    let mut answered = 0;
    while received() < BULK + TINY_RECORDS {
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
        answered += 1;
    }
    reading.join().unwrap();
    // It is one reply if they wait for the end of what has arrived, and some hundred if not.
    assert!(answered >= 5, "{answered} replies while {TINY_RECORDS} records came");
}

#[test]
fn only_127_0_0_1_listens() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let sockets = sockets_of(held.running.pid());
    let addresses: Vec<_> =
        sockets.iter().map(|(table, columns)| format!("{table} {}", columns[1])).collect();
    assert_eq!(addresses, [format!("tcp 0100007F:{:04X}", held.port)]);
}

#[test]
fn keepalive_watches_over_the_connection_to_redis() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let mut client = held.client();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    let upstream = format!("0100007F:{:04X}", server.tls_port());
    // The timer column begins with 02 when the keepalive timer is the one that runs.
    eventually("the keepalive timer runs", || {
        let sockets = sockets_of(held.running.pid());
        let (_, columns) = sockets.iter().find(|(_, columns)| columns[2] == upstream)?;
        columns[5].starts_with("02:").then_some(())
    });
}

#[test]
fn small_messages_are_sent_at_once_on_both_sides() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let mut client = held.client();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    let pid = held.running.pid();
    let mut connections = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let number: i32 = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let Some(socket) = borrowed_socket(pid, number) else { continue };
        if socket.peer_addr().is_ok() {
            assert!(socket.tcp_nodelay().unwrap(), "descriptor {number}");
            connections += 1;
        }
    }
    assert_eq!(connections, 2, "one with the app, one with Redis");
}

/// A TCP socket of another process, by pidfd_getfd(2); `None` when the descriptor is something
/// else.
fn borrowed_socket(pid: i32, descriptor: i32) -> Option<socket2::Socket> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
    link.to_str()?.strip_prefix("socket:")?;
    let open = |call, first: i32, second: i32| {
        // SAFETY: pidfd_open(2) and pidfd_getfd(2) take numbers, and return a descriptor that is
        // ours.
        unsafe {
            let fd = nix::libc::syscall(call, first, second, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd as i32)
        }
    };
    let process = open(nix::libc::SYS_pidfd_open, pid, 0);
    let socket: socket2::Socket =
        open(nix::libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor).into();
    (socket.r#type().ok()? == socket2::Type::STREAM
        && socket.domain().ok()? == socket2::Domain::IPV4)
        .then_some(socket)
}

#[test]
fn a_live_address_works_behind_a_dead_one_of_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let addresses = "127.0.0.3 redis.test\n127.0.0.2 redis.test\n";
    let Some(launcher) = with_hosts(&hosts, addresses) else { return };
    let live = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let port = live.local_addr().unwrap().port();
    let _live = Peer::tls_on(live, |mut tls| tls.write_all(b"alive").unwrap());
    let held = launcher.redis(&format!("rediss://redis.test:{port}")).start_held();
    assert_eq!(rest(held.open().stream.get_mut()).0, b"alive");
}

#[test]
fn a_redis_at_an_ipv6_address_is_reached() {
    let Ok(listener) = TcpListener::bind(("::1", 0)) else {
        support::skip("no IPv6 loopback here");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let _peer = Peer::tls_on(listener, |mut tls| tls.write_all(b"six").unwrap());
    let held = Launcher::hold(&format!("rediss://[::1]:{port}/4"));
    assert_eq!(held.url, format!("redis://127.0.0.1:{}/4", held.port));
    assert_eq!(rest(held.open().stream.get_mut()).0, b"six");
}

#[test]
fn passthrough_leaves_a_tls_url_to_the_app() {
    let ended = Launcher::script("echo $REDIS_URL; echo ${REDIS_URL_STUNNEL-unset}")
        .redis("rediss://:pw@h:6379/1")
        .env("STUNNEL_REDISS", "passthrough")
        .run();
    assert_eq!(ended.stdout, "rediss://:pw@h:6379/1\nunset\n");
    assert!(!ended.stderr.contains("tunnel-up"), "{}", ended.stderr);
}

#[test]
fn a_taken_port_falls_back_to_another_and_says_so() {
    let server = Server::start(Front::Redis);
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let launcher = Launcher::holding(&server.url()).env("STUNNEL_LISTEN_PORT", port.to_string());
    let held = launcher.start_held();
    assert_ne!(held.port, port);
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    let fallback = held.port.to_string();
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "port-taken", "wanted"), [port.to_string()]);
    assert_eq!(logged(&log, "port-taken", "port"), [fallback]);
}

#[test]
fn tunnels_take_consecutive_ports_from_the_first_on() {
    let server = Server::start(Front::Redis);
    // Another test may take the ports between the look and the launch: then the next pair is tried.
    eventually("consecutive ports", || {
        let first = two_free_ports();
        let ended = Launcher::script("echo $A; echo $B")
            .env("A", server.url())
            .env("B", format!("rediss://127.0.0.1:{}/1", server.port))
            .env("REDIS_STUNNEL_URLS", "A B")
            .env("STUNNEL_LISTEN_PORT", first.to_string())
            .run();
        if ended.stderr.contains("at=port-taken") {
            return None;
        }
        let expected = format!(
            "redis://default:{PASSWORD}@127.0.0.1:{first}/0\nredis://127.0.0.1:{}/1\n",
            first + 1
        );
        assert_eq!(ended.stdout, expected);
        Some(())
    });
}

#[test]
fn without_a_pool_only_the_apps_own_bytes_are_sent() {
    let peer = Peer::tls(|mut tls| rest(&mut tls));
    let held = Launcher::holding(&peer.url()).env("STUNNEL_POOL", "off").start_held();
    let app = held.tcp();
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.result(), (vec![], None));
}

#[test]
fn a_url_whose_port_speaks_tls_itself_is_said_to_want_rediss() {
    let port = two_free_ports();
    let held = Launcher::holding(&format!("redis://localhost:{port}")).start_held();
    assert!(held.open().reply().is_err());
    let hint = logged(&held.finish().stderr, "connection-failed", "hint").remove(0);
    let tls = port + 1;
    let expected = format!(
        "nothing listens on localhost:{tls}. {tls} is the URL's port + 1: if {port} itself speaks \
         TLS, write rediss://"
    );
    assert!(hint.starts_with(&expected), "{hint}");
}

#[test]
fn an_unanswered_lone_connection_hint_counts_no_others() {
    // As stunnel does whose Redis is down, but never before it has the request.
    let request = request(&[b"PING"]);
    let length = request.len();
    let closing = Peer::tls(move |mut tls| tls.read_exact(&mut vec![0; length]).unwrap());
    let held = Launcher::holding(&closing.url()).env("STUNNEL_POOL", "off").start_held();
    let mut client = held.open();
    client.stream.get_mut().write_all(&request).unwrap();
    assert!(client.reply().is_err());
    closing.result();
    drop(client);
    let hint = logged(&held.finish().stderr, "connection-unanswered", "hint").remove(0);
    assert!(hint.starts_with("Redis may be down"), "{hint}");
    assert!(!hint.contains("other connection"), "{hint}");
}

#[test]
fn redis_cli_sees_what_it_would_see_without_a_tunnel() {
    let server = Server::start(Front::Redis);
    let ended = Launcher::script("redis-cli --no-auth-warning -u \"$REDIS_URL\" set k v; exit 7")
        .redis(&server.url())
        .run();
    assert_eq!((ended.stdout.as_str(), ended.code()), ("OK\n", 7), "{}", ended.stderr);
    let cli = Command::new("redis-cli")
        .args(["-p", &server.port.to_string(), "-a", PASSWORD, "get", "k"])
        .output();
    assert_eq!(cli.unwrap().stdout, b"v\n");
}

/// A client of which we know that it speaks TLS to `port`; it has no time limit of its own.
fn redis_py_with_ssl(port: u16) -> Command {
    let script = format!(
        "import redis\n\
         try:\n    \
             redis.Redis('127.0.0.1', {port}, ssl=True, ssl_cert_reqs='none').ping()\n\
         except redis.ConnectionError as error:\n    \
             print('could not connect:', error)"
    );
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", &script]);
    python
}

fn s_client(port: u16) -> Command {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]);
    openssl
}

/// What a client prints until it ends.
fn output_of(mut client: Command) -> String {
    client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(client.spawn().unwrap());
    process.wait();
    let (mut output, mut errors) = (String::new(), String::new());
    process.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    process.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    output + &errors
}

/// How a ClientHello begins; the rest does not matter.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[test]
fn a_tls_app_fails_at_once_and_the_log_says_what_to_remove() {
    // A slow machine finds out before the handshake with Redis is done.
    let peer = Peer::unless_left(|mut tls| rest(&mut tls));
    let held = Launcher::holding(&peer.url()).env("STUNNEL_LOGLEVEL", "info").start_held();
    let said = output_of(redis_py_with_ssl(held.port));
    assert!(said.contains("could not connect: ") && said.contains("TLS/SSL"), "{said}");
    let said = output_of(s_client(held.port));
    assert!(said.contains("unexpected eof"), "{said}");
    for _ in 0..2 {
        let seen = peer.result().unwrap_or_default();
        assert_eq!(seen, (vec![], None), "no byte reaches Redis, which sees a clean end");
    }
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"; 2], "{log}");
    for client in ["redis-py", "ssl=True", "tls: {}", "socket.tls", "ssl_params", "rediss://"] {
        assert!(logged(&log, "app-speaks-tls", "msg")[0].contains(client), "{client}: {log}");
    }
    assert!(logged(&log, "app-speaks-tls", "peer")[0].starts_with("127.0.0.1:"), "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "no failure of Redis's");
    assert_eq!(logged(&log, "command-ended", "sent"), ["0"]);
}

#[test]
fn a_tls_app_fails_at_once_even_if_redis_is_silent() {
    let silent = Peer::tcp(|mut stream| rest(&mut stream).0.len());
    let launcher = Launcher::holding(&silent.url());
    let held = launcher.env("STUNNEL_CONNECT_TIMEOUT", "1h").start_held();
    let said = output_of(redis_py_with_ssl(held.port));
    assert!(said.contains("could not connect: ") && said.contains("TLS/SSL"), "{said}");
    silent.result();
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn a_tls_app_gets_no_resp_error_when_redis_is_misconfigured() {
    let peer = Peer::tls(|_| ());
    let launcher = Launcher::holding(&peer.url()).env("STUNNEL_VERIFY", "full");
    let held = launcher.start_held();
    let mut app = held.tcp();
    // Until its certificate is known: earlier, it would be known first how the app speaks.
    peer.result();
    app.write_all(CLIENT_HELLO).unwrap();
    assert_eq!(rest(&mut app), (vec![], None));
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "connection-refused", "var"), ["REDIS_URL"], "{log}");
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
}

/// Sends these bytes one by one, and returns what the app reads to the end.
fn byte_by_byte(held: &Held, bytes: &[u8]) -> Vec<u8> {
    let mut app = held.tcp();
    for byte in bytes {
        app.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(20)); // So that it is read alone, most of the time.
    }
    // A ClientHello is hung up on before this.
    let _ = app.shutdown(Shutdown::Write);
    rest(&mut app).0
}

#[test]
fn a_client_hello_is_noticed_byte_by_byte() {
    let peer = Peer::unless_left(|mut tls| rest(&mut tls));
    let held = Launcher::hold(&peer.url());
    assert_eq!(byte_by_byte(&held, b"\x16*"), b"");
    assert_eq!(peer.result(), Some((b"\x16*".to_vec(), None)));
    assert_eq!(byte_by_byte(&held, b"\x16\x03"), b"");
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
}

#[test]
fn a_vanished_subscriber_is_noticed_while_messages_keep_coming() {
    let server = Server::start(Front::Redis);
    let held = Launcher::holding(&server.url()).env("STUNNEL_DRAIN_TIMEOUT", "1h").start_held();
    let mut subscriber = held.client();
    subscriber.ask(&["SUBSCRIBE", "news"]);
    reset(subscriber.stream.get_ref());
    drop(subscriber);
    let mut direct = server.direct();
    // Each message comes before the one before it has been silent for long.
    eventually("Redis has no subscriber left", || {
        (direct.ask(&["PUBLISH", "news", "x"]) == Reply::line(":0")).then_some(())
    });
    held.finish();
}
