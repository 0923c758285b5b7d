//! `start-stunnel`: runs a command with its Redis traffic behind TLS.
//!
//! One launch, in order:
//!
//! 1. [`configuration`] reads the command line and the environment, and collects every mistake.
//! 2. [`plan`] makes routes of what was decided about each variable.
//! 3. [`listen`] binds a local port or socket for each route.
//! 4. [`launch`] starts COMMAND, opens the tunnels, and after COMMAND's end drains them;
//!    [`command_line`] knows what COMMAND's own words need, [`announce`] what the user is told.
//! 5. [`supervisor`] watches over COMMAND: signals, terminal, orphans, how it ended.
//!
//! One byte's way: accepted and moved by [`tunnel`], encrypted by a connector of [`tls`]. The
//! [`pool`] stands between a tunnel and its connections, if it is on.
//!
//! [`check`] examines the tunnels of a plan instead of opening them. [`figures`] counts what goes
//! through, and [`status`] tells it to whoever asks.
//!
//! The rooms, from the ground up: each may use those listed before it, and none that comes later.
//! `tests/architecture.rs` reads the list here.

#![deny(unsafe_code)] // Allowed in the few modules that say so.

pub mod environment;
pub mod exit;
pub mod names;
pub mod sandbox;
pub mod secret;
pub mod system;

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
pub mod plan;

pub mod command_line;
pub mod listen;

pub mod announce;
pub mod check;
pub mod launch;
