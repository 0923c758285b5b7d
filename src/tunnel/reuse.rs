//! What a relay does so that its connection to Redis can have another user, before or after.

use std::fmt;
use std::io;

use crate::pool::Ledger;
use crate::pool::canary::{RESET, RESET_DONE};

/// The most bytes of an app that are kept to be sent once more. The first request is far shorter,
/// but for those that are large values.
const MOST_COPIED: usize = 64 * 1024;

/// See the module's description.
#[derive(Debug)]
pub struct Reuse {
    /// `None`: the connection is not to be kept, or is not fit for it.
    ledger: Option<Box<Ledger>>,
    resetting: Resetting,
    /// The reset was not answered as it should be.
    was_refused: bool,
}

/// How far a connection is reset that had another user, or was made beforehand.
#[derive(Debug)]
enum Resetting {
    /// It is: whatever is sent and received is its user's.
    Done,
    /// `RESET` goes in front of the first bytes.
    Due,
    /// It has gone.
    Sent {
        /// Bytes of its reply that have come.
        seen: usize,
        /// What the app has sent.
        copy: Replay,
    },
}

/// What the app has sent on a connection that may turn out to be dead.
enum Replay {
    Whole(Vec<u8>),
    /// It is too long to be kept.
    None,
}

/// It may hold a password.
impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Replay::Whole(bytes) => write!(f, "{} bytes", bytes.len()),
            Replay::None => f.write_str("none"),
        }
    }
}

impl Reuse {
    /// `reset_first`: it is reset in front of the first request; `keep`: it may be kept afterwards.
    pub fn new(reset_first: bool, keep: bool) -> Reuse {
        Reuse {
            ledger: keep.then(Box::default),
            resetting: if reset_first { Resetting::Due } else { Resetting::Done },
            was_refused: false,
        }
    }

    /// What goes in front of the next bytes of the app.
    pub fn preamble(&self) -> &'static [u8] {
        match self.resetting {
            Resetting::Due => RESET,
            Resetting::Done | Resetting::Sent { .. } => &[],
        }
    }

    /// These bytes of the app are being sent, behind the preamble.
    pub fn sent(&mut self, bytes: &[u8]) {
        if let Some(ledger) = &mut self.ledger {
            ledger.sent(bytes);
            self.let_go_of_ledger();
        }
        if matches!(self.resetting, Resetting::Due) {
            self.resetting = Resetting::Sent { seen: 0, copy: Replay::Whole(Vec::new()) };
        }
        if let Resetting::Sent { copy, .. } = &mut self.resetting
            && let Replay::Whole(known) = copy
        {
            if known.len() + bytes.len() <= MOST_COPIED
                && known.try_reserve_exact(bytes.len()).is_ok()
            {
                known.extend(bytes);
            } else {
                *copy = Replay::None;
            }
        }
    }

    /// These bytes have come from Redis; says how many of them are the reset's reply, which the app
    /// must not see.
    ///
    /// # Errors
    /// When the reply is another: then nobody knows who the user is there.
    pub fn received(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ours = match &mut self.resetting {
            Resetting::Done => 0,
            // Nobody asked: it is of no use to anybody.
            Resetting::Due => return Err(io::ErrorKind::ConnectionAborted.into()),
            Resetting::Sent { seen, .. } => {
                let expected = &RESET_DONE[*seen..];
                let count = expected.len().min(bytes.len());
                if bytes[..count] != expected[..count] {
                    self.was_refused = true;
                    return Err(no_reset());
                }
                *seen += count;
                if *seen == RESET_DONE.len() {
                    self.resetting = Resetting::Done;
                }
                count
            }
        };
        if let Some(ledger) = &mut self.ledger {
            ledger.received(&bytes[ours..]);
            self.let_go_of_ledger();
        }
        Ok(ours)
    }

    fn let_go_of_ledger(&mut self) {
        if self.ledger.as_ref().is_some_and(|ledger| ledger.gave_up()) {
            // A copy's fate depends on it, as long as there is one.
            if matches!(self.resetting, Resetting::Done) {
                self.ledger = None;
            }
        }
    }

    /// Whether what the app has sent first is to wait until the reset is confirmed: it may be a
    /// command that bears no reply before its own, as SYNC (Redis: "invalid with pending output").
    pub fn must_be_confirmed_first(&self) -> bool {
        let is_known = self.ledger.as_ref().is_some_and(|ledger| !ledger.gave_up());
        matches!(self.resetting, Resetting::Sent { .. }) && !is_known
    }

    /// Whether the connection can be kept if its user goes now.
    pub fn is_settled(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.is_settled())
            && !matches!(self.resetting, Resetting::Sent { .. })
    }

    /// Whether it is not known yet that the connection still works.
    pub fn is_unconfirmed(&self) -> bool {
        !matches!(self.resetting, Resetting::Done)
    }

    /// Whether the reset was answered, but not as it should be.
    pub fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// What is to be sent on another connection, since this one was dead: all that the app has
    /// sent. `None` if Redis may have got a request that must not be sent twice; `stalled`: not all
    /// that was sent has left us; `held`: nothing has.
    pub fn take_copy(&mut self, stalled: bool, held: bool) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.resetting, Resetting::Done) {
            Resetting::Due => Some(Vec::new()),
            Resetting::Sent { copy: Replay::Whole(copy), .. } if held => Some(copy),
            Resetting::Sent { copy: Replay::Whole(copy), seen: 0 } => {
                let ledger = self.ledger.as_ref()?;
                // Of a single request the last bytes are missing there.
                let incomplete = stalled && ledger.is_one_request();
                (incomplete || ledger.is_repeatable()).then_some(copy)
            }
            Resetting::Sent { .. } | Resetting::Done => None,
        }
    }
}

