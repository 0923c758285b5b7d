//! The launcher's sandbox (SECURITY.md): what it denies to an attacker, what still works in it, and
//! kernels that refuse it.

mod support;

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use nix::libc;
use start_stunnel::sandbox::{self, Rights, State};
use support::launcher::{BINARY, HOLD, Held, Launcher, Running, logged};
use support::pki::{Authority, Request};
use support::proc::command_of;
use support::resp::Reply;
use support::servers::{Front, Options, PASSWORD, Server};
use support::{Process, eventually};

/// True if this kernel has Landlock. If not, the test is skipped.
fn has_landlock() -> bool {
    let state = Rights::default().try_out();
    if state.abi().is_none() {
        support::skip(&state.to_string());
    }
    state.abi().is_some()
}

fn is_root() -> bool {
    let is_root = nix::unistd::Uid::effective().is_root();
    if !is_root {
        support::skip("only root can do this");
    }
    is_root
}

// --- What an attacker tries -------------------------------------------------------------------

/// The variable that turns the test's process into the attacker. It holds the app's directory.
const APP: &str = "START_STUNNEL_TEST_APP";

/// What an attacker inside the launcher tries to reach.
struct Surroundings {
    app: PathBuf,
    command: Process,
    redis: TcpListener,
    other: TcpListener,
    abstract_address: SocketAddr,
    _unix_sockets: [UnixListener; 2],
}

impl Surroundings {
    fn new(app: PathBuf) -> Surroundings {
        let listen = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let name = format!("sandbox-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(name).unwrap();
        Surroundings {
            command: Process(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()),
            redis: listen(),
            other: listen(),
            _unix_sockets: [
                UnixListener::bind_addr(&abstract_address).unwrap(),
                UnixListener::bind(app.join("socket")).unwrap(),
            ],
            abstract_address,
            app,
        }
    }
}

/// The errno of an attempt; 0 if it succeeded.
fn errno<T>(attempt: io::Result<T>) -> i32 {
    attempt.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

fn traced(pid: i32) -> io::Result<()> {
    // SAFETY: PTRACE_ATTACH takes a pid and touches no memory.
    let result = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) };
    nix::errno::Errno::result(result).map(drop).map_err(io::Error::from)
}

fn peeked(pid: i32) -> io::Result<()> {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: the local iovec is a byte of our own; the remote one concerns only the other process.
    let result = unsafe { libc::process_vm_readv(pid, &local, 1, &local, 1, 0) };
    nix::errno::Errno::result(result).map(drop).map_err(io::Error::from)
}

#[test]
fn an_attacker_inside_the_sandbox_is_refused() {
    if let Some(app) = std::env::var_os(APP) {
        return attack(Surroundings::new(app.into()));
    }
    if !has_landlock() {
        return;
    }
    let app = tempfile::tempdir().unwrap();
    fs::write(app.path().join("secrets"), "hunter2").unwrap();
    // In its own process, because newer kernels restrict all threads of a process at once.
    let attacker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_attacker_inside_the_sandbox_is_refused", "--nocapture"])
        .env(APP, app.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&attacker.stdout);
    assert!(output.contains("1 passed"), "{output}{}", String::from_utf8_lossy(&attacker.stderr));
}

