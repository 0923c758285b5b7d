//! Examines all tunnels at the same time, for `--check`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout_at;

use super::advice::{Passes, advice, expiry};
use super::dialogue::speak;
use super::report::{Outcome, Problem, Report, STEPS, StepReport, Subject};
use crate::configuration::{Plan, Settings};
use crate::tls::{Certificate, Connector, Flaw, Misconfiguration, Trust, Verify};
use crate::tunnel::Tunnel;
use crate::tunnel::failure::{Failure, Step};
use crate::tunnel::upstream;

/// Examines each tunnel of `plan`, and returns one report per tunnel, in the plan's order.
pub async fn all(plan: Plan, settings: &Settings) -> Vec<(Subject, Report)> {
    let subjects = plan.routes.iter().enumerate().map(|(index, route)| Subject {
        tunnel: Tunnel::new(
            route.clone(),
            Connector::new(route.trust.clone()),
            settings.connection.clone(),
            Arc::default(),
            Vec::new(),
        ),
        credentials: plan.credentials(index),
        databases: plan.databases(index),
        is_single: plan.routes.len() == 1,
    });
    let examinations: Vec<_> = subjects.map(|subject| tokio::spawn(examine(subject))).collect();
    let mut reports = Vec::new();
    for examination in examinations {
        reports.push(examination.await.expect("an examination does not panic"));
    }
    reports
}

async fn examine(subject: Subject) -> (Subject, Report) {
    let mut report = Report::default();
    take_steps(&subject, &mut report).await;
    for name in STEPS.into_iter().skip(report.steps.len()) {
        if name != "SELECT" || !subject.databases.is_empty() {
            report.add(name, Outcome::NotReached, "");
        }
    }
    (subject, report)
}

/// Runs all steps of the check for one tunnel, and adds the results to `report`. Returns `None` if
/// a required step failed.
async fn take_steps(subject: &Subject, report: &mut Report) -> Option<()> {
    let tunnel = &subject.tunnel;
    let deadline = tokio::time::Instant::now() + tunnel.settings.connect_timeout;
    let (addresses, certificate) = reach(tunnel, report, deadline).await?;
    let (outcome, detail) = pin_outcome(&tunnel.route.trust, &certificate);
    report.add("pin", outcome, detail);
    // Verify the server at the levels `ca` and `full` at the same time, even if the settings
    // require neither level.
    let ((ca, ca_flaw), (full, full_flaw)) = tokio::join!(
        would_pass(tunnel, Verify::Ca, &addresses, deadline),
        would_pass(tunnel, Verify::Full, &addresses, deadline)
    );
    let [ca_passes, full_passes] = [&ca, &full].map(|step| step.outcome.is_good());
    let passes = Passes { ca: ca_passes, full: full_passes, flaw: ca_flaw.or(full_flaw) };
    report.steps.extend([ca, full]);
    let about_trust = advice(subject, &certificate, passes);
    report.advice.extend(expiry(subject, &certificate));
    report.certificate = Some(certificate);
    let is_trusted = report.works();
    let done = if is_trusted { speak(subject, report, deadline).await } else { None };
    // If only the dialogue has failed, do not advise to trust the server: it may be the wrong one.
    if report.works() || !is_trusted {
        report.advice.splice(0..0, about_trust);
    }
    done
}

/// Runs the future `step` until `deadline`. If the future takes longer, the error says that the
/// step `late` timed out.
async fn within<T>(
    deadline: tokio::time::Instant,
    late: Step,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout_at(deadline, step).await.unwrap_or_else(|_| Err(Failure::timed_out(late)))
}

/// Runs the steps name lookup, TCP and TLS, and adds the results to `report`. Returns the server's
/// addresses and certificate, or `None` if a step failed.
async fn reach(
    tunnel: &Tunnel,
    report: &mut Report,
    deadline: tokio::time::Instant,
) -> Option<(Vec<SocketAddr>, Certificate)> {
    // Set up OpenSSL before the TLS step, so that the step's duration does not include the set-up.
    // If the set-up fails, the handshake reports the error.
    let connector = Connector::unverified(&tunnel.route.trust);
    let _ = connector.prepare().await;
    let problem = |failure: Failure| Problem::of(&failure, tunnel);

    let found = within(deadline, Step::LookUp, upstream::look_up(tunnel));
    let look_up = async { found.await.map_err(problem) };
    let addresses = report.step("lookup", look_up, |addresses: &Vec<SocketAddr>| {
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
    });
    let addresses = addresses.await?;

    let connected = within(deadline, Step::Tcp, upstream::connect_tcp(addresses.clone()));
    let connect = async { connected.await.map_err(problem) };
    let stream = report.step("TCP", connect, |stream| {
        stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string())
    });
    let stream = stream.await?;

    let handshake = async {
        let sessions = Arc::default();
        // This handshake accepts every certificate, so the handshake never fails because of the
        // certificate.
        let handshake = upstream::handshake(tunnel, &connector, stream, &sessions);
        let (tls, _) = within(deadline, Step::Tls, handshake).await.map_err(problem)?;
        let unreadable = || Failure::Misconfigured(Misconfiguration::unreadable_certificate());
        tls.certificate().ok_or_else(|| problem(unreadable()))
    };
    let certificate = report.step("TLS", handshake, |shown| shown.subject.clone()).await?;
    Some((addresses, certificate))
}

fn pin_outcome(trust: &Trust, certificate: &Certificate) -> (Outcome, &'static str) {
    match &trust.pins[..] {
        [] => (Outcome::Skipped, "no pin is set"),
        _ if trust.pin_holds(&certificate.pin) => (Outcome::Ok, ""),
        _ => (Outcome::Failed, "the server's key matches none of the configured pins"),
    }
}

/// Makes a TLS handshake to find out whether the server passes verification at the level `verify`,
/// with the CAs and the server name that the user has set. Also returns the certificate's flaw.
async fn would_pass(
    tunnel: &Tunnel,
    verify: Verify,
    addresses: &[SocketAddr],
    deadline: tokio::time::Instant,
) -> (StepReport, Option<Flaw>) {
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
    let (outcome, detail, flaw) = match passed {
        Ok(_) => (Outcome::Ok, String::new(), None),
        Err(Failure::Misconfigured(Misconfiguration::Certificate(rejected))) => {
            (Outcome::Failed, rejected.reason, Some(rejected.flaw))
        }
        Err(failure) => (Outcome::Failed, failure.describe(tunnel).error, None),
    };
    let required = tunnel.route.trust.verify == verify;
    (StepReport { name: verify.word(), outcome, detail, took, required }, flaw)
}
