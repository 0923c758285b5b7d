//! Writes the metrics for Prometheus, in Prometheus's text format or in OpenMetrics.
//!
//! `docs/operation.md` lists all metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::StatusReport;
use crate::figures::{
    BUCKETS, CloseReason, CommandState, FailureReason, Handshake, Histogram, PoolResult,
    TunnelSnapshot, UpstreamState,
};
use crate::logging;
use crate::text::printable;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Text = &'static str;

/// A metric: its kind, its name without the prefix, its help text, and the function that reads its
/// samples from `T`. The encoder adds suffixes such as `_total` to the name. The names follow
/// <https://prometheus.io/docs/practices/naming/>.
type Metric<T> = (MetricType, Text, Text, fn(&T) -> Vec<Sample<'_>>);

/// One value of a metric, and the labels of this value, except the label `tunnel`.
type Sample<'a> = (Labels, Value<'a>);

type Labels = Vec<(Text, String)>;

enum Value<'a> {
    Number(f64),
    Durations(&'a Histogram),
}
use Value::{Durations, Number};

/// Declares a list of metrics. `$from` names the tunnel or the report from which the metrics read
/// their values.
macro_rules! metrics {
    ($from:ident: $($kind:ident $name:ident $help:literal = $samples:expr;)+) => {
        &[$((MetricType::$kind, stringify!($name), $help, |$from| $samples),)+]
    };
}

fn number(number: f64) -> Vec<Sample<'static>> {
    vec![(Vec::new(), Number(number))]
}

fn whole(whole: u64) -> Vec<Sample<'static>> {
    number(whole as f64)
}

/// Makes one sample of `value`, or no sample if `value` is `None`.
fn optional(value: Option<u64>) -> Vec<Sample<'static>> {
    value.map_or_else(Vec::new, whole)
}

/// Makes one sample of a time, or no sample if `ms` is `None`. `ms` is the time in milliseconds,
/// and the sample shows the time in seconds.
fn time(ms: Option<u64>) -> Vec<Sample<'static>> {
    ms.map_or_else(Vec::new, |ms| number(ms as f64 / 1000.0))
}

/// Makes the sample of a metric whose labels contain all of the information. The value is always 1.
fn info(labels: &[(Text, &str)]) -> Vec<Sample<'static>> {
    let owned = |(label, text): &(Text, &str)| (*label, str::to_owned(text));
    vec![(labels.iter().map(owned).collect(), Number(1.0))]
}

/// Makes one sample for each value of the label `label`. `words` lists the label's values, and `of`
/// lists the samples' values in the same order.
fn by_word<const N: usize>(label: Text, words: [Text; N], of: [u64; N]) -> Vec<Sample<'static>> {
    let sample = |(word, value)| (vec![(label, str::to_owned(word))], Number(value as f64));
    words.into_iter().zip(of).map(sample).collect()
}

