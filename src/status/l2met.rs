//! A line of figures for each tunnel, each so often, in l2met's form, which Heroku's own data
//! stores use and log drains parse: `sample#` is a value, `count#` what came since the line before
//! (<https://github.com/ryandotsmith/l2met>).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::figures::{FailureReason, Figures, TunnelSnapshot, p95};
use crate::logging::notice;

/// Logs the figures of each tunnel at each interval, for ever. `dyno`: what tells this process from
/// others.
pub async fn log_each(interval: Duration, figures: Arc<Figures>, dyno: Option<String>) {
    let snapshot = || figures.snapshot(Instant::now()).tunnels;
    let mut before = snapshot();
    let mut ticks = interval_at(Instant::now() + interval, interval);
    // What is stopped for a while has one line to catch up on, not one for each interval.
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
    let since = |count: fn(&TunnelSnapshot) -> u64| count(now) - count(before);
    let failed = |reason: FailureReason| {
        let came = now.failed[reason as usize] - before.failed[reason as usize];
        (came > 0).then_some(came)
    };
    let wait = milliseconds(p95(&now.connection_wait.since(&before.connection_wait).counts));
    let reply = milliseconds(p95(&now.reply_wait.since(&before.reply_wait).counts));
    notice!(
        at = "metrics",
        source,
        "sample#redis-tunnel.open" = now.open,
        "sample#redis-tunnel.upstream" = now.held(),
        "sample#redis-tunnel.waiting" = now.waiting,
        "count#redis-tunnel.accepted" = since(|tunnel| tunnel.accepted),
        "count#redis-tunnel.sent-bytes" = since(|tunnel| tunnel.sent),
        "count#redis-tunnel.received-bytes" = since(|tunnel| tunnel.received),
        "count#redis-tunnel.max-clients-errors" = since(|tunnel| tunnel.max_clients),
        "count#redis-tunnel.failed" = since(TunnelSnapshot::failed_in_all),
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
        "sample#redis-tunnel.wait.p95" = wait,
        "sample#redis-tunnel.reply.p95" = reply,
    );
}

/// Without an exponent, however long or short.
fn milliseconds(seconds: Option<f64>) -> Option<String> {
    seconds.map(|seconds| format!("{:.1}ms", seconds * 1000.0))
}
