//! How many connections this launcher has to a server, through all its tunnels. When the server
//! closes a handshake, open connections suggest that it has reached its client limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The connections to one server. Tunnels to the same server share it.
#[derive(Debug, Default)]
pub struct ServerLoad(AtomicU64);

impl ServerLoad {
    /// Counts a connection whose handshake is done, until the guard is dropped. Attempts do not
    /// count: when several fail together, that is no sign of a limit.
    pub fn count(self: &Arc<Self>) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    /// The number of connections.
    pub fn connections(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct Counted(Arc<ServerLoad>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
