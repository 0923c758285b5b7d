//! Tests connections through the tunnel, to real servers and to servers that misbehave.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use openssl::ssl::{ShutdownState, SslStream, SslVersion};
use support::launcher::{HOLD_TWO, Launcher, logged};
use support::peer::{Gate, Peer, acceptor};
use support::proc::sockets_of;
use support::resp::{Client, Reply, request};
use support::servers::{FRONTS, Front, PASSWORD, Server, info};
use support::{eventually, reset, rest, two_free_ports, wait_until};

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
        assert_eq!(server.direct().ask(&["GET", "k"]), Reply::bulk("v"), "the value is in Redis");

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
        wait_until("the worker blocks", || {
            info(&mut client, "clients", "blocked_clients") == Some(1)
        });
        client.ask(&["RPUSH", "jobs", "job"]);
        let job = vec![Reply::bulk("jobs"), Reply::bulk("job")];
        assert_eq!(worker.reply().unwrap(), Reply::Array(job));
        drop((client, subscriber, worker));
        assert_eq!(held.finish().code(), 0);
    }
}

#[test]
fn sixty_four_mib_pass_both_ways_at_once_unchanged() {
    const VALUES: u8 = 64;
    fn value(number: u8) -> Vec<u8> {
        (0..MIB).map(|n| (n.wrapping_mul(usize::from(number) + 3) >> 3) as u8).collect()
    }
    for front in FRONTS {
        let server = Server::start(front);
        let held = Launcher::hold(&server.url());
        let mut client = held.client();
        let mut writer = client.stream.get_ref().try_clone().unwrap();
        let writing = thread::spawn(move || {
            (0..VALUES).for_each(|n| writer.write_all(&request(&[b"ECHO", &value(n)])).unwrap());
        });
        for number in 0..VALUES {
            assert!(client.reply().unwrap() == Reply::Bulk(value(number)), "{front:?} {number}");
        }
        writing.join().unwrap();
    }
}

