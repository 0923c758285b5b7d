//! The values of all settings, read and valid.

use std::num::NonZeroUsize;

use crate::logging::LogSettings;
use crate::pool::PoolMode;
use crate::sandbox::SandboxMode;
use crate::status::StatusSettings;
use crate::supervisor::ForwardSignals;
use crate::tls::Trust;
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

/// The settings of the tunnel for one URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlSettings {
    pub port_offset: PortOffset,
    pub trust: Trust,
    /// Whether the user chose the verification level. If so, `none` is intended.
    pub verify_chosen: bool,
    pub reuse: ReuseSettings,
    pub max_connections: Option<NonZeroUsize>,
    pub names: SettingNames,
}

/// The number added to a plaintext URL's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOffset {
    pub value: i32,
    /// Whether it was set for this URL alone.
    pub per_url: bool,
    /// The option or variable that it came from.
    pub source: String,
}

/// Whether a connection to Redis may have a second user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReuseSettings {
    pub pool: PoolMode,
}