/// Applies the launcher's rules, and tries to break them.
fn attack(around: Surroundings) {
    let redis = around.redis.local_addr().unwrap();
    let rights = Rights { ports: vec![redis.port()], ..Rights::default() };
    let missing = rights.try_out().missing();
    // This thread starts before the rules apply.
    let (applied, wait) = mpsc::channel::<()>();
    let older = thread::spawn(move || {
        wait.recv().unwrap_err();
        let starts_a_program = || errno(Command::new("/bin/true").status());
        (starts_a_program(), errno(sandbox::enter()), starts_a_program())
    });
    let abi = rights.keep_only().abi().expect("Landlock");
    drop(applied);
    let (before, entered, after) = older.join().unwrap();
    assert_eq!(before, if abi >= 8 { libc::EACCES } else { 0 }, "ABI 8 restricts all threads");
    assert_eq!((entered, after), (0, libc::EACCES));
    let (app, pid) = (&around.app, around.command.pid());
    let secrets = app.join("secrets");
    let of_command = |file: &str| File::open(format!("/proc/{pid}/{file}"));
    let mut attempts = vec![
        ("start a program", errno(Command::new("/bin/true").status()), libc::EACCES),
        ("read the app's files", errno(fs::read(&secrets)), libc::EACCES),
        ("list the app's directory", errno(fs::read_dir(app)), libc::EACCES),
        ("list /home", errno(fs::read_dir("/home")), libc::EACCES),
        ("write", errno(File::options().append(true).open(&secrets)), libc::EACCES),
        ("create a file", errno(File::create(app.join("new"))), libc::EACCES),
        ("create a directory", errno(fs::create_dir(app.join("new"))), libc::EACCES),
        ("create a link", errno(symlink("/", app.join("new"))), libc::EACCES),
        ("remove a file", errno(fs::remove_file(&secrets)), libc::EACCES),
        ("rename a file", errno(fs::rename(&secrets, app.join("new"))), libc::EACCES),
        ("bind a Unix socket", errno(UnixListener::bind(app.join("new"))), libc::EACCES),
        ("read the launcher's own /proc", errno(File::open("/proc/self/maps")), libc::EACCES),
        ("read COMMAND's environment", errno(of_command("environ")), libc::EACCES),
        ("read COMMAND's memory", errno(of_command("mem")), libc::EACCES),
        ("copy COMMAND's memory", errno(peeked(pid)), libc::EPERM),
        ("trace COMMAND", errno(traced(pid)), libc::EPERM),
        // The launcher needs these.
        ("read /etc", errno(fs::read("/etc/passwd")), 0),
        ("connect to Redis", errno(TcpStream::connect(redis)), 0),
        ("signal COMMAND", errno(signalled(pid)), 0),
        // Landlock cannot deny these.
        ("send UDP", errno(UdpSocket::bind(("127.0.0.1", 0))), 0),
        ("listen on any port", errno(listened()), 0),
        ("connect to a path", errno(UnixStream::connect(app.join("socket"))), 0),
        ("change a mode", errno(fs::set_permissions(&secrets, Permissions::from_mode(0o600))), 0),
    ];
    if !missing.contains(&"TCP to other ports") {
        let connected = TcpStream::connect(around.other.local_addr().unwrap());
        attempts.push(("connect to another port", errno(connected), libc::EACCES));
        let bound = TcpListener::bind(("127.0.0.1", 0));
        attempts.push(("bind a TCP port", errno(bound), libc::EACCES));
    }
    if !missing.contains(&"abstract Unix sockets") {
        let connected = UnixStream::connect_addr(&around.abstract_address);
        attempts.push(("connect to an abstract socket", errno(connected), libc::EPERM));
    }
    for (what, found, expected) in attempts {
        assert_eq!(found, expected, "{what}");
    }
}

/// Listens on a port that the kernel chooses.
fn listened() -> io::Result<()> {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?.listen(1)
}

fn signalled(pid: i32) -> io::Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGCONT)?)
}

// --- The real launcher ------------------------------------------------------------------------

/// Whether each thread of a process has set `NoNewPrivs`, as it does when it applies the rules.
fn no_new_privs(pid: i32) -> Vec<bool> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    statuses.map(|status| status.contains("NoNewPrivs:\t1")).collect()
}

/// Waits until every thread of a launcher has applied the rules.
fn wait_for_sandbox(launcher: i32) {
    eventually("every thread is restricted", || {
        let threads = no_new_privs(launcher);
        (threads.len() >= 3 && threads.iter().all(|restricted| *restricted)).then_some(())
    });
}

