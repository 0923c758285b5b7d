//! A Redis that takes no more clients (`maxclients`), and what is said of it: the log, the status
//! page and the metrics use the same words.
//!
//! It writes an error and closes. A Redis that does TLS itself closes before the handshake, so that
//! nobody reads the error (networking.c, `acceptCommonHandler`); behind another TLS front it comes
//! through, as the first reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::names;

/// How that error begins.
const ERROR: &[u8] = b"-ERR max number of clients";

/// Whether a connection's first reply says so.
pub fn is_said_in(reply: &[u8]) -> bool {
    reply.starts_with(ERROR)
}

/// What is suspected when a handshake is cut while `alive` other connections of this launcher live.
pub fn suspicion(alive: u64) -> String {
    let held = match alive {
        1 => "1 other connection".to_owned(),
        many => format!("{many} other connections"),
    };
    format!(
        "probably at Redis's client limit (this launcher holds {held} to it; other processes \
         count, too): {}",
        remedy()
    )
}

/// What helps against it.
pub fn remedy() -> String {
    format!(
        "try {} (what this process holds at once; all must fit the plan)",
        names::MAX_CONNECTIONS
    )
}

/// How many connections this launcher has to one server, through all its tunnels. When the server
/// cuts a handshake, open connections suggest that it has reached its client limit.
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
