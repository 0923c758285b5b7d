//! Runs work that blocks a thread: name lookups, and loading certificates and keys.
//!
//! Tokio also has threads for blocking work, but tokio panics if the system refuses to start a
//! thread. With tokio's threads, an app that reaches its limit of processes (RLIMIT_NPROC) would
//! lose every new connection.
//!
//! One permanent thread starts before COMMAND. Further threads start on demand, so that a silent
//! name server delays only the tunnels that need this name server. The further threads end after
//! some idle time.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// The maximum number of threads, which is tokio's default. The number is high, because many
/// threads may wait for a silent name server.
const MOST_THREADS: usize = 512;
/// The time after which a thread without work ends, unless the thread is the permanent thread.
const IDLE: Duration = Duration::from_secs(10);
/// The most threads that the name lookups of one tunnel may use at the same time. Half of the
/// threads stay available to the other tunnels if the name server of one tunnel is silent.
pub const MOST_LOOKUPS: usize = MOST_THREADS / 2;
/// The maximum time for which a job waits for a busy thread, if the system refuses to start a new
/// thread.
const PATIENCE: Duration = Duration::from_secs(1);

/// The work that a thread does. Each job adds a permit to `free` before it sends its result, so
/// that the caller's next job finds this thread idle.
type Job = Box<dyn FnOnce() + Send>;

static THREADS: LazyLock<Threads> = LazyLock::new(Threads::new);

struct Threads {
    give: Sender<Job>,
    take: Receiver<Job>,
    /// The semaphore that has one permit for each idle thread.
    free: Semaphore,
    /// The semaphore that has one permit for each thread that may still be started under
    /// [`MOST_THREADS`].
    places: Semaphore,
}

/// Starts the permanent thread. The caller must call this function before COMMAND starts, because
/// the system may refuse a thread later. Ignores an error, because without a permanent thread each
/// job tries to start a thread.
pub fn keep_one_ready() {
    if THREADS.start(Duration::MAX).is_ok() {
        THREADS.free.add_permits(1);
    }
}

/// Looks up the addresses of `host`, which is a name or an IP address. Waits while `free` has no
/// permit. A lookup keeps its permit until it ends, even if the caller no longer waits for it.
///
/// # Errors
/// Returns the resolver's error, or EAGAIN if no thread is idle and no thread can be started.
pub async fn look_up(
    host: String,
    port: u16,
    free: &Arc<Semaphore>,
) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let permit = free.clone().acquire_owned().await;
    run(move || {
        let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        drop(permit);
        found
    })
    .await?
}

/// Runs `work`, which may block, on a thread of this module.
///
/// # Errors
/// Returns EAGAIN if no thread is idle and no thread can be started.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    THREADS.run(work).await
}

impl Threads {
    fn new() -> Threads {
        let (give, take) = crossbeam_channel::unbounded();
        Threads { give, take, free: Semaphore::new(0), places: Semaphore::new(MOST_THREADS) }
    }

    /// See [`run`].
    async fn run<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.claim().await?;
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // If `work` panics, the panic hook logs the panic.
            let done = catch_unwind(AssertUnwindSafe(work));
            self.free.add_permits(1);
            // Ignore the error, because the caller may no longer wait for the result.
            drop(reply.send(done));
        });
        self.give.send(job).expect("the receiver lives as long as the sender");
        match result.await {
            Ok(Ok(done)) => Ok(done),
            _ => Err(io::Error::other("the thread that did this work panicked")),
        }
    }

    /// Finds an idle thread or starts a thread for one job. The caller must send the job at once.
    async fn claim(&'static self) -> io::Result<()> {
        if let Ok(permit) = self.free.try_acquire() {
            permit.forget();
            return Ok(());
        }
        let Err(refused) = self.start(IDLE) else { return Ok(()) };
        match timeout(PATIENCE, self.free.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(())
            }
            _ => Err(refused),
        }
    }

    /// Starts a thread that ends when the thread has had no work for the time `idle`. Adds no
    /// permit to `free`.
    fn start(&'static self, idle: Duration) -> io::Result<()> {
        let place = self.places.try_acquire().map_err(|_| Errno::EAGAIN)?;
        let started = thread::Builder::new().name("blocking".to_owned()).spawn(move || {
            self.work(idle);
            drop(place);
        });
        started.map(drop).map_err(|_| Errno::EAGAIN.into())
    }

    fn work(&self, idle: Duration) {
        loop {
            if let Ok(job) = self.take.recv_timeout(idle) {
                job();
            } else if let Ok(permit) = self.free.try_acquire() {
                // Each permit in `free` promises one idle thread to a later job. This thread has
                // taken one permit, so no job relies on this thread, and the thread can end.
                permit.forget();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_lookup() {
        let free = Arc::new(Semaphore::new(0));
        for (host, expected) in [("127.0.0.1", "127.0.0.1:6379"), ("::1", "[::1]:6379")] {
            let found = look_up(host.to_owned(), 6379, &free).await.unwrap();
            assert_eq!(found, [expected.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn lookups_wait_if_the_tunnel_already_has_too_many() {
        let free = Arc::new(Semaphore::new(1));
        let earlier = free.clone().acquire_owned().await.unwrap();
        let mut later = Box::pin(look_up("localhost".to_owned(), 6379, &free));
        assert!(timeout(Duration::from_millis(20), &mut later).await.is_err());
        drop(earlier);
        assert!(later.await.unwrap().iter().all(|address| address.ip().is_loopback()));
        assert_eq!(free.available_permits(), 1);
    }

    #[tokio::test]
    async fn jobs_run_in_parallel_and_survive_a_panic() {
        let (first, second) = tokio::join!(
            run(|| -> () { panic!("on purpose") }),
            run(|| thread::current().name().map(str::to_owned)),
        );
        assert!(first.is_err());
        assert_eq!(second.unwrap().as_deref(), Some("blocking"));
        let (hold, held) = crossbeam_channel::bounded::<()>(0);
        let waiting = tokio::spawn(run(move || held.recv().is_err()));
        assert_eq!(run(|| 1).await.unwrap(), 1, "while another job waits");
        drop(hold);
        assert!(waiting.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn consecutive_jobs_need_one_thread() {
        let threads = Box::leak(Box::new(Threads::new()));
        let mut used = HashSet::new();
        for _ in 0..10_000 {
            used.insert(threads.run(|| thread::current().id()).await.unwrap());
        }
        assert_eq!(used.len(), 1);
    }
}
