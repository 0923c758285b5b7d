//! Metrics for Prometheus: OpenMetrics, or the older text format.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>; `docs/operation.md` has every one.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Report;
use super::words::harmless;
use crate::figures::{
    BUCKETS, CloseReason, CommandState, FailureReason, Observed, PoolResult, TunnelSnapshot,
};

/// Before each name but those of `process_…`, which every process has.
const PREFIX: &str = "start_stunnel_";

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Prometheus,
}

impl Format {
    /// The one that a scraper's header `Accept` asks for.
    pub fn wanted(accept: &str) -> Format {
        match accept.contains("application/openmetrics-text") || !accept.contains("text/plain") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics of a launcher.
pub fn written(mut report: Report, format: Format) -> String {
    for TunnelSnapshot { labels, .. } in &mut report.snapshot.tunnels {
        // The format escapes quotes and ends of lines alone.
        for label in labels.variables.iter_mut().chain([&mut labels.upstream]) {
            *label = harmless(label);
        }
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(report)));
    let mut text = String::new();
    let written = match format {
        Format::OpenMetrics => text::encode(&mut text, &registry),
        Format::Prometheus => prometheus_text::encode(&mut text, &registry),
    };
    written.expect("a String takes everything");
    text
}

#[derive(Debug)]
struct Metrics(Report);

/// Names and values of labels.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// A value of a metric.
enum Value {
    Whole(u64),
    Real(f64),
    Times(Observed),
    Info,
}

/// One metric with all its values.
struct Family<'a> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: Vec<(Labels<'a>, Value)>,
}

/// `None`: there is nothing to tell yet, and no sample.
fn seconds(ms: Option<u64>) -> Option<Value> {
    ms.map(|ms| Value::Real(ms as f64 / 1000.0))
}

