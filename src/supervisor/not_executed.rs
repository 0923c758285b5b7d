//! Finds out why COMMAND could not be executed: the kernel has one error number for several causes.

use std::env::consts::ARCH;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use object::elf::ELFMAG;
use object::{Architecture, Object as _, ObjectSection as _, ReadCache};

use crate::exit;

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
        built_for: String,
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

/// Explains why the execution of `file` failed with `error`.
pub fn explain(file: &Path, error: Errno) -> NotExecuted {
    let cause = match error {
        // If the file exists, its interpreter or loader is missing.
        Errno::ENOENT | Errno::ENOTDIR if !file.exists() => Cause::NoSuchCommand,
        _ => cause(file, error, DEEPEST),
    };
    NotExecuted { error: error.into(), cause }
}

/// True if `file` is a text without a `#!` line.
pub fn is_script_for_shell(file: &Path) -> bool {
    let Ok(start) = start(file) else { return false };
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    // A text file has no NUL in its first line. bash uses the same rule.
    !start.starts_with(&ELFMAG) && !line.contains(&0) && interpreter(&start).is_none()
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
    let owned = file.to_owned();
    if let Some(interpreter) = interpreter(&start) {
        let interpreter = Path::new(&interpreter);
        return match interpreter.exists() {
            false => {
                Cause::NoInterpreter { file: owned, interpreter: interpreter.display().to_string() }
            }
            true if depth == 0 => Cause::Other,
            true => cause(interpreter, error, depth - 1),
        };
    }
    match error {
        Errno::ENOENT => match loader(file).filter(|loader| !loader.exists()) {
            Some(loader) => Cause::NoLoader { file: owned, loader },
            None => Cause::Other,
        },
        Errno::ENOEXEC => match built_for(file, &start).filter(|system| system != ARCH) {
            Some(built_for) => Cause::Foreign { file: owned, built_for },
            None => Cause::NotAProgram(owned),
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

/// The first bytes of programs for other operating systems.
const FOREIGN: [(&[u8], &str); 4] = [
    (&[0xcf, 0xfa, 0xed, 0xfe], "macOS"),
    (&[0xce, 0xfa, 0xed, 0xfe], "macOS"),
    (&[0xca, 0xfe, 0xba, 0xbe], "macOS"),
    (b"MZ", "Windows"),
];

/// The processor or operating system that the program `file` is built for.
fn built_for(file: &Path, start: &[u8]) -> Option<String> {
    let system = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic));
    let system = system.map(|(_, system)| (*system).to_owned());
    system.or_else(|| {
        read_elf(file, |elf| match elf.architecture() {
            Architecture::Unknown => Some("another processor".to_owned()),
            // The crate's names resemble those of `std::env::consts::ARCH`.
            known => Some(format!("{known:?}").to_lowercase()),
        })
    })
}

/// The dynamic loader that the program `file` names.
fn loader(file: &Path) -> Option<PathBuf> {
    read_elf(file, |elf| {
        let section = elf.section_by_name(".interp")?;
        let path = CStr::from_bytes_until_nul(section.data().ok()?).ok()?;
        Some(OsStr::from_bytes(path.to_bytes()).into())
    })
}

/// Calls `read` if `file` is a program in the ELF format.
fn read_elf<T>(
    file: &Path,
    read: impl Fn(object::File<&ReadCache<File>>) -> Option<T>,
) -> Option<T> {
    let content = ReadCache::new(File::open(file).ok()?);
    read(object::File::parse(&content).ok()?)
}
