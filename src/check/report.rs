//! A tunnel to examine, and the report about it.

use std::time::{Duration, Instant};

use crate::redis_url::Credentials;
use crate::tls::{Certificate, Verify};
use crate::tunnel::Tunnel;
use crate::tunnel::failure::Failure;
use crate::tunnel::hints::Described;

/// The steps in their order. JSON has their names in lower case. `ca` and `full` try these levels
/// of verification. `SELECT` exists only if a URL names a database other than 0.
pub const STEPS: [&str; 9] =
    ["look-up", "TCP", "TLS", "pin", "ca", "full", "AUTH", "PING", "SELECT"];

/// A tunnel to examine.
pub struct Subject {
    pub tunnel: Tunnel,
    pub credentials: Option<Credentials>,
    /// The numbers of the databases in the URLs of this tunnel, except 0.
    pub databases: Vec<String>,
    /// True if this is the only tunnel. Then a general setting affects no other tunnel.
    pub is_single: bool,
    /// True if the user has explicitly set `none` for verification.
    pub none_chosen: bool,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(String),
    Failed(String),
    /// An earlier step failed.
    NotReached,
    /// The settings or the URL do not need this step.
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
    /// True if the tunnel's settings require this step to succeed.
    pub required: bool,
}

/// A step's error, and advice on how to correct it.
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

/// A required step failed, so the examination ends.
#[derive(Debug)]
pub struct Stop;

/// The result of examining one tunnel.
#[derive(Debug)]
pub struct Report {
    pub variables: Vec<String>,
    pub upstream: String,
    pub verify: Verify,
    pub steps: Vec<StepReport>,
    pub certificate: Option<Certificate>,
    pub advice: Vec<Advice>,
    /// `standalone`, `cluster` or `sentinel`, from INFO; `None` if the check stopped earlier, or if
    /// this user may not call INFO.
    pub mode: Option<String>,
    pub clients: Option<Clients>,
}

/// The number of connections to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// Including the check's own connection.
    pub connected: u64,
    /// The server's limit.
    pub most: u64,
}

/// Advice for the user.
#[derive(Debug)]
pub struct Advice {
    /// Text that may be wrapped.
    pub text: String,
    /// `NAME=VALUE` lines to copy, which are never wrapped.
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
        self.steps.iter().all(|step| !step.required || step.outcome.is_good())
    }

    /// Adds a step that took no time.
    pub fn add(&mut self, name: &'static str, outcome: Outcome) {
        self.steps.push(StepReport { name, outcome, took: Duration::ZERO, required: true });
    }

    /// Adds a step that ends now. `detail` describes a successful result.
    ///
    /// # Errors
    /// If the step failed.
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
        self.steps.push(StepReport { name, outcome, took, required: true });
        result
    }
}
