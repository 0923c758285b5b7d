//! A tunnel to examine, and what was found out about it.

use std::time::{Duration, Instant};

use crate::redis_url::Credentials;
use crate::tls::{Certificate, Verify};
use crate::tunnel::Tunnel;
use crate::tunnel::failure::Failure;

/// The steps of an examination in their order, by the names of the table's rows. JSON has the names
/// in lower case. `ca` and `full`: whether the server passes at that level. `SELECT`: whether Redis
/// has the databases of the URLs, if any but 0 is named.
pub const STEPS: [&str; 9] =
    ["look-up", "TCP", "TLS", "pin", "ca", "full", "AUTH", "PING", "SELECT"];

/// A tunnel to examine.
pub struct Subject {
    pub tunnel: Tunnel,
    /// What its URLs ask of Redis.
    pub credentials: Option<Credentials>,
    pub databases: Vec<String>,
    /// Whether it is the only tunnel, so that the general settings are its own.
    pub is_single: bool,
    /// Whether the user has said that nothing need authenticate it, if nothing does.
    pub none_chosen: bool,
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(String),
    Failed(String),
    /// Something before it failed.
    NotReached,
    /// There is nothing to do.
    Skipped(String),
}

impl Outcome {
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Ok(_) => "ok",
            Outcome::Failed(_) => "failed",
            Outcome::NotReached => "not reached",
            Outcome::Skipped(_) => "-",
        }
    }

    pub fn detail(&self) -> &str {
        match self {
            Outcome::Ok(text) | Outcome::Failed(text) | Outcome::Skipped(text) => text,
            Outcome::NotReached => "",
        }
    }

    pub fn is_good(&self) -> bool {
        matches!(self, Outcome::Ok(_) | Outcome::Skipped(_))
    }
}

/// One step of an examination.
#[derive(Debug, Clone)]
pub struct StepReport {
    pub name: &'static str,
    pub outcome: Outcome,
    pub took: Duration,
    /// Whether the tunnel needs it under its settings.
    pub needed: bool,
}

/// Why a step failed, and what to do about it.
pub struct Problem {
    pub text: String,
    pub advice: Option<String>,
}

impl Problem {
    pub fn of(failure: &Failure, tunnel: &Tunnel) -> Problem {
        Problem { text: failure.to_string(), advice: Some(failure.hint(tunnel)) }
    }
}

/// A step that the tunnel needs has failed: the next ones are not reached.
#[derive(Debug)]
pub struct Stop;

/// All that was found out about one tunnel.
#[derive(Debug)]
pub struct Report {
    pub variables: Vec<String>,
    pub upstream: String,
    pub verify: Verify,
    pub steps: Vec<StepReport>,
    pub certificate: Option<Certificate>,
    pub advice: Vec<Advice>,
    /// How Redis runs, as it says itself: `standalone`, `cluster` or `sentinel`; `None` if the
    /// check stopped earlier, or if this user may not ask.
    pub mode: Option<String>,
    pub clients: Option<Clients>,
}

/// How many connections a server has, and may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The one that asks included.
    pub connected: u64,
    pub most: u64,
}

/// What the user should do.
#[derive(Debug)]
pub struct Advice {
    /// Prose, which is wrapped.
    pub text: String,
    /// `NAME=VALUE` each, for copying: each has a line of its own, which is never broken.
    pub settings: Vec<String>,
}

impl From<String> for Advice {
    fn from(text: String) -> Advice {
        Advice { text, settings: Vec::new() }
    }
}

impl Report {
    pub fn new(tunnel: &Tunnel) -> Report {
        Report {
            variables: tunnel.route.variables.clone(),
            upstream: tunnel.route.upstream.to_string(),
            verify: tunnel.route.trust.verify,
            steps: Vec::new(),
            certificate: None,
            advice: Vec::new(),
            mode: None,
            clients: None,
        }
    }

    pub fn works(&self) -> bool {
        self.steps.iter().all(|step| !step.needed || step.outcome.is_good())
    }

    /// Adds a step that takes no time.
    pub fn add(&mut self, name: &'static str, outcome: Outcome) {
        self.steps.push(StepReport { name, outcome, took: Duration::ZERO, needed: true });
    }

    /// Adds a step that ends now, by its result, which `detail` describes.
    ///
    /// # Errors
    /// When it failed.
    pub fn step<T>(
        &mut self,
        name: &'static str,
        started: Instant,
        result: Result<T, Problem>,
        detail: impl Fn(&T) -> String,
    ) -> Result<T, Stop> {
        let took = started.elapsed();
        let (outcome, result) = match result {
            Ok(value) => (Outcome::Ok(detail(&value)), Ok(value)),
            Err(problem) => {
                self.advice.splice(0..0, problem.advice.map(Advice::from));
                (Outcome::Failed(problem.text), Err(Stop))
            }
        };
        self.steps.push(StepReport { name, outcome, took, needed: true });
        result
    }
}
