//! Recognises and describes Redis's client limit (`maxclients`).
//!
//! At its client limit, Redis writes an error and closes the connection. If Redis does TLS itself,
//! Redis closes the connection before the handshake, so no client can read the error (networking.c,
//! `acceptCommonHandler`). If Redis is behind a TLS proxy, the error can arrive as the first reply.

use crate::names;

/// The beginning of Redis's error at its client limit.
const ERROR: &[u8] = b"-ERR max number of clients";

/// True if a connection's first reply is Redis's error at its client limit.
pub fn is_error(reply: &[u8]) -> bool {
    reply.starts_with(ERROR)
}

/// Returns the hint about a server that closed a connection and gave no reason. `alive` is the
/// number of this launcher's other connections to the server. The hint names two possible causes:
/// the client limit, and `down`, a text that says that the server may be down.
pub fn suspicion(alive: u64, down: &str) -> String {
    let remedy = remedy();
    match alive {
        0 => {
            format!("{down}, or other processes may have used up Redis's client limit: {remedy}")
        }
        _ => format!(
            "Redis is probably at its client limit (open connections of this launcher: {alive}; \
             those of other processes count, too): {remedy}. If the limit is not the cause, {down}"
        ),
    }
}

/// Returns the advice for a user whose Redis is at its client limit.
pub fn remedy() -> String {
    format!(
        "limit the connections of each process with {max_connections}, so that all processes \
         together stay within the limit of the Redis plan",
        max_connections = names::MAX_CONNECTIONS
    )
}
