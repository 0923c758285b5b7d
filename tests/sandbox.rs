//! Tests of the launcher's sandbox (SECURITY.md): attacks that the sandbox stops, files that the
//! launcher can still read, and kernels that refuse the sandbox.

mod support;

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::libc;
use start_stunnel::sandbox::{self, Rights, State};
use support::launcher::{BINARY, HOLD, Launcher, Running, logged, send_signal, with_mounted};
use support::pki::{Authority, Request};
use support::proc::command_of;
use support::resp::Reply;
use support::servers::{Front, PASSWORD, Server};
use support::{Process, eventually, is_root, wait_until};

/// True if this kernel has Landlock. If not, prints that the running test is skipped.
fn has_landlock() -> bool {
    let state = Rights::default().try_out();
    if state.abi().is_none() {
        support::skip(&state.to_string());
    }
    state.abi().is_some()
}

// --- What an attacker tries -------------------------------------------------------------------

/// If this environment variable is set, the test's process acts as the attacker. The variable
/// contains the path of the app's directory.
const APP: &str = "START_STUNNEL_TEST_APP";

/// The error number of an attempt, or 0 if the attempt succeeded.
fn errno<T>(attempt: io::Result<T>) -> i32 {
    attempt.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

fn traced(pid: i32) -> io::Result<()> {
    // SAFETY: PTRACE_ATTACH takes a pid and touches no memory.
    let result = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) };
    nix::errno::Errno::result(result).map(drop).map_err(io::Error::from)
}

#[test]
fn the_sandbox_stops_an_attacker_inside_the_launcher() {
    if let Some(app) = std::env::var_os(APP) {
        return attack(Path::new(&app));
    }
    if !has_landlock() {
        return;
    }
    let app = tempfile::tempdir().unwrap();
    fs::write(app.path().join("secrets"), "hunter2").unwrap();
    // The attack runs in its own process, because the sandbox may also restrict the threads of
    // other tests, and the restrictions cannot be lifted.
    let attacker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_sandbox_stops_an_attacker_inside_the_launcher", "--nocapture"])
        .env(APP, app.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&attacker.stdout);
    assert!(output.contains("1 passed"), "{output}{}", String::from_utf8_lossy(&attacker.stderr));
}

/// Applies the sandbox's rules to this thread. Also checks that another thread, which was already
/// running at this time, can apply the rules to itself.
fn apply(rights: &Rights) {
    let (applied, wait) = mpsc::channel::<()>();
    let older = thread::spawn(move || {
        wait.recv().unwrap_err();
        let starts_a_program = || errno(Command::new("/bin/true").status());
        (starts_a_program(), errno(sandbox::enter()), starts_a_program())
    });
    let abi = rights.keep_only().abi().expect("Landlock");
    drop(applied);
    let (before, entered, after) = older.join().unwrap();
    // From ABI version 8 of Landlock on, one call restricts all threads of a process.
    let expected = if abi >= 8 { libc::EACCES } else { 0 };
    assert_eq!((before, entered, after), (expected, 0, libc::EACCES));
}

/// Tries to do what the sandbox's rules deny.
fn attack(app: &Path) {
    let command = Process(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
    let [redis, other] = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let [redis, other] = [&redis, &other].map(|listener| listener.local_addr().unwrap());
    let name = format!("sandbox-test-{}", std::process::id());
    let abstract_address = SocketAddr::from_abstract_name(name).unwrap();
    let _abstract = UnixListener::bind_addr(&abstract_address).unwrap();
    let _socket = UnixListener::bind(app.join("socket")).unwrap();
    let rights = Rights { ports: vec![redis.port()], ..Rights::default() };
    let missing = rights.try_out().missing();
    apply(&rights);
    let (pid, secrets) = (command.pid(), app.join("secrets"));
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
        ("trace COMMAND", errno(traced(pid)), libc::EPERM),
        // The launcher needs these rights, so the sandbox must allow them.
        ("read /etc", errno(fs::read("/etc/passwd")), 0),
        ("connect to Redis", errno(TcpStream::connect(redis)), 0),
        // Landlock cannot deny these rights.
        ("send UDP", errno(UdpSocket::bind(("127.0.0.1", 0))), 0),
        ("listen on any port", errno(listened()), 0),
        ("connect to a path", errno(UnixStream::connect(app.join("socket"))), 0),
        ("change a mode", errno(fs::set_permissions(&secrets, Permissions::from_mode(0o600))), 0),
    ];
    if !missing.contains(&"TCP to other ports") {
        let connected = TcpStream::connect(other);
        attempts.push(("connect to another port", errno(connected), libc::EACCES));
        let bound = TcpListener::bind(("127.0.0.1", 0));
        attempts.push(("bind a TCP port", errno(bound), libc::EACCES));
    }
    if !missing.contains(&"abstract Unix sockets") {
        let connected = UnixStream::connect_addr(&abstract_address);
        attempts.push(("connect to an abstract socket", errno(connected), libc::EPERM));
    }
    for (what, found, expected) in attempts {
        assert_eq!(found, expected, "{what}");
    }
    // The launcher may signal COMMAND.
    send_signal(pid, libc::SIGCONT);
}

/// Listens on a port that the kernel chooses.
fn listened() -> io::Result<()> {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?.listen(1)
}

// --- The real launcher ------------------------------------------------------------------------

