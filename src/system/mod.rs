//! Safe functions for the operating system's processes, signals and sockets. The functions contain
//! no policy: their callers decide what to do.

pub mod inherited;
pub mod process;
pub mod signals;
pub mod socket;
