//! Decides which signals the launcher forwards to COMMAND, and which signals end a drain early.

use nix::sys::signal::Signal;

use super::is_init;
use crate::system::signals::{Received, is_ignored};

/// The signals that end a drain early, before COMMAND's last bytes are sent.
const CUTTING_SIGNALS: [Signal; 4] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// The value of `--forward-signals`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardSignals {
    Auto,
    Always,
    Never,
}

/// Decides which signals from other processes the launcher forwards to COMMAND.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding {
    setting: ForwardSignals,
    /// True if the launcher does not forward SIGTERM, because Heroku's dyno manager sends SIGTERM
    /// to COMMAND, too (<https://devcenter.heroku.com/articles/dynos#shutdown>).
    leaves_sigterm: bool,
}

impl Forwarding {
    /// Decides how to forward signals under `setting`. `on_dyno` is true if the variable `DYNO` is
    /// set. If the launcher is pid 1, the launcher forwards SIGTERM even on a Heroku dyno, because
    /// in this case SIGTERM reaches only the launcher.
    pub fn new(setting: ForwardSignals, on_dyno: bool) -> Forwarding {
        let is_auto = setting == ForwardSignals::Auto;
        Forwarding { setting, leaves_sigterm: is_auto && on_dyno && !is_init() }
    }

    /// Returns true if the launcher may forward the signal `received` to COMMAND.
    pub fn allows(self, received: Received) -> bool {
        self.setting != ForwardSignals::Never && !self.leaves(received)
    }

    fn leaves(self, received: Received) -> bool {
        self.leaves_sigterm && received.is(Signal::SIGTERM)
    }

    /// Returns true if the signal `received` ends the drain early. A signal that was ignored when
    /// the launcher started does not end the drain, for example SIGHUP under nohup(1). On a Heroku
    /// dyno, SIGTERM does not end the drain, because the dyno manager may send SIGTERM again while
    /// the launcher sends the last bytes of COMMAND, which has ended.
    pub fn cuts_drain(self, received: Received) -> bool {
        let cutting = received.one_of(&CUTTING_SIGNALS);
        cutting.is_some_and(|signal| !is_ignored(signal)) && !self.leaves(received)
    }
}
