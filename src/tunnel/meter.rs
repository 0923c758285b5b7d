//! Counts the bytes that a relay moves, times replies, notices Redis's first answer, and counts the
//! requests before this answer.

use std::mem;

use tokio::time::Instant;

use super::refusal::Requests;
use super::tap::{Progress, Tap};
use super::{Tunnel, client_limit, hints};
use crate::figures::{self, ReplyClock};

/// The error on the status page and in the log when Redis answers that it is at its client limit.
const FULL: &str = "Redis answered that it has too many clients";

/// A tap that updates the figures for one connection, and shows all bytes to another tap.
pub struct Meter<'a, T> {
    tunnel: &'a Tunnel,
    inner: &'a mut T,
    /// The requests that the app sent before Redis's first answer.
    requests: &'a mut Requests,
    counted: Progress,
    replies: ReplyClock<'a>,
    /// True if Redis has sent bytes since the last call of `moved`, and has not refused the
    /// connection.
    replied: bool,
    /// True if Redis's first reply said that Redis has too many clients.
    is_refused: bool,
    /// True if Redis has sent at least one byte.
    answered: bool,
}

impl<'a, T> Meter<'a, T> {
    pub fn new(tunnel: &'a Tunnel, inner: &'a mut T, requests: &'a mut Requests) -> Meter<'a, T> {
        let (counted, replies) = (Progress::default(), tunnel.figures.reply_clock());
        Meter {
            tunnel,
            inner,
            requests,
            counted,
            replies,
            replied: false,
            is_refused: false,
            answered: false,
        }
    }

    fn first_answer(&mut self, bytes: &[u8]) {
        self.answered = true;
        self.is_refused = client_limit::is_error(bytes);
        let figures = &self.tunnel.figures;
        if self.is_refused {
            figures.turned_away();
            figures.fails(figures::FULL, FULL.to_owned(), hints::full());
        } else {
            figures.answered();
        }
        // A server sends its session tickets before its first reply, or not at all. So other
        // connections no longer need to wait for a ticket.
        self.tunnel.first_handshake.finish();
    }
}

impl<T: Tap> Tap for Meter<'_, T> {
    fn from_app(&mut self, bytes: &[u8]) {
        if !self.answered {
            self.requests.count(bytes);
        }
        self.inner.from_app(bytes);
    }

    fn from_redis(&mut self, bytes: &[u8]) {
        if !self.answered {
            self.first_answer(bytes);
        }
        self.replied = !self.is_refused;
        self.inner.from_redis(bytes);
    }

    fn moved(&mut self, progress: Progress, now: Instant) {
        let before = mem::replace(&mut self.counted, progress);
        let sent = progress.sent - before.sent;
        self.tunnel.figures.moved(sent, progress.received - before.received);
        if mem::take(&mut self.replied) {
            self.replies.received(now);
        } else if sent > 0 {
            // If the same poll of the relay has moved a reply, start no timer for the request,
            // because this reply may already answer the request.
            self.replies.sent(now);
        }
        self.inner.moved(progress, now);
    }

    fn keeps_upstream(&self) -> bool {
        self.inner.keeps_upstream()
    }
}
