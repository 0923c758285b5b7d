//! A report for programs: `/status.json`, and `--status` with `--log-format json`. What a version
//! has keeps its name and its meaning; more may be added. `docs/operation.md` has the fields.

use serde_json::{Map, Value, json};

use super::Report;
use super::words::{Verdict, advice};
use crate::figures::{CloseReason, FailureReason, Observed, PoolResult, TunnelSnapshot};

/// Of the fields below.
const VERSION: u32 = 1;

pub fn written(report: &Report) -> Value {
    let command = &report.snapshot.command;
    let process = &report.process;
    json!({
        "version": VERSION,
        "start_stunnel": env!("CARGO_PKG_VERSION"),
        "pid": report.pid,
        "well": report.is_well(),
        "time": unix_seconds(report.snapshot.at),
        "started": report.started,
        "command": {
            "pid": command.pid,
            "state": command.state.word(),
            "started": unix_seconds(command.started),
        },
        "event_loop_lag_seconds": report.loop_lag.as_secs_f64(),
        "log_lines_dropped": report.dropped_lines,
        "process": {
            "cpu_seconds": process.cpu.map(|cpu| cpu.as_secs_f64()),
            "resident_memory_bytes": process.resident,
            "virtual_memory_bytes": process.virtual_memory,
            "open_fds": process.descriptors,
            "max_fds": process.most_descriptors,
        },
        "sandbox": {
            "landlock_abi": report.sandbox.abi(),
            "state": report.sandbox.to_string(),
        },
        "tunnels": report.snapshot.tunnels.iter().map(tunnel).collect::<Vec<_>>(),
    })
}

fn tunnel(tunnel: &TunnelSnapshot) -> Value {
    let recent = &tunnel.recent;
    json!({
        "variables": tunnel.labels.variables,
        "upstream": tunnel.labels.upstream,
        "verify": tunnel.labels.verify,
        "state": Verdict::of(tunnel).word(),
        "advice": advice(tunnel),
        "failing_since": tunnel.failing_since.map(unix_seconds),
        "last_success": tunnel.last_success.map(unix_seconds),
        "last_failure": tunnel.failure.as_ref().map(|failure| json!({
            "time": unix_seconds(failure.at),
            "reason": failure.reason,
            "error": failure.error,
            "hint": failure.hint,
        })),
        "connections": {
            "open": tunnel.open,
            "accepted": tunnel.accepted,
            "closed": by_word(CloseReason::WORDS, tunnel.closed),
            "failed": by_word(FailureReason::WORDS, tunnel.failed),
            "waiting": tunnel.waiting,
        },
        "upstream_connections": {
            "relaying": tunnel.relaying,
            "idle": tunnel.idle,
            "connecting": tunnel.connecting,
            "peak": tunnel.peak,
            "limit": tunnel.limit,
        },
        "pool_requests": by_word(PoolResult::WORDS, tunnel.pool),
        "max_clients_errors": tunnel.max_clients,
        "accept_errors": tunnel.accept_errors,
        "sent_bytes": tunnel.sent,
        "received_bytes": tunnel.received,
        "tls_handshakes": {
            "full": times(&tunnel.handshakes_full),
            "resumed": times(&tunnel.handshakes_resumed),
        },
        "connection_wait": times(&tunnel.connection_wait),
        "reply_wait": times(&tunnel.reply_wait),
        "certificate": tunnel.certificate.as_ref().map(|certificate| json!({
            "names": certificate.names,
            "expires": certificate.expires,
        })),
        "last_5_minutes": {
            "accepted": recent.accepted,
            "failed": by_word(FailureReason::WORDS, recent.failed.map(u64::from)),
            "max_clients_errors": recent.turned_away,
            "connection_wait_p95_seconds": recent.connection_p95(),
            "reply_wait_p95_seconds": recent.reply_p95(),
        },
    })
}

/// A count, and what is between.
fn times(observed: &Observed) -> Value {
    json!({ "count": observed.count(), "seconds": observed.seconds })
}

fn by_word<const N: usize>(words: [&str; N], values: [u64; N]) -> Map<String, Value> {
    words.map(str::to_owned).into_iter().zip(values.map(Value::from)).collect()
}

fn unix_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{HOSTILE, report};

    #[test]
    fn a_program_finds_what_a_person_reads() {
        let status = written(&report());
        assert_eq!((&status["version"], &status["well"]), (&json!(1), &json!(false)));
        let [works, fails, unused] = &status["tunnels"].as_array().unwrap()[..] else {
            panic!("{status}")
        };
        assert_eq!(works["state"], "working");
        assert_eq!(works["certificate"]["names"], HOSTILE);
        assert_eq!(works["connections"]["closed"]["closed"], 12);
        assert_eq!(fails["state"], "failing");
        assert_eq!(fails["last_failure"]["reason"], "tls_eof");
        assert_eq!(fails["last_5_minutes"]["failed"]["tls_eof"], 9);
        assert!(fails["advice"].as_str().unwrap().contains("client limit"), "{fails}");
        assert_eq!(unused["state"], "not used yet");
        assert_eq!(unused["last_success"], Value::Null);
    }
}
