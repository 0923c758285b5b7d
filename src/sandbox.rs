//! Restricts the launcher by a sandbox: after COMMAND's start, Landlock rules deny the launcher all
//! rights that the launcher no longer needs
//! (<https://docs.kernel.org/userspace-api/landlock.html>). An attacker who exploits a flaw in the
//! TLS library or the resolver then cannot start programs, write files or read the app's files.
//!
//! The launcher applies the rules after COMMAND's start, so that COMMAND inherits neither the rules
//! nor no_new_privs.
//!
//! Landlock rules restrict the thread that applies the rules, and the threads that this thread
//! starts later. So threads that started before COMMAND call [`enter`] to apply the rules. From
//! version 8 of Landlock's interface (ABI) on, the main thread can restrict all threads at once,
//! even a thread that waits for a slow reader of the log.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, RestrictSelfAttr as _,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    RulesetError, Scope, path_beneath_rules,
};

/// The value of `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxMode {
    /// Applies all rules that the kernel supports. If the kernel supports no rules, the launcher
    /// runs without a sandbox.
    Auto,
    Off,
    /// Starts COMMAND only if a trial of the sandbox succeeds.
    Require,
}

/// The files and directories that name lookups and OpenSSL read. The list contains directories,
/// because a rule for a file does not apply to a new file that later replaces this file. The list
/// contains directories of libraries, because the C library loads modules for lookups (nss(5)) and
/// OpenSSL loads providers after the sandbox has started. The list contains /dev/null, because the
/// launcher sets SSL_CERT_FILE to this path (`tls::roots`), so OpenSSL opens /dev/null instead of
/// its default bundle of CA certificates.
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
/// The files that the resolver reads, and that may be symbolic links into other directories.
const RESOLVER_FILES: &[&str] =
    &["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf"];
/// The TCP port for DNS. The resolver uses DNS over TCP if a reply is too large for UDP.
const DNS_PORT: u16 = 53;

/// The rights that old versions of Landlock cannot deny. Each right comes with the first ABI
/// version that can deny the right.
const ADDED: &[(ABI, &str)] = &[
    (ABI::V3, "truncating files"),
    (ABI::V4, "TCP to other ports"),
    (ABI::V5, "ioctl on devices"),
    (ABI::V6, "abstract Unix sockets"),
];

/// The rights that the launcher keeps in the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// The TCP ports to which the launcher may connect, in addition to the port for DNS.
    pub ports: Vec<u16>,
    /// The files and directories that the launcher may read, in addition to [`READABLE`].
    pub read: Vec<PathBuf>,
    /// The directory that contains the launcher's Unix sockets. The launcher removes this directory
    /// when the launcher ends.
    pub sockets: Option<PathBuf>,
}

/// The state of the launcher's sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The setting turns the sandbox off, or the launcher has not applied the rules yet.
    Off,
    /// The system does not have Landlock. The text is the reason.
    Unavailable(&'static str),
    /// The kernel has Landlock, but refused the rules. The text is the reason.
    Failed(String),
    /// Landlock restricts the launcher by the rules that this version of Landlock's ABI supports.
    Landlock(ABI),
}

static STATE: OnceLock<State> = OnceLock::new();
/// The rules that the function [`enter`] applies. Empty until the launcher's main thread has
/// applied the rules.
static RULES: OnceLock<RulesetCreated> = OnceLock::new();

thread_local! {
    static HAS_ENTERED: Cell<bool> = const { Cell::new(false) };
}

impl Rights {
    /// Applies the rules to a new thread that ends at once, as a trial. Returns the state that the
    /// sandbox would have.
    pub fn try_out(&self) -> State {
        let attempt = || {
            let tried = self.rules().and_then(RulesetCreated::restrict_self);
            tried.map_or_else(failed, State::of)
        };
        thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, attempt) {
            Ok(thread) => thread.join().unwrap_or_else(|_| failed("the trial panicked")),
            Err(error) => failed(format!(
                "could not start a thread for the test of the sandbox: \
                                          {error}"
            )),
        })
    }

    /// Applies the rules to this thread. From Landlock's ABI version 8 on, also applies the rules
    /// to all other threads. On older versions, each other thread must call [`enter`].
    pub fn keep_only(&self) -> &'static State {
        let state = self.restrict().map_or_else(failed, State::of);
        STATE.get_or_init(|| state)
    }

    fn restrict(&self) -> io::Result<RestrictionStatus> {
        let rules = self.rules().map_err(io::Error::other)?;
        let restricted =
            rules.try_clone()?.all_threads(true).and_then(RulesetCreated::restrict_self);
        let status = restricted.map_err(io::Error::other)?;
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
            // The scope `Signal` is left out, because the launcher must send signals to COMMAND.
            .scope(Scope::AbstractUnixSocket)?
            .create()?
            .add_rules(path_beneath_rules(self.readable(), read))?
            .add_rules::<_, _, _, RulesetError>(ports)?
            .add_rules(path_beneath_rules(sockets, AccessFs::ReadDir | AccessFs::RemoveFile))?;
        // The launcher needs a right to the parent of the directory of sockets, so that the
        // launcher can remove this directory.
        let parent = sockets.and_then(Path::parent);
        rules.add_rules(path_beneath_rules(parent, BitFlags::from(AccessFs::RemoveDir)))
    }

    fn readable(&self) -> impl Iterator<Item = PathBuf> {
        let fixed = READABLE.iter().map(PathBuf::from);
        let linked = RESOLVER_FILES.iter().filter_map(|file| directory_of(Path::new(file)));
        // The variable HOSTALIASES contains the path of a file with aliases of host names
        // (hostname(7)).
        let aliases = std::env::var_os("HOSTALIASES").map(PathBuf::from);
        fixed.chain(linked).chain(aliases).chain(self.read.iter().cloned())
    }
}

/// Follows the symbolic links in `path`, and returns the directory of the resulting file. Returns
/// the file itself if the file is in the root directory.
pub fn directory_of(path: &Path) -> Option<PathBuf> {
    let file = path.canonicalize().ok()?;
    let directory = file.parent()?;
    Some(if directory == Path::new("/") { file } else { directory.to_owned() })
}

/// Applies the rules to this thread. Does nothing if the launcher has no rules, or if this thread
/// has already called `enter`.
///
/// # Errors
/// Returns an error if the kernel refuses the rules.
pub fn enter() -> io::Result<()> {
    match RULES.get() {
        Some(rules) if !HAS_ENTERED.replace(true) => {
            rules.try_clone()?.restrict_self().map(drop).map_err(io::Error::other)
        }
        _ => Ok(()),
    }
}

/// Returns the state of this launcher's sandbox.
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
            LandlockStatus::NotImplemented => State::Unavailable(
                "the kernel lacks Landlock, or a seccomp profile forbids Landlock",
            ),
        }
    }

    /// Returns the version of Landlock's ABI, if Landlock restricts the launcher.
    pub fn abi(&self) -> Option<u32> {
        match self {
            State::Landlock(abi) => Some(*abi as u32),
            _ => None,
        }
    }

    /// Returns the unneeded rights that the launcher keeps, because this kernel's version of
    /// Landlock cannot deny these rights.
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
                    ref rights => write!(f, " (cannot deny {})", rights.join(", ")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_names_the_rights_that_an_old_kernel_cannot_deny() {
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
