//! Decides which signals the launcher forwards to COMMAND, and which signals end a drain early.

use nix::sys::signal::Signal;
use nix::unistd::getpid;

use crate::system::signals::Received;

/// Signals that end a drain early.
const CUTTING_SIGNALS: [Signal; 4] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// The setting `--forward-signals`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardSignals {
    Auto,
    Always,
    Never,
}

/// Which of the signals that the launcher receives from other processes it forwards to COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    All,
    /// The setting on a Heroku dyno, because Heroku's dyno manager itself sends SIGTERM to every
    /// process (<https://devcenter.heroku.com/articles/dynos#shutdown>).
    AllButSigterm,
    None,
}

impl Forwarding {
    /// `on_dyno`: whether the variable `DYNO` is set. If the launcher is pid 1, it forwards SIGTERM
    /// even on a dyno, because then SIGTERM reaches only the launcher.
    pub fn new(setting: ForwardSignals, on_dyno: bool) -> Forwarding {
        match setting {
            ForwardSignals::Always => Forwarding::All,
            ForwardSignals::Never => Forwarding::None,
            ForwardSignals::Auto if on_dyno && getpid().as_raw() != 1 => Forwarding::AllButSigterm,
            ForwardSignals::Auto => Forwarding::All,
        }
    }

    /// True if the launcher may forward `received` to COMMAND.
    pub fn allows(self, received: Received) -> bool {
        match self {
            Forwarding::All => true,
            Forwarding::AllButSigterm => !received.is(Signal::SIGTERM),
            Forwarding::None => false,
        }
    }

    /// True if the signal `received` ends the drain early. On a dyno, SIGTERM does not end the
    /// drain, because the dyno manager may send SIGTERM again after COMMAND's end, when the
    /// launcher must still send COMMAND's last bytes.
    pub fn cuts_drain(self, received: Received) -> bool {
        let left_to_manager = self == Forwarding::AllButSigterm && received.is(Signal::SIGTERM);
        received.one_of(&CUTTING_SIGNALS).is_some() && !left_to_manager
    }
}
