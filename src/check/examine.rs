//! Examines the tunnels of a plan, all at the same time, and advises on what was found.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::advice::{Passes, Situation, advice};
use super::dialogue::{Login, Spoken, speak};
use super::report::{Advice, CheckStep, Mode, Outcome, Report, StepReport, Told};
use crate::configuration::Settings;
use crate::figures::TunnelFigures;
use crate::plan::Plan;
use crate::tls::{Certificate, Connector, HandshakeError, Trust, Verify, certificate_of};
use crate::tunnel::Tunnel;
use crate::tunnel::diagnosis::Unexplained;
use crate::tunnel::failure::{Failure, Step};
use crate::tunnel::upstream;

/// What is found out about each tunnel of `plan`, in its order.
pub async fn all(plan: Plan, settings: &Settings) -> Vec<Report> {
    let mut examinations = JoinSet::new();
    let single = plan.routes.len() == 1;
    for (index, tunnel) in plan.routes.iter().enumerate() {
        let login =
            Login { credentials: plan.credentials(index), databases: plan.databases(index) };
        let situation = Situation {
            is_single: single,
            none_chosen: !tunnel.variables.iter().any(|name| plan.unauthenticated.contains(name)),
        };
        let connector = Connector::new(tunnel.trust.clone());
        let settings = settings.connection.clone();
        let tunnel = {
            let figures = TunnelFigures::unread();
            Tunnel::new(tunnel.clone(), connector, settings, figures, Arc::default())
        };
        examinations.spawn(async move { (index, examine(&tunnel, &login, situation).await) });
    }
    let mut reports = examinations.join_all().await;
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

/// Runs `step` until `deadline`, and takes its time. What went wrong may still have to be
/// explained: outside the time limit.
async fn timed<T, E: From<Failure>>(
    deadline: tokio::time::Instant,
    late: Step,
    step: impl Future<Output = Result<T, E>>,
) -> (Result<T, E>, Duration) {
    let started = Instant::now();
    let done = timeout_at(deadline, step).await;
    (done.unwrap_or_else(|_| Err(Failure::timed_out(late).into())), started.elapsed())
}

async fn examine(tunnel: &Tunnel, login: &Login, situation: Situation) -> Report {
    let trust = &tunnel.route.trust;
    let deadline = tokio::time::Instant::now() + tunnel.settings.connect_timeout;
    let mut report = Report {
        variables: tunnel.route.variables.clone(),
        upstream: tunnel.route.upstream.to_string(),
        verify: trust.verify,
        steps: Vec::new(),
        certificate: None,
        advice: Vec::new(),
        told: Told::default(),
        selects: !login.databases.is_empty(),
    };
    let (addresses, certificate) = match reach(tunnel, &mut report, deadline).await {
        Ok(reached) => reached,
        Err(failure) => return report.broken_off(failure.hint(tunnel)),
    };
    report.steps.push(pin_step(trust, &certificate));
    // Whether it would pass, whatever is demanded now; both at the same time.
    let (ca, full) = tokio::join!(
        would_pass(tunnel, CheckStep::Ca, Verify::Ca, &addresses, deadline),
        would_pass(tunnel, CheckStep::Full, Verify::Full, &addresses, deadline)
    );
    let passes = Passes { ca: !ca.outcome.is_failed(), full: !full.outcome.is_failed() };
    report.steps.extend([ca, full]);
    report.advice = advice(tunnel, &certificate, passes, situation);
    report.certificate = Some(certificate);
    if report.works() {
        let Spoken { steps, told, advice } = speak(tunnel, login, deadline).await;
        report.steps.extend(steps);
        report.reach_no_further();
        if let Some(advice) = advice {
            report.advice.insert(0, advice.into());
        }
        report.advice.extend(told.mode.and_then(Mode::advice).map(|text| text.to_owned().into()));
        report.told = told;
    } else {
        report.reach_no_further();
    }
    report
}

/// Looks up, connects and shakes hands, and adds these steps to the report. Returns the addresses
/// and the server's certificate.
async fn reach(
    tunnel: &Tunnel,
    report: &mut Report,
    deadline: tokio::time::Instant,
) -> Result<(Vec<SocketAddr>, Certificate), Failure> {
    // OpenSSL is set up beside the first steps, so that it is not taken for their time.
    let setting_up = tunnel.unverified.clone();
    let setting_up = tokio::spawn(async move { setting_up.prepare().await.map(drop) });

    let (addresses, took) = timed(deadline, Step::LookUp, upstream::look_up(tunnel)).await;
    let found = addresses.as_ref().map(|addresses| {
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
    });
    report.record(CheckStep::LookUp, took, found);
    let addresses = addresses?;

    let connecting = upstream::connect_tcp(addresses.clone());
    let (stream, took) = timed(deadline, Step::Tcp, connecting).await;
    let peer = stream.as_ref().map(|stream| {
        stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string())
    });
    report.record(CheckStep::Tcp, took, peer);
    let stream = stream?;

    // It says nothing itself when it fails: then the handshake does.
    let _ = setting_up.await;
    let no_sessions = Arc::default();
    let unverified = upstream::handshake(tunnel, &tunnel.unverified, stream, &no_sessions);
    let (handshake, took) = timed(deadline, Step::Tls, unverified).await;
    // It takes any certificate: there is none to be explained.
    let handshake = handshake.map_err(Unexplained::into_failure);
    let unreadable = || Failure::Misconfigured(HandshakeError::unreadable_certificate());
    let certificate = handshake.and_then(|(tls, _)| certificate_of(&tls).ok_or_else(unreadable));
    let subject = certificate.as_ref().map(|certificate| certificate.subject.clone());
    report.record(CheckStep::Tls, took, subject);
    Ok((addresses, certificate?))
}

