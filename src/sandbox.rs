//! The sandbox: once COMMAND runs, the launcher gives up the rights that it no longer needs, with
//! Landlock (<https://docs.kernel.org/userspace-api/landlock.html>). After that, an attacker who
//! exploits a flaw in the TLS library or the resolver cannot start programs, write files or read
//! the app's files.
//!
//! COMMAND starts before the rules apply, so that COMMAND inherits neither the rules nor
//! no_new_privs.
//!
//! Rules bind the thread that applies them, and the threads that it starts later. So the threads
//! that started before COMMAND call [`enter`].

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, RestrictionStatus,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
    path_beneath_rules,
};

/// The setting `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxMode {
    /// Restrict the launcher as far as the kernel supports it.
    Auto,
    Off,
    /// Start COMMAND only if a trial of the sandbox succeeds.
    Require,
}

/// Files and directories that name lookups and OpenSSL read. A rule for a single file no longer
/// applies once another file replaces that file by a rename, so the rules name directories. When
/// they are first needed, the C library loads modules for lookups (nss(5)), and OpenSSL loads its
/// providers. /dev/null takes the place of OpenSSL's bundle.
const READABLE: &[&str] = &[
    "/etc",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/connman",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/dev/null",
];
/// Files that may be links into other directories.
const RESOLVER_FILES: &[&str] =
    &["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf"];
/// DNS over TCP, for replies that are too large for UDP.
const DNS_PORT: u16 = 53;

/// Rights that Landlock can deny only from this ABI version on.
const ADDED: &[(ABI, &str)] = &[
    (ABI::V3, "truncating files"),
    (ABI::V4, "TCP to other ports"),
    (ABI::V5, "ioctl on devices"),
    (ABI::V6, "abstract Unix sockets"),
];

/// The rights that the launcher keeps in the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// TCP ports to connect to, besides DNS.
    pub ports: Vec<u16>,
    /// Files and directories to read, besides those that every launcher needs.
    pub read: Vec<PathBuf>,
    /// The directory of the launcher's Unix sockets, which the launcher removes at the end.
    pub sockets: Option<PathBuf>,
}

/// The sandbox's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Off by the setting, or not decided yet.
    Off,
    /// This kernel has no Landlock, for this reason.
    Unavailable(&'static str),
    /// The kernel has Landlock, but the rules could not be applied, for this reason.
    Failed(String),
    /// The rules of this ABI version apply.
    Landlock(ABI),
}

static STATE: OnceLock<State> = OnceLock::new();
/// The rules, for threads that have not applied them yet.
static RULES: OnceLock<RulesetCreated> = OnceLock::new();

thread_local! {
    static HAS_ENTERED: Cell<bool> = const { Cell::new(false) };
}

impl Rights {
    /// Applies the rules to a thread that ends at once, and returns the state that they would lead
    /// to.
    pub fn try_out(&self) -> State {
        let attempt = || self.rules().and_then(RulesetCreated::restrict_self);
        let joined = thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, attempt);
            thread.map(thread::ScopedJoinHandle::join)
        });
        match joined {
            Ok(Ok(tried)) => tried.map_or_else(failed, State::of),
            Ok(Err(_)) => failed("the thread that tried the sandbox panicked"),
            Err(error) => failed(format!("could not start a thread to try the sandbox: {error}")),
        }
    }

    /// Applies the rules to this thread; other threads apply them when they [`enter`].
    pub fn keep_only(&self) -> &'static State {
        let state = self.restrict().map_or_else(failed, State::of);
        STATE.get_or_init(|| state)
    }

    fn restrict(&self) -> io::Result<RestrictionStatus> {
        let rules = self.rules().map_err(io::Error::other)?;
        let status = rules.try_clone()?.restrict_self().map_err(io::Error::other)?;
        RULES.get_or_init(|| rules);
        Ok(status)
    }

    fn rules(&self) -> Result<RulesetCreated, RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let ports = self.ports.iter().chain(&[DNS_PORT]);
        let ports = ports.map(|port| Ok(NetPort::new(*port, AccessNet::ConnectTcp)));
        let sockets = self.sockets.as_deref();
        let rules: RulesetCreated = Ruleset::default()
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V4))?
            // Without Scope::Signal, because the launcher sends signals to COMMAND.
            .scope(Scope::AbstractUnixSocket)?
            .create()?
            .add_rules(path_beneath_rules(self.readable(), read))?
            .add_rules::<_, _, _, RulesetError>(ports)?
            .add_rules(path_beneath_rules(sockets, AccessFs::ReadDir | AccessFs::RemoveFile))?;
        // The right to remove a directory belongs to its parent.
        let parent = sockets.and_then(Path::parent);
        rules.add_rules(path_beneath_rules(parent, BitFlags::from(AccessFs::RemoveDir)))
    }

    fn readable(&self) -> impl Iterator<Item = PathBuf> {
        let fixed = READABLE.iter().map(PathBuf::from);
        let linked = RESOLVER_FILES.iter().filter_map(|file| directory_of(Path::new(file)));
        // HOSTALIASES names a file of host names (hostname(7)).
        let aliases = std::env::var_os("HOSTALIASES").map(PathBuf::from);
        fixed.chain(linked).chain(aliases).chain(self.read.iter().cloned())
    }
}

