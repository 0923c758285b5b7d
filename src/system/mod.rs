//! Wraps system calls for processes, signals and sockets in safe functions. The functions make no
//! decisions: their callers decide.

pub mod inherited;
pub mod process;
pub mod signals;
pub mod socket;