impl Report {
    /// Adds a step.
    fn record(&mut self, step: CheckStep, took: Duration, result: Result<String, &Failure>) {
        let outcome = result.map_or_else(Outcome::failed, Outcome::Ok);
        self.steps.push(StepReport { step, outcome, took, needed: true });
    }

    fn broken_off(mut self, advice: String) -> Report {
        self.reach_no_further();
        self.advice.push(Advice::from(advice));
        self
    }

    fn reach_no_further(&mut self) {
        let step = |step: &CheckStep| StepReport {
            step: *step,
            outcome: Outcome::NotReached,
            took: Duration::ZERO,
            needed: true,
        };
        let all = CheckStep::ALL.iter().filter(|step| self.selects || **step != CheckStep::Select);
        self.steps.extend(all.skip(self.steps.len()).map(step));
    }
}

fn pin_step(trust: &Trust, certificate: &Certificate) -> StepReport {
    let outcome = match &trust.pins[..] {
        [] => Outcome::Skipped("none set".to_owned()),
        _ if trust.pin_holds(&certificate.pin) => Outcome::Ok(String::new()),
        _ => Outcome::failed("the server's key is none of the pinned"),
    };
    StepReport { step: CheckStep::Pin, outcome, took: Duration::ZERO, needed: true }
}

/// Whether the server would pass at `verify`, with the CAs and the name that are set.
async fn would_pass(
    tunnel: &Tunnel,
    step: CheckStep,
    verify: Verify,
    addresses: &[SocketAddr],
    deadline: tokio::time::Instant,
) -> StepReport {
    let trust = Trust { verify, pins: Vec::new(), ..tunnel.route.trust.clone() };
    let connector = Connector::new(trust);
    let attempt = async {
        let stream = upstream::connect_tcp(addresses.to_vec()).await?;
        connector.prepare().await.map_err(Failure::Internal)?;
        upstream::handshake(tunnel, &connector, stream, &Arc::default()).await
    };
    let (passed, took) = timed(deadline, Step::Tls, attempt).await;
    let outcome = match passed {
        Ok(_) => Outcome::Ok(String::new()),
        Err(unexplained) => match unexplained.explain(tunnel).await {
            Failure::Misconfigured(HandshakeError::Certificate(_, reason)) => {
                Outcome::Failed(reason)
            }
            failure => Outcome::failed(failure),
        },
    };
    StepReport { step, outcome, took, needed: tunnel.route.trust.verify == verify }
}
