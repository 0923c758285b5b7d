//! Finding and executing a program as execvp(3) does, in steps that are safe after fork.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::environment::ChildEnvironment;
use super::strings::Strings;

/// Where execvp(3) looks if PATH is unset.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// COMMAND, ready for execve(2).
pub struct Program {
    /// The files to try, in order.
    files: Vec<CString>,
    words: Strings,
}

/// Why no file of a [`Program`] could be executed.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    pub error: Errno,
    /// The index of the file that the error is about; [`u32::MAX`] if it is about none.
    pub file: u32,
}

impl Failure {
    /// The system refused a call that is not about a file.
    pub fn of_system(error: Errno) -> Failure {
        Failure { error, file: u32::MAX }
    }

    /// For a pipe between child and launcher.
    pub fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.file) << 32 | self.error as u64).to_ne_bytes()
    }

    /// `None` if `bytes` come from no [`Failure::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Failure> {
        let both = u64::from_ne_bytes(bytes.try_into().ok()?);
        Some(Failure { error: Errno::from_raw(both as i32), file: (both >> 32) as u32 })
    }
}

impl Program {
    /// # Panics
    /// When `words` is empty, or one of them has a NUL inside.
    pub fn new(words: &[OsString], path: Option<&OsStr>) -> Program {
        let files = files(&words[0], path).into_iter().map(|file| c_string(file.into()));
        Program { files: files.collect(), words: strings(words) }
    }

    /// The shell that runs the script `file`, whose first line names no interpreter.
    pub fn shell(file: &Path, words: &[OsString]) -> Program {
        let arguments = words[1..].iter().cloned();
        let words: Vec<OsString> =
            ["/bin/sh".into(), file.into()].into_iter().chain(arguments).collect();
        Program { files: vec![c"/bin/sh".to_owned()], words: strings(&words) }
    }

    /// Executes the first file that can be executed, in place of this process. Returns only when
    /// none can. Async-signal-safe.
    pub fn execute(&mut self, environment: &mut ChildEnvironment) -> Failure {
        let mut failure = Failure { error: Errno::ENOENT, file: 0 };
        for (path, file) in self.files.iter().zip(0..) {
            match self.words.execute(path, &mut environment.strings) {
                // A later folder may have the program.
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => failure = Failure { error: Errno::EACCES, file },
                error => return Failure { error, file },
            }
        }
        failure
    }

    /// The files to try, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| Path::new(OsStr::from_bytes(file.as_bytes())))
    }
}

/// Where `name` may be. A name with a slash is a path; others are looked up in the folders of
/// `path`, of which an empty one is the current folder.
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
    CString::new(word.into_vec()).expect("no NUL in a word of the command line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_in_the_folders_of_path() {
        let found = |name: &str, path: Option<&str>| files(name.as_ref(), path.map(OsStr::new));
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(found("app", Some("/a::b")), paths(&["/a/app", "./app", "./b/app"]));
        assert_eq!(found("app", None), paths(&["/bin/app", "/usr/bin/app"]));
        assert_eq!(found("./app", Some("/a")), paths(&["./app"]));
        assert_eq!(found("", Some("/a")), paths(&[""]));
    }

    #[test]
    fn the_shell_gets_the_file_and_the_arguments() {
        let words = ["script", "a", "b c"].map(OsString::from);
        let program = Program::shell(Path::new("/x/script"), &words);
        assert_eq!(program.words.to_vec(), ["/bin/sh", "/x/script", "a", "b c"]);
    }
}
