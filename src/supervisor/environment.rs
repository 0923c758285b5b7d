//! COMMAND's environment: a copy of the launcher's, with a few variables changed.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::unistd::Pid;

use crate::system::process;

/// Holds the pid of the process to which systemd passes sockets (sd_listen_fds(3)).
const LISTEN_PID: &str = "LISTEN_PID";

/// Variables of systemd that hold a pid: for sockets, and for the watchdog
/// (sd_watchdog_enabled(3)).
const PID_VARIABLES: [&str; 2] = [LISTEN_PID, "WATCHDOG_PID"];

/// Holds the pidfd id of the process in LISTEN_PID. Programs do not need it.
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// COMMAND's environment as a list of entries. A map would lose the order, duplicates and entries
/// without `=`.
#[derive(Clone)]
pub struct CommandEnvironment {
    entries: Vec<CString>,
}

impl CommandEnvironment {
    /// A copy of the launcher's environment.
    pub fn of_launcher() -> CommandEnvironment {
        CommandEnvironment { entries: process::environment() }
    }

    /// The value of `name` in its first entry, as from getenv(3).
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.entries.iter().find_map(|entry| value(entry, name))?;
        Some(OsStr::from_bytes(value))
    }

    /// Sets `name`; of several entries, only the first stays.
    ///
    /// # Panics
    /// If `new_value` contains a NUL.
    pub fn set(&mut self, name: &str, new_value: impl Into<OsString>) {
        let entry = [name.as_bytes(), b"=", &new_value.into().into_vec()].concat();
        let entry = CString::new(entry).expect("environment variables contain no NUL byte");
        let place = self.entries.iter().position(|entry| value(entry, name).is_some());
        self.remove(name);
        // The removal has moved only entries behind this place.
        self.entries.insert(place.unwrap_or(self.entries.len()), entry);
    }

    fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| value(entry, name).is_none());
    }

    /// The entries that hold the pid of `launcher` and must hold COMMAND's: the index of each, and
    /// its text before the pid, with reserved memory for any pid.
    pub(super) fn pid_entries(&self, launcher: Pid) -> Vec<(usize, Vec<u8>)> {
        const LONGEST: usize = "2147483647\0".len();
        let launcher = launcher.to_string();
        let before_pid = |(index, entry): (usize, &CString)| {
            let held = |name: &&str| value(entry, name) == Some(launcher.as_bytes());
            let name = PID_VARIABLES.into_iter().find(held)?;
            let mut text = Vec::with_capacity(name.len() + 1 + LONGEST);
            text.extend([name.as_bytes(), b"="].concat());
            Some((index, text))
        };
        self.entries.iter().enumerate().filter_map(before_pid).collect()
    }

    /// Removes LISTEN_PIDFDID if LISTEN_PID is the pid of `launcher`.
    pub(super) fn remove_pidfd(&mut self, launcher: Pid) {
        if self.get(LISTEN_PID) == Some(OsStr::new(&launcher.to_string())) {
            self.remove(LISTEN_PIDFDID);
        }
    }

    pub(super) fn into_entries(self) -> Vec<CString> {
        self.entries
    }
}

/// Shows no values, because values may be passwords.
impl fmt::Debug for CommandEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandEnvironment").finish_non_exhaustive()
    }
}

/// The value in `entry`, if the entry is of variable `name`.
fn value<'a>(entry: &'a CString, name: &str) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}
