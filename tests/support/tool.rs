//! Runs a tool of this project, such as `bin/bench`, in a folder of its own.

use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::launcher::BINARY;
use super::proc::processes_in;
use super::{Process, wait_until};

/// A running tool that measures the tested launcher.
pub struct Tool {
    pub process: Process,
    /// The tool's working directory and TMPDIR.
    folder: TempDir,
}

impl Tool {
    /// Starts `bin/NAME` in a process group of its own, as a shell does.
    pub fn start(name: &str, words: &[&str]) -> Tool {
        let folder = tempfile::tempdir().unwrap();
        // If the tests run as a background job, the tests ignore SIGINT. The tool must not inherit
        // this setting.
        let mut command = Command::new("env");
        command.arg("--default-signal");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bin").join(name));
        command.args(["--binary", BINARY]).args(words);
        command.current_dir(folder.path()).env("TMPDIR", folder.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Tool { process: Process(command.spawn().expect(name)), folder }
    }

    /// The number of processes of the tool and of the programs that the tool started.
    pub fn processes(&self) -> usize {
        processes_in(self.folder.path())
    }

    /// Waits until the tool ends, and checks that the tool leaves no process and no file. Returns
    /// the tool's exit code (or the negative number of the signal that killed the tool), and the
    /// rest of its standard output and standard error.
    pub fn finish(mut self) -> (i32, String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // Read standard error first. Meanwhile, the tool does not block on standard output, because
        // a pipe's buffer can hold all of the tool's standard output.
        self.process.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        self.process.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let status = self.process.wait();
        wait_until("all processes have ended", || self.processes() == 0);
        assert_eq!(fs::read_dir(&self.folder).unwrap().count(), 0, "no file is left");
        let code = status.code().unwrap_or_else(|| -status.signal().expect("a signal"));
        (code, stdout, stderr)
    }
}
