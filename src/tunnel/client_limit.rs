//! Redis's client limit (`maxclients`): the signs of the limit, and the words for the limit in the
//! log, on the status page and in the metrics.
//!
//! At its limit, Redis writes an error and closes the connection. If Redis does TLS itself, it
//! closes before the handshake, so that no client can read the error (networking.c,
//! `acceptCommonHandler`). Behind a TLS proxy, the error arrives as the first reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::names;

/// The beginning of Redis's error at its client limit.
const ERROR: &[u8] = b"-ERR max number of clients";

/// True if a connection's first reply is Redis's error at its client limit.
pub fn is_error(reply: &[u8]) -> bool {
    reply.starts_with(ERROR)
}

/// The suspicion when a handshake is cut while this launcher has `alive` other connections.
pub fn suspicion(alive: u64) -> String {
    let held = match alive {
        1 => "1 other connection".to_owned(),
        many => format!("{many} other connections"),
    };
    format!(
        "Redis is probably at its client limit (this launcher holds {held} to Redis; connections \
         of other processes count, too): {}",
        remedy()
    )
}

/// The advice when Redis is at its client limit.
pub fn remedy() -> String {
    format!(
        "limit the connections of each process with {}, so that all processes together fit the \
         plan",
        names::MAX_CONNECTIONS
    )
}

/// The number of connections from this launcher to one server, through all its tunnels. If the
/// server cuts a handshake while there are such connections, the server has probably reached its
/// client limit.
#[derive(Debug, Default)]
pub struct ServerLoad(AtomicU64);

impl ServerLoad {
    /// Counts a connection after its handshake, until the guard is dropped. Handshakes in progress
    /// do not count: several handshakes that fail together are no sign of a limit.
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