#[test]
fn every_thread_is_restricted_and_command_is_not() {
    if !has_landlock() {
        return;
    }
    let server = Server::start(Front::Redis);
    for mode in ["auto", "require"] {
        let held = Launcher::holding(&server.url().replace("127.0.0.1", "localhost"))
            .env("STUNNEL_SANDBOX", mode)
            .start_held();
        wait_for_sandbox(held.running.pid());
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        assert!(no_new_privs(held.running.pid()).into_iter().all(|restricted| restricted));
        let command = command_of(held.running.pid());
        assert_eq!(no_new_privs(command), [false]);

        let status = Command::new(BINARY).arg("--status").output().unwrap();
        let status = String::from_utf8(status.stdout).unwrap();
        let words: Vec<_> = status.split_whitespace().collect();
        assert!(words.join(" ").contains("sandbox Landlock ABI "), "{status}");
        assert_eq!(held.finish().code(), 0);
    }
}

#[test]
fn sandbox_off_restricts_no_thread_and_status_shows_that() {
    let server = Server::start(Front::Redis);
    let held = Launcher::holding(&server.url()).env("STUNNEL_SANDBOX", "off").start_held();
    let pid = held.running.pid();
    let said = eventually("--status finds the launcher", || {
        let status = Command::new(BINARY).args(["--status", "--log-format=json"]).output().unwrap();
        let status = String::from_utf8(status.stdout).unwrap();
        let of_launcher = format!("\"pid\":{pid},");
        status.lines().find(|line| line.contains(&of_launcher)).map(str::to_owned)
    });
    assert!(said.contains(r#""sandbox":{"landlock_abi":null,"state":"off"}"#), "{said}");
    assert!(no_new_privs(pid).into_iter().all(|restricted| !restricted));
    assert_eq!(held.finish().code(), 0);
}

/// A launcher that another user starts, from a copy in `folder`.
fn as_another_user(folder: &Path, script: &str) -> Launcher {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let launcher = folder.join("start-stunnel");
    fs::copy(BINARY, &launcher).unwrap();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let words = user.into_iter().chain([launcher.to_str().unwrap(), "sh", "-c", script]);
    Launcher::of("setpriv", words).redis("redis://localhost")
}

#[test]
fn a_setuid_program_started_by_command_works() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let as_root = folder.path().join("id");
    fs::copy("/usr/bin/id", &as_root).unwrap();
    fs::set_permissions(&as_root, Permissions::from_mode(0o4755)).unwrap();
    let script = format!("echo $REDIS_URL; read go; exec {} -u", as_root.display());
    let mut running = as_another_user(folder.path(), &script).start();
    running.line();
    wait_for_sandbox_if_any(&running);
    running.say("go\n");
    let ended = running.finish();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "0\n"), "{}", ended.stderr);
}

#[test]
fn the_same_user_cannot_read_the_launchers_environment() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Exec makes COMMAND dumpable again, and COMMAND gets the limit that the launcher found.
    let script = "cat /proc/self/environ >/dev/null && echo own; \
                  cat /proc/$PPID/environ 2>/dev/null || echo denied; ulimit -c";
    let ended = as_another_user(folder.path(), script).run();
    let limit = Command::new("sh").args(["-c", "ulimit -c"]).output().unwrap();
    let limit = String::from_utf8(limit.stdout).unwrap();
    assert_eq!(ended.stdout, format!("own\ndenied\n{limit}"), "{}", ended.stderr);
}

// --- Files that lookups read ------------------------------------------------------------------

/// A launcher in its own mount namespace, after the shell commands `mounts`.
fn with_mounts(mounts: &str, url: &str) -> Held {
    let script = format!("{mounts} && exec \"$0\" \"$@\"");
    let words = ["--mount", "sh", "-c", &script, BINARY, "sh", "-c", HOLD];
    Launcher::of("unshare", words).redis(url).start_held()
}

