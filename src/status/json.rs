//! Writes the status report as JSON, for `/status.json`, and for `--status` with
//! `--log-format json`.
//!
//! While [`VERSION`] stays the same, every field keeps its name and its meaning, but new fields may
//! appear. `docs/operation.md` lists the fields.

use serde_json::{Value, json};

use super::StatusReport;
use super::words::{TunnelState, advice};
use crate::figures::{
    CloseReason, FailureReason, Handshake, Histogram, PoolResult, TunnelSnapshot, UpstreamState,
};
use crate::logging;
use crate::sandbox;

/// The version of the JSON report, which changes if a field gets another name or another meaning.
const VERSION: u32 = 1;

pub fn render(report: &StatusReport) -> Value {
    let (command, process) = (&report.command, &report.process);
    json!({
        "version": VERSION,
        "start_stunnel": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "started": unix_seconds(report.started),
        "well": report.is_well(),
        "time": unix_seconds(report.at),
        "command": {
            "pid": command.pid,
            "state": command.state.word(),
            "started": unix_seconds(command.started),
        },
        "event_loop_lag_seconds": report.loop_lag.as_secs_f64(),
        "log_lines_dropped": logging::dropped_lines(),
        "process": {
            "cpu_seconds": process.cpu.map(|cpu| cpu.as_secs_f64()),
            "resident_memory_bytes": process.resident,
            "virtual_memory_bytes": process.virtual_memory,
            "open_fds": process.descriptors,
            "max_fds": process.max_descriptors,
        },
        "sandbox": {
            "landlock_abi": sandbox::state().abi(),
            "state": sandbox::state().to_string(),
        },
        "tunnels": report.tunnels.iter().map(tunnel).collect::<Vec<_>>(),
    })
}

fn tunnel(tunnel: &TunnelSnapshot) -> Value {
    let (counts, recent) = (&tunnel.counts, &tunnel.recent);
    let mut upstream_connections = by_word(UpstreamState::WORDS, counts.upstream);
    upstream_connections["peak"] = counts.peak.into();
    upstream_connections["limit"] = tunnel.labels.limit.into();
    json!({
        "variables": tunnel.labels.variables,
        "upstream": tunnel.labels.upstream,
        "verify": tunnel.labels.verify,
        "pinned": tunnel.labels.pinned,
        "state": TunnelState::of(tunnel).word(),
        "advice": advice(tunnel),
        "failing_since": tunnel.failing_since.map(unix_seconds),
        "last_success": counts.last_success.map(unix_seconds),
        "last_failure": tunnel.failure.as_ref().map(|failure| json!({
            "time": unix_seconds(failure.at),
            "reason": failure.reason,
            "error": failure.error,
            "hint": failure.hint,
        })),
        "connections": {
            "open": counts.open,
            "accepted": counts.accepted,
            "closed": by_word(CloseReason::WORDS, counts.closed),
            "failed": by_word(FailureReason::WORDS, counts.failed),
            "waiting": counts.waiting,
        },
        "upstream_connections": upstream_connections,
        "pool_requests": by_word(PoolResult::WORDS, counts.pool),
        "max_clients_errors": counts.max_clients,
        "accept_errors": counts.accept_errors,
        "sent_bytes": counts.sent,
        "received_bytes": counts.received,
        "tls_handshakes": by_word(Handshake::WORDS, counts.handshakes.each_ref().map(durations)),
        "connection_wait": durations(&counts.connection_wait),
        "reply_wait": durations(&counts.reply_wait),
        "longest_wait_for_reply_seconds": tunnel.longest_wait_for_reply.as_secs_f64(),
        "certificate": tunnel.certificate.as_ref().map(|shown| json!({
            "names": shown.names,
            "expires": shown.expires.max(0) as u64,
        })),
        "last_5_minutes": {
            "accepted": recent.accepted,
            "failed": by_word(FailureReason::WORDS, recent.failed),
            "max_clients_errors": recent.max_clients,
            "connection_wait_p95_seconds": recent.connection_wait.p95(),
            "reply_wait_p95_seconds": recent.reply_wait.p95(),
        },
    })
}

fn by_word<const N: usize>(words: [&str; N], values: [impl Into<Value>; N]) -> Value {
    words.into_iter().zip(values).collect()
}

fn durations(histogram: &Histogram) -> Value {
    json!({ "count": histogram.count(), "seconds": histogram.sum.as_secs_f64() })
}

fn unix_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{HOSTILE, report};

    #[test]
    fn json_has_the_state_and_the_counts_of_each_tunnel() {
        let status = render(&report());
        assert_eq!((&status["version"], &status["well"]), (&json!(1), &json!(false)));
        let [works, fails, unused] = &status["tunnels"].as_array().unwrap()[..] else {
            panic!("{status}")
        };
        assert_eq!(works["state"], "working");
        assert_eq!(works["certificate"]["names"], HOSTILE);
        assert!(works["certificate"]["expires"].is_u64());
        assert_eq!(works["connections"]["closed"]["closed"], 12);
        assert_eq!(works["longest_wait_for_reply_seconds"], 0.0);
        assert_eq!(works["tls_handshakes"]["full"]["count"], 1);
        assert_eq!(works["upstream_connections"]["relaying"], 1);
        assert_eq!(fails["state"], "failing");
        assert_eq!(fails["last_failure"]["reason"], "tls_eof");
        assert_eq!(fails["last_5_minutes"]["failed"]["tls_eof"], 9);
        assert!(fails["advice"].as_str().unwrap().contains("client limit"), "{fails}");
        assert_eq!(unused["state"], "not used yet");
        assert_eq!(unused["last_success"], Value::Null);
        assert_eq!(unused["certificate"], Value::Null);
    }
}