fn no_reset() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "RESET was not answered as it should be")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    const INCR: &[u8] = b"*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n";

    #[test]
    fn the_resets_reply_is_taken_out_however_it_is_cut() {
        let stream = b"+RESET\r\n$1\r\nv\r\n";
        for cut in 0..stream.len() {
            let mut reuse = Reuse::new(true, true);
            assert_eq!(reuse.preamble(), RESET);
            reuse.sent(GET);
            assert_eq!(reuse.preamble(), b"");
            let (first, second) = stream.split_at(cut);
            let ours = reuse.received(first).unwrap() + reuse.received(second).unwrap();
            assert_eq!(ours, RESET_DONE.len(), "{cut}");
            assert!(reuse.is_settled() && !reuse.is_unconfirmed());
        }
    }

    #[test]
    fn what_nobody_knows_waits_for_the_reset_and_may_be_sent_again_until_then() {
        const SYNC: &[u8] = b"*1\r\n$4\r\nSYNC\r\n";
        for keep in [false, true] {
            let mut reuse = Reuse::new(true, keep);
            reuse.sent(SYNC);
            assert!(reuse.must_be_confirmed_first());
            reuse.received(b"+RES").unwrap();
            assert!(reuse.must_be_confirmed_first());
            reuse.received(b"ET\r\n").unwrap();
            assert!(!reuse.must_be_confirmed_first());
        }
        let mut reuse = Reuse::new(true, true);
        reuse.sent(SYNC);
        assert_eq!(reuse.take_copy(true, true).as_deref(), Some(SYNC));
        let mut reuse = Reuse::new(true, true);
        reuse.sent(GET);
        assert!(!reuse.must_be_confirmed_first());
    }

    #[test]
    fn another_reply_is_an_error() {
        for reply in [&b"-NOAUTH Authentication required.\r\n"[..], b"+OK\r\n", b"+RESET \r\n"] {
            let mut reuse = Reuse::new(true, true);
            reuse.sent(GET);
            assert!(reuse.received(reply).is_err());
        }
        assert!(Reuse::new(true, true).received(b"+RESET\r\n").is_err(), "nobody asked");
    }

    #[test]
    fn what_may_have_been_executed_is_not_sent_twice() {
        let copy = |requests: &[&[u8]], received: &[u8], stalled| {
            let mut reuse = Reuse::new(true, true);
            for request in requests {
                reuse.sent(request);
            }
            if !received.is_empty() {
                reuse.received(received).unwrap();
            }
            reuse.take_copy(stalled, false)
        };
        assert_eq!(copy(&[], b"", false), Some(vec![]));
        assert_eq!(copy(&[GET], b"", false).as_deref(), Some(GET));
        assert_eq!(copy(&[&GET[..7], &GET[7..]], b"", false).as_deref(), Some(GET));
        assert_eq!(copy(&[GET], b"+", false), None, "it lives");
        assert_eq!(copy(&[INCR], b"", false), None);
        assert_eq!(copy(&[GET, INCR], b"", false), None);
        assert_eq!(copy(&[INCR], b"", true).as_deref(), Some(INCR), "its end has not left us");
        assert_eq!(copy(&[INCR, GET], b"", true), None);
        assert_eq!(copy(&[&vec![b'x'; MOST_COPIED + 1]], b"", true), None);
        assert_eq!(copy(&[b"SUBSCRIBE"], b"", false), None, "half a request");
    }
}
