//! Which signals are passed on to COMMAND, and which cut a drain short: what SIGTERM does.

use nix::sys::signal::Signal;
use nix::unistd::getpid;

use crate::system::signals::Received;

/// What ends a drain before its time.
const CUTTING_SIGNALS: [Signal; 4] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// Whether signals are passed on to COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardSignals {
    Auto,
    Always,
    Never,
}

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

    /// Whether `received` is passed on.
    pub fn allows(self, received: Received) -> bool {
        match self {
            Forwarding::All => true,
            Forwarding::AllButSigterm => !received.is(Signal::SIGTERM),
            Forwarding::None => false,
        }
    }

    /// Whether `received` is meant to end the drain. The dyno manager's SIGTERM comes to every
    /// process, more than once, and maybe after COMMAND's end; it must not cost the last bytes.
    pub fn cuts_drain(self, received: Received) -> bool {
        let left_to_manager = self == Forwarding::AllButSigterm && received.is(Signal::SIGTERM);
        received.one_of(&CUTTING_SIGNALS).is_some() && !left_to_manager
    }
}