/// The directory of the file that `path` leads to, with links resolved. If that directory is the
/// root directory, returns the file itself.
pub fn directory_of(path: &Path) -> Option<PathBuf> {
    let file = path.canonicalize().ok()?;
    let directory = file.parent()?;
    Some(if directory == Path::new("/") { file } else { directory.to_owned() })
}

/// Applies the rules to this thread, unless there are no rules, or the thread has already tried to
/// apply the rules.
///
/// # Errors
/// If the kernel refuses.
pub fn enter() -> io::Result<()> {
    match RULES.get() {
        Some(rules) if !HAS_ENTERED.replace(true) => {
            rules.try_clone()?.restrict_self().map(drop).map_err(io::Error::other)
        }
        _ => Ok(()),
    }
}

/// The state of this launcher's sandbox.
pub fn state() -> &'static State {
    STATE.get().unwrap_or(&State::Off)
}

fn failed(error: impl fmt::Display) -> State {
    State::Failed(error.to_string())
}

impl State {
    fn of(status: RestrictionStatus) -> State {
        match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => State::Landlock(effective_abi),
            LandlockStatus::NotEnabled => State::Unavailable("Landlock is off in this kernel"),
            LandlockStatus::NotImplemented => {
                State::Unavailable("the kernel lacks Landlock, or a seccomp profile forbids it")
            }
        }
    }

    /// The ABI version whose rules apply.
    pub fn abi(&self) -> Option<u32> {
        match self {
            State::Landlock(abi) => Some(*abi as u32),
            State::Off | State::Unavailable(_) | State::Failed(_) => None,
        }
    }

    /// Rights that the launcher does not need but this kernel cannot take away.
    pub fn missing(&self) -> Vec<&'static str> {
        let State::Landlock(abi) = self else { return Vec::new() };
        ADDED.iter().filter(|(since, _)| since > abi).map(|(_, right)| *right).collect()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Off => f.write_str("off"),
            State::Unavailable(reason) => write!(f, "none ({reason})"),
            State::Failed(reason) => write!(f, "none ({reason})"),
            State::Landlock(abi) => {
                write!(f, "Landlock ABI {abi}")?;
                match self.missing()[..] {
                    [] => Ok(()),
                    _ => write!(f, " (cannot deny {})", self.missing().join(", ")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_names_the_rights_it_leaves() {
        let shown = |abi| State::Landlock(abi).to_string();
        assert_eq!(shown(ABI::V7), "Landlock ABI 7");
        assert_eq!(shown(ABI::V5), "Landlock ABI 5 (cannot deny abstract Unix sockets)");
        assert!(shown(ABI::V1).starts_with("Landlock ABI 1 (cannot deny truncating files, TCP"));
    }

    #[test]
    fn the_root_directory_never_becomes_readable() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert_eq!(directory_of(&link).unwrap(), Path::new("/dev"));
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert_eq!(directory_of(&link), None);
    }
}