/// The metrics of each tunnel. The name of each of these metrics begins with `start_stunnel_`.
const TUNNEL: &[Metric<TunnelSnapshot>] = metrics! { t:
    Gauge connections_open "Open app connections" = whole(t.counts.open);
    Counter connections_accepted "Accepted app connections" = whole(t.counts.accepted);
    Counter connections_closed "App connections that ended without a failure, by reason"
        = by_word("reason", CloseReason::WORDS, t.counts.closed);
    Counter connections_failed "App connections that got no connection to Redis, by reason"
        = by_word("reason", FailureReason::WORDS, t.counts.failed);
    Gauge upstream_connections "Connections to Redis, by state"
        = by_word("state", UpstreamState::WORDS, t.counts.upstream);
    Gauge upstream_connections_limit
        "Limit on connections to Redis (--max-connections); absent if there is no limit"
        = optional(t.labels.limit);
    Gauge connections_waiting "App connections waiting for a connection to Redis"
        = whole(t.counts.waiting);
    Counter pool_requests "Connections that the pool gave to apps, by result (new, or reused)"
        = by_word("result", PoolResult::WORDS, t.counts.pool);
    Histogram tls_handshake_duration_seconds
        "Duration of successful TLS handshakes, by mode (full, or resumed)"
        = Handshake::WORDS.into_iter().zip(&t.counts.handshakes)
            .map(|(mode, all)| (vec![("mode", mode.to_owned())], Durations(all))).collect();
    Histogram connection_wait_seconds
        "Time from accepting an app connection until its connection to Redis was ready"
        = vec![(Vec::new(), Durations(&t.counts.connection_wait))];
    Histogram reply_wait_seconds
        "Time from a request to the first byte of its reply; requests sent while another reply was \
         pending are not measured"
        = vec![(Vec::new(), Durations(&t.counts.reply_wait))];
    Gauge longest_wait_for_reply_seconds
        "Longest time that a connection has been waiting for Redis's next reply"
        = number(t.longest_wait_for_reply.as_secs_f64());
    Counter sent_bytes "Plaintext bytes from the app to Redis (without TLS overhead)"
        = whole(t.counts.sent);
    Counter received_bytes "Plaintext bytes from Redis to the app (without TLS overhead)"
        = whole(t.counts.received);
    Counter max_clients_errors "Connections that Redis refused, probably at its client limit"
        = whole(t.counts.max_clients);
    Counter accept_errors "Failed attempts to accept an app connection"
        = whole(t.counts.accept_errors);
    Gauge last_success_timestamp_seconds
        "Time of Redis's latest reply to an app"
        = time(t.counts.last_success);
    Gauge tunnel_failing "1 if /readyz reports the tunnel as failing, otherwise 0"
        = whole(t.failing_since.is_some().into());
    Gauge server_certificate_expiry_timestamp_seconds
        "Expiry time of the server certificate that the latest full TLS handshake showed"
        = optional(t.certificate.as_ref().map(|shown| shown.expires.max(0) as u64));
    Info tunnel "The server to which the tunnel leads, and the tunnel's --verify level"
        = info(&[("upstream", &t.labels.upstream), ("verify", t.labels.verify)]);
};

/// The metrics of the launcher. The name of each of these metrics begins with `start_stunnel_`.
#[allow(unused_variables)] // Some of these metrics do not read the report `r`.
const LAUNCHER: &[Metric<StatusReport>] = metrics! { r:
    Gauge command_state "1 for COMMAND's current state, 0 for every other state"
        = by_word("state", CommandState::WORDS,
            CommandState::WORDS.map(|word| u64::from(word == r.command.state.word())));
    Gauge command_start_time_seconds "When COMMAND was started" = time(Some(r.command.started));
    Gauge event_loop_lag_seconds
        "Time that a task had to wait for the launcher's thread, measured during this scrape"
        = number(r.loop_lag.as_secs_f64());
    Counter log_lines_dropped "Log lines dropped because stderr was not read in time or is broken"
        = whole(logging::dropped_lines());
    Info build "The launcher's version" = info(&[("version", env!("CARGO_PKG_VERSION"))]);
};

/// The metrics that Prometheus's client libraries report for every process. The name of each of
/// these metrics begins with `process_`.
const PROCESS: &[Metric<StatusReport>] = metrics! { r:
    Counter cpu_seconds "User and system CPU time of the launcher"
        = r.process.cpu.map_or_else(Vec::new, |cpu| number(cpu.as_secs_f64()));
    Gauge resident_memory_bytes "Resident memory of the launcher" = optional(r.process.resident);
    Gauge virtual_memory_bytes "Virtual memory of the launcher"
        = optional(r.process.virtual_memory);
    Gauge open_fds "Open file descriptors of the launcher" = optional(r.process.descriptors);
    Gauge max_fds "Limit on the launcher's open file descriptors; absent if there is no limit"
        = optional(r.process.max_descriptors);
    Gauge start_time_seconds "When the launcher started" = time(Some(r.started));
};

