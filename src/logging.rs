//! Writes the log to stderr, with one line for each event, in logfmt or JSON.
//!
//! Each macro for logging has the name of a syslog level, as in `--log-level`. The crate `tracing`
//! has other names for its levels: for example, `notice!` logs at `tracing`'s level INFO. The first
//! field of every call is the name of the event: `notice!(at = "tunnel-up", listen = %address)`.
//! `docs/operation.md` lists all events.

use std::fmt;
use std::io::{self, Write};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tracing::field::{Field, Visit};
pub use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::{output, sandbox};

pub use tracing::{debug as info, error as err, info as notice, trace as debug, warn as warning};

/// The names of syslog's levels 0 to 7, and the corresponding levels of `tracing`. The launcher
/// logs no events at the levels `emerg`, `alert` and `crit`.
pub const LEVELS: [(&str, LevelFilter); 8] = [
    ("emerg", LevelFilter::OFF),
    ("alert", LevelFilter::OFF),
    ("crit", LevelFilter::OFF),
    ("err", LevelFilter::ERROR),
    ("warning", LevelFilter::WARN),
    ("notice", LevelFilter::INFO),
    ("info", LevelFilter::DEBUG),
    ("debug", LevelFilter::TRACE),
];

/// The format of each line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Logfmt,
    Json,
}

/// The level and the format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    pub level: LevelFilter,
    pub format: LogFormat,
}

/// The maximum number of log lines that wait to be written to stderr. The launcher drops further
/// lines, because a slow reader of the log must not delay the traffic.
const MOST_WAITING_LINES: usize = 4096;

/// The value of the field `logger` in each line, which distinguishes the launcher's lines from the
/// app's lines.
const LOGGER: &str = "start-stunnel";

/// The sender that passes lines to the thread that writes the log. Empty if the system refused to
/// start this thread.
static THREAD: OnceLock<NonBlocking> = OnceLock::new();

/// The number of log lines that [`THREAD`] could not write, because stderr is broken.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Returns the number of log lines that the launcher has dropped because stderr was not read in
/// time, or because stderr is broken.
pub fn dropped_lines() -> u64 {
    let unread = THREAD.get().map_or(0, |thread| thread.error_counter().dropped_lines());
    unread as u64 + UNWRITTEN.load(Ordering::Relaxed)
}

/// Starts the logging of events and panics. A separate thread writes the log. When the returned
/// guard is dropped, the guard waits until all lines are written, but at most for about a second.
/// Returns `None` if the system refuses to start the thread. In this case, each thread writes its
/// own lines.
///
/// # Panics
/// Panics if a process calls this function twice.
pub fn init(settings: LogSettings) -> Option<WorkerGuard> {
    // Hide the message of a panic here, because tracing-appender panics if the system refuses to
    // start a thread.
    panic::set_hook(Box::new(|_| ()));
    let started = panic::catch_unwind(|| {
        NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(MOST_WAITING_LINES)
            .thread_name("log")
            .finish(SandboxedStderr)
    });
    let (writer, guard) = match started {
        Ok((writer, guard)) => {
            (BoxMakeWriter::new(THREAD.get_or_init(|| writer).clone()), Some(guard))
        }
        Err(_) => (BoxMakeWriter::new(output::stderr), None),
    };
    tracing_subscriber::fmt()
        .with_max_level(settings.level)
        .event_format(Lines(settings.format))
        .with_writer(writer)
        .init();
    panic::set_hook(Box::new(log_panic));
    guard
}

/// Logs a panic as one line. The line does not contain the message of the panic, because the
/// message may quote the traffic.
///
/// Logs the first five panics, and then only the 8th, 16th, 32nd and so on, because every
/// connection may cause the same panic.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    let count = PANICS.fetch_add(1, Ordering::Relaxed) + 1;
    if count <= 5 || count.is_power_of_two() {
        let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
        err!(at = "internal-error", error = format!("start-stunnel has a defect{place}"), count);
    }
}

/// Makes the thread that writes the log enter the sandbox now. Without this call, the thread would
/// enter the sandbox only when the thread writes its next line.
pub fn enter_sandbox() {
    if let Some(mut thread) = THREAD.get().cloned() {
        // An empty text wakes the thread that writes the log, but adds nothing to the log.
        let _ = thread.write(b"");
    }
}

/// The stderr of the thread that writes the log. This thread starts before COMMAND, but the sandbox
/// begins only after COMMAND's start. So the thread calls [`sandbox::enter`] before each line.
struct SandboxedStderr;

impl Write for SandboxedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        output::stderr().write(line)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        if let Err(error) = sandbox::enter() {
            warning!(at = "sandbox-failed", error = %error);
        }
        output::stderr().write_all(line).inspect_err(|_| {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        output::stderr().flush()
    }
}

fn syslog_name(level: &Level) -> &'static str {
    let known = LEVELS.into_iter().find(|(_, known)| level == known);
    known.map_or("debug", |(name, _)| name)
}

/// A formatter that writes each log event as one line.
struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields(vec![
            ("ts", Value::from(time)),
            ("level", Value::from(syslog_name(event.metadata().level()))),
            ("logger", Value::from(LOGGER)),
        ]);
        event.record(&mut fields);
        let line = match self.0 {
            LogFormat::Logfmt => logfmt(&fields.0),
            LogFormat::Json => json(&fields.0),
        };
        writeln!(writer, "{line}")
    }
}

/// The names and values of the fields of a log event.
struct Fields(Vec<(&'static str, Value)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), Value::from(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), Value::from(value)));
    }
}

fn logfmt(fields: &[(&str, Value)]) -> String {
    let pair = |(name, value): &(&str, Value)| match value {
        Value::String(text) if is_bare(text) => format!("{name}={text}"),
        // Use JSON's quotes and escapes, because logfmt has the same quotes and escapes.
        value => format!("{name}={value}"),
    };
    fields.iter().map(pair).collect::<Vec<_>>().join(" ")
}

/// Returns true if `text` needs no quotation marks in logfmt.
fn is_bare(text: &str) -> bool {
    let special = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '=' | '\\');
    !text.is_empty() && !text.contains(special)
}

fn json(fields: &[(&str, Value)]) -> String {
    let pair = |(name, value): &(&str, Value)| format!("{}:{value}", Value::from(*name));
    format!("{{{}}}", fields.iter().map(pair).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Vec<(&'static str, Value)> {
        vec![
            ("at", Value::from("tunnel-up")),
            ("listen", Value::from("127.0.0.1:6371")),
            ("code", Value::from(7)),
            ("msg", Value::from("two \"words\"\nand = \\ more")),
            ("empty", Value::from("")),
        ]
    }

    #[test]
    fn logfmt_quotes_text_that_would_break_a_line_or_pair() {
        assert_eq!(
            logfmt(&fields()),
            concat!(
                "at=tunnel-up listen=127.0.0.1:6371 code=7 ",
                r#"msg="two \"words\"\nand = \\ more" empty="""#
            )
        );
    }

    #[test]
    fn json_line_contains_all_fields_in_order() {
        let line = json(&fields());
        assert!(line.starts_with(r#"{"at":"tunnel-up","listen":"127.0.0.1:6371","code":7,"#));
        let parsed: Value = serde_json::from_str(&line).unwrap();
        for (name, value) in fields() {
            assert_eq!(parsed[name], value);
        }
    }
}
