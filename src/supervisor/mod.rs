//! Supervises COMMAND: starts COMMAND, forwards signals, does job control, reaps orphaned
//! processes, and ends the remaining processes of COMMAND's process group.
//!
//! This table shows how the launcher responds to a signal in each state of COMMAND.
//!
//! | signal | starts | runs | is stopped | has ended (drain) |
//! | --- | --- | --- | --- | --- |
//! | HUP INT QUIT TERM | forwards later | forwards | forwards | cuts the drain, unless ignored |
//! | TSTP TTIN TTOU | forwards later | forwards, stops with COMMAND | forwards | ignores |
//! | CONT | forwards later | forwards | continues COMMAND | ignores |
//! | CHLD | reaps orphans | reaps, checks COMMAND | reaps, checks COMMAND | reaps orphans |
//! | all others | forwards later | forwards | forwards | ignores |
//!
//! The launcher cannot catch SIGSTOP and SIGKILL. While the launcher is stopped, its tunnels relay
//! no bytes. If SIGKILL ends the launcher, the kernel sends SIGTERM to COMMAND.
//!
//! While the launcher is stopped, signals to the launcher stay pending. After SIGCONT, the launcher
//! reads the pending signals in the order of their numbers, so that it reads SIGTERM before
//! SIGCONT.
//!
//! The launcher forwards a signal only if COMMAND has not received it directly, and if
//! `--forward-signals` allows it: see `Supervisor::target` and [`Forwarding`].

mod child;
mod environment;
mod forwarding;
mod not_executed;
mod terminal;

use std::io;
use std::sync::Arc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};

pub use child::{Child, become_command, close_inherited, spawn};
pub use environment::CommandEnvironment;
pub use forwarding::{ForwardSignals, Forwarding};
pub use not_executed::NotExecuted;
pub use terminal::Terminal;

use crate::figures::{CommandState, Figures};
use crate::logging::{debug, warning};
pub use crate::system::inherited::{Inherited, forbid_core_dumps};
use crate::system::process::{self, JobEvent};
pub use crate::system::process::{ExitOutcome, Placement};
use crate::system::signals::{self, Received, Signals};

/// The signals that the kernel sends to a terminal's foreground process group, to a session leader
/// whose terminal hangs up, or to a stopped process group that becomes orphaned. All other signals
/// from the kernel except SIGALRM, for example SIGPIPE and SIGXCPU, concern the launcher alone.
const TERMINAL_SIGNALS: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// The signals that the kernel sends only to the session leader when a terminal hangs up
/// (`tty_signal_session_leader` in Linux's drivers/tty/tty_jobctrl.c).
const HANG_UP_SIGNALS: [Signal; 2] = [Signal::SIGHUP, Signal::SIGCONT];

/// The signals that stop a shell's job until the shell's `fg` or `bg` continues the job.
const JOB_CONTROL_SIGNALS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// Chooses COMMAND's process group. If the launcher is in a terminal's foreground, COMMAND shares
/// the launcher's group, so that keys such as Ctrl-C reach both processes. Otherwise, COMMAND gets
/// a process group of its own, so that the launcher can end the group's remaining processes after
/// COMMAND has ended.
pub fn placement(terminal: Option<&Terminal>) -> Placement {
    match terminal {
        Some(terminal) if terminal.is_ours() => Placement::Shared,
        _ => Placement::Own,
    }
}

/// Supervises COMMAND while COMMAND runs, and during the drain.
#[derive(Debug)]
pub struct Supervisor {
    child: Child,
    forwarding: Forwarding,
    terminal: Option<Terminal>,
    signals: Signals,
    /// True if COMMAND was stopped when the launcher last checked COMMAND's state.
    stopped: bool,
    figures: Arc<Figures>,
}

