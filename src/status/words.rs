//! Writes the texts that the status page and `--status` have in common.

use std::time::Duration;

use super::StatusReport;
use crate::figures::{
    Counts, FailureReason, Handshake, Histogram, PoolResult, TunnelSnapshot, UpstreamState,
};
use crate::logging;
use crate::names;
use crate::sandbox;
use crate::text::counted;
use crate::tls::{SOON, days_until};
use crate::tunnel::client_limit;

/// The level of `--verify` at which the launcher does not verify certificates.
const NONE: &str = "none";
const REFUSED: &str = FailureReason::TcpRefused.word();
/// The limits on the waits for the event loop, for a reply and for a connection, in seconds. If a
/// wait exceeds its limit, the status shows a hint.
const SLOW_LOOP: f64 = 0.05;
const SLOW_REPLY: f64 = 0.1;
const SLOW_CONNECT: f64 = 0.25;

/// The state of a tunnel, which the status page and `--status` show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelState {
    /// No connection through the tunnel has got a reply or failed yet.
    Unused,
    Works,
    /// Redis answered the latest connection that reached Redis, but a row of the status shows a
    /// problem.
    Unsteady,
    /// The tunnel has failed in the last minute, and Redis has answered no new connection since.
    Fails,
    /// Redis has answered no new connection since the tunnel's latest failure, but the failure is
    /// too old to tell whether the tunnel works now.
    Lapsed,
}

/// Returns the status text of a launcher that has no tunnel.
pub fn no_tunnel(report: &StatusReport) -> String {
    match report.found_urls {
        true => "No tunnel: no URL needs a tunnel.".to_owned(),
        false => format!("NO REDIS URL: {}", names::NO_URL),
    }
}

impl TunnelState {
    pub fn of(tunnel: &TunnelSnapshot) -> TunnelState {
        let recent = &tunnel.recent;
        let ends_soon =
            tunnel.certificate.as_ref().is_some_and(|shown| days_until(shown.expires) < SOON);
        if tunnel.failing_since.is_some() {
            TunnelState::Fails
        } else if tunnel.has_lapsed {
            TunnelState::Lapsed
        } else if tunnel.counts.last_success.is_none() {
            TunnelState::Unused
        } else if recent.failed_in_all() > 0
            || recent.max_clients > 0
            || is_at_limit(tunnel)
            || (ends_soon && tunnel.labels.verify != NONE)
        {
            TunnelState::Unsteady
        } else {
            TunnelState::Works
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            TunnelState::Unused => "not used yet",
            TunnelState::Works => "working",
            TunnelState::Unsteady => "working, see below",
            TunnelState::Fails => "failing",
            TunnelState::Lapsed => "last attempt failed",
        }
    }
}

/// The texts about one tunnel in the status.
#[derive(Debug, PartialEq)]
pub struct Block {
    /// The names of the tunnel's variables, and the tunnel's server, such as
    /// `REDIS_URL → host:6380`.
    pub title: String,
    pub state: TunnelState,
    /// The text after the state, which says how long the tunnel has been failing, or when the
    /// latest attempt to connect failed. The text is empty, or begins with a space.
    pub since: String,
    /// The probable cause of the tunnel's problem, and the remedy.
    pub advice: Option<String>,
    /// The rows of text about the tunnel. The most important row comes first.
    pub rows: Vec<Row>,
}

#[derive(Debug, PartialEq)]
pub struct Row {
    pub label: &'static str,
    pub text: String,
    /// The remedy, if this row shows a problem.
    pub advice: Option<&'static str>,
}

/// The labels of the rows that have a graph.
pub const HELD: &str = "Held";
pub const FAILURES: &str = "Failures";

pub fn blocks(report: &StatusReport) -> Vec<Block> {
    report.tunnels.iter().map(|tunnel| block(tunnel, report)).collect()
}

fn block(tunnel: &TunnelSnapshot, report: &StatusReport) -> Block {
    let now = report.at;
    Block {
        title: format!("{} → {}", tunnel.labels.variables.join(" "), tunnel.labels.upstream),
        state: TunnelState::of(tunnel),
        since: match (tunnel.failing_since, &tunnel.failure) {
            (Some(since), _) => {
                format!(" since {} ({})", time_of_day(since), duration(now.saturating_sub(since)))
            }
            (None, Some(failure)) if tunnel.has_lapsed => {
                format!(" at {}", time_of_day(failure.at))
            }
            _ => String::new(),
        },
        advice: advice(tunnel),
        rows: vec![
            held(tunnel),
            failures(tunnel),
            waits(tunnel, report),
            tls(tunnel),
            moved(tunnel),
        ],
    }
}

