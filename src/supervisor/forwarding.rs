//! Which signals are forwarded to COMMAND, and which cut a drain short.

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

/// The signals that the launcher forwards to COMMAND when a process sends them to the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    All,
    /// On a dyno: Heroku's dyno manager itself sends SIGTERM to every process
    /// (<https://devcenter.heroku.com/articles/dynos#shutdown>).
    AllButSigterm,
    None,
}

impl Forwarding {
    /// `on_dyno`: whether `DYNO` is set. As pid 1, the launcher is the only process that gets
    /// SIGTERM.
    pub fn new(setting: ForwardSignals, on_dyno: bool) -> Forwarding {
        match setting {
            ForwardSignals::Always => Forwarding::All,
            ForwardSignals::Never => Forwarding::None,
            ForwardSignals::Auto if on_dyno && getpid().as_raw() != 1 => Forwarding::AllButSigterm,
            ForwardSignals::Auto => Forwarding::All,
        }
    }

    /// True if to forward `received`.
    pub fn allows(self, received: Received) -> bool {
        match self {
            Forwarding::All => true,
            Forwarding::AllButSigterm => !received.is(Signal::SIGTERM),
            Forwarding::None => false,
        }
    }

    /// True if `received` ends the drain. The dyno manager's SIGTERM does not: it may come several
    /// times, and after COMMAND's end, but COMMAND's last bytes must still be sent.
    pub fn cuts_drain(self, received: Received) -> bool {
        let left_to_manager = self == Forwarding::AllButSigterm && received.is(Signal::SIGTERM);
        received.one_of(&CUTTING_SIGNALS).is_some() && !left_to_manager
    }
}