/// Replaces a file by a rename, as editors and resolvconf do.
fn replace(file: &Path, content: &str) {
    let new = file.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn a_replaced_hosts_file_is_followed() {
    if !is_root() {
        return;
    }
    let server = Server::start(Front::Redis);
    let etc = tempfile::tempdir().unwrap();
    fs::write(etc.path().join("nsswitch.conf"), "hosts: files\n").unwrap();
    let hosts = etc.path().join("hosts");
    fs::write(&hosts, "127.0.0.9 redis.test\n").unwrap();
    let mounts = format!("mount --bind {} /etc", etc.path().display());
    let held = with_mounts(&mounts, &server.url().replace("127.0.0.1", "redis.test"));
    wait_for_sandbox_if_any(&held.running);
    assert!(held.open().reply().is_err(), "nothing listens at the first address");
    replace(&hosts, "127.0.0.1 redis.test\n");
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn a_replaced_resolv_conf_behind_a_link_is_followed() {
    if !is_root() {
        return;
    }
    let server = Server::start(Front::Redis);
    let [_, high, low, _] = std::process::id().to_be_bytes();
    let [first, second] = [8, 9].map(|network| format!("127.8{network}.{high}.{low}"));
    let nowhere = NameServer::start(&first, [127, 0, 0, 9]);
    let redis = NameServer::start(&second, [127, 0, 0, 1]);
    let folder = tempfile::tempdir().unwrap();
    let (etc, run) = (folder.path().join("etc"), folder.path().join("run"));
    fs::create_dir_all(run.join("systemd/resolve")).unwrap();
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("nsswitch.conf"), "hosts: dns\n").unwrap();
    let file = run.join("systemd/resolve/stub-resolv.conf");
    symlink("/run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    fs::write(&file, format!("nameserver {first}\n")).unwrap();
    let mounts =
        format!("mount --bind {} /etc && mount --bind {} /run", etc.display(), run.display());
    let held = with_mounts(&mounts, &server.url().replace("127.0.0.1", "redis.test"));
    wait_for_sandbox_if_any(&held.running);
    assert!(held.open().reply().is_err(), "nothing listens at the first address");
    assert!(nowhere.was_asked());
    replace(&file, &format!("nameserver {second}\n"));
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    assert!(redis.was_asked());
}

fn wait_for_sandbox_if_any(running: &Running) {
    if has_landlock() {
        wait_for_sandbox(running.pid());
    }
}

#[test]
fn ca_certificates_outside_etc_are_readable() {
    let folder = tempfile::tempdir().unwrap();
    let [linked, store] = ["linked", "store"].map(|name| folder.path().join(name));
    fs::create_dir(&linked).unwrap();
    fs::create_dir(&store).unwrap();
    let authority = Authority::new(&store);
    let certificate = authority.issue(folder.path(), "leaf", &Request::default());
    let options = Options { certificate: Some(&certificate), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    // OpenSSL finds a CA by the hash of its name, when it needs that CA (openssl-rehash(1)).
    let root = &authority.root;
    let name = format!("{:08x}.0", root.certificate.subject_name_hash());
    symlink(&root.certificate_file, linked.join(name)).unwrap();
    let places = [("SSL_CERT_DIR", linked.as_path()), ("SSL_CERT_FILE", &root.certificate_file)];
    for (variable, place) in places {
        let launcher = Launcher::holding(&server.url()).env("STUNNEL_VERIFY", "full");
        let held = launcher.env(variable, place).start_held();
        wait_for_sandbox_if_any(&held.running);
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"), "{variable}");
        assert_eq!(held.finish().code(), 0);
    }
}

/// A name server that answers every query for an IPv4 address with the same address.
struct NameServer {
    asked: Arc<AtomicBool>,
}

impl NameServer {
    fn start(address: &str, answer: [u8; 4]) -> NameServer {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let asked = Arc::new(AtomicBool::new(false));
        let flag = asked.clone();
        thread::spawn(move || {
            let mut message = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut message) {
                flag.store(true, Ordering::SeqCst);
                let mut reply = message[..length].to_vec();
                // A response without additional records (RFC 1035 section 4.1.1).
                reply[2] |= 0x80;
                reply[10..12].fill(0);
                // The question: labels up to an empty one, type and class. Then the answer.
                let end = 12 + reply[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
                reply.truncate(end);
                if reply[end - 4..end - 2] == [0, 1] {
                    reply[7] = 1;
                    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                    reply.extend(answer);
                }
                socket.send_to(&reply, client).unwrap();
            }
        });
        NameServer { asked }
    }

    fn was_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

// --- Kernels that refuse ----------------------------------------------------------------------

/// Makes the system calls from `first` up to landlock_restrict_self(2) fail with `errno` in
/// `command`, like a container's seccomp profile.
fn forbid(command: &mut Command, first: libc::c_long, errno: i32) {
    const LAST: u32 = libc::SYS_landlock_restrict_self as u32;
    let jump =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let statement = |code, k| jump(code, k, 0, 0);
    let filter = [
        // The number of the system call, which comes first in seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, first as u32, 0, 2),
        jump(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, LAST, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: prctl(2) is async-signal-safe; the filter lives as long as the closure.
    unsafe {
        command.pre_exec(move || {
            let program =
                libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let mode = libc::SECCOMP_MODE_FILTER;
            let set = libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program);
            nix::errno::Errno::result(set).map(drop).map_err(io::Error::from)
        });
    }
}

/// A launcher for which Landlock's system calls fail from `first` on.
fn refused(server: &Server, first: libc::c_long, errno: i32) -> Launcher {
    let mut launcher = Launcher::holding(&server.url()).env("STUNNEL_LOG_LEVEL", "debug");
    forbid(&mut launcher.command, first, errno);
    launcher
}

#[test]
fn without_landlock_the_launcher_works_unrestricted() {
    if !is_root() {
        return;
    }
    let server = Server::start(Front::Redis);
    for errno in [libc::ENOSYS, libc::EPERM, libc::EOPNOTSUPP] {
        let held = refused(&server, libc::SYS_landlock_create_ruleset, errno).start_held();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        let ended = held.finish();
        assert_eq!(ended.code(), 0);
        let [state] = &logged(&ended.stderr, "sandbox", "state")[..] else { panic!("{ended:?}") };
        let reason =
            if errno == libc::EOPNOTSUPP { "off in this kernel" } else { "lacks Landlock" };
        assert!(state.starts_with("none (") && state.contains(reason), "{state}");
        assert!(!ended.stderr.contains("sandbox-failed"), "{}", ended.stderr);
    }
}

#[test]
fn rules_refused_by_the_kernel_cause_a_warning() {
    if !is_root() || !has_landlock() {
        return;
    }
    let server = Server::start(Front::Redis);
    for first in [libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self] {
        let held = refused(&server, first, libc::EPERM).start_held();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        let ended = held.finish();
        assert_eq!(logged(&ended.stderr, "sandbox-failed", "error").len(), 1, "{}", ended.stderr);
    }
}

#[test]
fn a_required_sandbox_that_fails_exits_with_78() {
    if !is_root() {
        return;
    }
    let server = Server::start(Front::Redis);
    for first in [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self] {
        let mut launcher =
            Launcher::new(["--sandbox=require", "echo", "started"]).redis(&server.url());
        forbid(&mut launcher.command, first, libc::EPERM);
        let ended = launcher.run();
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{ended:?}");
        assert!(ended.stderr.contains("--sandbox is require, but"), "{}", ended.stderr);
    }
}

#[test]
fn check_shows_which_sandbox_the_kernel_offers() {
    let server = Server::start(Front::Redis);
    let ended = Launcher::new(["--check"]).redis(&server.url()).run();
    let expected = match Rights::default().try_out() {
        State::Landlock(abi) => format!("sandbox: Landlock ABI {abi}"),
        _ => "sandbox: none (".to_owned(),
    };
    assert!(ended.stdout.contains(&expected), "{}", ended.stdout);
    assert!(!ended.stdout.contains(PASSWORD));
}