/// Returns the probable cause of a tunnel's problem, and the remedy.
pub fn advice(tunnel: &TunnelSnapshot) -> Option<String> {
    let recent = &tunnel.recent;
    let last_success = tunnel.counts.last_success;
    if recent.max_clients > 0 {
        return Some(format!(
            "Redis was probably at its client limit: {connections} refused in the last 5 \
             min, {open_connections} open now. {remedy}",
            connections = counted(recent.max_clients, "connection"),
            open_connections = counted(tunnel.open_to_server, "connection"),
            remedy = capitalized(&client_limit::remedy()),
        ));
    }
    let failed = tunnel.failing_since.is_some() || tunnel.has_lapsed || recent.failed_in_all() > 0;
    let failure = tunnel.failure.as_ref().filter(|_| failed)?;
    // If Redis has answered before, do not show the hint of a refused connection, which would ask
    // the user to check the URL.
    Some(match last_success.filter(|_| failure.reason == REFUSED) {
        Some(_) if TunnelState::of(tunnel) == TunnelState::Unsteady => {
            format!("Redis was down or restarting at {}", time_of_day(failure.at))
        }
        Some(success) => {
            let reached = time_of_day(success);
            format!("Redis is down or restarting (last reached at {reached})")
        }
        None => capitalized(&failure.hint),
    })
}

fn held(tunnel: &TunnelSnapshot) -> Row {
    let counts = &tunnel.counts;
    let states = UpstreamState::WORDS.into_iter().zip(counts.upstream);
    let parts: Vec<_> = states.map(|(word, count)| format!("{count} {word}")).collect();
    let limit = tunnel.labels.limit.map_or_else(String::new, |limit| format!(", limit {limit}"));
    let queue = match counts.waiting {
        0 => String::new(),
        waiting => format!(" · {} waiting", counted(waiting, "app connection")),
    };
    let (parts, held, peak) = (parts.join(" + "), counts.held(), counts.peak);
    let text = format!("{parts} = {held} (peak {peak}{limit}){queue}");
    let advice = "Raise this limit if Redis allows more connections, or make the app's connection \
                  pools smaller";
    Row { label: HELD, text, advice: is_at_limit(tunnel).then_some(advice) }
}

/// True if app connections wait because the tunnel has as many connections to Redis as its limit
/// allows.
fn is_at_limit(tunnel: &TunnelSnapshot) -> bool {
    let counts = &tunnel.counts;
    counts.waiting > 0 && tunnel.labels.limit.is_some_and(|limit| counts.held() >= limit)
}

fn failures(tunnel: &TunnelSnapshot) -> Row {
    let recent = &tunnel.recent;
    let mut parts = vec![match recent.failed_in_all() {
        0 => format!(
            "none of {app_connections} in the last 5 min",
            app_connections = counted(recent.accepted, "app connection")
        ),
        failed => format!("last 5 min: {failed} of {}{}", recent.accepted, reasons(recent)),
    }];
    if let Some(failure) = &tunnel.failure {
        parts.push(format!("last at {}: {}", time_of_day(failure.at), failure.error));
    }
    Row { label: FAILURES, text: parts.join(" · "), advice: None }
}

/// Lists the reasons for recent failures with their counts, the most frequent reason first, for
/// example ` · tls_eof 9, dns 1`.
fn reasons(recent: &Counts) -> String {
    let mut counts: Vec<_> = FailureReason::WORDS.into_iter().zip(recent.failed).collect();
    counts.retain(|(_, count)| *count > 0);
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    format!(" · {}", listed(counts))
}

