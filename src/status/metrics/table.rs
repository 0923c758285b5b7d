//! Every metric, declared once: its name, its place in `/status.json`, its kind, its help and its
//! value. `docs/operation.md` lists the same metrics.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>. The encoder adds the suffixes that
//! a format demands, such as `_total`.

use prometheus_client::metrics::MetricType;

use crate::figures::{
    CloseReason, CommandState, Counter, FailureReason, Gauge, Handshake, Histogram, PoolResult,
    TunnelSnapshot, UpstreamState,
};
use crate::status::StatusReport;

/// A metric of a `T`: of each tunnel, or of the launcher.
pub struct Metric<T: 'static> {
    pub name: Text,
    /// The path of the value in `/status.json`: `a.b` is the member `b` of the object `a`.
    pub json: Option<Text>,
    pub kind: MetricType,
    pub help: Text,
    pub samples: Read<T>,
}

type Text = &'static str;
/// Reads a metric's value.
type Read<T> = fn(&T) -> Samples<'_>;

/// What a metric says now.
pub enum Samples<'a> {
    /// `None`: there is no value yet, so Prometheus gets no sample.
    One(Option<Value>),
    /// One value for each word of a label.
    ByWord(&'static str, Vec<(&'static str, Value)>),
    /// Nothing but labels.
    Info(Vec<(&'static str, &'a str)>),
}

pub enum Value {
    Whole(u64),
    Real(f64),
    Durations(Histogram),
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Real(value)
    }
}

impl From<&Counter> for Value {
    fn from(counter: &Counter) -> Value {
        Value::Whole(counter.get())
    }
}

impl From<&Gauge> for Value {
    fn from(gauge: &Gauge) -> Value {
        Value::Whole(gauge.get())
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Value {
        Value::Durations(histogram.clone())
    }
}

fn one(value: impl Into<Value>) -> Samples<'static> {
    Samples::One(Some(value.into()))
}

fn maybe(value: Option<impl Into<Value>>) -> Samples<'static> {
    Samples::One(value.map(Into::into))
}

/// `values` are in the order of `words`.
fn by_word<'a, const N: usize, V>(
    label: &'static str,
    words: [&'static str; N],
    values: &'a [V; N],
) -> Samples<'static>
where
    Value: From<&'a V>,
{
    let values = values.iter().map(Value::from);
    Samples::ByWord(label, words.into_iter().zip(values).collect())
}

/// Milliseconds since 1970 as seconds.
fn seconds(ms: Option<u64>) -> Samples<'static> {
    maybe(ms.map(|ms| ms as f64 / 1000.0))
}

const fn gauge<T>(name: Text, json: Text, help: Text, samples: Read<T>) -> Metric<T> {
    Metric { name, json: Some(json), kind: MetricType::Gauge, help, samples }
}

const fn counter<T>(name: Text, json: Text, help: Text, samples: Read<T>) -> Metric<T> {
    Metric { name, json: Some(json), kind: MetricType::Counter, help, samples }
}

const fn histogram<T>(name: Text, json: Text, help: Text, samples: Read<T>) -> Metric<T> {
    Metric { name, json: Some(json), kind: MetricType::Histogram, help, samples }
}

/// A metric that `/status.json` has in a form of its own.
const fn not_in_json<T>(kind: MetricType, name: Text, help: Text, samples: Read<T>) -> Metric<T> {
    Metric { name, json: None, kind, help, samples }
}

