//! A report about three tunnels, for the unit tests of this folder.

use std::time::UNIX_EPOCH;

use super::*;
use crate::figures::{CloseReason, FailureReason, PoolResult, TunnelLabels, UpstreamState};

/// A text that a hostile server could send: HTML that must be escaped, and characters that control
/// a terminal.
pub const HOSTILE: &str = "</td><script>alert(1)</script>\"' &amp; \u{1b}[31m \n{}\\";

/// Makes the figures of three tunnels: a tunnel that works, a tunnel that fails, and a tunnel that
/// was never used.
pub fn figures() -> Arc<Figures> {
    let labels = |variable: &str, upstream: &str, limit| TunnelLabels {
        variables: vec![variable.to_owned()],
        upstream: upstream.to_owned(),
        verify: "none",
        pinned: false,
        limit,
    };
    let tunnels = vec![
        labels("REDIS_URL", "redis.example.com:6380", None),
        labels("CACHE_URL", "cache.example.com:6379", Some(20)),
        labels("OTHER_URL", "other.example.com:6379", None),
    ];
    let figures = Figures::new(tunnels, 7);
    let [works, fails, _] = figures.tunnels() else { panic!("three") };
    let now = Instant::now();
    let ms = Duration::from_millis;
    for n in 0..12 {
        let mut arrival = works.accept(now);
        arrival.ready(now + ms(20 + n));
        works.answered();
        works.pooled([PoolResult::Reused, PoolResult::New][n as usize % 2]);
        works.shook_hands(n > 0, ms(9));
        let clock = works.reply_clock();
        clock.sent(now);
        clock.received(now + ms(2));
        works.moved(100, 2_000_000);
        arrival.closed(CloseReason::Closed);
    }
    works.saw_certificate(HOSTILE.to_owned(), (unix_seconds() + 34_100_000.0) as i64);
    std::mem::forget(works.hold(UpstreamState::Relaying));
    std::mem::forget(works.hold(UpstreamState::Idle));
    for _ in 0..9 {
        fails.turned_away();
        let error = format!("the server closed the connection in the handshake {HOSTILE}");
        fails.accept(now).failed(FailureReason::TlsEof, error, "set less".to_owned());
    }
    for _ in 0..18 {
        std::mem::forget(fails.hold(UpstreamState::Relaying));
    }
    std::mem::forget([fails.wait(), fails.wait()]);
    Arc::new(figures)
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Makes a status report from the figures of [`figures`].
pub fn report() -> StatusReport {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Status::new(figures(), true).report())
}

#[test]
fn status_is_failing_if_a_tunnel_fails_or_no_url_is_found() {
    let mut report = report();
    assert!(!report.is_well());
    report.tunnels.remove(1);
    assert!(report.is_well());
    report.found_urls = false;
    assert!(!report.is_well());
}
