//! Tests `--listen unix`: the launcher listens on a Unix socket that only the launcher's user can
//! open.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use support::PATIENCE;
use support::launcher::{BINARY, Launcher, Running, logged};
use support::peer::Peer;
use support::servers::{FRONTS, Front, PASSWORD, Server};

/// Makes a launcher create its sockets in `folder`.
fn in_folder(folder: &Path, launcher: Launcher) -> Launcher {
    launcher.env("STUNNEL_LISTEN", "unix").env("TMPDIR", folder)
}

/// Starts a launcher. Returns the launcher, COMMAND's URL, and the path of the socket in the URL.
fn hold(folder: &Path, url: &str) -> (Running, String, PathBuf) {
    let mut running = in_folder(folder, Launcher::holding(url)).start();
    let url = running.line();
    let (_, place) = url.split_once("://").unwrap();
    let path = &place[place.find('/').unwrap()..];
    let path = PathBuf::from(path.split('?').next().unwrap());
    (running, url, path)
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn the_socket_is_private_and_removed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Front::Redis);
    let (running, url, socket) = hold(folder.path(), &server.url());
    let expected = format!("unix://default:{PASSWORD}@{}?db=0", socket.display());
    assert_eq!(url, expected);
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let private = fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!(private.permissions().mode() & 0o777, 0o700);

    let mut client = connect(&socket);
    client.write_all(format!("AUTH {PASSWORD}\r\nPING\r\n").as_bytes()).unwrap();
    let mut replies = [0; 12];
    client.read_exact(&mut replies).unwrap();
    assert_eq!(&replies, b"+OK\r\n+PONG\r\n");
    drop(client);

    let ended = running.finish();
    assert_eq!(ended.code(), 0);
    assert_eq!(logged(&ended.stderr, "tunnel-up", "listen"), [socket.to_str().unwrap()]);
    assert_eq!(logged(&ended.stderr, "command-ended", "connections"), ["1"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "all files are removed");
}

#[test]
fn an_unusable_socket_folder_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let run = |runtime: &str, temporary: &str| {
        let launcher = Launcher::script("printf '%s' \"$REDIS_URL\"").redis("redis://h");
        let launcher = launcher.env("STUNNEL_LISTEN", "unix").env("XDG_RUNTIME_DIR", runtime);
        launcher.env("TMPDIR", temporary).run()
    };
    let temporary = folder.path().to_str().unwrap();
    for unusable in
        ["/proc", "/no/such/folder", "relative", "", &format!("{temporary}/{}", "x".repeat(90))]
    {
        let ended = run(unusable, temporary);
        assert!(ended.stdout.starts_with(&format!("unix://{temporary}/")), "{unusable}: {ended:?}");
    }
    assert!(run("", "").stdout.starts_with("unix:///tmp/start-stunnel-"));
}

#[test]
fn redis_py_accepts_the_url_of_a_unix_socket() {
    let script = "import os, redis\n\
                  r = redis.Redis.from_url(os.environ['REDIS_URL'])\n\
                  r.set('where', 'socket')\n\
                  print(r.get('where').decode(), r.connection_pool.connection_kwargs['db'])\n\
                  print(r.client_list()[-1]['user'])";
    for front in FRONTS {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(front);
        let url = server.url().replace("/0", "/3");
        let launcher = Launcher::new(["--listen", "unix", "/usr/bin/python3", "-c", script]);
        let ended = launcher.redis(&url).env("TMPDIR", folder.path()).run();
        assert_eq!(ended.stdout, "socket 3\ndefault\n", "{}", ended.stderr);
    }
}

#[test]
fn a_half_close_passes_through_a_unix_socket() {
    let peer = Peer::tls(|mut tls| {
        let mut request = Vec::new();
        tls.read_to_end(&mut request).unwrap();
        tls.write_all(b"answer").unwrap();
        request
    });
    let folder = tempfile::tempdir().unwrap();
    let (_running, _, socket) = hold(folder.path(), &peer.url());
    let mut client = connect(&socket);
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!((peer.result().as_slice(), answer.as_slice()), (&b"question"[..], &b"answer"[..]));
}

#[test]
fn a_nested_launcher_leaves_the_socket_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Front::Redis);
    let launcher = Launcher::new([BINARY, "sh", "-c", "echo $REDIS_URL"]).redis(&server.url());
    let ended = in_folder(folder.path(), launcher).run();
    assert_eq!(logged(&ended.stderr, "tunnel-up", "listen").len(), 1, "{}", ended.stderr);
    assert!(ended.stdout.starts_with("unix://"), "{}", ended.stdout);
}

#[test]
fn without_a_usable_socket_folder_the_error_names_tmpdir() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("x".repeat(100));
    fs::create_dir(&deep).unwrap();
    for parent in [deep.as_path(), Path::new("/nowhere")] {
        let launcher = Launcher::script("echo started").redis("redis://h");
        let ended = in_folder(parent, launcher).run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""));
        assert!(ended.stderr.contains("var=STUNNEL_LISTEN"), "{}", ended.stderr);
        for part in ["STUNNEL_LISTEN is unix, but no socket can be made", "let TMPDIR name"] {
            assert!(ended.stderr.contains(part), "{}", ended.stderr);
        }
    }
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 0, "all files are removed");
}

#[test]
fn print_env_shows_the_socket_and_removes_it() {
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(["--listen=unix", "--print-env"]).redis("redis://u:hunter2@h/1");
    let ended = launcher.env("TMPDIR", folder.path()).run();
    assert!(ended.stdout.starts_with("REDIS_URL=unix://***:***@/"), "{}", ended.stdout);
    assert!(ended.stdout.contains(".sock?db=1\nREDIS_URL_STUNNEL=unix://"), "{}", ended.stdout);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