/// Returns a content type, and all metrics in the format of this type. The format is OpenMetrics if
/// the request's `Accept` header, `accept`, names OpenMetrics. Otherwise the format is Prometheus's
/// text format, which every tool reads.
pub fn render(report: &StatusReport, accept: &str) -> (&'static str, String) {
    let tunnels = report.tunnels.iter().cloned();
    let tunnels = tunnels.map(|t| (vec![("tunnel", t.variable().to_owned())], t)).collect();
    let mut registry = Registry::default();
    let ours = registry.sub_registry_with_prefix("start_stunnel");
    ours.register_collector(Box::new(Metrics(TUNNEL, tunnels)));
    ours.register_collector(Box::new(Metrics(LAUNCHER, vec![(Vec::new(), report.clone())])));
    let process = registry.sub_registry_with_prefix("process");
    process.register_collector(Box::new(Metrics(PROCESS, vec![(Vec::new(), report.clone())])));
    let mut text = String::new();
    let (content_type, written) = match accept.contains("application/openmetrics-text") {
        true => (OPEN_METRICS, text::encode(&mut text, &registry)),
        false => (TEXT, prometheus_text::encode(&mut text, &registry)),
    };
    written.expect("writing to a String cannot fail");
    (content_type, text)
}

/// A list of metrics, and the objects whose values the metrics show: the tunnels or the launcher.
/// Each object has labels for its values.
#[derive(Debug)]
struct Metrics<T: 'static>(&'static [Metric<T>], Vec<(Labels, T)>);

impl<T: fmt::Debug + Send + Sync> Collector for Metrics<T> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (kind, name, help, read) in self.0 {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (labels, measured) in &self.1 {
                for (further, value) in read(measured) {
                    let labels = labels.iter().chain(&further);
                    let labels = labels.map(|(label, text)| (*label, printable(text))).collect();
                    encode(&mut family, *kind, &labels, &value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(
    family: &mut MetricEncoder<'_>,
    kind: MetricType,
    labels: &Labels,
    value: &Value<'_>,
) -> fmt::Result {
    match (value, kind) {
        (Number(_), MetricType::Info) => family.encode_info(labels),
        (Number(number), MetricType::Counter) => {
            family.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(number, None)
        }
        (Number(number), _) => family.encode_family(labels)?.encode_gauge(number),
        (Durations(all), _) => {
            let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(all.counts).collect();
            let (sum, count) = (all.sum.as_secs_f64(), all.count());
            let mut encoder = family.encode_family(labels)?;
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::FailureReason;
    use crate::status::tests::report;

    #[test]
    fn labels_contain_no_control_characters() {
        let mut report = report();
        report.tunnels[0].labels.variables[0] = "A\u{1b}\u{202e}B".to_owned();
        for accept in ["application/openmetrics-text", ""] {
            let (_, text) = render(&report, accept);
            assert!(text.contains("{tunnel=\"A??B\""), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        }
    }

    #[test]
    fn only_an_accept_header_with_openmetrics_gets_openmetrics() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(render(&report(), prometheus).0, OPEN_METRICS);
        for accept in ["", "*/*", "text/plain;version=0.0.4", "text/html, text/plain"] {
            assert_eq!(render(&report(), accept).0, TEXT, "{accept}");
        }
    }

    #[test]
    fn metrics_have_every_reason_and_cumulative_buckets() {
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
            r#"start_stunnel_connections_failed_total{tunnel="CACHE_URL",reason="tls_eof"} 9.0"#,
            r#"start_stunnel_connection_wait_seconds_bucket{le="0.025",tunnel="REDIS_URL"} 6"#,
            r#"start_stunnel_connection_wait_seconds_bucket{le="+Inf",tunnel="REDIS_URL"} 12"#,
            r#"start_stunnel_connection_wait_seconds_count{tunnel="REDIS_URL"} 12"#,
            r#"start_stunnel_upstream_connections_limit{tunnel="CACHE_URL"} 20.0"#,
            r#"start_stunnel_longest_wait_for_reply_seconds{tunnel="REDIS_URL"} 0.0"#,
            r#"start_stunnel_command_state{state="running"} 1.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("upstream_connections_limit{tunnel=\"REDIS_URL\""), "{text}");
    }
}