impl Report {
    /// One value for each tunnel that has one.
    fn each<'a>(
        &'a self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        value: impl Fn(&TunnelSnapshot) -> Option<Value>,
    ) -> Family<'a> {
        let of = |tunnel: &'a TunnelSnapshot| {
            value(tunnel).map(|value| (vec![("tunnel", tunnel.variable())], value))
        };
        let values = self.snapshot.tunnels.iter().filter_map(of).collect();
        Family { name, help, kind, values }
    }

    /// A value for each tunnel and word of `label`.
    fn each_by<'a>(
        &'a self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        label: &'static str,
        values: impl Fn(&TunnelSnapshot) -> Vec<(&'static str, Value)>,
    ) -> Family<'a> {
        let values = self.snapshot.tunnels.iter().flat_map(|tunnel| {
            let labels = |word| vec![("tunnel", tunnel.variable()), (label, word)];
            values(tunnel).into_iter().map(move |(word, value)| (labels(word), value))
        });
        Family { name, help, kind, values: values.collect() }
    }

    fn one(
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        value: Option<Value>,
    ) -> Family<'static> {
        let values = value.into_iter().map(|value| (Vec::new(), value)).collect();
        Family { name, help, kind, values }
    }

    fn families<'a>(&'a self) -> Vec<Family<'a>> {
        use MetricType::{Counter, Gauge, Histogram, Info};
        use Value::{Real, Times, Whole};
        let times = |observed: Observed| Some(Times(observed));
        let command = &self.snapshot.command;
        let process = &self.process;
        let build: Labels<'_> = vec![("version", env!("CARGO_PKG_VERSION"))];
        let tunnel_info = |tunnel: &'a TunnelSnapshot| {
            let labels = &tunnel.labels;
            let (upstream, verify) = (labels.upstream.as_str(), labels.verify);
            let tunnel = tunnel.variable();
            (vec![("tunnel", tunnel), ("upstream", upstream), ("verify", verify)], Value::Info)
        };
        let states = CommandState::ALL
            .into_iter()
            .map(|state| (vec![("state", state.word())], Whole(u64::from(state == command.state))));
        vec![
            self.each(
                "connections_open",
                "Connections of the app's that are open",
                Gauge,
                |tunnel| Some(Whole(tunnel.open)),
            ),
            self.each(
                "connections_accepted",
                "Connections of the app's that were accepted",
                Counter,
                |tunnel| Some(Whole(tunnel.accepted)),
            ),
            self.each_by(
                "connections_closed",
                "Connections of the app's that have ended and did not fail, by reason",
                Counter,
                "reason",
                |tunnel| CloseReason::WORDS.into_iter().zip(tunnel.closed.map(Whole)).collect(),
            ),
            self.each_by(
                "connections_failed",
                "Connections of the app's that got no connection to Redis, by reason",
                Counter,
                "reason",
                |tunnel| FailureReason::WORDS.into_iter().zip(tunnel.failed.map(Whole)).collect(),
            ),
            self.each_by(
                "upstream_connections",
                "Connections to Redis, by what they do",
                Gauge,
                "state",
                |tunnel| {
                    vec![
                        ("relaying", Whole(tunnel.relaying)),
                        ("idle", Whole(tunnel.idle)),
                        ("connecting", Whole(tunnel.connecting)),
                    ]
                },
            ),
            self.each(
                "upstream_connections_limit",
                "The most connections to Redis that there may be; absent without a limit",
                Gauge,
                |tunnel| tunnel.limit.map(Whole),
            ),
            self.each(
                "connections_waiting",
                "Connections of the app's that wait for one to Redis, or their turn",
                Gauge,
                |tunnel| Some(Whole(tunnel.waiting)),
            ),
            self.each_by(
                "pool_requests",
                "Where the connections to Redis came from that the app's connections got",
                Counter,
                "result",
                |tunnel| PoolResult::WORDS.into_iter().zip(tunnel.pool.map(Whole)).collect(),
            ),
            self.each_by(
                "tls_handshake_duration_seconds",
                "How long handshakes took that succeeded",
                Histogram,
                "mode",
                |tunnel| {
                    let (full, resumed) = (tunnel.handshakes_full, tunnel.handshakes_resumed);
                    vec![("full", Times(full)), ("resumed", Times(resumed))]
                },
            ),
            self.each(
                "connection_wait_seconds",
                "From accepting a connection of the app's until Redis was ready for it",
                Histogram,
                |tunnel| times(tunnel.connection_wait),
            ),
            self.each(
                "reply_wait_seconds",
                "From a request, while no other was pending, to the first byte of its reply",
                Histogram,
                |tunnel| times(tunnel.reply_wait),
            ),
            self.each("sent_bytes", "Bytes from the app to Redis, before TLS", Counter, |tunnel| {
                Some(Whole(tunnel.sent))
            }),
            self.each(
                "received_bytes",
                "Bytes from Redis to the app, before TLS",
                Counter,
                |tunnel| Some(Whole(tunnel.received)),
            ),
            self.each(
                "max_clients_errors",
                "Connections that Redis turned away, probably at its client limit",
                Counter,
                |tunnel| Some(Whole(tunnel.max_clients)),
            ),
            self.each(
                "accept_errors",
                "How often the system gave no connection of the app's",
                Counter,
                |tunnel| Some(Whole(tunnel.accept_errors)),
            ),
            self.each(
                "last_success_timestamp_seconds",
                "When Redis last began to answer a connection of the app's",
                Gauge,
                |tunnel| seconds(tunnel.last_success),
            ),
            self.each(
                "server_certificate_expiry_timestamp_seconds",
                "When the certificate ends that the server showed last",
                Gauge,
                |tunnel| tunnel.certificate.as_ref().map(|shown| Real(shown.expires as f64)),
            ),
            Family {
                name: "tunnel",
                help: "Where a tunnel leads, and how much of the certificate must hold",
                kind: Info,
                values: self.snapshot.tunnels.iter().map(tunnel_info).collect(),
            },
            Family {
                name: "command_state",
                help: "What COMMAND does; draining: it has ended",
                kind: Gauge,
                values: states.collect(),
            },
            Report::one(
                "command_start_time_seconds",
                "When COMMAND was started",
                Gauge,
                seconds(Some(command.started)),
            ),
            Report::one(
                "event_loop_lag_seconds",
                "How long the launcher's one thread took to come round, when this was asked",
                Gauge,
                Some(Real(self.loop_lag.as_secs_f64())),
            ),
            Report::one(
                "log_lines_dropped",
                "Lines of the log that nobody read in time",
                Counter,
                Some(Whole(self.dropped_lines)),
            ),
            Family {
                name: "build",
                help: "The launcher's version",
                kind: Info,
                values: vec![(build, Value::Info)],
            },
            Report::one(
                "process_cpu_seconds",
                "User and system CPU time of the launcher",
                Counter,
                process.cpu.map(|cpu| Real(cpu.as_secs_f64())),
            ),
            Report::one(
                "process_resident_memory_bytes",
                "Resident memory of the launcher",
                Gauge,
                process.resident.map(Whole),
            ),
            Report::one(
                "process_virtual_memory_bytes",
                "Virtual memory of the launcher",
                Gauge,
                process.virtual_memory.map(Whole),
            ),
            Report::one(
                "process_open_fds",
                "Descriptors that the launcher has open",
                Gauge,
                process.descriptors.map(Whole),
            ),
            Report::one(
                "process_max_fds",
                "The most descriptors that it may have open",
                Gauge,
                process.most_descriptors.map(Whole),
            ),
            Report::one(
                "process_start_time_seconds",
                "When the launcher began",
                Gauge,
                Some(Real(self.started)),
            ),
        ]
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, kind, values } in self.0.families() {
            let prefix = if name.starts_with("process_") { "" } else { PREFIX };
            let name = format!("{prefix}{name}");
            let mut encoder = encoder.encode_descriptor(&name, help, None, kind)?;
            for (labels, value) in values {
                if let Value::Info = value {
                    encoder.encode_info(&labels)?;
                    continue;
                }
                let mut encoder = encoder.encode_family(&labels)?;
                match (value, kind) {
                    (Value::Whole(value), MetricType::Counter) => {
                        encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
                    }
                    (Value::Real(value), MetricType::Counter) => {
                        encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
                    }
                    (Value::Whole(value), _) => encoder.encode_gauge(&value),
                    (Value::Real(value), _) => encoder.encode_gauge(&value),
                    (Value::Times(observed), _) => {
                        let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
                        let buckets: Vec<_> = bounds.zip(observed.counts).collect();
                        let (sum, count) = (observed.seconds, observed.count());
                        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
                    }
                    (Value::Info, _) => Ok(()),
                }?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::report;

    #[test]
    fn no_label_holds_what_would_speak_to_a_terminal() {
        let mut report = report();
        report.snapshot.tunnels[0].labels.variables[0] = "A\u{1b}\u{202e}B".to_owned();
        for format in [Format::OpenMetrics, Format::Prometheus] {
            let text = written(report.clone(), format);
            assert!(text.contains("{tunnel=\"A??B\""), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        }
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        for (accept, expected) in [
            ("", Format::OpenMetrics),
            ("*/*", Format::OpenMetrics),
            ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", Format::OpenMetrics),
            ("text/plain;version=0.0.4", Format::Prometheus),
            ("text/html, text/plain", Format::Prometheus),
        ] {
            assert_eq!(Format::wanted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn every_reason_is_there_from_the_start_and_histograms_add_up() {
        let text = written(report(), Format::OpenMetrics);
        assert!(text.ends_with("# EOF\n"));
        for tunnel in ["REDIS_URL", "CACHE_URL", "OTHER_URL"] {
            for reason in FailureReason::ALL {
                let sample = format!(
                    "start_stunnel_connections_failed_total{{tunnel=\"{tunnel}\",reason=\"{}\"}} ",
                    reason.word()
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
            r#"start_stunnel_command_state{state="running"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("upstream_connections_limit{tunnel=\"REDIS_URL\""), "{text}");
    }
}
