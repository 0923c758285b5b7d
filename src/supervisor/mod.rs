//! COMMAND's life: signals passed on, job control, orphans reaped, leftovers told to go.
//!
//! What becomes of a signal that arrives at the launcher:
//!
//! | signal | COMMAND starts | runs | is stopped | has ended: draining |
//! | --- | --- | --- | --- | --- |
//! | HUP INT QUIT TERM | passed on once it runs | passed on | passed on, acts later | cuts drain |
//! | TSTP TTIN TTOU | the same | passed on; if it stops, so do we | passed on | kept: ends soon |
//! | CONT | the same | passed on | continues it | kept |
//! | CHLD | orphans are reaped | and COMMAND looked after | the same | orphans are reaped |
//! | any other that can be caught | the same | passed on | passed on | kept |
//!
//! STOP and KILL ask nobody: a stopped launcher's tunnels wait; if it is killed, COMMAND gets TERM.
//!
//! As long as the launcher is stopped, too, signals wait, and are read in the order of their
//! numbers when it is continued: SIGTERM before SIGCONT. "Passed on" is for what COMMAND has not
//! got by itself, and for what the setting allows: see [`Forwarding`] and `Supervisor::target`.

mod child;
mod elf;
mod environment;
mod forwarding;
mod not_executed;
mod program;
mod terminal;

use std::io;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};

pub use child::{Child, become_command, let_go_of_streams, spawn};
pub use environment::CommandEnvironment;
pub use forwarding::{ForwardSignals, Forwarding};
pub use not_executed::{Cause, NotExecuted};
pub use terminal::Terminal;

use crate::figures::{CommandState, Figures};
use crate::logging::{debug, warning};
pub use crate::system::inherited::{Inherited, forbid_core_dumps};
use crate::system::process::{self, JobEvent};
pub use crate::system::process::{ExitOutcome, Placement};
use crate::system::signals::{self, Received, Sender, Signals, Stop};

/// What the kernel sends to a terminal's foreground process group, to a session's leader when the
/// terminal hangs up, and to a stopped group that has become orphaned. Other signals of the
/// kernel's (SIGPIPE, SIGXCPU, …) concern the launcher alone.
const TERMINAL_SIGNALS: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// What a terminal that hangs up has sent to the session's leader, and to nobody else (Linux,
/// drivers/tty/tty_jobctrl.c, `tty_signal_session_leader`).
const HANG_UP_SIGNALS: [Signal; 2] = [Signal::SIGHUP, Signal::SIGCONT];

/// What stops a job, and is undone by a shell's `fg` or `bg`.
const JOB_CONTROL_SIGNALS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// Whom a signal is passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Command,
    /// All of COMMAND's process group, as the kernel does.
    Group,
}

/// Where COMMAND is to run: with the launcher when that is in a terminal's foreground, so that the
/// terminal's keys reach both; else in a process group of its own, so that it can be tidied up.
pub fn placement(terminal: Option<&Terminal>) -> Placement {
    match terminal {
        Some(terminal) if terminal.is_ours() => Placement::Shared,
        _ => Placement::Own,
    }
}

/// Watches over a running COMMAND.
#[derive(Debug)]
pub struct Supervisor {
    command: Pid,
    placement: Placement,
    /// See [`Child`]; each is taken out when it has been passed on.
    missed: SigSet,
    forwarding: Forwarding,
    terminal: Option<Terminal>,
    leads_session: bool,
    /// The shell with job control whose job the launcher is, if any.
    job_shell: Option<Pid>,
    signals: Signals,
    /// Whether COMMAND is stopped, as far as the kernel has told us.
    stopped: bool,
    figures: Arc<Figures>,
    /// Whether a shell has continued the whole process group, so that COMMAND already has the
    /// SIGCONT that is on its way to us.
    resumed_by_shell: bool,
}

