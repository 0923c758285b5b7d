//! Connections to Redis, used by one connection of the app after another.
//!
//! [`commands`] lists what leaves nothing to the next user, [`Ledger`] follows one connection and
//! tells whether that is so for it. No network here.

pub mod commands;
mod ledger;

pub use ledger::Ledger;
