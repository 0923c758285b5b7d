//! `start-stunnel`: runs a command with its Redis traffic behind TLS.
//!
//! One launch, in order:
//!
//! 1. [`cli`] takes the command line apart; every option, variable and default stands there.
//! 2. [`settings`] reads options and environment, and collects every mistake.
//! 3. [`plan`] decides which variables are tunnelled, and where to, by the rules for a
//!    [`redis_url`].
//! 4. [`launch`] binds a local port for each tunnel, starts COMMAND, opens the tunnels, and after
//!    COMMAND's end drains them.
//! 5. [`supervisor`] watches over COMMAND: signals, terminal, orphans, exit code.
//!
//! One byte's way: accepted and carried by [`tunnel`], encrypted by a connector of [`tls`].
//!
//! [`check`] examines the tunnels of a plan instead of opening them.
//!
//! [`logging`] writes what happened; a [`secret`] is never in it.

#![deny(unsafe_code)] // Allowed in the few modules that say so.

pub mod check;
pub mod cli;
pub mod launch;
pub mod logging;
pub mod plan;
pub mod redis_url;
pub mod secret;
pub mod settings;
pub mod supervisor;
pub mod tls;
pub mod tunnel;