impl Supervisor {
    /// Prepares the supervision of COMMAND, which is already running as `child`.
    ///
    /// # Errors
    /// Returns an error if the launcher's signals cannot be read.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn new(
        child: Child,
        forwarding: Forwarding,
        terminal: Option<Terminal>,
        figures: Arc<Figures>,
    ) -> io::Result<Supervisor> {
        let signals = Signals::open()?;
        Ok(Supervisor { child, forwarding, terminal, signals, stopped: false, figures })
    }

    /// Forwards signals until COMMAND ends. Then sends SIGTERM to the remaining processes of
    /// COMMAND's process group, if COMMAND had its own group.
    ///
    /// # Errors
    /// Returns an error if the launcher's signals cannot be read.
    pub async fn wait(&mut self) -> io::Result<ExitOutcome> {
        loop {
            let received = self.signals.next().await?;
            let continued = received.is(Signal::SIGCONT);
            if continued || received.is(Signal::SIGCHLD) {
                let ended = self.look_after_children(continued);
                if let Some(ended) = ended {
                    return Ok(ended);
                }
            }
            if continued && self.stopped {
                self.resume();
                continue;
            }
            match self.target(received) {
                Some(target) => self.forward(received.number, target),
                None => debug!(at = "signal-kept", signal = received.number),
            }
        }
    }

    /// Reaps orphaned processes during the drain, until a signal ends the drain early. Returns the
    /// number of this signal.
    ///
    /// # Errors
    /// Returns an error if the launcher's signals cannot be read.
    pub async fn drain_cut(&mut self) -> io::Result<i32> {
        loop {
            let received = self.signals.next().await?;
            if received.is(Signal::SIGCHLD) {
                process::reap_all();
            } else if self.forwarding.cuts_drain(received) {
                return Ok(received.number);
            } else {
                debug!(at = "signal-kept", signal = received.number);
            }
        }
    }

    /// Reaps every child process that has ended, and reacts if COMMAND was stopped or continued. If
    /// COMMAND has ended, returns how COMMAND ended. The launcher has children besides COMMAND if
    /// the launcher is pid 1, or if a shell with children has become the launcher by `exec`.
    /// `continued` is true if the launcher has just received SIGCONT.
    fn look_after_children(&mut self, continued: bool) -> Option<ExitOutcome> {
        let mut command_ended = None;
        while let Some((pid, ended)) = process::ended_child() {
            if pid == self.child.pid {
                // The launcher ends COMMAND's group before it reaps COMMAND. While COMMAND is a
                // zombie, no other process group can get COMMAND's pid as its number.
                self.end_leftovers();
                command_ended = Some(ended);
            }
            process::reap(pid);
        }
        match process::job_event(self.child.pid) {
            // The launcher received SIGCONT after COMMAND had stopped, so the caller continues
            // COMMAND.
            Some(JobEvent::Stopped(_)) if continued => self.enter(CommandState::Stopped),
            Some(JobEvent::Stopped(signal)) => self.command_stopped(signal),
            Some(JobEvent::Continued) => self.enter(CommandState::Running),
            None => {}
        }
        command_ended
    }

    fn end_leftovers(&self) {
        if self.child.placement == Placement::Own {
            // Ignore the error. killpg(2) may fail if all processes of the group belong to another
            // user, for example after sudo.
            let _ = killpg(self.child.pid, Signal::SIGTERM);
            self.take_terminal_back();
        }
    }

    fn enter(&mut self, state: CommandState) {
        self.stopped = state == CommandState::Stopped;
        self.figures.set_command_state(state);
    }

    /// Stops the launcher after the signal `number` has stopped COMMAND, so that the launcher's
    /// parent notices the stop.
    fn command_stopped(&mut self, number: i32) {
        let job_control = JOB_CONTROL_SIGNALS.into_iter().find(|signal| *signal as i32 == number);
        let wants_terminal = matches!(job_control, Some(Signal::SIGTTIN | Signal::SIGTTOU))
            && self.terminal.as_ref().is_some_and(|terminal| !terminal.has_hung_up());
        let had_terminal =
            self.terminal.as_ref().is_some_and(|terminal| terminal.is_of(self.child.pid));
        if self.child.placement == Placement::Own {
            // After `fg` in a shell, the launcher's process group is in the foreground, but
            // COMMAND's group must be there, because COMMAND reads the terminal.
            if wants_terminal && self.hand_over_terminal() {
                self.forward(Signal::SIGCONT as i32, self.group());
                return;
            }
            self.take_terminal_back();
        }
        self.enter(CommandState::Stopped);
        let signal = match (job_control, self.child.placement) {
            (Some(signal), _) => signal,
            // The launcher must stop, because the user's shell takes the terminal back only from a
            // stopped job.
            (None, Placement::Shared) => Signal::SIGTSTP,
            // Another process has sent SIGSTOP to COMMAND. The launcher does not stop, because the
            // later SIGCONT may reach only COMMAND, and COMMAND then needs running tunnels.
            (None, Placement::Own) => return,
        };
        // Stop the whole job, as the kernel would without the launcher: COMMAND has read the
        // terminal from the background, or was in the foreground, where probably a key has stopped
        // it. The job may contain more processes, such as a script that has started the launcher,
        // and a shell's `fg` sends SIGCONT only if all of them are stopped.
        let is_job = self.child.placement == Placement::Own && (wants_terminal || had_terminal);
        let whom = if is_job { Pid::from_raw(0) } else { getpid() };
        match signals::stop(whom, signal) {
            Ok(true) => match process::job_event(self.child.pid) {
                // A shell has sent SIGCONT to the launcher and COMMAND together, so COMMAND already
                // runs.
                Some(JobEvent::Continued) if self.child.placement == Placement::Shared => {
                    self.enter(CommandState::Running);
                }
                _ => self.resume(),
            },
            Ok(false) if wants_terminal => warning!(
                at = "command-stopped",
                signal = signal as i32,
                msg = "COMMAND is stopped, because COMMAND used the terminal from the background, \
                       and no shell can bring COMMAND to the foreground. To continue COMMAND, \
                       send SIGCONT to COMMAND",
            ),
            // The kernel ignored the launcher's stop signal, because the launcher is pid 1, or
            // because no shell could continue the launcher. So the launcher continues COMMAND now.
            Ok(false) if self.child.placement == Placement::Own || is_init() => self.resume(),
            Ok(false) if job_control.is_some() && self.has_left_group() => self.resume(),
            Ok(false) => {}
            Err(error) => warning!(at = "stop-failed", error = %error),
        }
    }

    /// Continues COMMAND after SIGCONT has continued the launcher.
    fn resume(&mut self) {
        let target = match self.child.placement {
            Placement::Shared if self.has_left_group() => self.group(),
            Placement::Shared => self.child.pid,
            Placement::Own => {
                self.hand_over_terminal();
                self.group()
            }
        };
        self.forward(Signal::SIGCONT as i32, target);
        self.enter(CommandState::Running);
    }

    /// Returns true if COMMAND has put itself into a process group of its own, but not into a
    /// session of its own, as timeout(1) does. Without the launcher, such a COMMAND would lead the
    /// shell's job, and would get the terminal's signals.
    fn has_left_group(&self) -> bool {
        let pid = self.child.pid;
        getpgid(Some(pid)) == Ok(pid) && getsid(Some(pid)) == getsid(None)
    }

    /// Returns COMMAND's own process group, as a negative number for kill(2).
    fn group(&self) -> Pid {
        Pid::from_raw(-self.child.pid.as_raw())
    }

    /// Returns the process or process group to which the launcher must forward the signal
    /// `received`. Returns `None` if COMMAND has already received the signal, or must not receive
    /// it.
    fn target(&mut self, received: Received) -> Option<Pid> {
        if !self.forwarding.allows(received) {
            return None;
        }
        let shared = self.child.placement == Placement::Shared;
        match received.sender {
            Some(pid) if pid == getpid() => None,
            // Assume that COMMAND has sent the signal to its whole process group, for example by
            // `kill 0` in a script. Then COMMAND has received the signal, too.
            Some(pid) if pid == self.child.pid && getpgid(Some(pid)) == Ok(getpgrp()) => None,
            // When a terminal hangs up, the shell in the terminal sends SIGHUP to the whole process
            // group of each job, so COMMAND has already received SIGHUP.
            Some(pid)
                if shared
                    && !self.has_left_group()
                    && received.is(Signal::SIGHUP)
                    && self.terminal.as_ref().is_some_and(Terminal::has_hung_up)
                    && is_job_shell(pid) =>
            {
                None
            }
            Some(_) => Some(self.child.pid),
            // A timer that was set before the launcher was executed. COMMAND would have inherited
            // the timer without the launcher (alarm(2)).
            None if received.is(Signal::SIGALRM) => Some(self.child.pid),
            None => {
                let signal = received.one_of(&TERMINAL_SIGNALS)?;
                let missed = self.child.missed.contains(signal);
                self.child.missed.remove(signal);
                let leads_session = getsid(None) == Ok(getpid());
                match self.child.placement {
                    _ if leads_session && HANG_UP_SIGNALS.contains(&signal) => Some(self.child.pid),
                    Placement::Own => Some(self.group()),
                    Placement::Shared if self.has_left_group() => Some(self.group()),
                    Placement::Shared => missed.then_some(self.child.pid),
                }
            }
        }
    }

    fn forward(&self, number: i32, target: Pid) {
        match signals::send(target, number) {
            Ok(()) => debug!(at = "signal-forwarded", signal = number),
            Err(error) => warning!(at = "signal-not-forwarded", signal = number, error = %error),
        }
    }

    /// Puts COMMAND's process group into the terminal's foreground, if the launcher's group is
    /// there. Returns true if COMMAND's group is in the foreground afterwards.
    fn hand_over_terminal(&self) -> bool {
        match &self.terminal {
            Some(terminal) if terminal.is_ours() => terminal.give_to(self.child.pid).is_ok(),
            _ => false,
        }
    }

    /// Puts the launcher's process group into the terminal's foreground, if COMMAND's group is
    /// there.
    fn take_terminal_back(&self) {
        if let Some(terminal) = &self.terminal
            && terminal.is_of(self.child.pid)
            && let Err(error) = terminal.give_to(getpgrp())
        {
            warning!(at = "terminal-lost", error = %error);
        }
    }
}

/// Returns true if the launcher is pid 1, for example in a container.
fn is_init() -> bool {
    getpid().as_raw() == 1
}

/// Returns true if `process` leads the launcher's session and is a shell with job control. Such a
/// shell puts each job, for example the launcher, into a process group of its own.
fn is_job_shell(process: Pid) -> bool {
    getsid(None) == Ok(process) && getpgid(Some(process)) != Ok(getpgrp())
}
