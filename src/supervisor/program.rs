//! Prepares COMMAND for execution, and looks its file up in PATH like execvp(3).

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::environment::CommandEnvironment;
use crate::system::process::{Program, Strings};

/// The folders in which execvp(3) looks if PATH is unset.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The program for the command line `words`, with this environment.
///
/// # Panics
/// If `words` is empty, or a word contains a NUL.
pub fn program(words: &[OsString], environment: CommandEnvironment) -> Program {
    let files = files(&words[0], environment.get("PATH"));
    let files = files.into_iter().map(|file| c_string(file.into())).collect();
    Program::new(files, strings(words), Strings::new(environment.into_entries()))
}

/// Turns `program` into a shell that runs the script `file`, whose first line names no interpreter.
pub fn run_by_shell(program: &mut Program, file: &Path, words: &[OsString]) {
    let arguments = words[1..].iter().cloned();
    let words: Vec<OsString> =
        ["/bin/sh".into(), file.into()].into_iter().chain(arguments).collect();
    program.files = vec![c"/bin/sh".to_owned()];
    program.words = strings(&words);
}

/// The paths at which to try to execute `program`, in this order.
pub fn paths(program: &Program) -> impl Iterator<Item = &Path> {
    program.files.iter().map(|file| Path::new(OsStr::from_bytes(file.as_bytes())))
}

/// The files that `name` may stand for. A name with a slash is a path. Other names are looked up in
/// the folders of `path`; an empty entry means the current folder.
fn files(name: &OsStr, path: Option<&OsStr>) -> Vec<PathBuf> {
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        return vec![name.into()];
    }
    let folders = std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)));
    folders.map(|folder| Path::new(".").join(folder).join(name)).collect()
}

fn strings(words: &[OsString]) -> Strings {
    Strings::new(words.iter().cloned().map(c_string).collect())
}

fn c_string(word: OsString) -> CString {
    CString::new(word.into_vec()).expect("command-line arguments contain no NUL byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_looked_up_in_the_folders_of_path() {
        let found = |name: &str, path: Option<&str>| files(name.as_ref(), path.map(OsStr::new));
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(found("app", Some("/a::b")), paths(&["/a/app", "./app", "./b/app"]));
        assert_eq!(found("app", None), paths(&["/bin/app", "/usr/bin/app"]));
        assert_eq!(found("./app", Some("/a")), paths(&["./app"]));
        assert_eq!(found("", Some("/a")), paths(&[""]));
    }
}
