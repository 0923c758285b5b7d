//! Starting COMMAND, or becoming it.

#![allow(unsafe_code)]

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{AccessFlags, Pid, access, dup2_stdin, dup2_stdout, execvp, getpid, getppid};

use super::inherited::Inherited;
use super::signals;
use crate::environment::Environment;

/// Which process group COMMAND runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The launcher's: the terminal talks to both.
    Shared,
    /// One of its own.
    Own,
}

/// COMMAND, started.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    pub pid: Pid,
    pub placement: Placement,
    /// What the launcher had been sent before there was a COMMAND that could have got it, too.
    pub(super) missed: SigSet,
}

/// Starts COMMAND, with `environment` and nothing else of ours.
///
/// # Errors
/// When it cannot be executed; see [`crate::exit::not_executed`].
///
/// # Panics
/// When `words` is empty.
pub fn spawn(
    words: &[OsString],
    environment: &Environment,
    placement: Placement,
    inherited: Inherited,
) -> io::Result<Child> {
    let missed = signals::pending()?;
    let start = |words: &[OsString]| {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(environment);
        if placement == Placement::Own {
            command.process_group(0);
        }
        let launcher = getpid();
        // SAFETY: between fork and exec only async-signal-safe calls are made, on copies of plain
        // data.
        unsafe {
            command.pre_exec(move || {
                die_with(launcher)?;
                inherited.give_back()
            });
        }
        command.spawn()
    };
    let path = environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let child = match start(words) {
        Err(error) if is_unknown_format(&error) => start(&by_shell(words, path))?,
        started => started?,
    };
    Ok(Child { pid: Pid::from_raw(child.id() as i32), placement, missed })
}

/// Whether the kernel knows no way to execute a file: most often a script whose first line is no
/// `#!`.
fn is_unknown_format(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOEXEC)
}

/// `words` as the shell runs them, for a file of an unknown format: POSIX wants that of execvp(3),
/// glibc does it, musl does not. `path` is what PATH says.
fn by_shell(words: &[OsString], path: Option<&OsStr>) -> Vec<OsString> {
    let name = &words[0];
    let mut file = PathBuf::from(name);
    if !name.as_bytes().contains(&b'/') {
        // What execvp(3) has found; an empty element of PATH is the current folder.
        let folders = env::split_paths(path.unwrap_or(OsStr::new("/bin:/usr/bin")));
        let mut files = folders.map(|folder| Path::new(".").join(folder).join(name));
        let is_executable = |file: &PathBuf| access(file, AccessFlags::X_OK).is_ok();
        file = files.find(|file| file.is_file() && is_executable(file)).unwrap_or(file);
    }
    ["/bin/sh".into(), file.into()].into_iter().chain(words[1..].iter().cloned()).collect()
}

/// Has the kernel send SIGTERM to this process when the launcher's main thread, which starts
/// COMMAND, is gone (PR_SET_PDEATHSIG(2const)).
#[cfg(target_os = "linux")]
fn die_with(launcher: Pid) -> io::Result<()> {
    nix::errno::Errno::result(
        // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes a number and touches no memory.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) },
    )?;
    // It may have gone before the kernel was told.
    if getppid() != launcher {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn die_with(_: Pid) -> io::Result<()> {
    Ok(())
}

/// Lets go of stdin and stdout, which are COMMAND's alone: when COMMAND closes them, whoever is at
/// the other end of a pipe must notice.
///
/// # Errors
/// As open(2) and dup2(2).
pub fn let_go_of_streams() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    Ok(())
}

/// Becomes COMMAND: same pid, environment untouched. Returns only when that fails.
pub fn become_command(words: Vec<OsString>) -> io::Error {
    if let Err(error) = Inherited::restore_before_exec() {
        return error;
    }
    let error = execute(&words);
    if is_unknown_format(&error) {
        return execute(&by_shell(&words, env::var_os("PATH").as_deref()));
    }
    error
}

/// Executes a program in this process's place. Returns only when that fails.
fn execute(words: &[OsString]) -> io::Error {
    let words: Result<Vec<CString>, _> =
        words.iter().map(|word| CString::new(word.as_bytes())).collect();
    let words = match words {
        Ok(words) => words,
        Err(error) => return error.into(),
    };
    match execvp(&words[0], &words) {
        Err(error) => error.into(),
        Ok(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_shell_is_given_the_file_that_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "exit 3\n").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            file.into_os_string()
        };
        file("first/script", 0o644);
        let found = file("second/script", 0o755);
        let path = env::join_paths(["first", "second"].map(|name| folder.path().join(name)));
        let path = path.unwrap();
        let words = ["script", "a", "b c"].map(OsString::from);
        let expected = [OsString::from("/bin/sh"), found.clone(), "a".into(), "b c".into()];
        assert_eq!(by_shell(&words, Some(&path)), expected);
        // A name with a slash is not looked for.
        let expected = [OsString::from("/bin/sh"), found.clone()];
        assert_eq!(by_shell(std::slice::from_ref(&found), Some(&path)), expected);
        assert_eq!(by_shell(&["./script".into()], Some(&path))[1], "./script");
    }
}
