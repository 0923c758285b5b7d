//! Wraps system calls for processes, signals, sockets and streams in safe functions. The functions
//! make as few decisions as possible: their callers decide.

pub mod inherited;
pub mod process;
pub mod signals;
pub mod socket;
pub mod stream;