impl Supervisor {
    /// # Errors
    /// When the launcher's signals cannot be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        command: Child,
        forwarding: Forwarding,
        terminal: Option<Terminal>,
        figures: Arc<Figures>,
    ) -> io::Result<Supervisor> {
        let signals = Signals::open()?;
        Ok(Supervisor {
            command: command.pid,
            placement: command.placement,
            missed: command.missed,
            forwarding,
            terminal,
            leads_session: getsid(None) == Ok(getpid()),
            job_shell: job_shell(),
            signals,
            stopped: false,
            figures,
            resumed_by_shell: false,
        })
    }

    /// Passes signals on until COMMAND has ended; what is left of a process group of its own has
    /// been sent SIGTERM then.
    ///
    /// # Errors
    /// When the launcher's signals cannot be read.
    pub async fn wait(&mut self) -> io::Result<ExitOutcome> {
        loop {
            let received = self.signals.next().await?;
            let continued = received.is(Signal::SIGCONT);
            if (continued || received.is(Signal::SIGCHLD))
                && let Some(ended) = self.look_after_children(continued)
            {
                return Ok(ended);
            }
            if continued && std::mem::take(&mut self.resumed_by_shell) {
                continue;
            }
            if continued && self.stopped {
                self.resume();
                continue;
            }
            match self.target(received) {
                Some(target) => self.pass_on(received.number, target),
                None => debug!(at = "signal-kept", signal = received.number),
            }
        }
    }

    /// Reaps orphans, after COMMAND's end, until a signal says that nobody waits for the drain any
    /// longer; returns its number.
    ///
    /// # Errors
    /// When the launcher's signals cannot be read.
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

    /// Reaps whatever child has ended (as pid 1, or behind a shell's `exec`, not only COMMAND) and
    /// takes note when COMMAND was stopped or continued. `continued`: the launcher has just been.
    fn look_after_children(&mut self, continued: bool) -> Option<ExitOutcome> {
        let mut command_ended = None;
        while let Some((pid, ended)) = process::ended_child() {
            if pid == self.command {
                // As long as COMMAND is a zombie, its process group's number is nobody else's.
                self.end_leftovers();
                command_ended = Some(ended);
            }
            process::reap(pid);
        }
        if command_ended.is_none() {
            match process::job_event(self.command) {
                // The SIGCONT came behind the stop: it is for both.
                Some(JobEvent::Stopped(_)) if continued => self.note_stopped(true),
                Some(JobEvent::Stopped(signal)) => self.command_stopped(signal),
                Some(JobEvent::Continued) => self.note_stopped(false),
                None => {}
            }
        }
        command_ended
    }

    fn end_leftovers(&self) {
        if self.placement == Placement::Own {
            // An error means that nothing is left.
            let _ = killpg(self.command, Signal::SIGTERM);
            self.take_terminal_back();
        }
    }

    fn note_stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
        let state = if stopped { CommandState::Stopped } else { CommandState::Running };
        self.figures.command.is_now(state);
    }

    /// COMMAND was stopped: stop too, so that whoever waits for the launcher notices.
    fn command_stopped(&mut self, number: i32) {
        let job_control = JOB_CONTROL_SIGNALS.into_iter().find(|signal| *signal as i32 == number);
        let wants_terminal = matches!(job_control, Some(Signal::SIGTTIN | Signal::SIGTTOU))
            && self.terminal.as_ref().is_some_and(|terminal| !terminal.has_hung_up());
        if self.placement == Placement::Own {
            // Put into the foreground by a shell (`fg`) while COMMAND ran: it is COMMAND that wants
            // the terminal.
            if wants_terminal && self.hand_over_terminal() {
                self.pass_on(Signal::SIGCONT as i32, Target::Group);
                return;
            }
            self.take_terminal_back();
        }
        self.note_stopped(true);
        let signal = match (job_control, self.placement) {
            (Some(signal), _) => signal,
            // The shell whose terminal COMMAND occupies must get it back.
            (None, Placement::Shared) => Signal::SIGTSTP,
            // By SIGSTOP, and from elsewhere. Whoever sent it to COMMAND alone also continues
            // COMMAND alone, which needs its tunnels then.
            (None, Placement::Own) => return,
        };
        match signals::stop_self(signal) {
            Ok(Stop::Undone) => {
                if process::job_event(self.command) == Some(JobEvent::Continued) {
                    self.note_stopped(false);
                    self.resumed_by_shell = self.placement == Placement::Shared;
                }
            }
            // In the launcher's process group nothing stops; so COMMAND does not, either.
            Ok(Stop::Discarded) if self.placement == Placement::Own && !wants_terminal => {
                self.resume();
            }
            Ok(Stop::Discarded) if wants_terminal => warning!(
                at = "command-stopped",
                signal = signal as i32,
                msg =
                    "COMMAND waits for a terminal that no shell can give it; SIGCONT continues it",
            ),
            Ok(Stop::Discarded) => {}
            Err(error) => warning!(at = "stop-failed", error = %error),
        }
    }

    /// The launcher was continued while COMMAND was stopped: COMMAND goes on, too.
    fn resume(&mut self) {
        match self.placement {
            Placement::Shared => self.pass_on(Signal::SIGCONT as i32, Target::Command),
            Placement::Own => {
                self.hand_over_terminal();
                self.pass_on(Signal::SIGCONT as i32, Target::Group);
            }
        }
        self.note_stopped(false);
    }

    /// Whom `received` has to be passed on to, if it is COMMAND's business and has not reached it.
    fn target(&mut self, received: Received) -> Option<Target> {
        if !self.forwarding.allows(received) {
            return None;
        }
        let shared = self.placement == Placement::Shared;
        match received.sender {
            Sender::Process(pid) if pid == getpid() => None,
            // COMMAND signals its own group (`kill 0` in a script): it has it already.
            Sender::Process(pid) if pid == self.command && shared => None,
            // When its terminal has hung up, a shell tells each of its jobs, as a process group.
            Sender::Process(pid)
                if Some(pid) == self.job_shell
                    && shared
                    && received.is(Signal::SIGHUP)
                    && self.terminal.as_ref().is_some_and(Terminal::has_hung_up) =>
            {
                None
            }
            Sender::Process(_) => Some(Target::Command),
            Sender::Kernel => {
                let signal = received.one_of(&TERMINAL_SIGNALS)?;
                let missed = self.missed.contains(signal);
                self.missed.remove(signal);
                match self.placement {
                    _ if self.leads_session && HANG_UP_SIGNALS.contains(&signal) => {
                        Some(Target::Command)
                    }
                    Placement::Shared => missed.then_some(Target::Command),
                    Placement::Own => Some(Target::Group),
                }
            }
        }
    }

    fn pass_on(&self, number: i32, target: Target) {
        let sent = match target {
            Target::Command => signals::send(self.command, number),
            Target::Group => signals::send(Pid::from_raw(-self.command.as_raw()), number),
        };
        match sent {
            Ok(()) => debug!(at = "signal-forwarded", signal = number),
            Err(error) => warning!(at = "signal-not-forwarded", signal = number, error = %error),
        }
    }

    /// Gives COMMAND's own process group the terminal, if the launcher has it. Says whether it did.
    fn hand_over_terminal(&self) -> bool {
        match &self.terminal {
            Some(terminal) if terminal.is_ours() => terminal.give_to(self.command).is_ok(),
            _ => false,
        }
    }

    fn take_terminal_back(&self) {
        if let Some(terminal) = &self.terminal
            && terminal.is_of(self.command)
            && let Err(error) = terminal.give_to(getpgrp())
        {
            warning!(at = "terminal-lost", error = %error);
        }
    }
}

/// The session's leader, if its jobs have process groups of their own: a shell with job control.
fn job_shell() -> Option<Pid> {
    let leader = getsid(None).ok()?;
    let group = getpgid(Some(leader)).ok()?;
    (group != getpgrp()).then_some(leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigterm_is_kept_back_on_a_dyno_only() {
        let sigterm =
            Received { number: Signal::SIGTERM as i32, sender: Sender::Process(Pid::from_raw(1)) };
        let sigint = Received { number: Signal::SIGINT as i32, ..sigterm };
        let cases = [
            (ForwardSignals::Auto, false, true, true),
            (ForwardSignals::Auto, true, false, true),
            (ForwardSignals::Always, true, true, true),
            (ForwardSignals::Never, false, false, false),
        ];
        for (setting, on_dyno, term, int) in cases {
            let forwarding = Forwarding::new(setting, on_dyno);
            assert_eq!(forwarding.allows(sigterm), term, "{setting:?} {on_dyno}");
            assert_eq!(forwarding.allows(sigint), int, "{setting:?} {on_dyno}");
        }
    }
}
