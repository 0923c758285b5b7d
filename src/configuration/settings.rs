//! The values of all settings, read and valid.

use crate::logging::LogSettings;
use crate::sandbox::SandboxMode;
use crate::status::StatusSettings;
use crate::supervisor::ForwardSignals;
use crate::tunnel::{ConnectionSettings, Listen, PortTaken, SettingNames};

/// How to handle a URL that asks for TLS itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rediss {
    Tunnel,
    Passthrough,
}

/// The settings of the launcher as a whole.
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
    /// The names of these settings, for errors.
    pub names: SettingNames,
}
