//! Tests `RESET` on this server before reuse.
//!
//! On a new connection, before its user gets it, go `PING`, `RESET` and `PING`. The second `PING`
//! must get the same answer as the first, and `RESET` must have done its work. Servers differ:
//! Redis before 6.2 knows no `RESET`, 6.2 refuses it before login, Kvrocks makes whoever sends it
//! an administrator, and Redis Cloud has none.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::resp;
use crate::tunnel::stream::TlsUpstream;

/// The request that makes a connection as good as new, and its reply (Redis 6.2 and later).
pub const RESET: &[u8] = b"*1\r\n$5\r\nRESET\r\n";
pub const RESET_DONE: &[u8] = b"+RESET\r\n";
/// The requests of a trial. Each is answered with one line.
const REQUESTS: &[u8] = b"*1\r\n$4\r\nPING\r\n*1\r\n$5\r\nRESET\r\n*1\r\n$4\r\nPING\r\n";
/// A server that failed is not tried again for this long.
const FAILED: Duration = Duration::from_secs(3600);
/// A server that did not answer is not tried again for this long.
const UNCLEAR: Duration = Duration::from_secs(60);

/// The result of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// `RESET` is missing or means something else.
    Failed,
    /// The server did not answer, or has other troubles.
    Unclear,
}

impl Verdict {
    /// The verdict on three answers, without their line ends.
    fn of(first: &[u8], reset: &[u8], second: &[u8]) -> Verdict {
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

/// Tries a connection that has just been made.
pub async fn run(upstream: &mut TlsUpstream) -> Verdict {
    let Some([first, reset, second]) = answers(upstream).await else { return Verdict::Unclear };
    match Verdict::of(&first, &reset, &second) {
        Verdict::Passed if !upstream.is_untouched().await => Verdict::Unclear,
        verdict => verdict,
    }
}

async fn answers(upstream: &mut TlsUpstream) -> Option<[Vec<u8>; 3]> {
    upstream.write_all(REQUESTS).await.ok()?;
    upstream.flush().await.ok()?;
    let mut lines = [Vec::new(), Vec::new(), Vec::new()];
    for line in &mut lines {
        *line = resp::read_line(upstream).await.ok()?;
    }
    Some(lines)
}

/// What is known of a server.
#[derive(Debug, Default)]
pub struct Trial {
    /// The latest verdict, and its time.
    verdict: Option<(Verdict, Instant)>,
    is_running: bool,
}

impl Trial {
    /// Whether connections may be reused.
    pub fn is_passed(&self) -> bool {
        matches!(self.verdict, Some((Verdict::Passed, _)))
    }

    /// Begins a trial if one is due, and says whether.
    pub fn begin(&mut self, now: Instant) -> bool {
        let is_due =
            !self.is_running && self.verdict.is_none_or(|verdict| has_lapsed(verdict, now));
        self.is_running |= is_due;
        is_due
    }

    pub fn end(&mut self, verdict: Verdict, now: Instant) {
        self.verdict = Some((verdict, now));
    }

    /// The trial that ran does not run any more.
    pub fn stop(&mut self) {
        self.is_running = false;
    }

    /// The server may be another: nothing is known of it.
    pub fn forget(&mut self) {
        self.verdict = None;
    }
}

fn has_lapsed((verdict, since): (Verdict, Instant), now: Instant) -> bool {
    match verdict {
        Verdict::Passed => false,
        Verdict::Failed => now - since >= FAILED,
        Verdict::Unclear => now - since >= UNCLEAR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_connection_must_be_told_what_a_new_one_is() {
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
    async fn one_trial_runs_at_a_time_until_there_is_a_verdict() {
        let (start, mut trial) = (Instant::now(), Trial::default());
        assert!(trial.begin(start) && !trial.begin(start));
        trial.stop();
        assert!(trial.begin(start), "the app of the first one gave up");
        trial.end(Verdict::Passed, start);
        trial.stop();
        assert!(trial.is_passed() && !trial.begin(start + FAILED));
        trial.forget();
        assert!(!trial.is_passed() && trial.begin(start));
    }

    #[tokio::test]
    async fn a_server_that_fails_is_tried_again_later() {
        let start = Instant::now();
        for (verdict, time) in [(Verdict::Failed, FAILED), (Verdict::Unclear, UNCLEAR)] {
            let mut trial = Trial::default();
            trial.end(verdict, start);
            assert!(!trial.is_passed());
            assert!(!trial.begin(start + time - Duration::from_millis(1)));
            assert!(trial.begin(start + time));
        }
    }
}
