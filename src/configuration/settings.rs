//! The settings of the launcher as a whole, as valid values.

use crate::logging::LogSettings;
use crate::sandbox::SandboxMode;
use crate::status::StatusSettings;
use crate::supervisor::ForwardSignals;
use crate::tunnel::{ConnectionSettings, Listen, PortTaken, SettingNames};

/// The setting `--rediss`, for `rediss://` and `valkeys://` URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rediss {
    Tunnel,
    Passthrough,
}

/// The settings that apply to the launcher or to all URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: Listen,
    /// The first local port; 0: the kernel chooses.
    pub listen_port: u16,
    pub port_taken: PortTaken,
    pub connection: ConnectionSettings,
    pub status: StatusSettings,
    pub forward_signals: ForwardSignals,
    pub sandbox: SandboxMode,
    pub log: LogSettings,
    /// The options or variables that set these settings, for errors.
    pub names: SettingNames,
}