/// The metrics of each tunnel.
pub static TUNNEL: &[Metric<TunnelSnapshot>] = &[
    gauge("start_stunnel_connections_open", "connections.open", "Open app connections", |tunnel| {
        one(&tunnel.counts.open)
    }),
    counter(
        "start_stunnel_connections_accepted",
        "connections.accepted",
        "Accepted app connections",
        |tunnel| one(&tunnel.counts.accepted),
    ),
    counter(
        "start_stunnel_connections_closed",
        "connections.closed",
        "App connections that ended and did not fail, by reason",
        |tunnel| by_word("reason", CloseReason::WORDS, &tunnel.counts.closed),
    ),
    counter(
        "start_stunnel_connections_failed",
        "connections.failed",
        "App connections that got no connection to Redis, by reason",
        |tunnel| by_word("reason", FailureReason::WORDS, &tunnel.counts.failed),
    ),
    gauge(
        "start_stunnel_upstream_connections",
        "upstream_connections",
        "Connections to Redis, by state",
        |tunnel| by_word("state", UpstreamState::WORDS, &tunnel.counts.upstream),
    ),
    gauge(
        "start_stunnel_upstream_connections_limit",
        "upstream_connections.limit",
        "Maximum connections to Redis; absent without a limit",
        |tunnel| maybe(tunnel.counts.limit.get_set()),
    ),
    gauge(
        "start_stunnel_connections_waiting",
        "connections.waiting",
        "App connections waiting for a connection to Redis",
        |tunnel| one(&tunnel.counts.waiting),
    ),
    counter(
        "start_stunnel_pool_requests",
        "pool_requests",
        "Connections to Redis that app connections got, by kind",
        |tunnel| by_word("result", PoolResult::WORDS, &tunnel.counts.pool),
    ),
    histogram(
        "start_stunnel_tls_handshake_duration_seconds",
        "tls_handshakes",
        "Duration of successful TLS handshakes, by mode",
        |tunnel| by_word("mode", Handshake::WORDS, &tunnel.counts.handshakes),
    ),
    histogram(
        "start_stunnel_connection_wait_seconds",
        "connection_wait",
        "Time from accepting an app connection until Redis was ready for it",
        |tunnel| one(&tunnel.counts.connection_wait),
    ),
    histogram(
        "start_stunnel_reply_wait_seconds",
        "reply_wait",
        "Time from a request, sent while none was pending, to the first byte of its reply",
        |tunnel| one(&tunnel.counts.reply_wait),
    ),
    gauge(
        "start_stunnel_longest_wait_for_reply_seconds",
        "longest_wait_for_reply_seconds",
        "Longest time that a connection has waited for Redis's next reply",
        |tunnel| one(tunnel.longest_wait_for_reply.as_secs_f64()),
    ),
    counter(
        "start_stunnel_sent_bytes",
        "sent_bytes",
        "Bytes from the app to Redis, before TLS",
        |tunnel| one(&tunnel.counts.sent),
    ),
    counter(
        "start_stunnel_received_bytes",
        "received_bytes",
        "Bytes from Redis to the app, before TLS",
        |tunnel| one(&tunnel.counts.received),
    ),
    counter(
        "start_stunnel_max_clients_errors",
        "max_clients_errors",
        "Connections that Redis turned away, probably at its client limit",
        |tunnel| one(&tunnel.counts.max_clients),
    ),
    counter(
        "start_stunnel_accept_errors",
        "accept_errors",
        "Failed attempts to accept an app connection",
        |tunnel| one(&tunnel.counts.accept_errors),
    ),
    gauge(
        "start_stunnel_last_success_timestamp_seconds",
        "last_success",
        "When Redis last began to answer an app connection",
        |tunnel| seconds(tunnel.counts.last_success.get_set()),
    ),
    not_in_json(
        MetricType::Gauge,
        "start_stunnel_tunnel_failing",
        "1 while the tunnel fails, as /readyz reports it",
        |tunnel| one(u64::from(tunnel.failing_since.is_some())),
    ),
    gauge(
        "start_stunnel_server_certificate_expiry_timestamp_seconds",
        "certificate.expires",
        "When the server's latest certificate expires",
        |tunnel| maybe(tunnel.certificate.as_ref().map(|shown| shown.expires.max(0) as u64)),
    ),
    not_in_json(
        MetricType::Info,
        "start_stunnel_tunnel",
        "Where the tunnel leads, and its verify level",
        |tunnel| {
            let labels = &tunnel.labels;
            Samples::Info(vec![("upstream", labels.upstream.as_str()), ("verify", labels.verify)])
        },
    ),
];

/// The metrics of the launcher.
pub static LAUNCHER: &[Metric<StatusReport>] = &[
    not_in_json(
        MetricType::Gauge,
        "start_stunnel_command_state",
        "1 for COMMAND's current state",
        |report| {
            let current = report.snapshot.command.state;
            let is_current = CommandState::ALL.map(|state| u64::from(state == current).into());
            Samples::ByWord("state", CommandState::WORDS.into_iter().zip(is_current).collect())
        },
    ),
    gauge(
        "start_stunnel_command_start_time_seconds",
        "command.started",
        "When COMMAND was started",
        |report| seconds(Some(report.snapshot.command.started)),
    ),
    gauge(
        "start_stunnel_event_loop_lag_seconds",
        "event_loop_lag_seconds",
        "How long a task waited for the launcher's thread just now",
        |report| one(report.loop_lag.as_secs_f64()),
    ),
    counter(
        "start_stunnel_log_lines_dropped",
        "log_lines_dropped",
        "Log lines dropped because stderr was not read in time",
        |report| one(report.dropped_lines),
    ),
    not_in_json(MetricType::Info, "start_stunnel_build", "The launcher's version", |_| {
        Samples::Info(vec![("version", env!("CARGO_PKG_VERSION"))])
    }),
    counter(
        "process_cpu_seconds",
        "process.cpu_seconds",
        "User and system CPU time of the launcher",
        |report| maybe(report.process.cpu.map(|cpu| cpu.as_secs_f64())),
    ),
    gauge(
        "process_resident_memory_bytes",
        "process.resident_memory_bytes",
        "Resident memory of the launcher",
        |report| maybe(report.process.resident),
    ),
    gauge(
        "process_virtual_memory_bytes",
        "process.virtual_memory_bytes",
        "Virtual memory of the launcher",
        |report| maybe(report.process.virtual_memory),
    ),
    gauge(
        "process_open_fds",
        "process.open_fds",
        "File descriptors that the launcher has open",
        |report| maybe(report.process.descriptors),
    ),
    gauge(
        "process_max_fds",
        "process.max_fds",
        "Maximum file descriptors of the launcher; absent without a limit",
        |report| maybe(report.process.most_descriptors),
    ),
    gauge("process_start_time_seconds", "started", "When the launcher started", |report| {
        one(report.started)
    }),
];
