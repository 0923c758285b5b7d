//! A pseudo-terminal for programs under test. The test types keys, and reads what the programs
//! print.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, tcgetpgrp};

use super::proc::session;
use super::{Process, eventually, heed_signals};

pub const CTRL_Z: &str = "\x1a";

/// A program that is the session leader of its own terminal.
pub struct Terminal {
    pub process: Process,
    /// The master side of the pseudo-terminal. `None` after [`Terminal::hang_up`].
    master: Option<File>,
    /// The text that the terminal has shown after the text that [`Terminal::expect`] found last.
    screen: String,
}

impl Terminal {
    pub fn start(mut command: Command) -> Terminal {
        // O_CLOEXEC, because the terminal could not hang up if another test's process inherited the
        // descriptor.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags).expect("a pty");
        grantpt(&master).expect("a pty");
        unlockpt(&master).expect("a pty");
        let name = ptsname_r(&master).expect("a pty");
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name)
            .expect("the terminal");
        let stream = || slave.try_clone().expect("a descriptor");
        command.stdin(stream()).stdout(stream()).stderr(stream());
        heed_signals(&mut command);
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe, and descriptor 0 is the terminal.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let process = Process(command.spawn().expect("a program on a terminal"));
        Terminal { process, master: Some(File::from(OwnedFd::from(master))), screen: String::new() }
    }

    /// Starts an interactive shell with job control. The shell's prompt is `$ `.
    pub fn shell(variables: &[(&str, &str)]) -> Terminal {
        let mut command = Command::new("bash");
        command.args(["--norc", "--noprofile", "--noediting", "-i"]).env_clear();
        command.env("PATH", std::env::var_os("PATH").expect("PATH")).env("PS1", "$ ");
        command.env("TERM", "dumb").env("STUNNEL_LISTEN_PORT", "0").env("STUNNEL_LOGLEVEL", "crit");
        command.envs(variables.iter().copied());
        let mut terminal = Terminal::start(command);
        terminal.expect("$ ");
        terminal
    }

    fn master(&mut self) -> &mut File {
        self.master.as_mut().expect("a terminal that has not hung up")
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.master().write_all(keys.as_bytes()).expect("type");
    }

    /// Types a line, and waits for the terminal's echo.
    pub fn type_line(&mut self, line: &str) {
        self.type_keys(&format!("{line}\n"));
        self.expect(line);
    }

    /// Waits until the terminal shows `text` after the text of the previous call. Returns
    /// everything between the two texts.
    pub fn expect(&mut self, text: &str) -> String {
        let found = eventually(&format!("{text:?} on the terminal"), || {
            let mut buffer = [0; 4096];
            // Ignore the error: the read fails while the terminal shows no new text.
            if let Ok(read) = self.master().read(&mut buffer) {
                self.screen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            self.screen.find(text)
        });
        let rest = self.screen.split_off(found + text.len());
        let before = std::mem::replace(&mut self.screen, rest);
        before[..found].to_owned()
    }

    /// Waits for the shell's prompt. Returns the exit code of the command that has just ended.
    pub fn exit_code(&mut self) -> String {
        self.expect("$ ");
        self.type_line("echo code=$?");
        self.expect("code=");
        self.expect("\r\n")
    }

    /// Stops the shell's foreground job with Ctrl-Z.
    pub fn suspend(&mut self) {
        self.type_keys(CTRL_Z);
        self.expect("Stopped");
        self.expect("$ ");
    }

    /// Types `fg`, and waits until the shell's job is in the foreground. `words` are a part of the
    /// job's command line, which `fg` prints.
    pub fn bring_to_foreground(&mut self, words: &str) {
        self.type_keys("fg\n");
        self.expect(words);
        let shell = Pid::from_raw(self.process.pid());
        eventually("the job is in the foreground", || {
            (tcgetpgrp(self.master()).ok()? != shell).then_some(())
        });
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the ioctl TIOCSWINSZ only reads `size`.
        let done = unsafe { libc::ioctl(self.master().as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0);
    }

    /// Closes the master side of the pseudo-terminal, as a terminal window does when the user
    /// closes the window.
    pub fn hang_up(&mut self) {
        self.master = None;
    }
}

impl Drop for Terminal {
    /// Kills all processes on the terminal, because a failed test may leave processes behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("on the terminal: {:?}", self.screen);
        }
        for pid in session(self.process.pid()) {
            // Ignore the error: the process may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
