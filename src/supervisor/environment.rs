//! Builds COMMAND's environment, which is a copy of the launcher's environment with a few changed
//! variables.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::unistd::Pid;

use crate::system::process;

/// The variable in which systemd passes the pid of the process that may use systemd's sockets
/// (sd_listen_fds(3)).
const LISTEN_PID: &str = "LISTEN_PID";

/// The variables in which systemd passes a pid. sd_watchdog_enabled(3) explains WATCHDOG_PID.
const PID_VARIABLES: [&str; 2] = [LISTEN_PID, "WATCHDOG_PID"];

/// The variable in which systemd passes a second identifier of the process that may use systemd's
/// sockets. The first identifier is the pid in LISTEN_PID. Programs do not need this variable.
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// COMMAND's environment as a list of entries, because a map would lose the order of the entries
/// and entries without `=`.
#[derive(Clone)]
pub struct CommandEnvironment {
    pub(super) entries: Vec<CString>,
}

impl CommandEnvironment {
    /// Returns a copy of the launcher's environment.
    pub fn of_launcher() -> CommandEnvironment {
        CommandEnvironment { entries: process::environment() }
    }

    /// Keeps only the first entry of each variable. The launcher reads the first entry, but a shell
    /// reads the last, and would otherwise see a Redis URL that has no tunnel.
    #[must_use]
    pub fn without_duplicates(mut self) -> CommandEnvironment {
        let mut names = HashSet::new();
        self.entries.retain(|entry| match name(entry) {
            Some(name) => names.insert(name.to_owned()),
            None => true,
        });
        self
    }

    /// Returns the value of the variable `name`.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.entries.iter().find_map(|entry| value(entry, name))?;
        Some(OsStr::from_bytes(value))
    }

    /// Sets the variable `name`.
    ///
    /// # Panics
    /// Panics if `new_value` contains a NUL byte.
    pub fn set(&mut self, name: &str, new_value: impl Into<OsString>) {
        let entry = [name.as_bytes(), b"=", &new_value.into().into_vec()].concat();
        let entry = CString::new(entry).expect("environment variables contain no NUL byte");
        let place = self.entries.iter().position(|entry| value(entry, name).is_some());
        self.remove(name);
        // The index `place` is still right, because `remove` has removed no entry before `place`.
        self.entries.insert(place.unwrap_or(self.entries.len()), entry);
    }

    fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| value(entry, name).is_none());
    }

    /// Finds systemd's variables that contain the launcher's pid but must contain COMMAND's pid.
    /// Returns the index of each variable's entry, and the text `NAME=` with reserved memory for a
    /// pid.
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

    /// Removes the variable LISTEN_PIDFDID if LISTEN_PID contains the launcher's pid.
    pub(super) fn remove_pidfd(&mut self, launcher: Pid) {
        if self.get(LISTEN_PID) == Some(OsStr::new(&launcher.to_string())) {
            self.remove(LISTEN_PIDFDID);
        }
    }
}

/// Returns the name of the variable, if `entry` has the form `name=value`. Like Rust's library,
/// takes an `=` at the beginning as a part of the name.
fn name(entry: &CString) -> Option<&[u8]> {
    let entry = entry.as_bytes();
    let end = entry.iter().skip(1).position(|byte| *byte == b'=')?;
    Some(&entry[..=end])
}

/// Returns the value of the variable `name`, if `entry` has the form `name=value`.
fn value<'a>(entry: &'a CString, name: &str) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}
