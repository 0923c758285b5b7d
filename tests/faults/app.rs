//! Faults of the app.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};

use crate::support::launcher::{Launcher, logged};
use crate::support::peer::Peer;
use crate::support::servers::{Front, Server};
use crate::support::{Process, reset, rest};
use crate::{HOLD_TWO, Scene, TIMES, all_logged, fault};

#[test]
fn app_that_speaks_tls_is_disconnected() {
    fault!("the app speaks TLS to the local port");
    let server = Server::start(Front::Redis);
    let mut scene = Scene::new(&server.url());
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for _ in 0..TIMES {
        // An app sends a ClientHello and waits for an answer. Then another app sends a ClientHello
        // and resets its connection.
        assert_eq!(scene.exchange(hello), (vec![], None));
        let mut app = scene.open();
        app.write_all(hello).unwrap();
        reset(&app);
    }
    scene.others_go_on();
    let log = scene.aftermath();
    all_logged(&log, "app-speaks-tls", "var", "REDIS_URL");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn server_sees_when_app_resets_half_closes_or_is_killed() {
    fault!("the app resets, half-closes or is killed");
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"hello").unwrap();
        rest(&mut tls)
    });
    // Without the pool, the server receives only the app's bytes.
    let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_POOL", "off");
    let scene = Scene::with(launcher, &peer.url());
    let greeted = || {
        let mut app = scene.open();
        app.read_exact(&mut [0; 5]).unwrap();
        app.write_all(b"last words").unwrap();
        app
    };
    for _ in 0..TIMES {
        let app = greeted();
        reset(&app);
        drop(app);
        assert_eq!(peer.result(), (b"last words".to_vec(), Some(ErrorKind::ConnectionReset)));

        let mut app = greeted();
        app.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.result(), (b"last words".to_vec(), None));
        assert_eq!(rest(&mut app), (vec![], None));
    }
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; head -c 5 <&3 >/dev/null; \
         printf 'last words' >&3; echo done; read -r _",
        scene.held.port
    );
    let mut app = Command::new("bash");
    app.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut app = Process(app.spawn().unwrap());
    app.0.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
    app.0.kill().unwrap();
    assert_eq!(peer.result(), (b"last words".to_vec(), None));
    scene.aftermath();
}
