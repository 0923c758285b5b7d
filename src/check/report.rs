//! The report of `--check` about one tunnel.

use std::time::{Duration, Instant};

use crate::redis_url::Credentials;
use crate::tls::Certificate;
use crate::tunnel::Tunnel;
use crate::tunnel::failure::Failure;
use crate::tunnel::hints::Described;

/// The names of the check's steps, in the order of the steps. JSON reports have these names in
/// lower case. The steps `ca` and `full` verify the server at these levels of `--verify`. The check
/// omits `SELECT` if no URL names a database other than 0.
pub const STEPS: [&str; 9] =
    ["lookup", "TCP", "TLS", "pin", "ca", "full", "AUTH", "PING", "SELECT"];

/// A tunnel that `--check` examines.
pub struct Subject {
    pub tunnel: Tunnel,
    /// The different users and passwords in this tunnel's URLs, each with its variable.
    pub credentials: Vec<(String, Credentials)>,
    /// The numbers of the databases in this tunnel's URLs, except 0.
    pub databases: Vec<String>,
    /// True if this is the only tunnel, so that a general setting affects no other tunnel.
    pub is_single: bool,
}

/// The result of one step of the check.
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

/// The report about one step of the check.
#[derive(Debug)]
pub struct StepReport {
    pub name: &'static str,
    pub outcome: Outcome,
    pub detail: String,
    pub took: Duration,
    /// True if the tunnel's settings require this step to succeed.
    pub required: bool,
}

/// The reason why a step failed, and advice on how to solve the problem.
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
    /// Advice for the user. The first line of each text says what to do, and each further line is a
    /// setting `NAME=VALUE` that the user can copy.
    pub advice: Vec<String>,
    /// Redis's mode according to INFO: `standalone`, `cluster` or `sentinel`. `None` if a step
    /// failed before INFO, or if this user may not call INFO.
    pub mode: Option<String>,
    pub clients: Option<Clients>,
}

/// The number of a server's clients, and the limit on this number, according to Redis's reply to
/// INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The number of connected clients, including the check's own connection.
    pub connected: u64,
    /// The maximum number of clients that the server allows.
    pub most: u64,
}

impl Report {
    pub fn works(&self) -> bool {
        self.steps.iter().all(|step| !step.required || step.outcome.is_good())
    }

    /// Adds the result of a step that took no time.
    pub fn add(&mut self, name: &'static str, outcome: Outcome, detail: &str) {
        self.push(name, outcome, detail.to_owned(), Duration::ZERO);
    }

    fn push(&mut self, name: &'static str, outcome: Outcome, detail: String, took: Duration) {
        self.steps.push(StepReport { name, outcome, detail, took, required: true });
    }

    /// Runs a step, and adds its result and duration to the report. If the step succeeds, `detail`
    /// describes the result. Returns `None` if the step fails.
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

    /// Adds a failed step, which began at the time `started`. Puts the problem's advice before all
    /// other advice.
    pub fn fail(&mut self, name: &'static str, started: Instant, problem: Problem) {
        self.push(name, Outcome::Failed, problem.text, started.elapsed());
        self.advice.splice(0..0, problem.advice);
    }
}
