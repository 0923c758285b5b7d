//! Metrics for Prometheus, in its text format or in OpenMetrics.
//!
//! The values come from the [`json`] report. `docs/operation.md` lists all metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use serde_json::Value;

use super::{StatusReport, json};
use crate::figures::{
    BUCKETS, CloseReason, CommandState, Counts, FailureReason, Handshake, Histogram, PoolResult,
    TunnelSnapshot, UpstreamState,
};
use crate::text::printable;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One metric.
#[derive(Debug)]
struct Metric {
    kind: MetricType,
    /// Without the prefix. The encoder adds the suffixes that a format demands, such as `_total`.
    /// Names follow <https://prometheus.io/docs/practices/naming/>.
    name: Text,
    help: Text,
    samples: Samples,
}

type Text = &'static str;

/// The place of a metric's values. Paths are JSON pointers (RFC 6901) into the report.
#[derive(Debug)]
enum Samples {
    /// The number at this path. No sample if it is null.
    At(Text),
    /// A label, its words, and a path: one sample per word, with the number at `path/word`.
    ByWord(Text, &'static [Text], Text),
    /// A label, its words, and a path: one sample per word, 1 for the word at the path.
    WhichWord(Text, &'static [Text], Text),
    /// 1 if the value at this path is not null.
    IsSet(Text),
    /// Labels and the paths of their texts. There is no value.
    Labels(&'static [(Text, Text)]),
    Durations(fn(&Counts) -> &Histogram),
    Handshakes,
}
use Samples::{At, ByWord, Durations, Handshakes, IsSet, Labels, WhichWord};

const fn gauge(name: Text, help: Text, samples: Samples) -> Metric {
    Metric { kind: MetricType::Gauge, name, help, samples }
}

const fn counter(name: Text, help: Text, samples: Samples) -> Metric {
    Metric { kind: MetricType::Counter, name, help, samples }
}

const fn histogram(name: Text, help: Text, samples: Samples) -> Metric {
    Metric { kind: MetricType::Histogram, name, help, samples }
}

const fn info(name: Text, help: Text, samples: Samples) -> Metric {
    Metric { kind: MetricType::Info, name, help, samples }
}

/// The metrics of each tunnel. Their names begin with `start_stunnel_`.
const TUNNEL: &[Metric] = &[
    gauge("connections_open", "Open app connections", At("/connections/open")),
    counter("connections_accepted", "Accepted app connections", At("/connections/accepted")),
    counter(
        "connections_closed",
        "App connections that ended without a failure, by reason",
        ByWord("reason", &CloseReason::WORDS, "/connections/closed"),
    ),
    counter(
        "connections_failed",
        "App connections that got no connection to Redis, by reason",
        ByWord("reason", &FailureReason::WORDS, "/connections/failed"),
    ),
    gauge(
        "upstream_connections",
        "Connections to Redis, by state",
        ByWord("state", &UpstreamState::WORDS, "/upstream_connections"),
    ),
    gauge(
        "upstream_connections_limit",
        "Limit on connections to Redis (--max-connections); absent if there is no limit",
        At("/upstream_connections/limit"),
    ),
    gauge(
        "connections_waiting",
        "App connections waiting for a connection to Redis",
        At("/connections/waiting"),
    ),
    counter(
        "pool_requests",
        "Connections that the pool gave to apps, by result (new, or reused)",
        ByWord("result", &PoolResult::WORDS, "/pool_requests"),
    ),
    histogram(
        "tls_handshake_duration_seconds",
        "Duration of successful TLS handshakes, by mode",
        Handshakes,
    ),
    histogram(
        "connection_wait_seconds",
        "Time from accepting an app connection until Redis was ready for it",
        Durations(|counts| &counts.connection_wait),
    ),
    histogram(
        "reply_wait_seconds",
        "Time from a request to the first byte of its reply, without requests sent while another \
         reply was pending",
        Durations(|counts| &counts.reply_wait),
    ),
    gauge(
        "longest_wait_for_reply_seconds",
        "Longest time that a connection has been waiting for Redis's next reply",
        At("/longest_wait_for_reply_seconds"),
    ),
    counter(
        "sent_bytes",
        "Plaintext bytes from the app to Redis (without TLS overhead)",
        At("/sent_bytes"),
    ),
    counter(
        "received_bytes",
        "Plaintext bytes from Redis to the app (without TLS overhead)",
        At("/received_bytes"),
    ),
    counter(
        "max_clients_errors",
        "Connections that Redis refused, probably at its client limit",
        At("/max_clients_errors"),
    ),
    counter("accept_errors", "Failed attempts to accept an app connection", At("/accept_errors")),
    gauge(
        "last_success_timestamp_seconds",
        "Time of the most recent connection on which Redis has answered",
        At("/last_success"),
    ),
    gauge(
        "tunnel_failing",
        "1 if /readyz reports the tunnel as failing, otherwise 0",
        IsSet("/failing_since"),
    ),
    gauge(
        "server_certificate_expiry_timestamp_seconds",
        "When the server certificate of the latest full TLS handshake expires",
        At("/certificate/expires"),
    ),
    info(
        "tunnel",
        "The server to which the tunnel leads, and the tunnel's --verify level",
        Labels(&[("upstream", "/upstream"), ("verify", "/verify")]),
    ),
];

/// The metrics of the launcher. Their names begin with `start_stunnel_`.
const LAUNCHER: &[Metric] = &[
    gauge(
        "command_state",
        "1 for COMMAND's current state, 0 for every other state",
        WhichWord("state", &CommandState::WORDS, "/command/state"),
    ),
    gauge("command_start_time_seconds", "When COMMAND was started", At("/command/started")),
    gauge(
        "event_loop_lag_seconds",
        "How long a task had to wait for the launcher's thread, measured for this scrape",
        At("/event_loop_lag_seconds"),
    ),
    counter(
        "log_lines_dropped",
        "Log lines dropped because stderr was not read in time",
        At("/log_lines_dropped"),
    ),
    info("build", "The launcher's version", Labels(&[("version", "/start_stunnel")])),
];

/// The metrics that Prometheus's clients have for every process. Their names begin with `process_`.
const PROCESS: &[Metric] = &[
    counter("cpu_seconds", "User and system CPU time of the launcher", At("/process/cpu_seconds")),
    gauge(
        "resident_memory_bytes",
        "Resident memory of the launcher",
        At("/process/resident_memory_bytes"),
    ),
    gauge(
        "virtual_memory_bytes",
        "Virtual memory of the launcher",
        At("/process/virtual_memory_bytes"),
    ),
    gauge("open_fds", "Open file descriptors of the launcher", At("/process/open_fds")),
    gauge(
        "max_fds",
        "Limit on the launcher's open file descriptors; absent if there is no limit",
        At("/process/max_fds"),
    ),
    gauge("start_time_seconds", "When the launcher started", At("/started")),
];

/// Returns the content type and all metrics. The format is OpenMetrics if the `Accept` header names
/// it, and otherwise Prometheus's text format 0.0.4, which every tool reads.
pub fn render(report: &StatusReport, accept: &str) -> (&'static str, String) {
    let tunnel = |tunnel: &TunnelSnapshot| Measured {
        labels: vec![("tunnel", printable(tunnel.variable()))],
        report: json::tunnel(tunnel),
        counts: tunnel.counts.clone(),
    };
    let tunnels = report.snapshot.tunnels.iter().map(tunnel).collect();
    let (labels, counts) = (Vec::new(), Counts::default());
    let launcher = vec![Measured { labels, report: json::render(report), counts }];
    let mut registry = Registry::default();
    for (prefix, metrics, measured) in [
        ("start_stunnel", TUNNEL, tunnels),
        ("start_stunnel", LAUNCHER, launcher.clone()),
        ("process", PROCESS, launcher),
    ] {
        let registry = registry.sub_registry_with_prefix(prefix);
        registry.register_collector(Box::new(Metrics { metrics, measured }));
    }
    let mut text = String::new();
    let (content_type, written) = match accept.contains("application/openmetrics-text") {
        true => (OPEN_METRICS, text::encode(&mut text, &registry)),
        false => (TEXT, prometheus_text::encode(&mut text, &registry)),
    };
    written.expect("writing to a String cannot fail");
    (content_type, text)
}

/// A tunnel, or the launcher.
#[derive(Debug, Clone)]
struct Measured {
    labels: Vec<(Text, String)>,
    report: Value,
    /// For the buckets of histograms, which are not in the report. Empty for the launcher.
    counts: Counts,
}

/// Metrics, and the tunnels or the launcher that have them.
#[derive(Debug)]
struct Metrics {
    metrics: &'static [Metric],
    measured: Vec<Measured>,
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { kind, name, help, samples } in self.metrics {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for measured in &self.measured {
                measured.encode(&mut family, *kind, samples)?;
            }
        }
        Ok(())
    }
}

impl Measured {
    fn encode(
        &self,
        family: &mut MetricEncoder<'_>,
        kind: MetricType,
        samples: &Samples,
    ) -> fmt::Result {
        let at = |path: &str| self.report.pointer(path).unwrap_or(&Value::Null);
        let with = |label, word: &str| [&self.labels[..], &[(label, word.to_owned())]].concat();
        match samples {
            At(path) => encode_number(family.encode_family(&self.labels)?, kind, at(path)),
            IsSet(path) => {
                family.encode_family(&self.labels)?.encode_gauge(&u64::from(!at(path).is_null()))
            }
            ByWord(label, words, path) => words.iter().try_for_each(|word| {
                let number = at(&format!("{path}/{word}"));
                encode_number(family.encode_family(&with(label, word))?, kind, number)
            }),
            WhichWord(label, words, path) => words.iter().try_for_each(|word| {
                let is_it = u64::from(at(path) == word);
                family.encode_family(&with(label, word))?.encode_gauge(&is_it)
            }),
            Labels(labels) => {
                let text = |path| printable(at(path).as_str().unwrap_or_default());
                let labels = labels.iter().map(|(label, path)| (*label, text(path)));
                family.encode_info(&[self.labels.clone(), labels.collect()].concat())
            }
            Durations(read) => {
                encode_durations(family.encode_family(&self.labels)?, read(&self.counts))
            }
            Handshakes => Handshake::ALL.iter().try_for_each(|mode| {
                let labels = with("mode", mode.word());
                let histogram = &self.counts.handshakes[*mode as usize];
                encode_durations(family.encode_family(&labels)?, histogram)
            }),
        }
    }
}

/// Encodes a sample, unless `number` is null.
fn encode_number(mut encoder: MetricEncoder<'_>, kind: MetricType, number: &Value) -> fmt::Result {
    match (number.as_u64(), number.as_f64(), kind) {
        (Some(whole), _, MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, u64, f64>(&whole, None)
        }
        (None, Some(real), MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, f64, f64>(&real, None)
        }
        (Some(whole), ..) => encoder.encode_gauge(&whole),
        (None, Some(real), _) => encoder.encode_gauge(&real),
        (None, None, _) => Ok(()),
    }
}

fn encode_durations(mut encoder: MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(histogram.counts).collect();
    let (sum, count) = (histogram.sum.as_secs_f64(), histogram.count());
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::FailureReason;
    use crate::status::tests::report;

    #[test]
    fn labels_hold_no_control_characters() {
        let mut report = report();
        report.snapshot.tunnels[0].labels.variables[0] = "A\u{1b}\u{202e}B".to_owned();
        for accept in ["application/openmetrics-text", ""] {
            let (_, text) = render(&report, accept);
            assert!(text.contains("{tunnel=\"A??B\""), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        }
    }

    #[test]
    fn open_metrics_needs_an_accept_header_that_names_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(render(&report(), prometheus).0, OPEN_METRICS);
        for accept in ["", "*/*", "text/plain;version=0.0.4", "text/html, text/plain"] {
            assert_eq!(render(&report(), accept).0, TEXT, "{accept}");
        }
    }

    #[test]
    fn reasons_start_at_zero_and_histograms_add_up() {
        let (_, text) = render(&report(), "application/openmetrics-text");
        assert!(text.ends_with("# EOF\n"));
        for tunnel in ["REDIS_URL", "CACHE_URL", "OTHER_URL"] {
            for reason in FailureReason::WORDS {
                let sample = format!(
                    "start_stunnel_connections_failed_total{{tunnel=\"{tunnel}\",\
                     reason=\"{reason}\"}} "
                );
                assert!(text.contains(&sample), "{sample} is not in\n{text}");
            }
        }
        for line in [
            r#"start_stunnel_connections_failed_total{tunnel="CACHE_URL",reason="tls_eof"} 9"#,
            r#"start_stunnel_connection_wait_seconds_bucket{le="0.025",tunnel="REDIS_URL"} 6"#,
            r#"start_stunnel_connection_wait_seconds_bucket{le="+Inf",tunnel="REDIS_URL"} 12"#,
            r#"start_stunnel_connection_wait_seconds_count{tunnel="REDIS_URL"} 12"#,
            r#"start_stunnel_upstream_connections_limit{tunnel="CACHE_URL"} 20"#,
            r#"start_stunnel_longest_wait_for_reply_seconds{tunnel="REDIS_URL"} 0.0"#,
            r#"start_stunnel_command_state{state="running"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("upstream_connections_limit{tunnel=\"REDIS_URL\""), "{text}");
    }
}
