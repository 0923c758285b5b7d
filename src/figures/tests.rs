//! Tests how the modules of the figures work together.

use std::time::Duration;

use super::history::SLOT;
use super::tunnel::LAPSE;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn figures() -> Figures {
    let labels = |variable: &str, upstream: &str| TunnelLabels {
        variables: vec![variable.to_owned()],
        upstream: upstream.to_owned(),
        verify: "none",
        pinned: false,
        limit: None,
    };
    Figures::new(vec![labels("A", "h:1"), labels("B", "h:1"), labels("C", "g:1")], 7)
}

/// Returns the current figures of the first tunnel.
fn first_of(figures: &Figures) -> TunnelSnapshot {
    figures.snapshot(Instant::now()).swap_remove(0)
}

fn fail(figures: &Figures) {
    let mut arrival = figures.tunnels()[0].accept(Instant::now());
    arrival.failed(FailureReason::TlsEof, "cut".to_owned(), "less".to_owned());
}

#[tokio::test(start_paused = true)]
async fn each_connection_counts_as_open_closed_or_failed() {
    let figures = figures();
    let tunnel = &figures.tunnels()[0];
    let _open = tunnel.accept(Instant::now());
    tunnel.accept(Instant::now()).closed(CloseReason::Idle);
    drop(tunnel.accept(Instant::now()));
    fail(&figures);
    let mut both = tunnel.accept(Instant::now());
    both.failed(FailureReason::Internal, String::new(), String::new());
    both.closed(CloseReason::RedisReset);
    drop(both);
    let counts = first_of(&figures).counts;
    assert_eq!((counts.accepted, counts.open, counts.failed_in_all()), (5, 1, 2));
    assert_eq!(counts.closed.iter().sum::<u64>(), 2);
    assert_eq!(counts.closed[CloseReason::Drain as usize], 1);
    assert_eq!(figures.sum(|counts| counts.accepted), 5);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_in_a_panic_counts_as_failed() {
    let figures = figures();
    let arrival = figures.tunnels()[0].accept(Instant::now());
    let task = tokio::spawn(async move {
        let _arrival = arrival;
        panic!("on purpose");
    });
    assert!(task.await.unwrap_err().is_panic());
    let seen = first_of(&figures);
    assert_eq!(seen.counts.open, 0);
    assert_eq!(seen.counts.failed[FailureReason::Internal as usize], 1);
    assert_eq!(seen.failure.unwrap().error, "start-stunnel has a defect");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_counts_as_failing_until_redis_answers() {
    let figures = figures();
    let since = || first_of(&figures).failing_since;
    assert_eq!(since(), None);
    fail(&figures);
    let first = since();
    fail(&figures);
    assert!(first.is_some() && since() == first);
    let tunnel = &figures.tunnels()[0];
    tunnel.accept(Instant::now()).ready(Instant::now());
    assert_eq!(since(), first, "a TLS front may be up without Redis");
    tunnel.answered();
    assert_eq!(since(), None);
    let failure = first_of(&figures).failure;
    assert_eq!(failure.map(|failure| failure.error), Some("cut".to_owned()), "still shown");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_stops_counting_as_failing_after_a_minute() {
    let figures = figures();
    let seen = || {
        let tunnel = first_of(&figures);
        (tunnel.failing_since.is_some(), tunnel.has_lapsed)
    };
    assert_eq!(seen(), (false, false));
    for _ in 0..3 {
        fail(&figures);
        tokio::time::advance(LAPSE - SECOND).await;
        assert_eq!(seen(), (true, false));
    }
    tokio::time::advance(SECOND).await;
    assert_eq!(seen(), (false, true));
    fail(&figures);
    assert_eq!(seen(), (true, false));
    figures.tunnels()[0].answered();
    assert_eq!(seen(), (false, false));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_a_tunnel_fail_only_before_any_reply() {
    let figures = figures();
    let tunnel = &figures.tunnels()[0];
    let time_out = || {
        let mut app = tunnel.accept(Instant::now());
        app.failed(FailureReason::QueueTimeout, "full".to_owned(), String::new());
        let seen = first_of(&figures);
        (seen.failing_since.is_some(), seen.failure.expect("a failure").reason)
    };
    assert_eq!(time_out(), (true, "queue_timeout"));
    tunnel.answered();
    tunnel.reply_clock().received(Instant::now());
    assert_eq!(time_out(), (false, "queue_timeout"));
    tunnel.fails(UNANSWERED, "down".to_owned(), String::new());
    assert_eq!(time_out(), (true, UNANSWERED), "the queue is not the cause");
}

#[tokio::test(start_paused = true)]
async fn connections_from_all_tunnels_to_a_server_are_added_up() {
    let figures = figures();
    let [a, b, c] = figures.tunnels() else { panic!("three") };
    let mut first = a.hold(UpstreamState::Connecting);
    assert_eq!(first_of(&figures).open_to_server, 0, "an attempt does not count");
    let second = a.hold(UpstreamState::Idle);
    let _other = b.hold(UpstreamState::Relaying);
    let _elsewhere = c.hold(UpstreamState::Relaying);
    first.set_state(UpstreamState::Relaying);
    let seen = figures.snapshot(Instant::now());
    assert_eq!([0, 1, 2].map(|index| seen[index].open_to_server), [3, 3, 1]);
    drop(second);
    let seen = first_of(&figures);
    assert_eq!(seen.counts.upstream, [1, 0, 0]);
    assert_eq!((seen.counts.held(), seen.counts.peak, seen.open_to_server), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn the_graph_has_a_bar_even_for_slots_without_traffic() {
    let figures = figures();
    let tunnel = &figures.tunnels()[0];
    fail(&figures);
    let held = tunnel.hold(UpstreamState::Relaying);
    tokio::time::advance(200 * SECOND).await;
    drop(held);
    let clock = tunnel.reply_clock();
    clock.sent(Instant::now() - SECOND / 100);
    clock.received(Instant::now());
    let seen = first_of(&figures);
    assert_eq!((seen.recent.accepted, seen.recent.failed_in_all()), (1, 1));
    let peaks: Vec<_> = seen.graph.iter().map(|point| point.peak).collect();
    // The connection was open during six slots of 30 seconds, and was closed in the seventh slot.
    assert_eq!(peaks, [1, 1, 1, 1, 1, 1, 1]);
    tokio::time::advance(SLOT).await;
    let seen = first_of(&figures);
    assert_eq!(seen.graph.last().map(|point| point.peak), Some(0));
    assert_eq!(seen.recent.reply_wait.count(), 1);
    tokio::time::advance(11 * SLOT).await;
    let seen = first_of(&figures);
    assert_eq!((seen.recent.accepted, seen.recent.failed_in_all()), (0, 0));
    tokio::time::advance(3600 * SECOND).await;
    let seen = first_of(&figures);
    assert_eq!((seen.graph.len(), seen.counts.accepted), (POINTS, 1));
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_is_that_of_the_oldest_request() {
    let figures = figures();
    let tunnel = &figures.tunnels()[0];
    let longest = || first_of(&figures).longest_wait_for_reply;
    let (first, other) = (tunnel.reply_clock(), tunnel.reply_clock());
    assert_eq!(longest(), Duration::ZERO);
    first.sent(Instant::now());
    tokio::time::advance(SECOND).await;
    other.sent(Instant::now());
    tokio::time::advance(SECOND).await;
    // Further bytes to Redis do not restart the wait.
    first.sent(Instant::now());
    assert_eq!(longest(), 2 * SECOND);
    first.received(Instant::now());
    assert_eq!(longest(), SECOND);
    // If no request waits for a reply, bytes from Redis are not counted as a reply.
    first.received(Instant::now());
    let waits = first_of(&figures).counts.reply_wait;
    assert_eq!((waits.count(), waits.sum), (1, 2 * SECOND));
    drop(other);
    assert_eq!(longest(), Duration::ZERO);
}
