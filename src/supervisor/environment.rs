//! COMMAND's environment: a copy of the launcher's environment, with a few changed variables.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::unistd::Pid;

use crate::system::process;

/// systemd's variable for the pid of the process that may use systemd's sockets (sd_listen_fds(3)).
const LISTEN_PID: &str = "LISTEN_PID";

/// systemd's variables that hold a pid. For WATCHDOG_PID, see sd_watchdog_enabled(3).
const PID_VARIABLES: [&str; 2] = [LISTEN_PID, "WATCHDOG_PID"];

/// systemd's second identifier for the process in LISTEN_PID. Programs do not need this variable.
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// COMMAND's environment as a list of entries. A map would lose the order of the entries, duplicate
/// entries, and entries without `=`.
#[derive(Clone)]
pub struct CommandEnvironment {
    pub(super) entries: Vec<CString>,
}

impl CommandEnvironment {
    /// A copy of the launcher's environment.
    pub fn of_launcher() -> CommandEnvironment {
        CommandEnvironment { entries: process::environment() }
    }

    /// The value of the variable `name`. If there are several entries, the first one counts, as for
    /// getenv(3).
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.entries.iter().find_map(|entry| value(entry, name))?;
        Some(OsStr::from_bytes(value))
    }

    /// Sets the variable `name`. If there are several entries, replaces the first and removes the
    /// others.
    ///
    /// # Panics
    /// If `new_value` contains a NUL.
    pub fn set(&mut self, name: &str, new_value: impl Into<OsString>) {
        let entry = [name.as_bytes(), b"=", &new_value.into().into_vec()].concat();
        let entry = CString::new(entry).expect("environment variables contain no NUL byte");
        let place = self.entries.iter().position(|entry| value(entry, name).is_some());
        self.remove(name);
        // `place` is still right, because all removed entries were at `place` or after it.
        self.entries.insert(place.unwrap_or(self.entries.len()), entry);
    }

    fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| value(entry, name).is_none());
    }

    /// systemd's variables that contain the launcher's pid but must contain COMMAND's pid. For
    /// each, returns the index of its entry, and the text `NAME=` with reserved memory for a pid.
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

    /// Removes LISTEN_PIDFDID if LISTEN_PID contains the pid of `launcher`.
    pub(super) fn remove_pidfd(&mut self, launcher: Pid) {
        if self.get(LISTEN_PID) == Some(OsStr::new(&launcher.to_string())) {
            self.remove(LISTEN_PIDFDID);
        }
    }
}

/// The value of the variable `name`, if `entry` has the form `name=value`.
fn value<'a>(entry: &'a CString, name: &str) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}
