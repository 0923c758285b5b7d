//! The report about one tunnel.

use std::time::{Duration, Instant};

use crate::redis_url::Credentials;
use crate::tls::Certificate;
use crate::tunnel::Tunnel;
use crate::tunnel::failure::Failure;
use crate::tunnel::hints::Described;

/// The names of the steps, in their order; lower case in JSON. The steps `ca` and `full` try these
/// levels of verification. The check omits `SELECT` if no URL names a database other than 0.
pub const STEPS: [&str; 9] =
    ["look-up", "TCP", "TLS", "pin", "ca", "full", "AUTH", "PING", "SELECT"];

/// A tunnel to examine.
pub struct Subject {
    pub tunnel: Tunnel,
    pub credentials: Option<Credentials>,
    /// The numbers of the databases in this tunnel's URLs, except 0.
    pub databases: Vec<String>,
    /// True if there is no other tunnel that a general setting would affect, too.
    pub is_single: bool,
}

/// The result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Failed,
    /// The check did not try this step, because an earlier step failed.
    NotReached,
    /// This step has nothing to check, for example because the user has set no pin.
    Skipped,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed => "failed",
            Outcome::NotReached => "not reached",
            Outcome::Skipped => "skipped",
        }
    }

    pub fn is_good(self) -> bool {
        matches!(self, Outcome::Ok | Outcome::Skipped)
    }
}

/// The report about one step.
#[derive(Debug)]
pub struct StepReport {
    pub name: &'static str,
    pub outcome: Outcome,
    pub detail: String,
    pub took: Duration,
    /// True if the tunnel's settings require this step to succeed.
    pub required: bool,
}

/// Why a step failed, and advice on how to correct the problem.
pub struct Problem {
    pub text: String,
    pub advice: Option<String>,
}

impl Problem {
    pub fn of(failure: &Failure, tunnel: &Tunnel) -> Problem {
        let Described { error, hint, .. } = failure.describe(tunnel);
        Problem { text: error, advice: Some(hint) }
    }
}

/// The result of examining one tunnel.
#[derive(Debug, Default)]
pub struct Report {
    pub steps: Vec<StepReport>,
    pub certificate: Option<Certificate>,
    /// Each text says in its first line what to do. The further lines of a text are settings
    /// `NAME=VALUE` that the user can copy.
    pub advice: Vec<String>,
    /// Redis's mode according to INFO: `standalone`, `cluster` or `sentinel`. `None` if a step
    /// failed before INFO, or if this user may not call INFO.
    pub mode: Option<String>,
    pub clients: Option<Clients>,
}

/// The number of clients that are connected to a server, according to INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The number includes the check's own connection.
    pub connected: u64,
    /// The server's limit on clients.
    pub most: u64,
}

impl Report {
    pub fn works(&self) -> bool {
        self.steps.iter().all(|step| !step.required || step.outcome.is_good())
    }

    /// Adds a step that took no time.
    pub fn add(&mut self, name: &'static str, outcome: Outcome, detail: &str) {
        self.push(name, outcome, detail.to_owned(), Duration::ZERO);
    }

    fn push(&mut self, name: &'static str, outcome: Outcome, detail: String, took: Duration) {
        self.steps.push(StepReport { name, outcome, detail, took, required: true });
    }

    /// Takes a step, and adds the result and the duration. `detail` describes a successful result.
    /// Returns `None` if the step failed.
    pub async fn step<T>(
        &mut self,
        name: &'static str,
        step: impl Future<Output = Result<T, Problem>>,
        detail: impl Fn(&T) -> String,
    ) -> Option<T> {
        let started = Instant::now();
        match step.await {
            Ok(value) => {
                self.push(name, Outcome::Ok, detail(&value), started.elapsed());
                Some(value)
            }
            Err(problem) => {
                self.fail(name, started, problem);
                None
            }
        }
    }

    /// Adds a step that has just failed.
    pub fn fail(&mut self, name: &'static str, started: Instant, problem: Problem) {
        self.push(name, Outcome::Failed, problem.text, started.elapsed());
        self.advice.splice(0..0, problem.advice);
    }
}
