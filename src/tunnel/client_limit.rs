//! A Redis that takes no more clients (`maxclients`), and what is said of it: the log, the status
//! page and the metrics use the same words.
//!
//! It writes an error and closes. A Redis that does TLS itself closes before the handshake, so that
//! nobody reads the error (networking.c, `acceptCommonHandler`); behind another TLS front it comes
//! through, as the first reply.

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
