//! The operating system's processes and signals, behind safe functions. The modules that call these
//! functions decide what to do.

pub mod inherited;
pub mod process;
pub mod signals;
