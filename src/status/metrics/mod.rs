//! Metrics for Prometheus, in its text format or in OpenMetrics, and for `/status.json`.

mod json;
mod table;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::StatusReport;
use crate::figures::{BUCKETS, TunnelSnapshot};
use crate::text::printable;
pub use json::{add_of_launcher, add_of_tunnel};
use table::{LAUNCHER, Metric, Samples, TUNNEL, Value};

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4, which every tool can read.
    Text,
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn wanted(accept: &str) -> Format {
        match accept.contains("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics of a launcher.
pub fn written(mut report: StatusReport, format: Format) -> String {
    for TunnelSnapshot { labels, .. } in &mut report.snapshot.tunnels {
        // The encoder escapes only quotes, backslashes and line ends.
        for label in labels.variables.iter_mut().chain([&mut labels.upstream]) {
            *label = printable(label);
        }
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(report)));
    let mut text = String::new();
    let written = match format {
        Format::Text => prometheus_text::encode(&mut text, &registry),
        Format::OpenMetrics => text::encode(&mut text, &registry),
    };
    written.expect("writing to a String cannot fail");
    text
}

#[derive(Debug)]
struct Metrics(StatusReport);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Metrics(report) = self;
        for metric in TUNNEL {
            let Metric { name, help, kind, .. } = metric;
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for tunnel in &report.snapshot.tunnels {
                let labels = vec![("tunnel", tunnel.variable())];
                encode(&mut family, *kind, labels, (metric.samples)(tunnel))?;
            }
        }
        for metric in LAUNCHER {
            let Metric { name, help, kind, .. } = metric;
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            encode(&mut family, *kind, Vec::new(), (metric.samples)(report))?;
        }
        Ok(())
    }
}

/// Names and values of labels.
type Labels<'a> = Vec<(&'static str, &'a str)>;

fn encode<'a>(
    family: &mut MetricEncoder<'_>,
    kind: MetricType,
    mut labels: Labels<'a>,
    samples: Samples<'a>,
) -> fmt::Result {
    match samples {
        Samples::One(None) => Ok(()),
        Samples::One(Some(value)) => encode_value(family.encode_family(&labels)?, kind, value),
        Samples::ByWord(label, values) => values.into_iter().try_for_each(|(word, value)| {
            let labels: Labels<'_> = labels.iter().copied().chain([(label, word)]).collect();
            encode_value(family.encode_family(&labels)?, kind, value)
        }),
        Samples::Info(more) => {
            labels.extend(more);
            family.encode_info(&labels)
        }
    }
}

fn encode_value(mut encoder: MetricEncoder<'_>, kind: MetricType, value: Value) -> fmt::Result {
    match (value, kind) {
        (Value::Whole(value), MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
        }
        (Value::Real(value), MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
        }
        (Value::Whole(value), _) => encoder.encode_gauge(&value),
        (Value::Real(value), _) => encoder.encode_gauge(&value),
        (Value::Durations(histogram), _) => {
            let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(histogram.counts()).collect();
            let (sum, count) = (histogram.seconds(), histogram.count());
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
    fn labels_hold_no_control_characters() {
        let mut report = report();
        report.snapshot.tunnels[0].labels.variables[0] = "A\u{1b}\u{202e}B".to_owned();
        for format in [Format::OpenMetrics, Format::Text] {
            let text = written(report.clone(), format);
            assert!(text.contains("{tunnel=\"A??B\""), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        }
    }

    #[test]
    fn open_metrics_is_served_only_to_whoever_names_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
        for accept in ["", "*/*", "text/plain;version=0.0.4", "text/html, text/plain"] {
            assert_eq!(Format::wanted(accept), Format::Text, "{accept}");
        }
    }

    #[test]
    fn reasons_start_at_zero_and_histograms_add_up() {
        let text = written(report(), Format::OpenMetrics);
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
