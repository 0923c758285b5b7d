//! Asks a failing server a question about the failure. The launcher asks each question at most once
//! a minute, and all connections of the tunnel use the same answer.

use std::future::Future;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// The time for which an answer is valid, counted from the time of the question.
const PERIOD: Duration = Duration::from_secs(60);

/// A question to a failing server, together with the latest answer.
#[derive(Debug, Default)]
pub struct Inquiry<A> {
    /// The time of the latest question, and the answer. While a task asks the server, this task
    /// holds the lock, and other tasks wait for the answer.
    latest: Mutex<Option<(Instant, A)>>,
}

impl<A: Clone + Default> Inquiry<A> {
    /// Returns the latest answer if the answer is still valid. Returns `None` if no answer is
    /// valid, or if a task is asking now.
    pub fn known(&self) -> Option<A> {
        still_valid(self.latest.try_lock().ok()?.as_ref())
    }

    /// Returns the latest answer if the answer is still valid. Otherwise, runs `ask` to get an
    /// answer. If `ask` takes longer than `limit` or is cancelled, the default answer is valid for
    /// a minute.
    pub async fn answer(&self, limit: Duration, ask: impl Future<Output = A>) -> A {
        let mut latest = self.latest.lock().await;
        if let Some(answer) = still_valid(latest.as_ref()) {
            return answer;
        }
        let (_, answer) = latest.insert((Instant::now(), A::default()));
        *answer = timeout(limit, ask).await.unwrap_or_default();
        answer.clone()
    }
}

fn still_valid<A: Clone>(latest: Option<&(Instant, A)>) -> Option<A> {
    latest.filter(|(asked, _)| asked.elapsed() < PERIOD).map(|(_, answer)| answer.clone())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::{advance, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Acts as a server that answers after `time`. The answer is the number of questions so far.
    async fn ask(count: &Cell<u32>, time: Duration) -> u32 {
        count.set(count.get() + 1);
        let answer = count.get();
        sleep(time).await;
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_is_used_by_all_callers_for_a_minute() {
        let (inquiry, count) = (Inquiry::default(), Cell::new(0));
        let answers = tokio::join!(
            inquiry.answer(SECOND, ask(&count, SECOND / 2)),
            inquiry.answer(SECOND, ask(&count, SECOND / 2)),
        );
        assert_eq!(answers, (1, 1));
        assert_eq!(inquiry.known(), Some(1));
        // An answer is valid for a minute from the time of the question, not from the time of the
        // answer.
        advance(PERIOD - SECOND / 2 - Duration::from_millis(1)).await;
        assert_eq!(inquiry.answer(SECOND, ask(&count, SECOND)).await, 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(inquiry.known(), None);
        assert_eq!(inquiry.answer(SECOND, ask(&count, SECOND / 2)).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_question_is_not_repeated_within_a_minute() {
        let (inquiry, count) = (Inquiry::default(), Cell::new(0));
        assert_eq!(inquiry.answer(SECOND, ask(&count, SECOND * 2)).await, 0);
        assert_eq!(inquiry.answer(SECOND, ask(&count, SECOND / 2)).await, 0);
        advance(PERIOD).await;
        // A cancelled question is not repeated within a minute either.
        let impatient = timeout(SECOND / 4, inquiry.answer(SECOND, ask(&count, SECOND / 2)));
        assert!(impatient.await.is_err());
        assert_eq!(inquiry.answer(SECOND, ask(&count, SECOND / 2)).await, 0);
        assert_eq!(count.get(), 2);
    }
}
