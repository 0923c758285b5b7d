//! The operating system's processes, signals and sockets, behind safe functions. [`crate::supervisor`]
//! decides what to do with them.

pub mod inherited;
pub mod process;
pub mod signals;
pub mod socket;
mod startup;
