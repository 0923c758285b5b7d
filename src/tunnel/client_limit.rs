//! Recognises and describes Redis's client limit (`maxclients`).
//!
//! At its client limit, Redis writes an error and closes the connection. If Redis does TLS itself,
//! Redis closes the connection before the handshake, so no client can read the error (networking.c,
//! `acceptCommonHandler`). If Redis is behind a TLS proxy, the error arrives as the first reply.

use crate::names;
use crate::text::counted;

/// The beginning of Redis's error at its client limit.
const ERROR: &[u8] = b"-ERR max number of clients";

/// True if a connection's first reply is Redis's error at its client limit.
pub fn is_error(reply: &[u8]) -> bool {
    reply.starts_with(ERROR)
}

/// The text if the server closes a connection during the handshake while this launcher has `alive`
/// other connections.
pub fn suspicion(alive: u64) -> String {
    let held = counted(alive, "other connection");
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
