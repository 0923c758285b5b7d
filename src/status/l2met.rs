//! Logs metrics for `--metrics-interval`: one line per tunnel, at each interval.
//!
//! The lines are in the format l2met (<https://github.com/ryandotsmith/l2met>), which Heroku's log
//! drains parse. A field `sample#…` holds a current value. A field `count#…` holds the increase of
//! a count since the tunnel's previous line.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::figures::{FailureReason, Figures, TunnelSnapshot};
use crate::logging::notice;

/// Logs the metrics of each tunnel at each interval, until the launcher ends. `dyno` is Heroku's
/// name for this process, such as `web.1`.
pub async fn log_each(interval: Duration, figures: Arc<Figures>, dyno: Option<String>) {
    let snapshot = || figures.snapshot(Instant::now());
    let mut before = snapshot();
    let mut ticks = interval_at(Instant::now() + interval, interval);
    // If SIGSTOP has stopped the launcher during several intervals, log a single line per tunnel
    // for all these intervals.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = snapshot();
        for (before, now) in before.iter().zip(&now) {
            log(before, now, dyno.as_deref());
        }
        before = now;
    }
}

fn log(before: &TunnelSnapshot, now: &TunnelSnapshot, dyno: Option<&str>) {
    let source = match dyno {
        Some(dyno) => format!("{dyno}.{}", now.variable()),
        None => now.variable().to_owned(),
    };
    let longest = Some(now.longest_wait_for_reply).filter(|waited| !waited.is_zero());
    let (now, new) = (&now.counts, now.counts.since(&before.counts));
    let failed = |reason| Some(new.failed[reason as usize]).filter(|count| *count > 0);
    notice!(
        at = "metrics",
        source,
        "sample#redis-tunnel.open" = now.open,
        "sample#redis-tunnel.upstream" = now.held(),
        "sample#redis-tunnel.waiting" = now.waiting,
        "count#redis-tunnel.accepted" = new.accepted,
        "count#redis-tunnel.sent-bytes" = new.sent,
        "count#redis-tunnel.received-bytes" = new.received,
        "count#redis-tunnel.max-clients-errors" = new.max_clients,
        "count#redis-tunnel.failed" = new.failed_in_all(),
        "count#redis-tunnel.failed.dns" = failed(FailureReason::Dns),
        "count#redis-tunnel.failed.tcp-refused" = failed(FailureReason::TcpRefused),
        "count#redis-tunnel.failed.tcp-timeout" = failed(FailureReason::TcpTimeout),
        "count#redis-tunnel.failed.tcp-other" = failed(FailureReason::TcpOther),
        "count#redis-tunnel.failed.tls-eof" = failed(FailureReason::TlsEof),
        "count#redis-tunnel.failed.tls-timeout" = failed(FailureReason::TlsTimeout),
        "count#redis-tunnel.failed.no-tls" = failed(FailureReason::NoTls),
        "count#redis-tunnel.failed.certificate" = failed(FailureReason::Certificate),
        "count#redis-tunnel.failed.pin" = failed(FailureReason::Pin),
        "count#redis-tunnel.failed.client-certificate" = failed(FailureReason::ClientCertificate),
        "count#redis-tunnel.failed.tls-version" = failed(FailureReason::TlsVersion),
        "count#redis-tunnel.failed.tls-other" = failed(FailureReason::TlsOther),
        "count#redis-tunnel.failed.descriptors" = failed(FailureReason::Descriptors),
        "count#redis-tunnel.failed.threads" = failed(FailureReason::Threads),
        "count#redis-tunnel.failed.queue-timeout" = failed(FailureReason::QueueTimeout),
        "count#redis-tunnel.failed.internal" = failed(FailureReason::Internal),
        "sample#redis-tunnel.wait.p95" = milliseconds(new.connection_wait.p95()),
        "sample#redis-tunnel.reply.p95" = milliseconds(new.reply_wait.p95()),
        "sample#redis-tunnel.longest-wait-for-reply" =
            milliseconds(longest.map(|waited| waited.as_secs_f64())),
    );
}

/// Formats a duration in milliseconds, without an exponent, because log drains cannot parse numbers
/// with an exponent.
fn milliseconds(seconds: Option<f64>) -> Option<String> {
    seconds.map(|seconds| format!("{:.1}ms", seconds * 1000.0))
}
