//! The operating system's processes, signals and sockets, behind safe functions. The modules that
//! call these functions decide what to do.

pub mod inherited;
pub mod process;
pub mod signals;
pub mod socket;
