//! COMMAND's life: signals passed on, job control, orphans reaped, leftovers told to go.

mod child;
mod inherited;
mod signals;
mod terminal;
mod wait;

use std::io;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp, getpid};

pub use child::{Placement, become_command, exit_code_of, let_go_of_streams, spawn};
pub use inherited::{Inherited, forbid_core_dumps};
use signals::{Received, Sender, Signals};
pub use terminal::Terminal;
pub use wait::Ended;
use wait::JobEvent;

use crate::logging::{debug, warning};
use crate::settings::ForwardSignals;

/// What a terminal sends on its own account to its foreground process group, or to a session's leader
/// when it hangs up. Other signals of the kernel's (SIGPIPE, SIGXCPU, …) concern the launcher alone.
const TERMINAL_SIGNALS: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGWINCH];

/// What stops a job, and is undone by a shell's `fg` or `bg`.
const JOB_CONTROL_SIGNALS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// Which signals that processes send to the launcher are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    All,
    /// A Heroku dyno's manager sends SIGTERM to every process by itself:
    /// <https://devcenter.heroku.com/articles/dynos#shutdown>.
    AllButSigterm,
    None,
}

impl Forwarding {
    /// `on_dyno`: whether `DYNO` is set. As pid 1 the launcher is all that a manager signals.
    pub fn new(setting: ForwardSignals, on_dyno: bool) -> Forwarding {
        match setting {
            ForwardSignals::Always => Forwarding::All,
            ForwardSignals::Never => Forwarding::None,
            ForwardSignals::Auto if on_dyno && getpid().as_raw() != 1 => Forwarding::AllButSigterm,
            ForwardSignals::Auto => Forwarding::All,
        }
    }

    fn allows(self, received: Received) -> bool {
        match self {
            Forwarding::All => true,
            Forwarding::AllButSigterm => !received.is(Signal::SIGTERM),
            Forwarding::None => false,
        }
    }
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
    forwarding: Forwarding,
    terminal: Option<Terminal>,
    signals: Signals,
    /// Whether COMMAND is stopped, as far as the kernel has told us.
    stopped: bool,
    /// Whether a shell has continued the whole process group, so that COMMAND already has the SIGCONT
    /// that is on its way to us.
    resumed_by_shell: bool,
}

impl Supervisor {
    /// # Errors
    /// When the launcher's signals cannot be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        command: Pid,
        placement: Placement,
        forwarding: Forwarding,
        terminal: Option<Terminal>,
    ) -> io::Result<Supervisor> {
        let signals = Signals::open()?;
        Ok(Supervisor {
            command,
            placement,
            forwarding,
            terminal,
            signals,
            stopped: false,
            resumed_by_shell: false,
        })
    }

    /// Passes signals on until COMMAND has ended; what is left of a process group of its own has been
    /// sent SIGTERM then.
    ///
    /// # Errors
    /// When the launcher's signals cannot be read.
    pub async fn wait(&mut self) -> io::Result<Ended> {
        loop {
            let received = self.signals.next().await?;
            if (received.is(Signal::SIGCHLD) || received.is(Signal::SIGCONT))
                && let Some(ended) = self.look_after_children()
            {
                return Ok(ended);
            }
            match received {
                _ if received.is(Signal::SIGCONT) && std::mem::take(&mut self.resumed_by_shell) => {
                }
                _ if received.is(Signal::SIGCONT) && self.stopped => self.resume(),
                _ if self.passes(received) => self.pass_on(received.number),
                _ => debug!(at = "signal-kept", signal = received.number),
            }
        }
    }

    /// Reaps whatever child has ended (as pid 1, or behind a shell's `exec`, not only COMMAND) and
    /// takes note when COMMAND was stopped or continued.
    fn look_after_children(&mut self) -> Option<Ended> {
        let mut command_ended = None;
        while let Some((pid, ended)) = wait::ended_child() {
            if pid == self.command {
                // As long as COMMAND is a zombie, its process group's number is nobody else's.
                self.end_leftovers();
                command_ended = Some(ended);
            }
            wait::reap(pid);
        }
        if command_ended.is_none() {
            match wait::job_event(self.command) {
                Some(JobEvent::Stopped(signal)) => self.command_stopped(signal),
                Some(JobEvent::Continued) => self.stopped = false,
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

    /// COMMAND was stopped: stop too, so that the shell that waits for the launcher notices.
    fn command_stopped(&mut self, number: i32) {
        let job_control = JOB_CONTROL_SIGNALS.into_iter().find(|signal| *signal as i32 == number);
        if self.placement == Placement::Own {
            // Put into the foreground by a shell (`fg`) while COMMAND ran: it is COMMAND that wants
            // the terminal.
            let wants_terminal = matches!(job_control, Some(Signal::SIGTTIN | Signal::SIGTTOU))
                && self.hand_over_terminal();
            if wants_terminal {
                self.send_to_group(Signal::SIGCONT);
                return;
            }
            self.take_terminal_back();
        }
        self.stopped = true;
        let shell_may_wait = self.placement == Placement::Shared
            || (job_control.is_some() && self.terminal.is_some());
        if shell_may_wait {
            if let Err(error) = signals::stop_self(job_control.unwrap_or(Signal::SIGTSTP)) {
                warning!(at = "stop-failed", error = %error);
            }
            if wait::job_event(self.command) == Some(JobEvent::Continued) {
                self.stopped = false;
                self.resumed_by_shell = self.placement == Placement::Shared;
            }
        }
    }

    /// The launcher was continued while COMMAND was stopped: COMMAND goes on, too.
    fn resume(&mut self) {
        match self.placement {
            Placement::Shared => self.pass_on(Signal::SIGCONT as i32),
            Placement::Own => {
                self.hand_over_terminal();
                self.send_to_group(Signal::SIGCONT);
            }
        }
        self.stopped = false;
    }

    /// Whether `received` is COMMAND's business, and has not reached it yet.
    fn passes(&self, received: Received) -> bool {
        match received.sender {
            Sender::Process(pid) if pid == getpid() => false,
            // COMMAND signals its own group (`kill 0` in a script): it has it already.
            Sender::Process(pid) if pid == self.command && self.placement == Placement::Shared => {
                false
            }
            Sender::Process(_) => self.forwarding.allows(received),
            Sender::Kernel => {
                let from_terminal = TERMINAL_SIGNALS.iter().any(|signal| received.is(*signal));
                from_terminal
                    && self.placement == Placement::Own
                    && self.forwarding.allows(received)
            }
        }
    }

    fn pass_on(&self, number: i32) {
        match signals::send(self.command, number) {
            Ok(()) => debug!(at = "signal-forwarded", signal = number),
            Err(error) => warning!(at = "signal-not-forwarded", signal = number, error = %error),
        }
    }

    fn send_to_group(&self, signal: Signal) {
        if let Err(error) = killpg(self.command, signal) {
            warning!(at = "signal-not-forwarded", signal = signal as i32, error = %error);
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

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Ended::Exited(0).exit_code(), 0);
        assert_eq!(Ended::Exited(255).exit_code(), 255);
        assert_eq!(Ended::Killed(15).exit_code(), 143);
        assert_eq!(Ended::Killed(64).exit_code(), 192);
    }
}
