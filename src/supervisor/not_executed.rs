//! Finds out why COMMAND could not be executed: the kernel has one error number for several causes.

use std::env::consts::ARCH;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::elf::Elf;
use super::program::paths;
use crate::exit;
use crate::system::process::{Failure, Program};

/// Bytes that the kernel reads to recognise a file's format (BINPRM_BUF_SIZE).
const START: u64 = 256;
/// The most interpreters of interpreters that the kernel follows (fs/exec.c).
const DEEPEST: usize = 5;

/// The error that COMMAND could not be executed.
#[derive(Debug)]
pub struct NotExecuted {
    pub error: io::Error,
    pub cause: Cause,
}

/// The reason why a file could not be executed.
#[derive(Debug, PartialEq, Eq)]
pub enum Cause {
    /// The file does not exist.
    NoSuchCommand,
    /// The interpreter of the script `file` does not exist.
    NoInterpreter {
        file: PathBuf,
        interpreter: String,
    },
    /// The dynamic loader of the program `file` does not exist.
    NoLoader {
        file: PathBuf,
        loader: PathBuf,
    },
    Directory(PathBuf),
    /// No user may execute the file.
    NotExecutable(PathBuf),
    /// This user may not execute the file, or its file system is mounted with noexec.
    NotPermitted(PathBuf),
    /// The program is for another processor or operating system.
    Foreign {
        file: PathBuf,
        built_for: &'static str,
    },
    /// The file is neither a program nor a script.
    NotAProgram(PathBuf),
    /// Unknown, except for the error.
    Other,
}

impl NotExecuted {
    /// 127 if COMMAND or its interpreter does not exist, otherwise 126 (POSIX.1-2017, Shell &
    /// Utilities, 2.8.2).
    pub fn exit_code(&self) -> u8 {
        match self.cause {
            Cause::NoSuchCommand | Cause::NoInterpreter { .. } | Cause::NoLoader { .. } => {
                exit::COMMAND_NOT_FOUND
            }
            _ => exit::COMMAND_NOT_EXECUTABLE,
        }
    }
}

/// The system refused a resource that COMMAND's start needs.
impl From<io::Error> for NotExecuted {
    fn from(error: io::Error) -> NotExecuted {
        NotExecuted { error, cause: Cause::Other }
    }
}

/// Finds the cause of `failure`.
pub fn explain(program: &Program, failure: Failure) -> NotExecuted {
    let mut files = paths(program);
    let (file, cause_without_file) = match failure.error {
        // If the file exists, its interpreter or loader is missing.
        Errno::ENOENT => (files.find(|file| file.exists()), Cause::NoSuchCommand),
        _ => (files.nth(failure.file as usize), Cause::Other),
    };
    let cause = file.map_or(cause_without_file, |file| cause(file, failure.error, DEEPEST));
    NotExecuted { error: failure.error.into(), cause }
}

/// Returns the path of the file that could not be executed, if it is a script without a `#!` line,
/// so that the caller can run it with a shell, as execvp(3) does.
pub fn script_for_shell(program: &Program, failure: Failure) -> Option<PathBuf> {
    let file =
        paths(program).nth(failure.file as usize).filter(|_| failure.error == Errno::ENOEXEC)?;
    let start = start(file).ok()?;
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    // A text file has no NUL in its first line. bash uses the same rule.
    let is_text = !start.starts_with(Elf::MAGIC) && !line.contains(&0);
    (is_text && interpreter(&start).is_none()).then(|| file.to_owned())
}

/// The reason why the execution of `file` failed with this error. `depth`: the number of
/// interpreters to follow.
fn cause(file: &Path, error: Errno, depth: usize) -> Cause {
    if error == Errno::EACCES
        && let Some(cause) = not_permitted(file)
    {
        return cause;
    }
    let Ok(start) = start(file) else { return Cause::Other };
    let file = file.to_owned();
    if let Some(interpreter) = interpreter(&start) {
        let interpreter = Path::new(&interpreter);
        return match interpreter.exists() {
            false => Cause::NoInterpreter { file, interpreter: interpreter.display().to_string() },
            true if depth == 0 => Cause::Other,
            true => cause(interpreter, error, depth - 1),
        };
    }
    let elf = File::open(&file).ok().and_then(|file| Elf::read(&file));
    let built_for = elf.as_ref().map(|elf| elf.machine).or(other_system(&start));
    match (error, elf.and_then(|elf| elf.loader)) {
        (Errno::ENOENT, Some(loader)) if !loader.exists() => Cause::NoLoader { file, loader },
        (Errno::ENOEXEC, _) => match built_for.filter(|built_for| *built_for != ARCH) {
            Some(built_for) => Cause::Foreign { file, built_for },
            None => Cause::NotAProgram(file),
        },
        _ => Cause::Other,
    }
}

/// The reason why permissions forbid the execution of `file`; `None` if they allow it.
fn not_permitted(file: &Path) -> Option<Cause> {
    let metadata = fs::metadata(file).ok()?;
    if metadata.is_dir() {
        return Some(Cause::Directory(file.to_owned()));
    }
    let nobody_may = metadata.permissions().mode() & 0o111 == 0;
    match access(file, AccessFlags::X_OK) {
        Ok(()) => None,
        Err(_) if nobody_may => Some(Cause::NotExecutable(file.to_owned())),
        Err(_) => Some(Cause::NotPermitted(file.to_owned())),
    }
}

/// The first bytes of `file`.
fn start(file: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(file)?.take(START).read_to_end(&mut start)?;
    Ok(start)
}

/// The interpreter in a script's first line, `#! /path/to/interpreter argument`.
fn interpreter(start: &[u8]) -> Option<OsString> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | 0));
    words.find(|word| !word.is_empty()).map(|word| OsStr::from_bytes(word).to_owned())
}

/// The other operating system for which a program is built, by the program's first bytes.
fn other_system(start: &[u8]) -> Option<&'static str> {
    const MACH_O: [[u8; 4]; 3] =
        [[0xcf, 0xfa, 0xed, 0xfe], [0xce, 0xfa, 0xed, 0xfe], [0xca, 0xfe, 0xba, 0xbe]];
    match start {
        _ if MACH_O.iter().any(|magic| start.starts_with(magic)) => Some("macOS"),
        [b'M', b'Z', ..] => Some("Windows"),
        _ => None,
    }
}
