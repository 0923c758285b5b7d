//! A report for programs: `/status.json`, and `--status` with `--log-format json`. Within a version
//! every field keeps its name and meaning; fields may be added. `docs/operation.md` lists them.

use serde_json::{Map, Value, json};

use super::StatusReport;
use super::metrics;
use super::words::{TunnelState, advice};
use crate::figures::{FailureReason, TunnelSnapshot};

/// The version of the fields below.
const VERSION: u32 = 1;

pub fn written(report: &StatusReport) -> Value {
    let command = &report.snapshot.command;
    let mut status = json!({
        "version": VERSION,
        "start_stunnel": env!("CARGO_PKG_VERSION"),
        "pid": report.pid,
        "well": report.is_well(),
        "time": unix_seconds(report.snapshot.at),
        "command": { "pid": command.pid, "state": command.state.word() },
        "sandbox": {
            "landlock_abi": report.sandbox.abi(),
            "state": report.sandbox.to_string(),
        },
        "tunnels": report.snapshot.tunnels.iter().map(tunnel).collect::<Vec<_>>(),
    });
    metrics::add_of_launcher(&mut status, report);
    status
}

fn tunnel(tunnel: &TunnelSnapshot) -> Value {
    let recent = &tunnel.recent;
    let failed = FailureReason::WORDS.map(str::to_owned).into_iter().zip(recent.failed);
    let mut status = json!({
        "variables": tunnel.labels.variables,
        "upstream": tunnel.labels.upstream,
        "verify": tunnel.labels.verify,
        "state": TunnelState::of(tunnel).word(),
        "advice": advice(tunnel),
        "failing_since": tunnel.failing_since.map(unix_seconds),
        "last_failure": tunnel.failure.as_ref().map(|failure| json!({
            "time": unix_seconds(failure.at),
            "reason": failure.reason,
            "error": failure.error,
            "hint": failure.hint,
        })),
        "upstream_connections": { "peak": tunnel.counts.peak.get() },
        "certificate": tunnel.certificate.as_ref().map(|shown| json!({ "names": shown.names })),
        "last_5_minutes": {
            "accepted": recent.accepted,
            "failed": failed.map(|(word, count)| (word, count.into())).collect::<Map<_, _>>(),
            "max_clients_errors": recent.turned_away,
            "connection_wait_p95_seconds": recent.connection_p95(),
            "reply_wait_p95_seconds": recent.reply_p95(),
        },
    });
    metrics::add_of_tunnel(&mut status, tunnel);
    status
}

fn unix_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{HOSTILE, report};

    #[test]
    fn json_says_what_the_page_says() {
        let status = written(&report());
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
