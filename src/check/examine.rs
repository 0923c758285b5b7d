//! Examines all tunnels of a plan at the same time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout_at;

use super::advice::{Passes, advice};
use super::dialogue::speak;
use super::report::{Outcome, Problem, Report, STEPS, StepReport, Stop, Subject};
use crate::configuration::Settings;
use crate::figures::TunnelFigures;
use crate::plan::Plan;
use crate::tls::{Certificate, Connector, Misconfiguration, Trust, Verify};
use crate::tunnel::Tunnel;
use crate::tunnel::failure::{Failure, Step};
use crate::tunnel::upstream;

/// Examines the tunnels of `plan`. The reports have the plan's order.
pub async fn all(plan: Plan, settings: &Settings) -> Vec<Report> {
    let subjects = plan.routes.iter().enumerate().map(|(index, route)| Subject {
        tunnel: Tunnel::new(
            route.clone(),
            Connector::new(route.trust.clone()),
            settings.connection.clone(),
            TunnelFigures::unread(),
            Vec::new(),
        ),
        credentials: plan.credentials(index),
        databases: plan.databases(index),
        is_single: plan.routes.len() == 1,
        none_chosen: !route.variables.iter().any(|name| plan.unauthenticated.contains(name)),
    });
    let examinations: Vec<_> = subjects.map(|subject| tokio::spawn(examine(subject))).collect();
    let mut reports = Vec::new();
    for examination in examinations {
        reports.push(examination.await.expect("an examination does not panic"));
    }
    reports
}

async fn examine(subject: Subject) -> Report {
    let mut report = Report::new(&subject.tunnel);
    // An error only means that a required step failed. The report has the reason.
    let _ = take_steps(&subject, &mut report).await;
    for name in STEPS.into_iter().skip(report.steps.len()) {
        if name != "SELECT" || !subject.databases.is_empty() {
            report.add(name, Outcome::NotReached);
        }
    }
    report
}

async fn take_steps(subject: &Subject, report: &mut Report) -> Result<(), Stop> {
    let tunnel = &subject.tunnel;
    let deadline = tokio::time::Instant::now() + tunnel.settings.connect_timeout;
    let (addresses, certificate) = reach(tunnel, report, deadline).await?;
    report.add("pin", pin_outcome(&tunnel.route.trust, &certificate));
    // Try both levels at the same time, whatever the settings require.
    let (ca, full) = tokio::join!(
        would_pass(tunnel, Verify::Ca, &addresses, deadline),
        would_pass(tunnel, Verify::Full, &addresses, deadline)
    );
    let passes = Passes { ca: ca.outcome.is_good(), full: full.outcome.is_good() };
    report.steps.extend([ca, full]);
    report.advice = advice(subject, &certificate, passes);
    report.certificate = Some(certificate);
    if report.works() { speak(subject, report, deadline).await } else { Err(Stop) }
}

/// Runs `step` until `deadline`.
async fn within<T>(
    deadline: tokio::time::Instant,
    late: Step,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout_at(deadline, step).await.unwrap_or_else(|_| Err(Failure::timed_out(late)))
}

/// Adds the steps name lookup, TCP and TLS to the report. Returns the addresses and the server's
/// certificate.
async fn reach(
    tunnel: &Tunnel,
    report: &mut Report,
    deadline: tokio::time::Instant,
) -> Result<(Vec<SocketAddr>, Certificate), Stop> {
    // Set up OpenSSL now, so that the TLS step shows the handshake's time only. If this fails, the
    // handshake reports it.
    let connector = Connector::unverified(&tunnel.route.trust);
    let _ = connector.prepare().await;
    let problem = |failure: Failure| Problem::of(&failure, tunnel);

    let started = Instant::now();
    let found = within(deadline, Step::LookUp, upstream::look_up(tunnel)).await;
    let addresses = report.step("look-up", started, found.map_err(problem), |addresses| {
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
    })?;

    let started = Instant::now();
    let connected = within(deadline, Step::Tcp, upstream::connect_tcp(addresses.clone())).await;
    let stream = report.step("TCP", started, connected.map_err(problem), |stream| {
        stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string())
    })?;

    let started = Instant::now();
    let sessions = Arc::default();
    let handshake = upstream::handshake(tunnel, &connector, stream, &sessions);
    let handshake = within(deadline, Step::Tls, handshake).await;
    let unreadable = || Failure::Misconfigured(Misconfiguration::unreadable_certificate());
    let certificate = handshake.and_then(|(tls, _)| tls.certificate().ok_or_else(unreadable));
    let certificate = report.step("TLS", started, certificate.map_err(problem), |certificate| {
        certificate.subject.clone()
    })?;
    Ok((addresses, certificate))
}

fn pin_outcome(trust: &Trust, certificate: &Certificate) -> Outcome {
    match &trust.pins[..] {
        [] => Outcome::Skipped("no pin is set".to_owned()),
        _ if trust.pin_holds(&certificate.pin) => Outcome::Ok(String::new()),
        _ => Outcome::Failed("the server's key matches no pin".to_owned()),
    }
}

/// Tries whether the server passes at the level `verify`, with the configured CAs and name.
async fn would_pass(
    tunnel: &Tunnel,
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
    let started = Instant::now();
    let passed = within(deadline, Step::Tls, attempt).await;
    let took = started.elapsed();
    let outcome = match passed {
        Ok(_) => Outcome::Ok(String::new()),
        Err(Failure::Misconfigured(Misconfiguration::Certificate(rejected))) => {
            Outcome::Failed(rejected.reason)
        }
        Err(failure) => Outcome::Failed(failure.describe(tunnel).error),
    };
    let required = tunnel.route.trust.verify == verify;
    StepReport { name: verify.word(), outcome, took, required }
}
