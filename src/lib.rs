//! The launcher `start-stunnel` runs a command, and sends the command's Redis traffic over TLS.
//!
//! A launch has these steps:
//!
//! 1. [`configuration`] reads the command line and the environment into settings and a plan of the
//!    tunnels, and collects every mistake.
//! 2. [`listen`] binds a local port or socket for each tunnel.
//! 3. [`launch`] starts COMMAND, opens the tunnels, and drains the tunnels after COMMAND has ended.
//!    [`command_line`] rewrites COMMAND's arguments. [`announce`] logs messages for the user.
//! 4. [`supervisor`] forwards signals to COMMAND, handles the terminal and orphaned processes, and
//!    waits until COMMAND ends.
//!
//! A connection takes this path: [`launch`] gives each listener to `pool::serve`. `tunnel::serve`
//! accepts the app's connection. [`tunnel::connection`] connects to Redis with a connector of
//! [`tls`], and relays bytes. If the pool is on, [`pool`] chooses the connection to Redis.
//!
//! [`check`] examines the tunnels of a plan instead of opening them. [`figures`] counts connections
//! and bytes, and [`status`] shows the counts.
//!
//! The modules below are listed with the lowest layer first. A module uses only modules that come
//! earlier in the list. `tests/architecture.rs` checks this rule.

#![deny(unsafe_code)] // Allowed in the few modules that say so.

pub mod environment;
pub mod exit;
pub mod names;
pub mod output;
pub mod sandbox;
pub mod secret;
pub mod system;
pub mod text;

pub mod figures;
pub mod logging;
pub mod resp;
pub mod threads;

pub mod redis_url;

pub mod supervisor;
pub mod tls;
pub mod tunnel;

pub mod pool;

pub mod status;

pub mod configuration;

pub mod command_line;
pub mod listen;

pub mod announce;
pub mod check;
pub mod launch;