#[test]
fn a_half_closed_app_still_gets_its_answer() {
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
fn bytes_written_just_before_command_ends_reach_redis() {
    for front in FRONTS {
        let server = Server::start(front);
        // Switch replies off: if an app ends with unread replies, the kernel resets its connection.
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
fn the_drain_waits_until_a_slow_server_has_read_everything() {
    const WRITTEN: usize = 4 * MIB;
    let peer = Peer::tls(|mut tls| {
        thread::sleep(Duration::from_millis(300)); // Meanwhile, all buffers fill.
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
        // Reads no bytes until the connection is reset.
        eventually("the connection is reset", || {
            let mut watched = [PollFd::new(tls.get_ref().as_fd(), PollFlags::empty())];
            poll(&mut watched, PollTimeout::ZERO).unwrap();
            watched[0].revents()?.contains(PollFlags::POLLERR).then_some(())
        });
    });
    // The kernel and the launcher can buffer this many bytes of the app, but cannot send these
    // bytes to a server that does not read.
    let script = "port=${REDIS_URL##*:}; exec 3<>/dev/tcp/127.0.0.1/$port; \
                  head -c 1048576 /dev/zero >&3; exit 4";
    let ended = Launcher::new(["bash", "-c", script])
        .redis(&peer.url())
        // The drain must last longer than the handshake, because the handshake may begin only after
        // COMMAND's end.
        .env("STUNNEL_DRAIN_TIMEOUT", "3s")
        .run();
    assert_eq!(ended.code(), 4);
    assert!(ended.stderr.contains("at=drain-timeout"), "{}", ended.stderr);
    peer.result();
}

/// Waits for one byte from the app, and then sends bulk data, which makes the kernel's buffers
/// grow. After the bulk data, sends a flood of one-byte TLS records.
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
fn a_flood_of_tiny_tls_records_does_not_block_others() {
    let server = Server::start(Front::Redis);
    let peer = Peer::gated(flood);
    let (held, other) = Launcher::script(HOLD_TWO).start_two(&server.url(), &peer.url());
    let mut client = held.client();
    let mut flooded = Client::open(other).stream.into_inner();
    flooded.write_all(b"!").unwrap();
    let received = Arc::new(AtomicUsize::new(0));
    let counter = received.clone();
    let reading = thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while counter.load(Ordering::SeqCst) < BULK + TINY_RECORDS {
            let read = flooded.read(&mut buffer).unwrap();
            assert!(read > 0, "the stream ended early");
            counter.fetch_add(read, Ordering::SeqCst);
        }
    });
    let received = || received.load(Ordering::SeqCst);
    wait_until("the flood begins", || received() > BULK);
    let mut answered = 0;
    while received() < BULK + TINY_RECORDS {
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
        answered += 1;
    }
    reading.join().unwrap();
    // If the flood blocked the client, the client would get only one reply. Otherwise the client
    // gets hundreds of replies.
    assert!(answered >= 5, "{answered} replies while {TINY_RECORDS} records came");
}

#[test]
fn each_request_gets_an_error_if_the_server_is_refused() {
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::tcp(move |stream| drop(acceptor.accept(stream)));
    let held = Launcher::holding(&peer.url()).env("STUNNEL_VERIFY", "full").start_held();
    let mut client = held.open();
    client.send(&["PING"]);
    client.send(&["PING"]);
    for _ in 0..2 {
        let Reply::Line(line) = client.reply().unwrap() else { panic!("not a line") };
        assert!(line.starts_with("-ERR start-stunnel: 127.0.0.1:"), "{line}");
    }
    assert_eq!(client.reply().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(peer.accepted(), 1, "the launcher needs no second connection to find the reason");
}

#[test]
fn the_launcher_listens_only_on_127_0_0_1() {
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let sockets = sockets_of(held.running.pid());
    let addresses: Vec<_> =
        sockets.iter().map(|(table, columns)| format!("{table} {}", columns[1])).collect();
    assert_eq!(addresses, [format!("tcp 0100007F:{:04X}", held.port)]);
}

#[test]
fn the_tunnel_reaches_a_redis_at_an_ipv6_address() {
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
fn if_the_local_port_is_taken_another_port_is_used_and_logged() {
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
fn tunnels_take_consecutive_ports_from_the_listen_port_on() {
    let server = Server::start(Front::Redis);
    // If another test takes the ports before the launch, try the next two ports.
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

/// Runs a Redis client that speaks TLS to `port` and has no time limit of its own. Returns the
/// client's output.
fn redis_py_with_ssl(port: u16) -> String {
    let script = format!(
        "import redis\n\
         try:\n    \
             redis.Redis('127.0.0.1', {port}, ssl=True, ssl_cert_reqs='none').ping()\n\
         except redis.ConnectionError as error:\n    \
             print('could not connect:', error)"
    );
    Launcher::of("/usr/bin/python3", ["-c", &script]).run().stdout
}

/// The beginning of a ClientHello.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[test]
fn a_tls_app_fails_at_once_and_the_log_says_what_to_remove() {
    // On a slow machine, the launcher notices the app's TLS during the handshake with Redis, and
    // closes the connection to Redis.
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::tcp(move |stream| acceptor.accept(stream).ok().map(|mut tls| rest(&mut tls)));
    let held = Launcher::holding(&peer.url()).env("STUNNEL_LOGLEVEL", "info").start_held();
    let said = redis_py_with_ssl(held.port);
    assert!(said.contains("could not connect: ") && said.contains("TLS/SSL"), "{said}");
    let seen = peer.result().unwrap_or_default();
    assert_eq!(seen, (vec![], None), "no byte reaches Redis, which sees a clean end");
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
    for client in ["redis-py", "ssl=True", "tls: {}", "socket.tls", "ssl_params", "rediss://"] {
        assert!(logged(&log, "app-speaks-tls", "hint")[0].contains(client), "{client}: {log}");
    }
    assert!(logged(&log, "app-speaks-tls", "error")[0].contains("127.0.0.1:"), "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "Redis has not failed");
    assert_eq!(logged(&log, "command-ended", "sent"), ["0"]);
}

#[test]
fn an_app_that_speaks_tls_gets_no_redis_error() {
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::tcp(move |stream| drop(acceptor.accept(stream)));
    let launcher = Launcher::holding(&peer.url()).env("STUNNEL_VERIFY", "full");
    let held = launcher.start_held();
    let mut app = held.tcp();
    // Wait until the launcher has rejected the certificate, before the app begins its handshake.
    peer.result();
    app.write_all(CLIENT_HELLO).unwrap();
    assert_eq!(rest(&mut app), (vec![], None));
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "connection-refused", "var"), ["REDIS_URL"], "{log}");
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
}

#[test]
fn a_dead_subscriber_is_noticed_while_messages_keep_coming() {
    let server = Server::start(Front::Redis);
    let held = Launcher::holding(&server.url()).env("STUNNEL_DRAIN_TIMEOUT", "1h").start_held();
    let mut subscriber = held.client();
    subscriber.ask(&["SUBSCRIBE", "news"]);
    reset(subscriber.stream.get_ref());
    drop(subscriber);
    let mut direct = server.direct();
    // Send messages quickly one after another, so that the connection is never idle for long.
    wait_until("Redis has no subscriber left", || {
        direct.ask(&["PUBLISH", "news", "x"]) == Reply::line(":0")
    });
    held.finish();
}
