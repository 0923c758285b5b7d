//! The operating system's processes and signals, behind safe functions. [`crate::supervisor`]
//! decides what to do with them.

pub mod inherited;
pub mod process;
pub mod signals;
mod startup;
