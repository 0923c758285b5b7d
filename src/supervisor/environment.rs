//! COMMAND's environment: the launcher's, entry by entry, with a few variables changed.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::unistd::Pid;

use super::inherited;
use super::strings::Strings;

/// Hold the pid of the process that they are meant for (sd_listen_fds(3), sd_watchdog_enabled(3)).
const PID_VARIABLES: [&str; 2] = ["LISTEN_PID", "WATCHDOG_PID"];

/// Names the same process as LISTEN_PID, in another way. Programs ignore it when it is unset.
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// What COMMAND gets as its environment. Order, duplicates and entries without `=` stay as they
/// were found: a map would lose them.
#[derive(Clone)]
pub struct CommandEnvironment {
    entries: Vec<CString>,
}

impl CommandEnvironment {
    /// The environment that the launcher has now.
    pub fn of_launcher() -> CommandEnvironment {
        CommandEnvironment { entries: inherited::environment() }
    }

    /// The value of `name`: of its first entry, as getenv(3) has it.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.entries.iter().find_map(|entry| value(entry, name))?;
        Some(OsStr::from_bytes(value))
    }

    /// Sets `name`; of several entries only the first stays.
    ///
    /// # Panics
    /// When `new_value` has a NUL inside.
    pub fn set(&mut self, name: &str, new_value: impl Into<OsString>) {
        let entry = [name.as_bytes(), b"=", &new_value.into().into_vec()].concat();
        let entry = CString::new(entry).expect("no NUL in an environment variable");
        let place = self.entries.iter().position(|entry| value(entry, name).is_some());
        self.remove(name);
        // Only entries behind the first one have moved.
        self.entries.insert(place.unwrap_or(self.entries.len()), entry);
    }

    fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| value(entry, name).is_none());
    }

    /// The environment for execve(2) in a child of `launcher`.
    pub(super) fn for_child_of(mut self, launcher: Pid) -> ChildEnvironment {
        let launcher = launcher.to_string();
        let is_pid_entry = |entry: &CString| {
            let held = PID_VARIABLES.iter().find_map(|name| value(entry, name));
            held.is_some_and(|pid| pid == launcher.as_bytes())
        };
        if self.get(PID_VARIABLES[0]) == Some(OsStr::new(&launcher)) {
            self.remove(LISTEN_PIDFDID);
        }
        let pids = self.entries.iter().enumerate().filter(|(_, entry)| is_pid_entry(entry));
        let pids = pids.map(|(index, entry)| (index, entry.as_bytes().len() - launcher.len()));
        let pids: Vec<(usize, usize)> = pids.collect();
        let mut strings = Strings::new(self.entries);
        pids.iter().for_each(|(index, _)| strings.reserve_number(*index));
        ChildEnvironment { strings, pids }
    }
}

/// Without values: they hold passwords.
impl fmt::Debug for CommandEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandEnvironment").finish_non_exhaustive()
    }
}

/// COMMAND's environment, ready for execve(2).
pub(super) struct ChildEnvironment {
    pub strings: Strings,
    /// Each entry that holds the launcher's pid: its index, and the byte at which the pid starts.
    pids: Vec<(usize, usize)>,
}

impl ChildEnvironment {
    pub fn unchanged(found: CommandEnvironment) -> ChildEnvironment {
        ChildEnvironment { strings: Strings::new(found.entries), pids: Vec::new() }
    }

    /// Replaces the launcher's pid with `pid`. Async-signal-safe.
    pub fn write_pid(&mut self, pid: Pid) {
        for (index, start) in &self.pids {
            self.strings.write_number(*index, *start, pid.as_raw());
        }
    }
}

/// The value in `entry` if that belongs to variable `name`.
fn value<'a>(entry: &'a CString, name: &str) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(entries: &[&str]) -> CommandEnvironment {
        let entries = entries.iter().map(|entry| CString::new(*entry).unwrap()).collect();
        CommandEnvironment { entries }
    }

    fn entries(environment: &CommandEnvironment) -> Vec<&str> {
        environment.entries.iter().map(|entry| entry.to_str().unwrap()).collect()
    }

    #[test]
    fn a_changed_variable_keeps_its_place_and_loses_duplicates() {
        let mut environment = environment(&["A=1", "odd", "B=1", "B=2", "A=2", "BB=3"]);
        environment.set("B", "new");
        environment.set("C", "added");
        assert_eq!(entries(&environment), ["A=1", "odd", "B=new", "A=2", "BB=3", "C=added"]);
        assert_eq!(environment.get("A"), Some(OsStr::new("1")));
        assert_eq!(environment.get("odd"), None);
    }

    #[test]
    fn only_the_launchers_pid_is_replaced() {
        let found = environment(&[
            "WATCHDOG_PID=7",
            "LISTEN_PID=70",
            "LISTEN_PIDFDID=9",
            "WATCHDOG_PID=77",
            "OTHER_PID=7",
        ]);
        let strings = |launcher: i32| {
            let mut child = found.clone().for_child_of(Pid::from_raw(launcher));
            child.write_pid(Pid::from_raw(i32::MAX));
            child.strings.to_vec()
        };
        assert_eq!(
            strings(7),
            [
                "WATCHDOG_PID=2147483647",
                "LISTEN_PID=70",
                "LISTEN_PIDFDID=9",
                "WATCHDOG_PID=77",
                "OTHER_PID=7"
            ]
        );
        assert_eq!(
            strings(70),
            ["WATCHDOG_PID=7", "LISTEN_PID=2147483647", "WATCHDOG_PID=77", "OTHER_PID=7"]
        );
    }
}
