//! Tests a server's `RESET` before any connection is reused.
//!
//! The trial sends `PING`, `RESET` and `PING` on a new connection, before the app gets the
//! connection. The server must confirm `RESET`, and must give the same reply to both `PING`s.
//! Servers differ: Redis before 6.2 and Redis Cloud have no `RESET`, Redis 6.2 refuses `RESET`
//! before login, and Kvrocks's `RESET` makes the client an administrator.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::resp;
use crate::tunnel::stream::TlsUpstream;

/// The request that resets a connection, in Redis 6.2 and later.
pub const RESET: &[u8] = b"*1\r\n$5\r\nRESET\r\n";
/// The reply to `RESET`, without its line end.
pub const RESET_DONE: &[u8] = b"+RESET";
/// The requests of a trial. Each reply is one line.
const REQUESTS: &[u8] = b"*1\r\n$4\r\nPING\r\n*1\r\n$5\r\nRESET\r\n*1\r\n$4\r\nPING\r\n";
/// The pause before the next trial of a server that has failed a trial.
const FAILED: Duration = Duration::from_secs(3600);
/// The pause before the next trial if the last trial had no clear result.
const UNCLEAR: Duration = Duration::from_secs(60);

/// The result of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// The server has no `RESET`, or its `RESET` differs from the `RESET` of Redis.
    Failed,
    /// The server did not answer, or could not serve requests during the trial.
    Unclear,
}

impl Verdict {
    /// Judges the replies to the first `PING`, to `RESET`, and to the second `PING`, all without
    /// their line ends.
    fn of(first: &[u8], reset: &[u8], second: &[u8]) -> Verdict {
        let known = first == b"+PONG" || first.starts_with(b"-NOAUTH ");
        if !known {
            return Verdict::Unclear;
        }
        match reset == RESET_DONE && first == second {
            true => Verdict::Passed,
            false => Verdict::Failed,
        }
    }
}

/// Runs a trial on a new connection, and returns the verdict.
pub async fn run(upstream: &mut TlsUpstream) -> Verdict {
    let Ok([first, reset, second]) = ask(upstream, REQUESTS).await else { return Verdict::Unclear };
    match Verdict::of(&first, &reset, &second) {
        Verdict::Passed if !upstream.is_untouched().await => Verdict::Unclear,
        verdict => verdict,
    }
}

/// Sends `N` requests, and reads their replies. Each reply is one line.
///
/// # Errors
/// If the connection breaks, or a line is too long.
pub async fn ask<const N: usize>(
    upstream: &mut TlsUpstream,
    requests: &[u8],
) -> io::Result<[Vec<u8>; N]> {
    upstream.write_all(requests).await?;
    upstream.flush().await?;
    let mut lines = [const { Vec::new() }; N];
    for line in &mut lines {
        *line = resp::read_line(upstream).await?;
    }
    Ok(lines)
}

/// The latest verdict on a server, and the time of this verdict.
#[derive(Debug, Default)]
pub struct Trial(Option<(Verdict, Instant)>);

impl Trial {
    /// True if the server has passed the trial, so that connections may be reused.
    pub fn is_passed(&self) -> bool {
        matches!(self.0, Some((Verdict::Passed, _)))
    }

    /// Begins a trial if a trial is due; returns whether a trial began. The verdict is unclear
    /// until the trial ends, so no second trial begins before then.
    pub fn begin(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|(verdict, since)| match verdict {
            Verdict::Passed => false,
            Verdict::Failed => now - since >= FAILED,
            Verdict::Unclear => now - since >= UNCLEAR,
        });
        if is_due {
            self.end(Verdict::Unclear, now);
        }
        is_due
    }

    pub fn end(&mut self, verdict: Verdict, now: Instant) {
        self.0 = Some((verdict, now));
    }

    /// Forgets the verdict on the server. The caller uses this function when the host name may lead
    /// to another server.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_reset_a_server_must_reply_as_on_a_new_connection() {
        use Verdict::{Failed, Passed, Unclear};
        let noauth = "-NOAUTH Authentication required.";
        let unknown = "-ERR unknown command 'RESET', with args beginning with: ";
        for (first, reset, second, expected) in [
            ("+PONG", "+RESET", "+PONG", Passed),
            (noauth, "+RESET", noauth, Passed),
            // Kvrocks gives these replies.
            (noauth, "+RESET", "+PONG", Failed),
            // Redis 6.2 and KeyDB give these replies before login.
            (noauth, noauth, noauth, Failed),
            // Redis before 6.2 and Sentinel give these replies.
            ("+PONG", unknown, "+PONG", Failed),
            // A server on which RESET was renamed gives these replies before login.
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
    async fn one_trial_runs_at_a_time() {
        let (start, mut trial) = (Instant::now(), Trial::default());
        assert!(trial.begin(start) && !trial.begin(start));
        assert!(trial.begin(start + UNCLEAR), "the first trial's app has left");
        trial.end(Verdict::Passed, start);
        assert!(trial.is_passed() && !trial.begin(start + FAILED));
        trial.forget();
        assert!(!trial.is_passed() && trial.begin(start));
    }

    #[tokio::test]
    async fn a_failed_server_is_tried_again_later() {
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
