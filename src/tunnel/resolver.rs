//! A tunnel's name lookups. Lookups in flight are shared, and each answer has its time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OnceCell;
use tokio::time::Instant;

/// One tunnel's look-ups.
#[derive(Debug, Default)]
pub struct Resolver {
    latest: Mutex<Latest>,
}

#[derive(Debug, Default)]
struct Latest {
    answer: Option<Answer>,
    /// Gone as soon as nobody waits for it any more: a failure is told to who waits, and not kept.
    asking: Weak<LookUp>,
}

#[derive(Debug)]
struct Answer {
    asked: Instant,
    addresses: Vec<SocketAddr>,
}

/// A look-up that has begun, and its result.
#[derive(Debug)]
struct LookUp {
    asked: Instant,
    result: OnceCell<io::Result<Vec<SocketAddr>>>,
}

impl Resolver {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses by a look-up that began at `since` or later: one whose answer is known or
    /// awaited, or else `look_up`.
    ///
    /// # Errors
    /// The resolver's.
    pub async fn addresses(
        &self,
        since: Instant,
        look_up: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let asking = {
            let mut latest = self.latest();
            if let Some(answer) = latest.answer.as_ref().filter(|answer| answer.asked >= since) {
                return Ok(answer.addresses.clone());
            }
            let asking = latest.asking.upgrade().filter(|asking| asking.asked >= since);
            asking.unwrap_or_else(|| {
                let asking = LookUp { asked: Instant::now(), result: OnceCell::new() };
                let asking = Arc::new(asking);
                latest.asking = Arc::downgrade(&asking);
                asking
            })
        };
        // If whoever asks gives up, somebody else who waits asks again.
        match asking.result.get_or_init(|| look_up).await {
            Ok(addresses) => {
                let answer = Answer { asked: asking.asked, addresses: addresses.clone() };
                let mut latest = self.latest();
                if latest.answer.as_ref().is_none_or(|known| known.asked < answer.asked) {
                    latest.answer = Some(answer);
                }
                Ok(addresses.clone())
            }
            Err(error) => Err(same(error)),
        }
    }
}

/// An error that says the same as `error`.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A resolver that takes a second, and counts.
    async fn ask(count: &Cell<u16>, works: bool) -> io::Result<Vec<SocketAddr>> {
        count.set(count.get() + 1);
        let number = count.get();
        sleep(SECOND).await;
        match works {
            true => Ok(vec![SocketAddr::from(([127, 0, 0, 1], number))]),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn number(addresses: io::Result<Vec<SocketAddr>>) -> u16 {
        addresses.unwrap()[0].port()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_whoever_does_not_want_a_newer_one() {
        let (resolver, count) = (Resolver::default(), Cell::new(0));
        let start = Instant::now();
        assert_eq!(number(resolver.addresses(start, ask(&count, true)).await), 1);
        assert_eq!(number(resolver.addresses(start, ask(&count, true)).await), 1);
        // The question counts, not the answer.
        let later = start + Duration::from_millis(1);
        assert_eq!(number(resolver.addresses(later, ask(&count, true)).await), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_lookups_share_one_result_but_keep_no_failure() {
        let (resolver, count) = (Resolver::default(), Cell::new(0));
        let start = Instant::now();
        let (one, other) = tokio::join!(
            resolver.addresses(start, ask(&count, false)),
            resolver.addresses(start, ask(&count, false)),
        );
        for result in [one, other] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        assert_eq!((count.get(), start.elapsed()), (1, SECOND));
        assert_eq!(number(resolver.addresses(start, ask(&count, true)).await), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_another_that_gives_up_asks_itself() {
        let (resolver, count) = (Resolver::default(), Cell::new(0));
        let start = Instant::now();
        let half = Duration::from_millis(500);
        let impatient = timeout(half, resolver.addresses(start, ask(&count, true)));
        let (gone, answered) =
            tokio::join!(impatient, resolver.addresses(start, ask(&count, true)));
        assert!(gone.is_err());
        assert_eq!((number(answered), start.elapsed()), (2, half + SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_older_answer_does_not_replace_a_newer_one() {
        let (resolver, count) = (Resolver::default(), Cell::new(0));
        let start = Instant::now();
        let slow = async {
            sleep(SECOND * 5).await;
            ask(&count, true).await
        };
        let later = async {
            sleep(SECOND).await;
            resolver.addresses(Instant::now(), ask(&count, true)).await
        };
        let (slow, later) = tokio::join!(resolver.addresses(start, slow), later);
        assert_eq!((number(later), number(slow)), (1, 2));
        assert_eq!(number(resolver.addresses(start, ask(&count, true)).await), 1);
    }
}
