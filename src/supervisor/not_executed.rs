//! Finds out why COMMAND could not be executed, because the kernel returns the same error number
//! for several causes.

use std::env::consts::ARCH;
use std::ffi::{CStr, OsStr};
use std::fmt::Display;
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

/// The number of bytes at a file's start by which the kernel recognises the file's format
/// (BINPRM_BUF_SIZE).
const START: u64 = 256;

/// The first bytes of programs for other operating systems, each with the name of the system.
const OTHER_SYSTEMS: [(&[u8], &str); 4] = [
    (b"\xcf\xfa\xed\xfe", "macOS"),
    (b"\xce\xfa\xed\xfe", "macOS"),
    (b"\xca\xfe\xba\xbe", "macOS"),
    (b"MZ", "Windows"),
];

/// The error that prevented COMMAND's execution, with a hint for the user.
#[derive(Debug)]
pub struct NotExecuted {
    pub error: io::Error,
    /// The cause and a remedy, as text for the user. `None` if the file does not exist, or if the
    /// launcher knows only the error number.
    pub hint: Option<String>,
}

impl NotExecuted {
    /// Returns the launcher's exit code, which is 127 if COMMAND or COMMAND's interpreter does not
    /// exist, and otherwise 126 (POSIX.1-2017, Shell & Utilities, 2.8.2).
    pub fn exit_code(&self) -> u8 {
        match self.error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => exit::COMMAND_NOT_FOUND,
            _ => exit::COMMAND_NOT_EXECUTABLE,
        }
    }
}

/// Converts the error of a system call that the launcher makes before it executes a file. Such an
/// error has no hint.
impl From<Errno> for NotExecuted {
    fn from(error: Errno) -> NotExecuted {
        NotExecuted { error: error.into(), hint: None }
    }
}

/// Explains why the file `path` could not be executed. `error` is the kernel's error number.
pub fn explain(path: &Path, error: Errno) -> NotExecuted {
    let file = path.display();
    let hint = match error {
        Errno::ENOENT if !path.exists() => None,
        Errno::EACCES if path.is_dir() => {
            Some(format!("{file} is a directory. Give the path of a program instead"))
        }
        Errno::EACCES if path.exists() && !path.is_file() => {
            Some(format!("{file} is not a regular file. Give the path of a program instead"))
        }
        Errno::EACCES if access(path, AccessFlags::X_OK).is_err() => {
            let mode = fs::metadata(path).map(|found| found.permissions().mode() & 0o111);
            Some(match mode {
                Ok(0) => format!(
                    "{file} has no execute permission. Run chmod +x {file}, or write the script's \
                     interpreter before {file}"
                ),
                _ => format!(
                    "this user may not execute {file}. Check the owner and the mode of the file \
                     and of its folders, and whether the file system is mounted with noexec"
                ),
            })
        }
        Errno::ENOENT | Errno::EACCES | Errno::ENOEXEC => match interpreter(&start(path)) {
            // The recursion ends: for scripts that name each other as interpreters, the kernel
            // returns ELOOP, which this match does not handle.
            Some(interpreter) if interpreter.exists() => return explain(&interpreter, error),
            Some(interpreter) => Some(no_interpreter(&file, &interpreter.to_string_lossy())),
            None if error == Errno::ENOENT => missing_loader(path).map(|loader| {
                format!(
                    "{file} exists, but its dynamic loader {loader} does not exist. Install the C \
                     library that {file} was built for, or a build of {file} for this system",
                    loader = loader.display()
                )
            }),
            None if error == Errno::ENOEXEC => Some(match built_for(path) {
                Some(system) if system != ARCH => format!(
                    "{file} is built for {system}, but this system runs programs for Linux on \
                     {ARCH}"
                ),
                _ => format!(
                    "{file} is neither a script nor a program for this system. Check whether the \
                     file is damaged, or is a data file"
                ),
            }),
            None => None,
        },
        _ => None,
    };
    NotExecuted { error: error.into(), hint }
}

fn no_interpreter(file: &impl Display, interpreter: &str) -> String {
    match interpreter.ends_with('\r') {
        true => format!(
            "{file} has Windows line ends, and its interpreter {interpreter} does not exist. \
             Convert {file} with dos2unix",
            interpreter = interpreter.escape_debug()
        ),
        false => format!(
            "{file} exists, but its interpreter {interpreter} does not exist. Install \
             {interpreter}, or change the first line of {file}"
        ),
    }
}

/// Returns true if `file` contains text, and the first line of `file` does not begin with `#!`.
pub fn is_script_for_shell(file: &Path) -> bool {
    let start = start(file);
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    // Treat a file as text if its first line contains no NUL byte, as bash does.
    !start.starts_with(&ELFMAG) && !line.contains(&0) && interpreter(&start).is_none()
}

/// Returns the first bytes of `file`, or an empty vector if the file is unreadable.
fn start(file: &Path) -> Vec<u8> {
    let mut start = Vec::new();
    // Opening a named pipe would block.
    if file.is_file() {
        let _ = File::open(file).and_then(|file| file.take(START).read_to_end(&mut start));
    }
    start
}

/// Returns the path of the interpreter from a script's first line, which has the form `#!
/// /path/to/interpreter argument`.
fn interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | 0));
    words.find(|word| !word.is_empty()).map(|word| OsStr::from_bytes(word).into())
}

/// Returns the processor or operating system for which the program `file` was built.
fn built_for(file: &Path) -> Option<String> {
    let start = start(file);
    if let Some((_, system)) = OTHER_SYSTEMS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some((*system).to_owned());
    }
    read_elf(file, |elf| match elf.architecture() {
        Architecture::Unknown => Some("another processor".to_owned()),
        // In lower case, the names of processors in the crate `object` are the same as in `ARCH`.
        processor => Some(format!("{processor:?}").to_lowercase()),
    })
}

/// Returns the path of the dynamic loader that the program `file` needs, if the loader does not
/// exist.
fn missing_loader(file: &Path) -> Option<PathBuf> {
    let loader: PathBuf = read_elf(file, |elf| {
        let section = elf.section_by_name(".interp")?;
        let path = CStr::from_bytes_until_nul(section.data().ok()?).ok()?;
        Some(OsStr::from_bytes(path.to_bytes()).into())
    })?;
    (!loader.exists()).then_some(loader)
}

/// Parses `file` and calls `read` with the result, if `file` is a program in the ELF format.
fn read_elf<T>(file: &Path, read: fn(object::File<&ReadCache<File>>) -> Option<T>) -> Option<T> {
    let content = ReadCache::new(File::open(file).ok()?);
    read(object::File::parse(&content).ok()?)
}
