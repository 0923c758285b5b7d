//! Metrics in the log, for `--metrics-interval`: one line per tunnel and interval, in l2met's
//! format, which Heroku's log drains parse. `sample#` is a current value, `count#` an increase
//! since the previous line (<https://github.com/ryandotsmith/l2met>).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::figures::{Counter, Counts, FailureReason, Figures, TunnelSnapshot, p95};
use crate::logging::notice;

/// Logs the metrics of each tunnel at each interval, for ever. `dyno` names this process among the
/// others of the app.
pub async fn log_each(interval: Duration, figures: Arc<Figures>, dyno: Option<String>) {
    let snapshot = || figures.snapshot(Instant::now()).tunnels;
    let mut before = snapshot();
    let mut ticks = interval_at(Instant::now() + interval, interval);
    // After SIGSTOP and SIGCONT, log one line instead of one for each missed interval.
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
    let waited = now.longest_wait_for_reply.as_secs_f64();
    let longest_wait = milliseconds(Some(waited).filter(|waited| *waited > 0.0));
    let (before, now) = (&before.counts, &now.counts);
    let since = |counter: fn(&Counts) -> &Counter| counter(now).get() - counter(before).get();
    let failed = |reason: FailureReason| {
        let [before, now] = [before, now].map(|counts| counts.failed[reason as usize].get());
        (now > before).then_some(now - before)
    };
    let wait = milliseconds(p95(&now.connection_wait.counts_since(&before.connection_wait)));
    let reply = milliseconds(p95(&now.reply_wait.counts_since(&before.reply_wait)));
    notice!(
        at = "metrics",
        source,
        "sample#redis-tunnel.open" = now.open.get(),
        "sample#redis-tunnel.upstream" = now.held(),
        "sample#redis-tunnel.waiting" = now.waiting.get(),
        "count#redis-tunnel.accepted" = since(|counts| &counts.accepted),
        "count#redis-tunnel.sent-bytes" = since(|counts| &counts.sent),
        "count#redis-tunnel.received-bytes" = since(|counts| &counts.received),
        "count#redis-tunnel.max-clients-errors" = since(|counts| &counts.max_clients),
        "count#redis-tunnel.failed" = now.failed_in_all() - before.failed_in_all(),
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
        "sample#redis-tunnel.longest-wait-for-reply" = longest_wait,
    );
}

/// A number that never has an exponent, which l2met would not parse.
fn milliseconds(seconds: Option<f64>) -> Option<String> {
    seconds.map(|seconds| format!("{:.1}ms", seconds * 1000.0))
}