/// Lists words with their counts, for example `tls_eof 9, dns 1`.
fn listed(counts: impl IntoIterator<Item = (&'static str, u64)>) -> String {
    let words = counts.into_iter().map(|(word, count)| format!("{word} {count}"));
    words.collect::<Vec<_>>().join(", ")
}

fn waits(tunnel: &TunnelSnapshot, report: &StatusReport) -> Row {
    let (connect, reply) = (tunnel.recent.connection_wait.p95(), tunnel.recent.reply_wait.p95());
    let own = report.loop_lag.as_secs_f64();
    let longest = match tunnel.longest_wait_for_reply {
        Duration::ZERO => "none".to_owned(),
        waited if waited < Duration::from_secs(1) => milliseconds(Some(waited.as_secs_f64())),
        waited => duration(waited.as_millis() as u64),
    };
    let text = format!(
        "connect {connect} · reply {reply} (p95, last 5 min) · longest wait for a reply {longest} \
         · event loop {lag} (now)",
        connect = milliseconds(connect),
        reply = milliseconds(reply),
        lag = milliseconds(Some(own)),
    );
    let advice = if own > SLOW_LOOP {
        Some("This machine is short of CPU time: start-stunnel itself has to wait for the CPU")
    } else if reply > Some(SLOW_REPLY) {
        Some(
            "Replies are slow. Unless the app uses blocking commands such as BLPOP, whose waits \
             count as reply times, ask Redis with SLOWLOG GET and LATENCY DOCTOR",
        )
    } else if connect > Some(SLOW_CONNECT) {
        Some("Connecting is slow: keep connections open in the app, or set --pool=on")
    } else {
        None
    };
    Row { label: "Waits", text, advice }
}

fn tls(tunnel: &TunnelSnapshot) -> Row {
    let handshakes = tunnel.counts.handshakes.each_ref().map(Histogram::count);
    let handshakes = listed(Handshake::WORDS.into_iter().zip(handshakes));
    let mut parts = vec![format!("handshakes: {handshakes}")];
    let mut advice = None;
    if let Some(certificate) = &tunnel.certificate {
        let days = days_until(certificate.expires);
        let expires = match days {
            ..0 => "has expired".to_owned(),
            days => format!("expires in {}", counted(days as u64, "day")),
        };
        parts.push(format!("certificate for {} {expires}", certificate.names));
        if days < SOON && tunnel.labels.verify != NONE {
            advice = Some("Renew the server's certificate");
        }
    }
    let pin = if tunnel.labels.pinned { ", with a pin" } else { "" };
    parts.push(format!("verify {}{pin}", tunnel.labels.verify));
    Row { label: "TLS", text: parts.join(" · "), advice }
}

fn moved(tunnel: &TunnelSnapshot) -> Row {
    let counts = &tunnel.counts;
    // If the pool was never on, the counts of new and of reused connections are both 0.
    let pool = match counts.pool {
        [0, 0] => String::new(),
        counts => format!(" ({})", listed(PoolResult::WORDS.into_iter().zip(counts))),
    };
    let text = format!(
        "app connections: {open} open, {accepted} accepted in total{pool} · sent {sent}, received \
         {received}",
        open = counts.open,
        accepted = counts.accepted,
        sent = bytes(counts.sent),
        received = bytes(counts.received)
    );
    Row { label: "Moved", text, advice: None }
}

/// Writes the last paragraph of the status, which is about COMMAND and the launcher.
pub fn process(report: &StatusReport) -> String {
    let command = &report.command;
    let age = duration(report.at.saturating_sub(command.started));
    let most =
        report.process.max_descriptors.map_or_else(String::new, |most| format!(" of {most}"));
    let descriptors = report.process.descriptors;
    let descriptors =
        descriptors.map_or_else(String::new, |open| format!(" · descriptors {open}{most}"));
    let dropped = match logging::dropped_lines() {
        0 => String::new(),
        lines => format!(" · {} dropped", counted(lines, "log line")),
    };
    format!(
        "COMMAND pid {pid}, {state} {age}{descriptors}{dropped} · start-stunnel {version} pid \
         {launcher_pid} · sandbox {sandbox} · all counts are for this launcher only",
        pid = command.pid,
        state = command.state.word(),
        version = env!("CARGO_PKG_VERSION"),
        launcher_pid = std::process::id(),
        sandbox = sandbox::state(),
    )
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Formats the time of day in UTC. `ms` is the time in milliseconds since 1970.
fn time_of_day(ms: u64) -> String {
    let seconds = ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Formats a duration of `ms` milliseconds as a whole number of seconds, minutes, hours or days.
fn duration(ms: u64) -> String {
    match Duration::from_millis(ms).as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn milliseconds(seconds: Option<f64>) -> String {
    match seconds.map(|seconds| seconds * 1000.0) {
        None => "-".to_owned(),
        Some(ms) if ms >= 10.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{ms:.1} ms"),
    }
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = bytes.checked_ilog2().unwrap_or(0) / 10;
    let digits = usize::from(unit > 0);
    format!("{:.digits$} {}", bytes as f64 / 1024_f64.powi(unit as i32), UNITS[unit as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::report;

    #[test]
    fn the_status_shows_the_facts_of_each_tunnel() {
        let report = report();
        let [works, fails, unused] = &blocks(&report)[..] else { panic!("three") };
        let rows = |block: &Block| -> Vec<String> {
            block.rows.iter().map(|row| format!("{}: {}", row.label, row.text)).collect()
        };
        assert_eq!((works.state, unused.state), (TunnelState::Works, TunnelState::Unused));
        assert_eq!(works.advice, None);
        assert_eq!(rows(works)[0], "Held: 1 relaying + 1 idle + 0 connecting = 2 (peak 2)");
        assert_eq!(rows(works)[1], "Failures: none of 12 app connections in the last 5 min");
        assert!(rows(works)[2].starts_with(
            "Waits: connect 48 ms · reply 2.4 ms (p95, last 5 min) · longest wait for a reply none \
             · event loop "
        ));
        assert!(
            rows(works)[3].starts_with("TLS: handshakes: full 1, resumed 11 · certificate for ")
        );
        assert!(rows(works)[3].ends_with(" expires in 394 days · verify none"), "{works:?}");
        assert_eq!(
            rows(works)[4],
            "Moved: app connections: 0 open, 12 accepted in total (reused 6, new 6) · sent 1.2 \
             KiB, received 22.9 MiB"
        );

        assert_eq!(fails.state, TunnelState::Fails);
        assert!(fails.since.starts_with(" since "), "{fails:?}");
        assert_eq!(
            fails.advice.as_deref(),
            Some(
                "Redis was probably at its client limit: 9 connections refused in the last 5 min, \
                 18 connections open now. Limit the connections of each process with \
                 STUNNEL_MAX_CONNECTIONS, so that all processes together stay within the limit of \
                 the Redis plan"
            )
        );
        assert_eq!(
            rows(fails)[0],
            "Held: 18 relaying + 0 idle + 0 connecting = 18 (peak 18, limit 20) · 2 app \
             connections waiting"
        );
        let row = &rows(fails)[1];
        assert!(row.starts_with("Failures: last 5 min: 9 of 9 · tls_eof 9 · last at "), "{row}");
        assert!(process(&report).starts_with("COMMAND pid 7, running 0 s · descriptors "));
    }

    #[test]
    fn pool_counts_are_hidden_if_the_pool_was_never_on() {
        let mut report = report();
        report.tunnels[0].counts.pool = Default::default();
        let moved = moved(&report.tunnels[0]).text;
        assert_eq!(
            moved,
            "app connections: 0 open, 12 accepted in total · sent 1.2 KiB, received \
                           22.9 MiB"
        );
    }

    #[test]
    fn an_old_failure_is_shown_with_its_time() {
        let mut report = report();
        let tunnel = &mut report.tunnels[1];
        (tunnel.failing_since, tunnel.has_lapsed) = (None, true);
        let failed = time_of_day(tunnel.failure.as_ref().unwrap().at);
        let block = &blocks(&report)[1];
        assert_eq!(block.state.word(), "last attempt failed");
        assert_eq!(block.since, format!(" at {failed}"));
        assert!(block.advice.is_some());
    }

    #[test]
    fn after_a_success_the_advice_is_that_redis_is_down() {
        let mut report = report();
        let [works, fails, _] = &mut report.tunnels[..] else { panic!("three") };
        let success = works.counts.last_success.unwrap();
        works.failing_since = Some(success);
        works.failure = fails.failure.clone();
        works.failure.as_mut().unwrap().reason = "tcp_refused";
        let reached = time_of_day(success);
        let expected = format!("Redis is down or restarting (last reached at {reached})");
        assert_eq!(advice(works), Some(expected));
        works.failing_since = None;
        works.recent.failed[0] = 1;
        assert!(advice(works).unwrap().starts_with("Redis was down or restarting at "));
    }

    #[test]
    fn numbers_and_times_are_easy_to_read() {
        assert_eq!(
            [59, 60, 3599, 3600, 90_000].map(|s| duration(s * 1000)),
            ["59 s", "1 min", "59 min", "1 h", "1 d"]
        );
        assert_eq!([0, 1023, 1024, 5 << 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]);
        assert_eq!([None, Some(0.0002), Some(0.038)].map(milliseconds), ["-", "0.2 ms", "38 ms"]);
        assert_eq!(time_of_day(8_398_000), "02:19:58 UTC");
    }
}
