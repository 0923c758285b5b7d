//! Starts COMMAND as a child process, or replaces the launcher by COMMAND.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::mem;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{AccessFlags, Pid, access, dup2_stdin, dup2_stdout, getpid};

use super::environment::CommandEnvironment;
use super::not_executed::{self, NotExecuted};
use crate::system::inherited::Inherited;
use crate::system::process::{self, Placement, Program};
use crate::system::stream;

/// The folders in which execvp(3) searches for a program if the variable PATH is unset.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The process of COMMAND, which the launcher has started.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    pub pid: Pid,
    pub placement: Placement,
    /// The signals that the launcher received before COMMAND started, and has not forwarded to
    /// COMMAND yet.
    pub(super) missed: SigSet,
}

/// Starts COMMAND as a child process.
///
/// # Errors
/// Returns an error if COMMAND cannot be executed.
///
/// # Panics
/// Panics if `words` is empty.
pub fn spawn(
    words: &[OsString],
    mut environment: CommandEnvironment,
    placement: Placement,
    inherited: &Inherited,
) -> Result<Child, NotExecuted> {
    environment.remove_pidfd(getpid());
    let (pid, missed) = execute(words, environment, |program| program.spawn(placement, inherited))?;
    Ok(Child { pid, placement, missed })
}

/// Closes stdin, stdout, and the launcher's copies of other pipes and sockets that COMMAND has
/// inherited. The copies would keep a pipe or socket open after COMMAND has closed it.
///
/// # Errors
/// Returns the error of pipe2(2) or dup2(2).
pub fn close_inherited() -> nix::Result<()> {
    process::close_inherited();
    let closed = stream::closed()?;
    dup2_stdin(&closed)?;
    dup2_stdout(&closed)
}

/// Replaces the launcher by COMMAND, so that COMMAND runs in the same process with the same pid.
/// Returns only if COMMAND cannot be executed.
pub fn become_command(words: &[OsString], environment: CommandEnvironment) -> NotExecuted {
    if let Err(error) = Inherited::restore_before_exec() {
        return error.into();
    }
    let Err(error) = execute(words, environment, |program| program.execute());
    error
}

/// Executes the command line `words` by calling the function `how`. If the kernel returns ENOENT or
/// EACCES for a file, tries the file in the next folder of PATH, as execvp(3) does. For example,
/// the kernel returns ENOENT if the interpreter of a script does not exist. If a file is a script
/// without a `#!` line, executes /bin/sh with this script.
fn execute<T>(
    words: &[OsString],
    environment: CommandEnvironment,
    how: impl Fn(&mut Program) -> nix::Result<T>,
) -> Result<T, NotExecuted> {
    let files = files(&words[0], environment.get("PATH"));
    let mut program = Program {
        file: CString::default(),
        words: words.iter().cloned().map(c_string).collect(),
        pid_entries: environment.pid_entries(getpid()),
        environment: environment.entries,
    };
    let mut first_failure = None;
    for file in files {
        program.file = c_string(file.clone().into());
        match how(&mut program) {
            Err(error @ (Errno::ENOENT | Errno::EACCES)) => {
                first_failure.get_or_insert((file, error));
            }
            Err(Errno::ENOEXEC) if not_executed::is_script_for_shell(&file) => {
                let shell = c"/bin/sh".to_owned();
                let script = mem::replace(&mut program.file, shell.clone());
                program.words.splice(..1, [shell, script]);
                let done = how(&mut program);
                return done.map_err(|error| not_executed::explain(Path::new("/bin/sh"), error));
            }
            done => return done.map_err(|error| not_executed::explain(&file, error)),
        }
    }
    let (file, error) = first_failure.expect("`files` returns at least one file");
    Err(not_executed::explain(&file, error))
}

fn c_string(word: OsString) -> CString {
    CString::new(word.into_vec()).expect("command-line arguments contain no NUL byte")
}

/// Returns the paths of the command `name`, in the order of their folders in `path`. A name that
/// contains a slash is itself a path. The launcher searches for any other name in the folders of
/// `path`, where an empty entry means the current folder, and skips files that this user may not
/// execute. If no executable file exists, returns a single path whose execution fails.
fn files(name: &OsStr, path: Option<&OsStr>) -> Vec<PathBuf> {
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        return vec![name.into()];
    }
    let folders = env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)));
    let files = folders.map(|folder| Path::new(".").join(folder).join(name));
    let is_executable = |file: &PathBuf| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    let (executable, others): (Vec<_>, Vec<_>) = files.partition(is_executable);
    if !executable.is_empty() {
        return executable;
    }
    others.into_iter().min_by_key(|file| !file.exists()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_looked_up_in_the_folders_of_path() {
        let found = |name: &str, path: &str| files(name.as_ref(), Some(path.as_ref())).remove(0);
        // The relative path `./bin/setup` exists, because cargo runs this test in the project's
        // root folder.
        assert_eq!(found("setup", "/etc::bin"), Path::new("./bin/setup"), "an executable file");
        assert_eq!(found("bin", "/etc::/x"), Path::new("./bin"), "an existing folder");
        assert_eq!(found("no-such-file", "/x:/y"), Path::new("/x/no-such-file"));
        assert_eq!(found("./setup", "bin"), Path::new("./setup"));
        assert_eq!(found("", "bin"), Path::new(""));
    }

    #[test]
    fn a_broken_script_does_not_hide_a_program_later_in_path() {
        let folder = tempfile::tempdir().unwrap();
        let [broken, good] = ["broken", "good"].map(|name| folder.path().join(name));
        for (folder, interpreter) in [(&broken, "/no/such/interpreter"), (&good, "/bin/sh")] {
            // A child process writes the script. If this process wrote the script, a child of
            // another test could hold the script open, and execve(2) would fail with ETXTBSY.
            let write = "mkdir \"$1\" && echo \"#!$2\" >\"$1/tool\" && chmod 755 \"$1/tool\"";
            let mut writer = std::process::Command::new("sh");
            writer.args(["-c", write, "sh"]).arg(folder).arg(interpreter);
            assert!(writer.status().unwrap().success());
        }
        // Returns the file that the kernel has executed.
        let found = |path: &OsStr| {
            let mut environment = CommandEnvironment::of_launcher();
            environment.set("PATH", path);
            execute(&["tool".into()], environment, |program| {
                let file = Path::new(OsStr::from_bytes(program.file.as_bytes())).to_owned();
                match std::process::Command::new(&file).status() {
                    Ok(_) => Ok(file),
                    Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap())),
                }
            })
        };
        let both = env::join_paths([&broken, &good]).unwrap();
        assert_eq!(found(&both).unwrap(), good.join("tool"));
        let failed = found(broken.as_os_str()).unwrap_err();
        assert!(failed.hint.unwrap().contains(&*broken.join("tool").to_string_lossy()));
    }
}
