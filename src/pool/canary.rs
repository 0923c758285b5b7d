//! Whether a server's connections may be reused: what `RESET` does there is tried, not believed.
//!
//! On a new connection, before its user gets it, go `PING`, `RESET` and `PING`. What the second
//! `PING` is told must be what the first one was, and `RESET` must have done its work. Servers
//! differ: Redis before 6.2 knows no `RESET`, 6.2 refuses it before login, Kvrocks makes whoever
//! sends it an administrator, and Redis Cloud has none.

use std::time::Duration;

use tokio::time::Instant;

/// What is sent, to be answered line by line.
pub const REQUESTS: &[u8] = b"*1\r\n$4\r\nPING\r\n*1\r\n$5\r\nRESET\r\n*1\r\n$4\r\nPING\r\n";
/// The request that makes a connection as good as new, and its reply (Redis 6.2 and later).
pub const RESET: &[u8] = b"*1\r\n$5\r\nRESET\r\n";
pub const RESET_DONE: &[u8] = b"+RESET\r\n";
/// The longest line that an answer may be, in bytes.
pub const LONGEST_LINE: usize = 512;

/// When a verdict is to be renewed in passing: a setting of the server's may have changed.
const RENEWED: Duration = Duration::from_secs(60);
/// When it holds no longer.
const VALID: Duration = Duration::from_secs(120);
/// How long a server that cannot do it is not asked again.
const FAILED: Duration = Duration::from_secs(3600);
/// How long a server that did not answer is not asked again.
const UNCLEAR: Duration = Duration::from_secs(60);

/// What a canary came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// `RESET` does something else there, or nothing.
    Failed,
    /// The server did not answer, or has other troubles.
    Unclear,
}

impl Verdict {
    /// Of the answers' lines, without their ends.
    pub fn of(first: &[u8], reset: &[u8], second: &[u8]) -> Verdict {
        let known = first == b"+PONG" || first.starts_with(b"-NOAUTH ");
        if !known {
            return Verdict::Unclear;
        }
        match reset == b"+RESET" && first == second {
            true => Verdict::Passed,
            false => Verdict::Failed,
        }
    }
}

/// What is known of a server.
#[derive(Debug, Default)]
pub struct Trial {
    /// The latest verdict, and when it fell.
    verdict: Option<(Verdict, Instant)>,
    /// A connection could have been reused: it is worth trying.
    is_worth_it: bool,
    /// The number of the permit whose connection is being tried.
    on: Option<u64>,
}

impl Trial {
    fn since(&self, verdict: Verdict, now: Instant) -> Option<Duration> {
        self.verdict.filter(|(known, _)| *known == verdict).map(|(_, since)| now - since)
    }

    /// Whether connections may be reused.
    pub fn is_passed(&self, now: Instant) -> bool {
        self.since(Verdict::Passed, now).is_some_and(|age| age < VALID)
    }

    /// Whether connections are known not to be reusable.
    pub fn is_failed(&self, now: Instant) -> bool {
        self.since(Verdict::Failed, now).is_some_and(|age| age < FAILED)
            || self.since(Verdict::Unclear, now).is_some_and(|age| age < UNCLEAR)
    }

    /// Whether nothing is known.
    pub fn is_open(&self, now: Instant) -> bool {
        self.is_worth_it && !self.is_passed(now) && !self.is_failed(now)
    }

    /// Whether the next connection that is made is to be tried.
    pub fn is_due(&self, now: Instant) -> bool {
        let renewed = self.since(Verdict::Passed, now).is_some_and(|age| age >= RENEWED);
        self.on.is_none() && (renewed && self.is_passed(now) || self.is_open(now))
    }

    /// A connection could have been reused.
    pub fn note_return(&mut self) {
        self.is_worth_it = true;
    }

    /// Tries the connection of this permit, if that is due; says whether.
    pub fn begin(&mut self, number: u64, now: Instant) -> bool {
        let due = self.is_due(now);
        if due {
            self.on = Some(number);
        }
        due
    }

    /// What the trial on the connection of this permit came to: nothing, if it has been given up.
    pub fn end(&mut self, number: u64, verdict: Verdict, now: Instant) {
        if self.on == Some(number) {
            (self.verdict, self.on) = (Some((verdict, now)), None);
        }
    }

    /// Something else than a trial has shown that connections must not be reused.
    pub fn fail(&mut self, now: Instant) {
        (self.verdict, self.on) = (Some((Verdict::Failed, now)), None);
    }

    /// The connection of this permit is gone; says whether it was to be tried.
    pub fn give_up(&mut self, number: u64) -> bool {
        self.on.take_if(|on| *on == number).is_some()
    }

    /// The server is another: a trial that is under way is the old one's.
    pub fn forget(&mut self) {
        (self.verdict, self.on) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_passes_only_if_a_reset_connection_is_told_what_a_new_one_is() {
        use Verdict::{Failed, Passed, Unclear};
        let noauth = "-NOAUTH Authentication required.";
        let unknown = "-ERR unknown command 'RESET', with args beginning with: ";
        for (first, reset, second, expected) in [
            ("+PONG", "+RESET", "+PONG", Passed),
            (noauth, "+RESET", noauth, Passed),
            // Kvrocks.
            (noauth, "+RESET", "+PONG", Failed),
            // Redis 6.2 and KeyDB; before 6.2, and Sentinel; a renamed RESET.
            (noauth, noauth, noauth, Failed),
            ("+PONG", unknown, "+PONG", Failed),
            (noauth, unknown, noauth, Failed),
            ("+PONG", "+OK", "+PONG", Failed),
            ("+PONG", "+RESET", noauth, Failed),
            ("+PONG", "+RESET ", "+PONG", Failed),
            ("-LOADING Redis is loading the dataset in memory", "+RESET", "+PONG", Unclear),
            ("-ERR max number of clients reached", "", "", Unclear),
            ("+OK", "+RESET", "+OK", Unclear),
        ] {
            let verdict = Verdict::of(first.as_bytes(), reset.as_bytes(), second.as_bytes());
            assert_eq!(verdict, expected, "{first} {reset} {second}");
        }
    }

    #[tokio::test]
    async fn a_verdict_is_renewed_after_a_minute_and_holds_for_two() {
        let (start, mut trial) = (Instant::now(), Trial::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!trial.is_due(start), "nobody would gain by it");
        trial.note_return();
        assert!(trial.is_open(start) && trial.begin(1, start) && !trial.is_due(start));
        trial.give_up(2);
        assert!(!trial.is_due(start));
        trial.give_up(1);
        assert!(trial.begin(3, start));
        trial.end(1, Verdict::Failed, start);
        assert!(!trial.is_failed(start), "of another trial");
        trial.end(3, Verdict::Passed, start);
        let passed = [0, 59, 60, 119, 120].map(|second| trial.is_passed(at(second)));
        assert_eq!(passed, [true, true, true, true, false]);
        let due = [0, 59, 60, 119, 120].map(|second| trial.is_due(at(second)));
        assert_eq!(due, [false, false, true, true, true]);
        assert!(trial.begin(4, at(60)));
        trial.forget();
        trial.end(4, Verdict::Passed, start);
        assert!(trial.is_open(start), "the server of the trial is gone");
        for (verdict, seconds) in [(Verdict::Failed, 3600), (Verdict::Unclear, 60)] {
            trial.forget();
            assert!(trial.begin(5, start));
            trial.end(5, verdict, start);
            assert!(trial.is_failed(at(seconds - 1)) && !trial.is_due(at(seconds - 1)));
            assert!(!trial.is_failed(at(seconds)) && trial.is_due(at(seconds)));
        }
    }
}
