//! Shows a ledger the bytes that a relay moves.

use tokio::time::Instant;

use super::{Ledger, Pool};
use crate::tunnel::tap::Tap;

/// Follows one user's requests and replies on one connection.
pub struct PoolTap<'a> {
    pool: &'a Pool,
    /// The time when the connection to Redis was made.
    made: Instant,
    pub ledger: Ledger,
}

impl<'a> PoolTap<'a> {
    pub fn new(pool: &'a Pool, made: Instant) -> PoolTap<'a> {
        PoolTap { pool, made, ledger: Ledger::default() }
    }
}

impl Tap for PoolTap<'_> {
    fn from_app(&mut self, bytes: &[u8]) {
        self.ledger.sent(bytes);
    }

    fn from_redis(&mut self, bytes: &[u8]) {
        self.ledger.received(bytes);
        if self.ledger.take_role_change() {
            self.pool.retire(self.made);
        }
    }

    fn keeps_upstream(&self) -> bool {
        self.ledger.is_reusable() && self.pool.may_keep(self.made, Instant::now())
    }
}