/// For each thread of a process: true if the thread has set `NoNewPrivs`. A thread sets
/// `NoNewPrivs` when the thread applies the sandbox's rules.
fn no_new_privs(pid: i32) -> Vec<bool> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    statuses.map(|status| status.contains("NoNewPrivs:\t1")).collect()
}

/// Waits until every thread of a launcher has applied the sandbox's rules.
fn wait_for_sandbox(launcher: i32) {
    wait_until("the sandbox restricts every thread", || {
        let threads = no_new_privs(launcher);
        threads.len() >= 3 && threads.iter().all(|restricted| *restricted)
    });
}

#[test]
fn the_sandbox_restricts_all_launcher_threads_but_not_command() {
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
fn with_sandbox_off_status_shows_an_unrestricted_launcher() {
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

#[test]
fn a_setuid_program_started_by_command_works() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let as_root = folder.path().join("id");
    support::copy_executable("/usr/bin/id".as_ref(), &as_root);
    fs::set_permissions(&as_root, Permissions::from_mode(0o4755)).unwrap();
    let script = format!("echo $REDIS_URL; read go; exec {} -u", as_root.display());
    let nobody = Launcher::as_user(65_534, folder.path(), &["sh", "-c", &script]);
    let mut running = nobody.redis("redis://localhost").start();
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
    // COMMAND can read its own environment, because exec makes COMMAND dumpable again.
    let script = "cat /proc/self/environ >/dev/null && echo own; \
                  cat /proc/$PPID/environ 2>/dev/null || echo denied; ulimit -c";
    let nobody = Launcher::as_user(65_534, folder.path(), &["sh", "-c", script]);
    let ended = nobody.redis("redis://localhost").run();
    let limit = Command::new("sh").args(["-c", "ulimit -c"]).output().unwrap();
    let limit = String::from_utf8(limit.stdout).unwrap();
    assert_eq!(ended.stdout, format!("own\ndenied\n{limit}"), "{}", ended.stderr);
}

// --- Files that lookups read ------------------------------------------------------------------

#[test]
fn a_replaced_hosts_file_is_read_despite_the_sandbox() {
    let server = Server::start(Front::Redis);
    let url = server.url().replace("127.0.0.1", "redis.test");
    for behind_link in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let [etc, run] = ["etc", "run"].map(|name| folder.path().join(name));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(etc.join("nsswitch.conf"), "hosts: files\n").unwrap();
        let hosts = if behind_link { run.join("hosts") } else { etc.join("hosts") };
        if behind_link {
            symlink(&hosts, etc.join("hosts")).unwrap();
        }
        fs::write(&hosts, "127.0.0.9 redis.test\n").unwrap();
        let Some(launcher) = with_mounted(&etc, "/etc", ["sh", "-c", HOLD]) else { return };
        let held = launcher.redis(&url).start_held();
        wait_for_sandbox_if_any(&held.running);
        assert!(held.open().reply().is_err(), "no server listens on the first address");
        // Replace the file by a rename, as editors and resolvconf do.
        fs::write(hosts.with_extension("new"), "127.0.0.1 redis.test\n").unwrap();
        fs::rename(hosts.with_extension("new"), &hosts).unwrap();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    }
}

fn wait_for_sandbox_if_any(running: &Running) {
    if has_landlock() {
        wait_for_sandbox(running.pid());
    }
}

#[test]
fn ca_certificates_outside_etc_work_despite_the_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let [linked, store] = ["linked", "store"].map(|name| folder.path().join(name));
    fs::create_dir(&linked).unwrap();
    fs::create_dir(&store).unwrap();
    let authority = Authority::new(&store);
    let certificate = authority.issue(folder.path(), "leaf", &Request::default());
    let server = Server::with_certificate(&certificate);
    // OpenSSL searches the directory for a CA's file by a hash of the CA's name
    // (openssl-rehash(1)), and only during a handshake.
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

// --- Kernels that refuse ----------------------------------------------------------------------

/// Makes Landlock's system calls fail with `errno` in the process that `command` starts. Calls with
/// a lower system call number than `first` still work. A container's seccomp profile can have the
/// same effect.
fn forbid(command: &mut Command, first: libc::c_long, errno: i32) {
    const LAST: u32 = libc::SYS_landlock_restrict_self as u32;
    let jump =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let statement = |code, k| jump(code, k, 0, 0);
    let filter = [
        // Load the number of the system call, which is the first field of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, first as u32, 0, 2),
        jump(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, LAST, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: prctl(2) is async-signal-safe, and the closure owns the filter.
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

/// A launcher in which Landlock's system calls fail, as [`forbid`] describes.
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
    let launcher = refused(&server, libc::SYS_landlock_create_ruleset, libc::EPERM);
    let log = launcher.env("STUNNEL_SANDBOX", "require").refused();
    assert!(log.contains("STUNNEL_SANDBOX is 'require', but"), "{log}");
}

#[test]
fn a_sandbox_that_fails_causes_a_warning_or_exit_78() {
    if !is_root() || !has_landlock() {
        return;
    }
    let server = Server::start(Front::Redis);
    for first in [libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self] {
        let held = refused(&server, first, libc::EPERM).start_held();
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
        let ended = held.finish();
        assert_eq!(logged(&ended.stderr, "sandbox-failed", "error").len(), 1, "{}", ended.stderr);

        refused(&server, first, libc::EPERM).env("STUNNEL_SANDBOX", "require").refused();
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
